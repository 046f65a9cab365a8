"""Side files of a run: from the work folder to the store while it goes on, and back through the API."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tests.trainer.test_worker import context_of, handler, play, store  # noqa: F401 (fixtures)

from textmill.contracts.jobs import Progress, TrainJob
from textmill.errors import JobFailed
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill_trainer.api import runs_router
from textmill_trainer.mirror import Mirror
from textmill_trainer.worker import TrainHandler
from textmill_trainer.workfolder import WorkFolder

RUN = "run_" + "1" * 32
PREFIX = f"runs/{RUN}/attempt-1/"


class CountingStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.puts: list[str] = []

    def put(self, key: str, data: bytes) -> None:
        self.puts.append(key.removeprefix(PREFIX))
        super().put(key, data)


@pytest.fixture
def client() -> Iterator[tuple[TestClient, MemoryStore]]:
    memory = MemoryStore()
    jobs = Jobs(memory, ring=lambda kind, job_id: None, bury=lambda kind, value, reason: None)
    app = create_app("trainer", jobs=jobs, kinds=["train"], checks={})
    app.include_router(runs_router(memory, jobs))
    with TestClient(app) as client:
        yield client, memory


def test_a_report_is_sent_once_for_each_change(tmp_path: Path) -> None:
    folder, sent = WorkFolder(tmp_path), CountingStore()
    mirror = Mirror(folder, sent, PREFIX)
    mirror.send()
    folder.write(folder.report("masking"), Progress(stage="one"))
    mirror.send()
    mirror.send(last=True)
    folder.write(folder.report("masking"), Progress(stage="two"))
    mirror.send()
    assert sent.puts == ["reports/masking.json"] * 2
    assert json.loads(sent.get(PREFIX + "reports/masking.json"))["stage"] == "two"


def test_half_written_files_and_strangers_stay_behind(tmp_path: Path) -> None:
    folder, sent = WorkFolder(tmp_path), CountingStore()
    folder.reports.mkdir()
    for name in (".masking.json.7", ".masking.json", "notes.txt"):
        (folder.reports / name).write_text("{")
    Mirror(folder, sent, PREFIX).send(last=True)
    assert sent.puts == []


def test_a_large_file_is_sent_again_when_it_has_grown_by_a_tenth_and_at_the_end(tmp_path: Path) -> None:
    folder, sent = WorkFolder(tmp_path), CountingStore()
    mirror = Mirror(folder, sent, PREFIX)
    folder.record_losses.write_bytes(b"x" * (2 << 20))
    mirror.send()
    with folder.record_losses.open("ab") as file:
        file.write(b"y" * 1000)
    mirror.send()
    assert len(sent.puts) == 1
    mirror.send(last=True)
    assert sent.puts == ["record_losses.jsonl"] * 2
    assert sent.get(PREFIX + "record_losses.jsonl").endswith(b"y" * 1000)


def test_the_newest_attempt_that_has_a_report_answers(client: tuple[TestClient, MemoryStore]) -> None:
    http, memory = client
    for attempt, name in ((2, "masking"), (9, "masking"), (10, "masking"), (9, "forecast"), (10, "verdict")):
        memory.put(f"runs/{RUN}/attempt-{attempt}/reports/{name}.json", f'{{"attempt":{attempt}}}'.encode())
    assert http.get(f"/v1/runs/{RUN}/reports").json() == ["forecast", "masking", "verdict"]
    assert http.get(f"/v1/runs/{RUN}/reports/masking").json() == {"attempt": 10}
    assert http.get(f"/v1/runs/{RUN}/reports/forecast").json() == {"attempt": 9}


def test_what_is_not_there_is_said(client: tuple[TestClient, MemoryStore]) -> None:
    http, memory = client
    assert "no run" in http.get(f"/v1/runs/{RUN}/reports").json()["detail"]
    memory.put(f"runs/{RUN}/attempt-1/metrics.jsonl", b"")
    assert http.get(f"/v1/runs/{RUN}/reports").json() == []
    memory.put(f"runs/{RUN}/attempt-1/reports/masking.json", b"{}")
    answer = http.get(f"/v1/runs/{RUN}/reports/verdict")
    assert answer.status_code == 404
    assert "no report 'verdict'; it has: masking" in answer.json()["detail"]
    assert http.get(f"/v1/runs/{RUN}/reports/..%2Fmetrics").status_code in (404, 422)


def test_a_run_that_fails_still_leaves_its_reports(
    store: MemoryStore,  # noqa: F811
    handler: TrainHandler,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    play(monkeypatch, "fail")
    job = TrainJob(dataset_id="ds_" + "2" * 32)
    with pytest.raises(JobFailed):
        handler(job, context_of(store))
    assert json.loads(store.get(f"runs/{job.run_id}/attempt-1/reports/fake.json"))["stage"] == "reported"
    assert store.get(f"runs/{job.run_id}/attempt-1/record_losses.jsonl") == b"{}\n"
