"""The whole service as a process, on a real store and a real broker, in front of an engine that runs elsewhere."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import openai
import pytest
from tests.ports import any_free

from textmill_cli.local import servers

pytestmark = pytest.mark.slow


def call(url, body=None, headers=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture
def service(s3_url, kafka_servers, engine_server, tmp_path, waits):
    port = any_free()
    env = {
        **os.environ,
        "TEXTMILL_STORE_URL": s3_url,
        "TEXTMILL_STORE_ACCESS_KEY": servers.ACCESS_KEY,
        "TEXTMILL_STORE_SECRET_KEY": servers.SECRET_KEY,
        "TEXTMILL_STORE_BUCKET": f"inference-{port}",
        "TEXTMILL_BUS_SERVERS": kafka_servers,
        "TEXTMILL_INFERENCE_PORT": str(port),
        "TEXTMILL_INFERENCE_ENGINES": json.dumps({"smollm2-135m": engine_server.url}),
        "TEXTMILL_INFERENCE_CACHE_DIR": str(tmp_path),
        "TEXTMILL_INFERENCE_GRACE_S": "20",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", "textmill_inference.main"], env=env)

    def answers(path):
        assert process.poll() is None, "the service ended"
        try:
            return call(url + path)[0] == 200
        except OSError:
            return False

    try:
        waits(lambda: answers("/healthz"), "the service to be up", 120)
        waits(lambda: answers("/readyz"), "the service to be ready", 60)
        yield url, process
    finally:
        process.terminate()
        assert process.wait(60) == 0


def finished(url, job_id):
    return call(f"{url}/v1/jobs/{job_id}")[1]["result"] is not None


def test_a_load_test_over_rest_from_submission_to_report(service, engine_server, waits):
    url, _ = service
    body = {"model": "smollm2-135m", "concurrencies": [1, 2], "requests_per_level": 4}
    status, view = call(f"{url}/v1/loadtests", body)
    assert status == 202
    job = view["job"]
    waits(lambda: finished(url, job["job_id"]), "the load test to end", 240)
    _, report = call(f"{url}/v1/loadtests/{job['loadtest_id']}")
    assert report["state"] == "succeeded"
    assert [level["succeeded"] for level in report["report"]["levels"]] == [4, 4]
    assert call(f"{url}/v1/loadtests")[1]["items"] == [{**report, "report": None}]
    assert len(engine_server.bodies) >= 8


def test_readiness_follows_the_base_model_and_names_it(service, engine_server, waits):
    url, _ = service
    engine_server.healthy = False
    waits(lambda: call(f"{url}/readyz")[0] == 503, "the loss to be seen")
    assert "smollm2-135m" in call(f"{url}/readyz")[1]["checks"]["base model"]
    assert call(f"{url}/v1/deployments/smollm2-135m")[1]["ready"] is False


def test_bad_requests_are_refused_before_anything_is_submitted(service):
    url, _ = service
    mdl = "mdl_" + "1" * 32
    status, problem = call(f"{url}/v1/deployments", {"name": "smollm2-135m", "model_id": mdl})
    assert (status, problem["type"]) == (400, "urn:textmill:bad_request")
    assert call(f"{url}/v1/loadtests", {"model": "m", "target_url": "ftp://x"})[0] == 400
    assert call(f"{url}/v1/evaluations/evl_x")[0] == 404
    assert call(f"{url}/v1/jobs?kind=loadtest")[1]["items"] == []


def test_sigterm_lets_a_stream_end(service, engine_server):
    url, process = service
    engine_server.words, engine_server.gap_s = ["a"] * 10, 0.1
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="smollm2-135m", messages=[{"role": "user", "content": "?"}], stream=True
        )
        chunks = [next(iter(stream))]
        process.send_signal(signal.SIGTERM)
        chunks += list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "a" * 10
