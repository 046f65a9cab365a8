"""The wheel as it runs: inference, ingest and synth as processes, on a real store and a real broker."""

import json
import os
import subprocess
import sys

import openai
import pytest
from tests.ports import any_free

from textmill.store import S3Store
from textmill_cli.local import servers

pytestmark = pytest.mark.slow


@pytest.fixture
def services(s3_url, s3_store, kafka_servers, engine_server, tmp_path):
    """Starts the three; gives the environment that the command line needs to find them."""
    ports = {name: any_free() for name in ("inference", "ingest", "synth")}
    env = {
        **os.environ,
        "TEXTMILL_STORE_URL": s3_url,
        "TEXTMILL_STORE_ACCESS_KEY": servers.ACCESS_KEY,
        "TEXTMILL_STORE_SECRET_KEY": servers.SECRET_KEY,
        "TEXTMILL_STORE_BUCKET": s3_store._bucket,
        "TEXTMILL_BUS_SERVERS": kafka_servers,
        "TEXTMILL_INFERENCE_ENGINES": json.dumps({"smollm2-135m": engine_server.url}),
        "TEXTMILL_INFERENCE_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "COLUMNS": "160",
    }
    for name, port in ports.items():
        env |= {f"TEXTMILL_{name.upper()}_PORT": str(port), f"TEXTMILL_{name.upper()}_GRACE_S": "5"}
        env[f"TEXTMILL_CLI_{name.upper()}_URL"] = f"http://127.0.0.1:{port}"
    running = [subprocess.Popen([sys.executable, "-m", f"textmill_{name}.main"], env=env) for name in ports]
    yield env
    for process in running:
        process.terminate()
    assert [process.wait(60) for process in running] == [0, 0, 0]


def test_a_correction_becomes_a_training_record_through_the_real_bus(services, s3_store: S3Store, waits):
    def textmill(*words):
        command = [sys.executable, "-m", "textmill_cli.main", *words]
        done = subprocess.run(command, env=services, capture_output=True, text=True, timeout=240)
        print(f"$ textmill {' '.join(words)}\n{done.stdout}{done.stderr}")
        return done

    waits(lambda: textmill("traffic", "log").returncode == 0, "the service to be up", 90)
    chat = openai.OpenAI(base_url=f"{services['TEXTMILL_CLI_INFERENCE_URL']}/v1", api_key="x")

    def ask(question):
        messages = [{"role": "user", "content": question}]
        return chat.chat.completions.with_raw_response.create(model="smollm2-135m", messages=messages).headers[
            "x-request-id"
        ]

    def logged():
        done = textmill("traffic", "show", "--json")
        return {exchange["request_id"] for exchange in json.loads(done.stdout)}

    waits(lambda: bool(ask("Is it on?")) and bool(logged()), "the log to be on", 60)
    request_id = ask("How many lines has a hexagram?")
    waits(lambda: request_id in logged(), "the question to be logged", 60)
    assert textmill("traffic", "feedback", request_id, "--answer", "A hexagram has six lines.").returncode == 0
    done = textmill("traffic", "harvest", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["taken"] == {"corrected": 1}
    manifest = json.loads(s3_store.get(f"datasets/{made['dataset_id']}/manifest.json"))
    assert manifest["records"]["train"] == 1
    assert manifest["document_ids"] == [made["document_id"]]
    assert textmill("traffic", "trace").returncode == 0
    assert textmill("traffic", "delete", request_id).returncode == 0
    assert request_id not in logged()
