"""What each check and each way of asking buys: train the demo's small model with and without it, and ask both.

    python bench/ablation.py [--hexagrams 8] [--steps 81]

First the yield: every strategy that the small model can serve. Then one training a
variant, all with the same seed and the same number of steps, on the same facts; only the rows differ. Each tuned model
is asked every fact in wordings that no variant was trained on: the owner's held-out ones, and further ones for each
axis. Writes ``bench/results/ablation.json`` and ``docs/ablation.md``. Takes about half an hour on two quiet cores.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import synth_world as world
import yaml

from textmill.contracts.base import content_id
from textmill.contracts.datasets import Axis, DatasetManifest, Record, Reject
from textmill.contracts.jobs import SynthJob, TrainJob
from textmill.contracts.synthesis import AskingOptions, QuestionSet
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_cli.local.ports import any_free
from textmill_cli.local.wait import wait_until
from textmill_inference.engine.process import GuardedProcess
from textmill_inference.engine.vllm_launcher import VllmLauncher
from textmill_inference.evaluation.score import is_correct
from textmill_synth.export import ParquetFile
from textmill_synth.sentences import first_sentence
from textmill_synth.settings import SynthSettings
from textmill_synth.stored import StoredDatasets
from textmill_synth.worker import SynthHandler
from textmill_trainer.base_model import default_folder, ensure_base_model
from textmill_trainer.workfolder import TrainResult, TrainSpec, WorkFolder

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "zhouyi"
MODEL = "smollm2-135m"
AXES: tuple[Axis, ...] = ("register", "keyword", "typo", "persona", "indirect")
PLAIN_WORDINGS = 6
"""Of the owner's wordings in every variant, so that what is added or left out shows."""
AXIS_WORDINGS = 4
BATCH = 8


@dataclass(frozen=True)
class Variant:
    name: str
    records: Sequence[Record]


@dataclass
class Outcome:
    """How one variant ended. ``right`` and ``asked`` are by kind of held-out wording."""

    name: str
    rows: int
    final_loss: float
    seconds: float
    right: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def accuracy(self, kind: str | None = None) -> float:
        kinds = [kind] if kind else list(self.asked)
        return sum(self.right.get(k, 0) for k in kinds) / max(1, sum(self.asked[k] for k in kinds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hexagrams", type=int, default=8)
    parser.add_argument("--steps", type=int, default=81)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/ablation.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/ablation.md")
    options = parser.parse_args()
    began = time.monotonic()
    base = ensure_base_model(default_folder())
    store = MemoryStore()
    with vllm(base) as url:
        yields = measure_yields(store, url)
        variants, questions = make_variants(store, url, options.hexagrams)
    outcomes: list[Outcome] = []
    for variant in variants:
        outcomes.append(train_and_ask(variant, questions, base, options.steps))
        print(f"{variant.name}: {outcomes[-1].accuracy():.0%} of {sum(outcomes[-1].asked.values())}", flush=True)
    report(outcomes, yields, options, time.monotonic() - began)
    return 0


# -- the data ----------------------------------------------------------------------------------------------------------


@contextmanager
def vllm(base: Path) -> Iterator[str]:
    """The small model, served as local mode does, and ended with this process however that ends. Yields the URL."""
    launcher, port = VllmLauncher(max_model_len=2_048, kv_cache_gib=1), any_free()
    with tempfile.TemporaryDirectory() as folder:
        command = launcher.command(base, MODEL, port)
        process = GuardedProcess(command, launcher.environment(), Path(folder) / "vllm.log", grace_s=10)
        try:
            wait_until(lambda: _serves(port), 180, "vLLM")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.stop()


def _serves(port: int) -> bool:
    import urllib.request

    try:
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200)
    except OSError:
        return False


def measure_yields(store: MemoryStore, url: str) -> list[dict[str, Any]]:
    """Requested and accepted by strategy, and the rungs. ``pairs`` takes up to four long calls a hexagram."""
    rows = []
    for strategy, hexagrams in (("qa", 64), ("summary", 64), ("pairs", 12), ("passage", 64)):
        # With "passage" beside it a strategy without a single accepted answer doesn't fail its job.
        both = tuple(dict.fromkeys((strategy, "passage")))
        manifest = synthesize(
            store, url, hexagrams, question_set(), strategies=both, extractive_fallback=False, max_answer_tokens=160
        )
        counts = manifest.counts_by_strategy[strategy]
        rows.append(
            {
                "strategy": strategy,
                "hexagrams": hexagrams,
                "requested": counts.requested,
                "accepted": counts.accepted,
                "dead_lettered": counts.dead_lettered,
                "rejected_by_reason": counts.rejected_by_reason,
                "rungs": {rung: dict(y) for rung, y in manifest.model_dump(mode="json")["rungs"].items()},
            }
        )
        print(f"{strategy}: {counts.accepted} of {counts.requested} accepted", flush=True)
    return rows


def make_variants(store: MemoryStore, url: str, hexagrams: int) -> tuple[list[Variant], list[Record]]:
    """All variants, and the questions that every tuned model is asked."""
    plain = question_set(ask=PLAIN_WORDINGS)
    manifest = synthesize(store, url, hexagrams, plain)
    base = records_of(store, manifest)
    variants = [Variant("all checks, plain wordings", base)]
    rejects = StoredDatasets(store).rejects(manifest.dataset_id, 0, 1_000)
    by_reason: dict[str, list[Reject]] = defaultdict(list)
    for reject in rejects:
        by_reason[reject.reason].append(reject)
    for reason, found in sorted(by_reason.items()):
        variants.append(Variant(f"without the check {reason}", readmitted(base, found)))
    variants.append(Variant("without any check", readmitted(base, rejects)))
    variants.append(Variant("one wording", records_of(store, synthesize(store, url, hexagrams, question_set(ask=1)))))
    for axis in AXES:
        quotas = {axis: AXIS_WORDINGS}
        made = records_of(store, synthesize(store, url, hexagrams, plain, asking=AskingOptions(quotas=quotas)))
        variants.append(Variant(f"plain and {axis}", made))
    every = AskingOptions(quotas=dict.fromkeys(AXES, AXIS_WORDINGS))
    variants.append(
        Variant("plain and every axis", records_of(store, synthesize(store, url, hexagrams, plain, asking=every)))
    )
    return variants, held_out_questions(store, url, hexagrams)


def held_out_questions(store: MemoryStore, url: str, hexagrams: int) -> list[Record]:
    """The owner's held-out wordings, plain and along each axis. No LLM: only the questions and key facts are used."""
    held_out = question_set(held_out_as_ask=True)
    asking = AskingOptions(quotas=dict.fromkeys(AXES, 2))
    manifest = synthesize(store, url, hexagrams, held_out, strategies=("passage",), asking=asking, seed=99)
    return records_of(store, manifest)


def question_set(ask: int | None = None, held_out_as_ask: bool = False) -> QuestionSet:
    questions = QuestionSet.model_validate(yaml.safe_load((EXAMPLES / "questions.en.yaml").read_text("utf-8")))
    changed = tuple(
        q.model_copy(update={"ask": q.held_out if held_out_as_ask else q.ask[:ask], "held_out": ()})
        for q in questions.questions
    )
    return questions.model_copy(update={"questions": changed})


def synthesize(store: MemoryStore, url: str, hexagrams: int, questions: QuestionSet, **changes: Any) -> DatasetManifest:
    """One synth job; calls that were made before are in the store's ledger."""
    options = {"strategies": ("qa",), "context": "sentence", "question_sets": (questions,), **changes}
    job = SynthJob.model_validate({"corpus_id": put_corpus(store, hexagrams), **options})
    settings = SynthSettings(llm_url=url, llm_model=MODEL, response_mode="text")
    context = JobContext(store, 1, f"scratch/{job.job_id}/1-1/", threading.Event())
    output = SynthHandler(settings)(job, context)
    manifest = DatasetManifest.model_validate(output.manifest)
    store.put(output.manifest_key, manifest.to_json())
    return manifest


def put_corpus(store: MemoryStore, hexagrams: int) -> str:
    """One document and one passage a hexagram."""
    paths = sorted((EXAMPLES / "en").glob("*.md"))[:hexagrams]
    return world.put_corpus(store, [[path.read_text(encoding="utf-8").strip()] for path in paths])


def records_of(store: MemoryStore, manifest: DatasetManifest) -> list[Record]:
    return StoredDatasets(store).records(manifest.dataset_id, "train", 0, 100_000)


def readmitted(records: Sequence[Record], rejects: Sequence[Reject]) -> list[Record]:
    """The records as they would be without the check: the LLM's own answer where the fallback's stands."""
    said = {(r.passage_id, r.question_id): first_sentence(r.raw_response) or r.raw_response for r in rejects}
    changed = []
    for record in records:
        answer = said.get((record.passage_id, record.question_id))
        if answer is not None:
            last = record.messages[-1].model_copy(update={"content": answer})
            record = record.model_copy(update={"messages": (*record.messages[:-1], last)})
        changed.append(record)
    return changed


# -- training and asking -----------------------------------------------------------------------------------------------


def train_and_ask(variant: Variant, questions: Sequence[Record], base: Path, steps: int) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="textmill-ablation-") as name:
        folder = WorkFolder(Path(name))
        with ParquetFile(folder.records("train")) as file:
            for record in variant.records:
                file.write(record.to_json())
        job = TrainJob(
            dataset_id=content_id("ds", variant.name),
            epochs=1_000,
            max_steps=steps,
            batch_size=BATCH,
            learning_rate=2e-3,
            evaluations=0,
            checkpoints=0,
        )
        budget = 2 << 30
        spec = TrainSpec(job=job, base_model=str(base), max_padded_tokens=8_192, dequantized_budget_bytes=budget)
        folder.write(folder.spec, spec)
        began = time.monotonic()
        with folder.log.open("wb") as log:
            command = [sys.executable, "-m", "textmill_trainer.train", str(folder.root)]
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        if code:
            raise SystemExit(f"training {variant.name!r} ended with {code}: {folder.log.read_text()[-2_000:]}")
        result = TrainResult.model_validate_json(folder.result.read_bytes())
        outcome = Outcome(
            variant.name, len(variant.records), result.training.final_loss, round(time.monotonic() - began, 1)
        )
        score(outcome, folder.merged, questions)
        return outcome


def score(outcome: Outcome, model_folder: Path, questions: Sequence[Record]) -> None:
    """Greedy answers of up to 48 tokens, 32 questions at a time, scored by the key facts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).eval()
    for start in range(0, len(questions), 32):
        batch = questions[start : start + 32]
        chats = [[m.model_dump(include={"role", "content"}) for m in r.messages[:-1]] for r in batch]
        texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=48, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        answers = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for record, answer in zip(batch, answers, strict=True):
            outcome.asked[record.axis] = outcome.asked.get(record.axis, 0) + 1
            outcome.right[record.axis] = outcome.right.get(record.axis, 0) + is_correct(answer, record.key_facts)


# -- the report --------------------------------------------------------------------------------------------------------


def report(
    outcomes: Sequence[Outcome], yields: Sequence[Mapping[str, Any]], options: argparse.Namespace, seconds: float
) -> None:
    kinds = [axis for axis in get_args(Axis) if axis in outcomes[0].asked]
    result = {
        "command": "make bench-ablation",
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "seconds": round(seconds),
        "hexagrams": options.hexagrams,
        "steps": options.steps,
        "yields": list(yields),
        "variants": [
            {
                "name": o.name,
                "rows": o.rows,
                "final_loss": o.final_loss,
                "seconds": o.seconds,
                "accuracy": o.accuracy(),
                "by_axis": {kind: o.accuracy(kind) for kind in kinds},
            }
            for o in outcomes
        ],
        "questions": {kind: outcomes[0].asked[kind] for kind in kinds},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    options.page.write_text(render(outcomes, yields, kinds, options, seconds), encoding="utf-8")
    print(f"wrote {options.out} and {options.page}")


def render(
    outcomes: Sequence[Outcome],
    yields: Sequence[Mapping[str, Any]],
    kinds: Sequence[str],
    options: argparse.Namespace,
    seconds: float,
) -> str:
    lines = [
        "# What checks and ways of asking buy",
        "",
        "Made by `make bench-ablation`; the figures are also in `bench/results/ablation.json`. "
        f"{os.cpu_count()} cores, no GPU, {seconds / 60:.0f} minutes.",
        "",
        "## What the small model's answers are worth",
        "",
        f"{MODEL} on the hexagrams in English, without the extractive fallback.",
        "",
        "| strategy | hexagrams | requested | accepted | dead letters | rejected because |",
        "|---|---|---|---|---|---|",
    ]
    for row in yields:
        reasons = ", ".join(f"{reason} {n}" for reason, n in row["rejected_by_reason"].items()) or "-"
        share = row["accepted"] / max(1, row["requested"])
        lines.append(
            f"| {row['strategy']} | {row['hexagrams']} | {row['requested']} | {row['accepted']} ({share:.0%}) "
            f"| {row['dead_lettered']} | {reasons} |"
        )
    rungs = sorted({rung for row in yields for rung in row["rungs"]})
    lines += ["", "By rung of the repair ladder, answers gained of responses tried:", ""]
    lines += ["| strategy | " + " | ".join(rungs) + " |", "|---|" + "---|" * len(rungs)]
    for row in yields:
        cells = (row["rungs"].get(rung) for rung in rungs)
        shown = (f"{c.get('gained', 0)} of {c.get('tried', 0)}" if c else "-" for c in cells)
        lines.append(f"| {row['strategy']} | " + " | ".join(shown) + " |")
    asked = sum(outcomes[0].asked.values())
    lines += [
        "",
        "## What each check and each axis buys",
        "",
        f"Three facts on each of {options.hexagrams} hexagrams, {options.steps} steps of batch {BATCH} for every "
        f"variant. {asked} questions, none in a wording that any variant was trained on. With so few, differences of a "
        "few points are noise: read the large ones.",
        "",
        "| variant | rows | loss | all | " + " | ".join(kinds) + " |",
        "|---|---|---|---|" + "---|" * len(kinds),
    ]
    for o in outcomes:
        cells = " | ".join(f"{o.accuracy(kind):.0%}" for kind in kinds)
        lines.append(f"| {o.name} | {o.rows} | {o.final_loss:.3f} | {o.accuracy():.0%} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
