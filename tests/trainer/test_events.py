"""A run's events: replayed from any step, live, across attempts, to the end; and cheap for many clients."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest
from fastapi.testclient import TestClient

from textmill.contracts.jobs import Output, TrainJob
from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill.errors import BadRequest, DependencyDown, NotFound
from textmill.feeds import Feed
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore, ObjectInfo
from textmill_trainer.api import runs_router
from textmill_trainer.events import RunTail, parse_event_id, run_feeds
from textmill_trainer.runstore import RunStore

START = (0, -1)
EVERY_S = 0.005


class WatchedStore(MemoryStore):
    """Counts what is read, and can be down."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = 0
        self.bytes_read = 0
        self.down = False

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        if self.down:
            raise DependencyDown("restarting")
        if prefix.endswith("/attempt-"):
            self.listed += 1
        return super().list(prefix, after)

    def get_range(self, key: str, start: int, end: int) -> bytes:
        data = super().get_range(key, start, end)
        self.bytes_read += len(data)
        return data


class Training:
    """A run that a test moves on by hand."""

    def __init__(self) -> None:
        self.store = WatchedStore()
        self.jobs = Jobs(self.store)
        self.job = TrainJob(dataset_id="ds_" + "1" * 32)
        self.run_id = self.job.run_id
        self.jobs.submit(self.job)
        self.feeds = run_feeds(self.store, self.jobs, EVERY_S)
        self._lines: list[bytes] = []
        self._attempt = 0

    def attempt(self, resumed_lines: int = 0) -> None:
        self._attempt += 1
        self._lines = self._lines[:resumed_lines]
        RunStore(self.store, self.run_id, self._attempt).name_job(self.job.job_id)

    def step(self, number: int, loss: float = 1.0) -> None:
        self._add(
            StepMetrics(
                step=number, epoch=0.5, loss=loss, learning_rate=1e-3, gradient_norm=2.0, tokens=3, tokens_per_s=4.0,
                seconds=5.0, memory_bytes=6,
            )
        )  # fmt: skip

    def evaluation(self, number: int) -> None:
        self._add(EvalMetrics(step=number, epoch=0.5, eval_loss=3.0))

    def half_a_line(self) -> None:
        self.store.put(self._key, b"".join(self._lines) + b'{"schema_version":1,"kind":"st')

    def end(self) -> None:
        attempt = self.jobs.claim("train", self.job.job_id, "worker")
        assert attempt is not None
        self.jobs.succeed(attempt, Output(manifest_key="models/m/manifest.json", manifest={}))

    async def open(self, position: tuple[int, int] = START) -> AsyncIterator[bytes]:
        return self.feeds.follow(await self.feeds.open(self.run_id), position)

    @property
    def _key(self) -> str:
        return RunStore(self.store, self.run_id, self._attempt).metrics_key

    def _add(self, metric: StepMetrics | EvalMetrics) -> None:
        self._lines.append(metric.to_json() + b"\n")
        self.store.put(self._key, b"".join(self._lines))


@pytest.fixture
def training() -> Training:
    training = Training()
    training.attempt()
    return training


def ids(frames: bytes) -> list[str]:
    return [line[4:] for line in frames.decode().splitlines() if line.startswith("id: ")]


async def all_of(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([frames async for frames in stream])


def test_the_whole_run_then_its_end(training: Training) -> None:
    training.evaluation(0)
    for number in (1, 2):
        training.step(number, loss=float(number))
    training.evaluation(2)
    training.evaluation(2)
    training.end()
    text = asyncio.run(read_all(training)).decode()
    assert ids(text.encode()) == ["0", "1", "2", "2.1", "2.2"]
    frames = [dict(line.split(": ", 1) for line in f.splitlines()) for f in text.strip().split("\n\n")]
    assert [f["event"] for f in frames] == ["eval", "step", "step", "eval", "eval", "end"]
    step = json.loads(frames[2]["data"])
    assert (step["loss"], step["learning_rate"], step["gradient_norm"], step["tokens_per_s"], step["memory_bytes"]) == (
        2.0, 1e-3, 2.0, 4.0, 6,
    )  # fmt: skip
    assert json.loads(frames[3]["data"])["eval_loss"] == 3.0
    assert json.loads(frames[-1]["data"]) == {"state": "succeeded"}


async def read_all(training: Training, position: tuple[int, int] = START) -> bytes:
    return await all_of(await training.open(position))


@pytest.mark.parametrize(
    ("position", "expected"),
    [((2, -1), ["2", "2.1", "3"]), ((2, 0), ["2.1", "3"]), ((2, 1), ["3"]), ((3, 0), []), ((9, -1), [])],
)
def test_replay_starts_anywhere(training: Training, position: tuple[int, int], expected: list[str]) -> None:
    for number in (1, 2, 3):
        training.step(number)
        if number == 2:
            training.evaluation(2)
    training.end()
    assert ids(asyncio.run(read_all(training, position))) == expected


def test_it_goes_on_live_and_a_half_written_line_waits(training: Training) -> None:
    async def play() -> list[bytes]:
        stream = await training.open()
        training.step(1)
        seen = [await anext(stream)]
        training.step(2)
        training.half_a_line()
        seen.append(await anext(stream))
        training.step(3)
        seen.append(await anext(stream))
        training.end()
        return [*seen, await all_of(stream)]

    seen = asyncio.run(play())
    assert [ids(frames) for frames in seen] == [["1"], ["2"], ["3"], []]
    assert b'event: end\ndata: {"state": "succeeded"}' in seen[-1]


def test_a_resumed_run_repeats_no_step(training: Training) -> None:
    """Attempt 1 came to step 3 and had a checkpoint at step 1; attempt 2 does steps 2 and 3 again."""

    async def play() -> list[bytes]:
        for number in (1, 2, 3):
            training.step(number)
        stream = await training.open()
        seen = [await anext(stream)]
        training.attempt(resumed_lines=1)
        training.step(2)
        await asyncio.sleep(10 * EVERY_S)
        training.step(3)
        training.step(4)
        seen.append(await anext(stream))
        training.end()
        return [*seen, await all_of(stream), await all_of(await training.open())]

    seen = asyncio.run(play())
    assert [ids(frames) for frames in seen] == [["1", "2", "3"], ["4"], [], ["1", "2", "3", "4"]]


def test_an_attempt_that_was_not_looked_at_until_it_was_ahead(training: Training) -> None:
    async def play() -> bytes:
        training.step(1, loss=7.0)
        stream = await training.open()
        await anext(stream)
        training.attempt()
        training.step(1, loss=8.12345678)
        training.step(2)
        training.end()
        return await all_of(stream) + await all_of(await training.open())

    text = asyncio.run(play())
    assert ids(text) == ["2", "1", "2"]
    assert b"8.12345678" in text


def test_what_is_uploaded_just_before_the_end_is_not_lost(training: Training) -> None:
    """The reader has found nothing new; then the worker uploads the last step and ends the job; then the reader asks
    how the job is."""

    class Late(RunTail):
        def _ended(self) -> str | None:
            training.step(2)
            training.end()
            return super()._ended()

    async def play() -> list[str]:
        training.step(1)
        feed = Feed(training.run_id, Late(training.store, training.jobs, training.run_id), EVERY_S)
        await feed.look()
        return ids(await all_of(training.feeds.follow(feed, START)))

    assert asyncio.run(play()) == ["1", "2"]


def test_a_hundred_clients_cost_one_reader(training: Training) -> None:
    async def play() -> list[bytes]:
        training.step(1)
        streams = [await training.open() for _ in range(100)]
        first = await asyncio.gather(*(anext(s) for s in streams))
        listed = training.store.listed
        training.step(2)
        second = await asyncio.gather(*(anext(s) for s in streams))
        # One look or a few until the step was seen, and none for each client.
        assert training.store.listed - listed < 20
        assert training.store.bytes_read < 150 * 1000 * 2
        training.end()
        rest = await asyncio.gather(*(all_of(s) for s in streams))
        return [a + b + c for a, b, c in zip(first, second, rest, strict=True)]

    assert {tuple(ids(frames)) for frames in asyncio.run(play())} == {("1", "2")}


def test_only_what_is_new_is_read(training: Training) -> None:
    async def play() -> int:
        for number in range(1, 200):
            training.step(number)
        stream = await training.open()
        await anext(stream)
        before = training.store.bytes_read
        training.step(200)
        assert ids(await anext(stream)) == ["200"]
        training.end()
        await all_of(stream)
        return training.store.bytes_read - before

    assert asyncio.run(play()) < 1_000


def test_the_stream_outlives_a_restart_of_the_store(training: Training) -> None:
    async def play() -> bytes:
        training.step(1)
        stream = await training.open()
        await anext(stream)
        training.store.down = True
        await asyncio.sleep(5 * EVERY_S)
        training.store.down = False
        training.step(2)
        training.end()
        return await all_of(stream)

    frames = asyncio.run(play())
    assert ids(frames) == ["2"]
    assert b"event: end" in frames


def test_nobody_is_followed_for_nobody(training: Training) -> None:
    async def play() -> None:
        training.step(1)
        stream = await training.open()
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        async with asyncio.timeout(60):
            while len(asyncio.all_tasks()) > 1:  # a look may be under way
                await asyncio.sleep(EVERY_S)
        listed = training.store.listed
        await asyncio.sleep(5 * EVERY_S)
        assert training.store.listed == listed

    asyncio.run(play())


def test_a_reader_that_breaks_ends_the_stream_without_an_end_event(training: Training) -> None:
    async def play() -> bytes:
        training.step(1)
        stream = await training.open()
        await anext(stream)
        training.store.put(RunStore(training.store, training.run_id, 2).metrics_key, b"not json\n")
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        return await all_of(stream)

    assert asyncio.run(play()) == b""


def test_a_run_nobody_began_is_not_found() -> None:
    training = Training()
    with pytest.raises(NotFound, match="nobody has begun"):
        asyncio.run(read_all(training))


@pytest.mark.parametrize(("text", "position"), [("40", (40, 0)), ("40.2", (40, 2)), ("0", (0, 0))])
def test_event_ids(text: str, position: tuple[int, int]) -> None:
    assert parse_event_id(text) == position


@pytest.mark.parametrize("text", ["", "x", "-1", "1.", "1.2.3", "9" * 40, "1\n"])
def test_ids_that_are_none_of_ours(text: str) -> None:
    with pytest.raises(BadRequest, match="no id of these events"):
        parse_event_id(text)


def test_over_http(training: Training) -> None:
    for number in (1, 2, 3):
        training.step(number)
    training.end()
    app = create_app("trainer", jobs=training.jobs, kinds=["train"], checks={})
    app.include_router(runs_router(training.store, training.jobs))
    path = f"/v1/runs/{training.run_id}/events"
    with TestClient(app) as http:
        whole = http.get(path)
        assert whole.headers["content-type"].startswith("text/event-stream")
        assert ids(whole.content) == ["1", "2", "3"]
        assert ids(http.get(path, params={"from_step": 2}).content) == ["2", "3"]
        assert ids(http.get(path, params={"from_step": 1}, headers={"Last-Event-ID": "2"}).content) == ["3"]
        assert http.get(path, headers={"Last-Event-ID": "soon"}).status_code == 400
        assert http.get(path, params={"from_step": -1}).status_code == 422
        assert http.get("/v1/runs/run_" + "9" * 32 + "/events").status_code == 404
