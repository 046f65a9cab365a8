"""Keys over REST and from the command line, against the real app and gateway on a socket, the store in memory."""

import http.client
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill.telemetry import JsonFormatter
from textmill_cli.main import app as cli
from textmill_inference.gateway.access import open_access
from textmill_inference.gateway.app import Gateway
from textmill_inference.gateway.keystore import new_secret
from textmill_inference.gateway.ports import Outcome
from textmill_inference.settings import AccessSettings, InferenceSettings

TOKEN, OWN_KEY = "control-token", new_secret()
SECRET_TEXT = "the merger is on Thursday"
MESSAGES: Any = [{"role": "user", "content": SECRET_TEXT}]


@dataclass
class OneRoute:
    """An engine, and the route that leads to it alone."""

    name: str
    url: str
    model: str = ""
    ready: bool = True
    trouble: str = ""
    in_flight: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    def choose(self, sample: float) -> "OneRoute":
        return self

    def take_shadow(self) -> None:
        return None

    def note(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def suspect(self) -> None:
        self.ready = False


@dataclass
class Service:
    url: str
    store: MemoryStore

    def call(self, method: str, path: str, body: Any = None, token: str = TOKEN) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=120)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        is_json = "json" in found.get("content-type", "")
        return answer.status, json.loads(content) if is_json else content.decode(), found

    def make(self, **fields: Any) -> tuple[str, str]:
        """A key and its id."""
        status, made, _ = self.call("POST", "/v1/keys", {"name": "app", **fields})
        assert status == 201, made
        return made["key"], made["view"]["key_id"]

    def ask(self, key: str, model: str = "small", max_tokens: int = 4) -> Any:
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0) as client:
            return client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=max_tokens)


@pytest.fixture
def make_service(engine_server: Any, serve: Callable[..., str]) -> Callable[..., Service]:
    def make(token: str = TOKEN, **settings: Any) -> Service:
        store = MemoryStore()
        inference = InferenceSettings(token=SecretStr(token))
        access = AccessSettings(**{"keys": "on", "keys_poll_s": 0.05, **settings})
        opened = open_access(inference, access, store, OWN_KEY)
        app = create_app(
            "inference",
            jobs=Jobs(store),
            kinds=("deploy",),
            checks={},
            token=inference.token,
            also=opened.keys.may_control,
        )
        app.include_router(opened.router)
        routes = {name: OneRoute(name, engine_server.url, name) for name in ("small", "law-1")}
        return Service(serve(Gateway(app, lambda: routes, opened.keys, 60.0, admission=opened.admission)), store)

    return make


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    return make_service()


def test_a_key_made_over_rest_opens_the_gateway_until_it_is_revoked(
    service: Service, waits: Callable[..., None]
) -> None:
    status, made, headers = service.call("POST", "/v1/keys", {"name": "app", "group": "team"})
    assert (status, headers["cache-control"]) == (201, "no-store")
    waits(lambda: accepted(service, made["key"]), "the new key to be seen")
    assert service.ask(made["key"]).choices[0].message.content == "Seven has six lines"
    status, revoked, _ = service.call("DELETE", f"/v1/keys/{made['view']['key_id']}")
    assert (status, revoked["revoked_at"] is not None) == (200, True)
    waits(lambda: not accepted(service, made["key"]), "its end to be seen")
    with pytest.raises(openai.AuthenticationError) as caught:
        service.ask(made["key"])
    assert caught.value.code == "invalid_api_key"


def accepted(service: Service, key: str) -> bool:
    return service.call("GET", "/v1/models", token=key)[0] == 200


def test_no_answer_but_the_first_shows_a_key(service: Service) -> None:
    key, key_id = service.make(expires_at="2099-01-01T00:00:00Z", limits={"concurrent": 2})
    for path in ("/v1/keys", f"/v1/keys/{key_id}", f"/v1/keys/{key_id}/usage", "/v1/keys?revoked=true", "/metrics"):
        status, answer, _ = service.call("GET", path)
        assert status == 200
        text = json.dumps(answer)
        assert key not in text
        assert "sha256" not in text
    assert key_id not in service.call("GET", "/metrics")[1]
    assert service.call("GET", f"/v1/keys/{key_id}")[1]["hint"] == key[:8]


def test_keys_are_listed_in_pages(service: Service) -> None:
    made = [service.make(name=str(number))[1] for number in range(3)]
    service.call("DELETE", f"/v1/keys/{made[0]}")
    first = service.call("GET", "/v1/keys?limit=2&revoked=true")[1]
    assert [view["key_id"] for view in first["items"]] == made[:2]
    second = service.call("GET", f"/v1/keys?limit=2&revoked=true&after={first['next_after']}")[1]
    assert ([view["key_id"] for view in second["items"]], second["next_after"]) == (made[2:], None)
    assert [view["key_id"] for view in service.call("GET", "/v1/keys")[1]["items"]] == made[1:]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/keys", {"name": ""}, 422),
        ("POST", "/v1/keys", {"name": "x", "key": "mine"}, 422),
        ("POST", "/v1/keys", {"name": "x", "expires_at": "2020-01-01T00:00:00Z"}, 400),
        ("GET", "/v1/keys/key_" + "0" * 32, None, 404),
        ("DELETE", "/v1/keys/key_" + "0" * 32, None, 404),
        ("GET", "/v1/keys/..%2F..%2Fjobs", None, 404),
        ("GET", "/v1/keys/nonsense", None, 422),
    ],
)
def test_nonsense_is_refused(service: Service, method: str, path: str, body: Any, status: int) -> None:
    assert service.call(method, path, body)[0] == status


def test_the_control_api_wants_its_token_or_an_admin_key(service: Service, waits: Callable[..., None]) -> None:
    plain, _ = service.make()
    admin, _ = service.make(scopes=["admin"])
    waits(lambda: service.call("GET", "/v1/keys", token=admin)[0] == 200, "the admin key to be seen")
    assert accepted(service, plain)
    assert service.call("GET", "/v1/keys", token=plain)[0] == 401
    assert service.call("GET", "/v1/keys", token="")[0] == 401
    assert service.call("GET", "/v1/models", token=admin)[0] == 403


def test_where_anybody_may_control_no_keys_are_given_out(make_service: Callable[..., Service]) -> None:
    service = make_service(token="")
    for method, path in (("POST", "/v1/keys"), ("GET", "/v1/keys"), ("DELETE", "/v1/keys/key_" + "0" * 32)):
        status, answer, _ = service.call(method, path, {"name": "x"} if method == "POST" else None)
        assert status == 401
        assert "TEXTMILL_INFERENCE_TOKEN" in answer["detail"]


def test_on_a_laptop_all_stays_open_and_keys_can_be_tried(
    make_service: Callable[..., Service], waits: Callable[..., None]
) -> None:
    service = make_service(token="", keys="auto")
    assert service.ask("none").choices[0].message.content == "Seven has six lines"
    key, _ = service.make(limits={"requests_per_minute": 1})
    waits(lambda: limited(service, key), "the key's limit to be felt")
    assert service.ask("none").choices[0].message.content == "Seven has six lines"


def limited(service: Service, key: str) -> bool:
    try:
        service.ask(key)
    except openai.RateLimitError:
        return True
    return False


def test_our_own_key_is_always_good(service: Service) -> None:
    assert service.ask(OWN_KEY).choices[0].message.content == "Seven has six lines"


def test_a_key_sees_and_asks_its_own_models_only(service: Service, waits: Callable[..., None]) -> None:
    key, _ = service.make(models=["law-*"])
    waits(lambda: accepted(service, key), "the new key to be seen")
    listed = service.call("GET", "/v1/models", token=key)[1]["data"]
    assert [model["id"] for model in listed] == ["law-1"]
    service.ask(key, "law-1")
    with pytest.raises(openai.PermissionDeniedError) as caught:
        service.ask(key, "small")
    assert caught.value.code == "model_not_allowed"


def test_a_quota_ends_in_a_429_with_retry_after_and_shows_in_usage(
    service: Service, waits: Callable[..., None]
) -> None:
    key, key_id = service.make(limits={"requests_per_minute": 3, "tokens_per_day": 10_000})
    waits(lambda: accepted(service, key), "the new key to be seen")
    for _ in range(3):
        service.ask(key)
    with pytest.raises(openai.RateLimitError) as caught:
        service.ask(key)
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 61
    # Each answer told of 5 prompt and 4 answer tokens; a client has it a moment before they are counted.
    counted = {"requests_per_minute": 3, "tokens_per_day": 27}
    waits(lambda: usage_of(service, key_id) == counted, "the answers to be counted")
    with pytest.raises(openai.BadRequestError) as too_large:
        service.ask(key, max_tokens=20_000)
    assert too_large.value.code == "request_too_large"


def usage_of(service: Service, key_id: str) -> dict[str, int]:
    return {use["quota"]: use["used"] for use in service.call("GET", f"/v1/keys/{key_id}/usage")[1]}


def test_an_answer_that_failed_costs_no_tokens(
    service: Service, engine_server: Any, waits: Callable[..., None]
) -> None:
    key, key_id = service.make(limits={"tokens_per_day": 10_000})
    waits(lambda: accepted(service, key), "the new key to be seen")
    engine_server.error_status = 400
    with pytest.raises(openai.BadRequestError):
        service.ask(key)
    waits(lambda: usage_of(service, key_id) == {"tokens_per_day": 0}, "what was set aside to be given back")


def test_neither_keys_nor_texts_are_ever_logged(
    service: Service, caplog: pytest.LogCaptureFixture, waits: Callable[..., None]
) -> None:
    with caplog.at_level(logging.DEBUG):
        key, key_id = service.make(name="Zoe's laptop", limits={"requests_per_minute": 1})
        waits(lambda: accepted(service, key), "the new key to be seen")
        service.ask(key)
        for wrong in (key, "tm-" + "x" * 43):
            with pytest.raises(openai.APIStatusError):
                service.ask(wrong)
        service.call("GET", "/v1/keys", token=TOKEN + "x")
        service.call("POST", "/v1/keys", {"name": ["Zoe's laptop"], "key": key})
        service.call("DELETE", f"/v1/keys/{key_id}")
    ours = [record for record in caplog.records if record.name.startswith(("textmill", "uvicorn", "aiohttp"))]
    assert any(record.getMessage() == "request" for record in ours)
    lines = "\n".join(JsonFormatter().format(record) for record in ours)
    for private in (key, "x" * 43, SECRET_TEXT, TOKEN, "Seven has", "Zoe"):
        assert private not in lines


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def textmill(service: Service, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("TEXTMILL_CLI_INFERENCE_URL", service.url)
    monkeypatch.setenv("TEXTMILL_CLI_TOKEN", TOKEN)
    return lambda *words: CliRunner().invoke(cli, ["keys", *words])


def test_the_command_line_makes_lists_shows_and_revokes(
    service: Service, textmill: Callable[..., Any], waits: Callable[..., None]
) -> None:
    made = textmill(
        "create", "app", "--group", "team", "--model", "law-*", "--model", "small", "--expires", "30d",
        "--tokens-per-day", "5000", "--weight", "2",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert key.startswith("tm-")
    assert "can't be shown again" in made.stderr
    waits(lambda: accepted(service, key), "the new key to be seen")
    (view,) = json.loads(textmill("list", "--json").stdout)
    assert (view["group"], view["models"], view["weight"]) == ("team", ["law-*", "small"], 2.0)
    assert "team" in textmill("list").stdout
    service.ask(key)
    used = "tokens per day: 9 of 5000 used"
    waits(lambda: used in textmill("show", view["key_id"]).stdout, "the answer to be counted")
    assert json.loads(textmill("revoke", view["key_id"], "--json").stdout)["revoked_at"] is not None
    assert json.loads(textmill("list", "--json").stdout) == []
    assert len(json.loads(textmill("list", "--revoked", "--json").stdout)) == 1
    waits(lambda: not accepted(service, key), "its end to be seen")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("create", "x", "--expires", "soon"), "write 30d"),
        (("create", "x", "--expires", "2020-01-01"), "is past"),
        (("create", "x", "--group", "Big Team"), "group"),
        (("revoke", "key_" + "0" * 32), "lists them"),
    ],
)
def test_the_command_line_says_what_is_wrong(textmill: Callable[..., Any], words: tuple[str, ...], said: str) -> None:
    done = textmill(*words)
    assert done.exit_code == 1
    assert said in done.stderr
