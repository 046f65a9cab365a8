"""The gateway on a real socket, in front of a real server, asked by the official OpenAI client."""

import asyncio
import hashlib
import http.client
import json
from urllib.parse import urlsplit

import openai
import pytest
from prometheus_client import REGISTRY

MESSAGES = [{"role": "user", "content": "How many lines has hexagram 7?"}]


def client_of(gateway, key="none", **options):
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, **options)


def ask(gateway, path, body, headers=None):
    """Status, headers and bytes of one request on a bare socket."""
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=120)
    data = body if isinstance(body, bytes) else json.dumps(body)
    connection.request("POST", path, data, {"Content-Type": "application/json", **(headers or {})})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), content


def metric(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_chat_with_the_official_client(gateway):
    with client_of(gateway) as client:
        answer = client.chat.completions.create(model="small", messages=MESSAGES, temperature=0, seed=3)
    assert answer.choices[0].message.content == "Seven has six lines"
    assert gateway.engine.bodies[0] == {"model": "small", "messages": MESSAGES, "temperature": 0, "seed": 3}


def test_completions_with_the_official_client(gateway):
    with client_of(gateway) as client:
        answer = client.completions.create(model="small", prompt="How many?")
    assert answer.choices[0].text == "Seven has six lines"


def test_streaming_with_the_official_client(gateway):
    with client_of(gateway) as client:
        chunks = list(client.chat.completions.create(model="small", messages=MESSAGES, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Seven has six lines"


def test_the_async_client_streams_many_at_once(gateway):
    gateway.engine.gap_s = 0.01

    async def one(client):
        stream = await client.chat.completions.create(model="small", messages=MESSAGES, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client) for _ in range(20)))

    assert set(asyncio.run(all_of_them())) == {"Seven has six lines"}


def test_a_stream_passes_through_byte_by_byte(gateway):
    body = {"model": "small", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    status, headers, content = ask(gateway, "/v1/chat/completions", body)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert content == gateway.engine.sent
    assert content.endswith(b"data: [DONE]\n\n")


def test_the_body_reaches_the_engine_as_the_client_wrote_it(gateway):
    body = b'{ "model":"small",  "messages": [{"role":"user","content":"\\u4e03"}], "tools": [], "x_new": 1e0 }'
    status, headers, _ = ask(gateway, "/v1/chat/completions", body, {"X-Request-Id": "abc"})
    assert status == 200
    assert headers["x-request-id"] == "abc"
    assert gateway.engine.headers[0]["x-request-id"] == "abc"
    assert gateway.engine.raw_bodies == [body]


def test_models_are_listed_and_retrieved(gateway):
    with client_of(gateway) as client:
        assert [model.id for model in client.models.list()] == ["small"]
        assert client.models.retrieve("small").id == "small"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("large")


def test_an_unknown_model_is_refused_and_the_served_ones_named(gateway):
    with client_of(gateway) as client, pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="large", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "'large'" in caught.value.message
    assert "small" in caught.value.message
    assert gateway.engine.bodies == []


def test_embeddings_are_refused_clearly(gateway):
    with client_of(gateway) as client, pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="small", input="x")
    assert caught.value.code == "unsupported_endpoint"


@pytest.mark.parametrize(
    ("body", "code"), [(b"{", "invalid_json"), (b"[]", "missing_model"), (b'{"model": 3}', "missing_model")]
)
def test_a_malformed_body_is_refused(gateway, body, code):
    status, _, content = ask(gateway, "/v1/chat/completions", body)
    assert status == 400
    assert json.loads(content)["error"]["code"] == code


def test_an_error_of_the_engine_passes_through(gateway):
    gateway.engine.error_status = 422
    with client_of(gateway) as client, pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="small", messages=MESSAGES)


def test_a_healthy_engines_500_passes_through_without_a_second_try(gateway):
    gateway.engine.error_status = 500
    with client_of(gateway) as client, pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="small", messages=MESSAGES)
    assert len(gateway.engine.bodies) == 1


def test_other_paths_reach_the_control_app(gateway):
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=120)
    connection.request("GET", "/healthz")
    assert json.loads(connection.getresponse().read()) == {"status": "ok"}
    connection.close()


def test_keys_are_wanted_once_there_are_some(make_gateway):
    gateway = make_gateway(keys=(hashlib.sha256(b"sk-right").hexdigest(),))
    with client_of(gateway, key="sk-wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model="small", messages=MESSAGES)
    assert caught.value.code == "invalid_api_key"
    status, _, content = ask(gateway, "/v1/chat/completions", {"model": "small"})
    assert (status, json.loads(content)["error"]["code"]) == (401, "missing_api_key")
    with client_of(gateway, key="sk-right") as client:
        assert client.chat.completions.create(model="small", messages=MESSAGES).choices
    assert len(gateway.engine.bodies) == 1


def test_a_client_that_leaves_cancels_the_engines_work(gateway, waits):
    gateway.engine.words, gateway.engine.gap_s = ["x"] * 1000, 0.02
    with client_of(gateway) as client:
        stream = client.chat.completions.create(model="small", messages=MESSAGES, stream=True)
        next(iter(stream))
        stream.close()
    waits(lambda: gateway.engine.cancelled == 1, "the stream upstream to be cancelled")


def test_a_client_that_leaves_before_the_first_byte_cancels_too(gateway, waits):
    gateway.engine.gap_s = 5.0
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=120)
    connection.request("POST", "/v1/chat/completions", json.dumps({"model": "small", "messages": MESSAGES}))
    waits(lambda: len(gateway.engine.bodies) == 1, "the request to arrive")
    connection.close()
    waits(lambda: gateway.engine.cancelled == 1, "the request upstream to be cancelled")


def test_a_connection_lost_before_the_first_byte_is_tried_again(gateway):
    gateway.engine.refuse_next = 2
    with client_of(gateway) as client:
        assert client.chat.completions.create(model="small", messages=MESSAGES).choices
    assert gateway.upstreams["small"].suspected == 2


def test_a_connection_that_the_engine_closed_for_being_idle_is_replaced_without_suspicion(gateway):
    with client_of(gateway) as client:
        assert client.chat.completions.create(model="small", messages=MESSAGES).choices
        gateway.engine.refuse_next = 1
        assert list(client.chat.completions.create(model="small", messages=MESSAGES, stream=True))
    assert gateway.upstreams["small"].suspected == 0
    assert len(gateway.engine.bodies) == 3


def test_a_dying_engines_500_is_tried_again_once_it_is_back(gateway):
    engine, upstream = gateway.engine, gateway.upstreams["small"]
    engine.dead_next = 1

    def restart():
        engine.healthy = True

    upstream.on_suspect = restart
    with client_of(gateway) as client:
        assert client.chat.completions.create(model="small", messages=MESSAGES).choices
    assert len(engine.bodies) == 2


def test_a_request_waits_for_an_engine_that_starts(gateway):
    upstream = gateway.upstreams["small"]
    real, upstream.url = upstream.url, "http://127.0.0.1:9"

    def restart():
        upstream.url = real

    upstream.on_suspect = restart
    with client_of(gateway) as client:
        assert client.chat.completions.create(model="small", messages=MESSAGES).choices


def test_an_engine_that_stays_away_gives_503_and_when_to_come_back(make_gateway):
    gateway = make_gateway(hold_s=0.1)
    gateway.upstreams["small"].ready = False
    gateway.upstreams["small"].trouble = "starting"
    status, headers, content = ask(gateway, "/v1/chat/completions", {"model": "small", "messages": MESSAGES})
    assert status == 503
    assert int(headers["retry-after"]) >= 1
    error = json.loads(content)["error"]
    assert error["code"] == "engine_unavailable"
    assert "starting" in error["message"]


def test_a_stream_that_breaks_says_so_and_is_not_repeated(gateway):
    gateway.engine.break_after, gateway.engine.gap_s = 2, 0.02
    with client_of(gateway) as client, pytest.raises(openai.APIError, match="in the middle"):
        list(client.chat.completions.create(model="small", messages=MESSAGES, stream=True))
    assert len(gateway.engine.bodies) == 1


def test_requests_tokens_and_first_tokens_are_counted(make_gateway, waits):
    gateway = make_gateway(name="counted")
    body = {"model": "counted", "messages": MESSAGES}
    ask(gateway, "/v1/chat/completions", body)
    ask(gateway, "/v1/chat/completions", {**body, "stream": True, "stream_options": {"include_usage": True}})
    labels = {"route": "chat", "model": "counted", "group": "open"}
    # A client has the whole of an answer a moment before it is counted.
    waits(lambda: metric("textmill_gateway_requests_total", status="200", **labels) == 2, "both to be counted")
    assert metric("textmill_gateway_tokens_total", kind="completion", **labels) == 8
    assert metric("textmill_gateway_time_to_first_token_seconds_count", **labels) == 1
    assert metric("textmill_gateway_requests_in_flight", **labels) == 0


def test_names_that_clients_invent_make_no_new_metric(gateway):
    ask(gateway, "/v1/chat/completions", {"model": "invented-name", "messages": MESSAGES})
    assert (
        metric("textmill_gateway_requests_total", route="chat", model="invented-name", group="open", status="404") == 0
    )
    assert metric("textmill_gateway_requests_total", route="chat", model="", group="open", status="404") >= 1
