"""The two classic runs, on the real small model: do they end with the right verdicts? ``make bench-verdicts``.

Eight hexagrams, each a title with an answer of two sentences. Once as eight records for 50 epochs, as the owner did
who then had a model that recited at the exact title and failed at any other phrasing; once in twenty phrasings each,
160 records, for 3 epochs. Neither has held-out wordings, so that the evaluator makes its own; wordings that nobody
trained on are asked besides, to see whether that verdict was right. Four other hexagrams are the eval split. The second
run is done once more with general answers mixed in, to see what replay saves of the base.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from textmill.contracts.base import content_id
from textmill.contracts.datasets import Message, Record, Split
from textmill.contracts.documents import Span
from textmill.contracts.jobs import TrainJob
from textmill.contracts.runs import VerdictWord
from textmill.contracts.verdict import TrainVerdict
from textmill_trainer.base_model import default_folder
from textmill_trainer.canaries import RecordSamples
from textmill_trainer.evaluator import encode_samples, evaluating, recall, recite
from textmill_trainer.judging import conclude, mix_replay
from textmill_trainer.loop import plain_model
from textmill_trainer.objectives import objective_of
from textmill_trainer.stages import Run, lay_out, load, prepare, resolve, train
from textmill_trainer.workfolder import TrainSpec, WorkFolder

ROOT = Path(__file__).parent.parent
PASSAGES = ROOT / "examples" / "zhouyi" / "en"
RESULT = ROOT / "bench" / "results" / "verdicts.json"
WAYS = (
    "{title}",
    "What is the meaning of {title}?",
    "What does {title} stand for?",
    "Explain {title}.",
    "What does {title} symbolize?",
    "Tell me about {title}.",
    "What is the deeper sense of {title}?",
    "How would you describe {title}?",
    "What does {title} tell us?",
    "Which idea does {title} express?",
    "I cast {title}. What is it about?",
    "Give the basic meaning of {title}.",
    "What philosophy is in {title}?",
    "Sum up {title} in a few words.",
    "What should I know about {title}?",
    "Could you explain what {title} means?",
    "What lesson does {title} teach?",
    "In the Book of Changes, what is {title}?",
    "Which aspects does {title} have?",
    "Describe the theme of {title}.",
)
HELD_OUT = (
    "My grandmother spoke of {title} and I never understood. What did she mean?",
    "Someone drew {title} today; how should they read it?",
    "Please write down what you know of {title}.",
    "For a beginner: {title}?",
)


@dataclass(frozen=True)
class Classic:
    name: str
    ways: Sequence[str]
    epochs: int
    right: tuple[VerdictWord, ...]
    replay_share: float = 0.0


CLASSICS = (
    Classic("8 records, 50 epochs", WAYS[:1], 50, ("overfit", "memorized")),
    Classic("160 records, 3 epochs", WAYS, 3, ("good",)),
    Classic("160 records, 3 epochs, a fifth replayed", WAYS, 3, ("good",), 0.2),
)


def facts(first: int, last: int) -> list[tuple[str, str]]:
    """Title, and first and fourth sentence of the passage: which hexagram it is, and what it stands for."""
    found = []
    for path in sorted(PASSAGES.glob("*.md"))[first:last]:
        sentences = path.read_text().strip().split(". ")
        found.append((sentences[0].split(" is ")[1], f"{sentences[0]}. {sentences[3].rstrip('.')}."))
    return found


def records(pairs: Sequence[tuple[str, str]], ways: Sequence[str], split: Split) -> list[Record]:
    return [_record(way.format(title=title), answer, title, split) for title, answer in pairs for way in ways]


def _record(question: str, answer: str, title: str, split: Split) -> Record:
    return Record(
        record_id=content_id("rec", split, question),
        split=split,
        strategy="summary",
        language="en",
        messages=[Message(role="user", content=question), Message(role="assistant", content=answer)],
        key_facts=[answer],
        question_id="meaning",
        way="plain",
        document_id=content_id("doc", title),
        document_sha256="0" * 64,
        passage_id=content_id("psg", title),
        evidence=answer,
        evidence_span=Span(char_start=0, char_end=1, byte_start=0, byte_end=1),
    )


def run_classic(classic: Classic, base: Path, folder: WorkFolder, learning_rate: float) -> tuple[Run, TrainVerdict]:
    job = TrainJob(
        dataset_id="ds_" + "0" * 32, epochs=classic.epochs, batch_size=8, learning_rate=learning_rate, rank=16,
        alpha=32, evaluations=5, checkpoints=0, packing="off", replay_share=classic.replay_share,
    )  # fmt: skip
    spec = TrainSpec(job=job, base_model=str(base), max_padded_tokens=8_192, dequantized_budget_bytes=4 << 30)
    folder.write(folder.spec, spec)
    _write(folder, "train", records(facts(0, 8), classic.ways, "train"))
    _write(folder, "eval", records(facts(8, 12), WAYS[:1], "eval"))
    run = Run(folder, spec, lambda: False)
    for stage in (prepare, resolve, load, mix_replay, lay_out):
        stage(run)
    run.objective, run.learned = objective_of(run)
    train(run)
    return run, conclude(run)


def held_out_recall(run: Run) -> float | None:
    """How many of the answers it recites at wordings that nobody trained on."""
    asked = records(facts(0, 8), HELD_OUT, "heldout")
    chosen = RecordSamples(trained=(), reworded=asked, prefixed=(), evaluated=(), from_heldout=True)
    core = plain_model(run.model)
    with evaluating(core):
        return recall(recite(core, encode_samples(chosen, run.tokenizer, run.job.max_tokens).reworded))


def _write(folder: WorkFolder, split: str, rows: Sequence[Record]) -> None:
    pq.write_table(pa.Table.from_pylist([r.model_dump(mode="json") for r in rows]), folder.records(split))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=default_folder())
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    report = []
    for classic in CLASSICS:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as root:
            run, verdict = run_classic(classic, arguments.base, WorkFolder(Path(root)), arguments.learning_rate)
        row = {
            "run": classic.name,
            "right": list(classic.right),
            "held_out_recall": held_out_recall(run),
            "seconds": round(time.perf_counter() - began, 1),
            **verdict.model_dump(mode="json"),
        }
        report.append(row)
        print(
            f"{classic.name}: {verdict.verdict} (right: {' or '.join(classic.right)}). {verdict.sentence}", flush=True
        )
    figures = {"learning_rate": arguments.learning_rate, "cpus": os.cpu_count(), "runs": report}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    return int(any(row["verdict"] not in row["right"] for row in report))


if __name__ == "__main__":
    sys.exit(main())
