"""What bench/synth.py runs against: a real SeaweedFS, ``textmill fault-llm``, corpora, and synth's worker process.

With more than one core the worker has the first to itself and all else shares the others.
"""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cores import on

from textmill.contracts.base import content_id, new_id
from textmill.contracts.datasets import DatasetManifest
from textmill.contracts.documents import CorpusManifest, Document, Encoding, Passage, Span
from textmill.contracts.jobs import SynthJob
from textmill.contracts.synthesis import Question, QuestionSet
from textmill.errors import DependencyDown
from textmill.store import ObjectStore, S3Store
from textmill_cli.local import servers
from textmill_cli.local.ports import any_free
from textmill_cli.local.wait import wait_until

BENCH = Path(__file__).resolve().parent
CORES = sorted(os.sched_getaffinity(0))
WORKER_CORES, SERVER_CORES = set(CORES[:1]), set(CORES[1:] or CORES)
_SYLLABLES = ("ba", "ker", "mo", "lin", "tas", "du", "vel", "shan", "or", "pi", "gra", "wen", "zu", "hol", "fe")
_WORDS = re.findall(
    r"\w+",
    """
    amber anchor arch barley basin bell birch bridge canal cedar chalk clay cloth copper cord crane dune ember
    fern flint forge frost glass grain gravel harbour hedge hinge iron ivory kiln lamp lantern larch ledge linen
    loom marble marsh meadow mortar oak orchard paper pebble pine plough quarry reed ridge rope sail salt sand
    shingle silk slate spindle spring stone stream thatch timber tower vault wax well wharf wheel willow wool
    """,
)


@dataclass(frozen=True)
class Store:
    url: str
    bucket: str

    def open(self) -> S3Store:
        return S3Store(**self.arguments())

    def arguments(self) -> dict[str, str]:
        return {
            "url": self.url,
            "access_key": servers.ACCESS_KEY,
            "secret_key": servers.SECRET_KEY,
            "bucket": self.bucket,
        }


@contextmanager
def object_store(folder: Path) -> Iterator[Store]:
    port = any_free()
    child = servers.object_store(folder / "store", port, folder / "store.log")
    with on(SERVER_CORES):
        child.start()
    store = Store(f"http://127.0.0.1:{port}", "bench")
    try:
        wait_until(lambda: _ready(store), 60, f"SeaweedFS (its log is {child.log_file})")
        yield store
    finally:
        child.kill()


def _ready(store: Store) -> bool:
    try:
        store.open().ensure_bucket()
    except DependencyDown:
        return False
    return True


@dataclass(frozen=True)
class FaultLlm:
    url: str

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url.removesuffix('/v1')}/stats", timeout=30) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def count_anew(self) -> None:
        request = urllib.request.Request(f"{self.url.removesuffix('/v1')}/stats", method="DELETE")
        urllib.request.urlopen(request, timeout=30).close()


@contextmanager
def fault_llm(**options: float) -> Iterator[FaultLlm]:
    """``textmill fault-llm`` with these options, e.g. ``rate_500=0.1``."""
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "textmill_cli.main", "fault-llm", "--port", "0", *flags]
    with on(SERVER_CORES):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield FaultLlm(process.stdout.readline().split()[-1])
    finally:
        process.kill()
        process.wait()


def passages(count: int, first: int = 0) -> list[str]:
    """Three sentences each, on a subject with a name that no other has. The same number gives the same text."""
    return [_passage(n) for n in range(first, first + count)]


def subject(n: int) -> str:
    digits = []
    for _ in range(5):
        n, digit = divmod(n, len(_SYLLABLES))
        digits.append(_SYLLABLES[digit])
    return "".join(digits).capitalize()


def _passage(n: int) -> str:
    pick = random.Random(n)
    words = [pick.choice(_WORDS) for _ in range(9)]
    return (
        f"{subject(n)} stands for the {words[0]} {words[1]} behind the {words[2]}. "
        f"It was built of {words[3]} and {words[4]} in {pick.randrange(1200, 1990)}. "
        f"Its {words[5]} keeps {pick.randrange(12, 990)} loads of {words[6]} near the {words[7]} {words[8]}."
    )


def put_corpus(store: ObjectStore, documents: Sequence[Sequence[str]]) -> str:
    """One document for each list of passages. Returns the corpus id."""
    corpus_id = new_id("cor")
    placed = [passage for texts in documents for passage in _put_document(store, texts)]
    key = f"corpora/{corpus_id}/passages.jsonl"
    store.put(key, b"".join(passage.to_json() + b"\n" for passage in placed))
    manifest = CorpusManifest(
        corpus_id=corpus_id,
        document_ids=list(dict.fromkeys(passage.document_id for passage in placed)),
        passages_key=key,
        passages=len(placed),
        characters=sum(len(passage.text) for passage in placed),
        languages={"en": len(placed)},
    )
    store.put(f"corpora/{corpus_id}/manifest.json", manifest.to_json())
    return corpus_id


def _put_document(store: ObjectStore, texts: Sequence[str]) -> Iterator[Passage]:
    data = "\n\n".join(texts).encode()
    sha256 = hashlib.sha256(data).hexdigest()
    document = Document(
        document_id=content_id("doc", sha256),
        sha256=sha256,
        size_bytes=len(data),
        name=f"{sha256[:8]}.txt",
        media_type="text/plain",
        encoding=Encoding(name="utf-8", method="declared", confidence=1.0),
    )
    store.put(document.raw_key, data)
    store.put(f"documents/{document.document_id}.json", document.to_json())
    start = byte_start = 0
    for index, text in enumerate(texts):
        end, byte_end = start + len(text), byte_start + len(text.encode())
        yield Passage(
            passage_id=content_id("pas", sha256, str(index)),
            document_id=document.document_id,
            document_sha256=sha256,
            index=index,
            text=text,
            language="en",
            heading=text.split()[0],
            span=Span(char_start=start, char_end=end, byte_start=byte_start, byte_end=byte_end),
            exact=True,
        )
        start, byte_start = end + 2, byte_end + 2


QUESTION = "What does {subject} stand for?"
_QUESTIONS = QuestionSet(
    language="en",
    subject=r"^(?P<subject>\w+) stands for",
    questions=(Question(id="meaning", key=r"stands for (?P<key>[^.]+)\.", ask=(QUESTION,)),),
)


def one_call_a_passage(corpus_id: str) -> SynthJob:
    """One question on each passage in one wording, so one record a passage, as the peers make. No second way."""
    return SynthJob(corpus_id=corpus_id, strategies=("qa",), question_sets=(_QUESTIONS,), extractive_fallback=False)


@dataclass(frozen=True)
class Done:
    """What the worker process told of one job. ``rss_mb`` is the process's largest so far."""

    seconds: float
    cpu_s: float
    rss_mb: float
    manifest: DatasetManifest


class Worker:
    """Synth's handler in a process on a core of its own. A context manager: leaving it kills what still runs."""

    def __init__(self, store: Store, settings: dict[str, object], attempt: int = 1) -> None:
        settings = {"response_mode": "json", **settings}
        self._task = {"store": store.arguments(), "settings": settings, "attempt": attempt}

    def __enter__(self) -> "Worker":
        self._log = tempfile.TemporaryFile()
        command = [sys.executable, str(BENCH / "synth_worker.py")]
        with on(WORKER_CORES):
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
            )
        self._send(json.dumps(self._task))
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()
        self._log.close()

    def start(self, job: SynthJob) -> None:
        self._send(job.model_dump_json())

    def result(self) -> Done:
        """Wait for the end of the job that was started."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"synth failed:\n{self._log.read()[-4000:].decode()}")
        news = json.loads(line)
        return Done(**news | {"manifest": DatasetManifest.model_validate(news["manifest"])})

    def do(self, job: SynthJob) -> Done:
        self.start(job)
        return self.result()

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
