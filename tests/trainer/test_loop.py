"""The loop learns, stops when told, resumes exactly, and refuses numbers that aren't."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import make_records

from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill.errors import JobFailed
from textmill_trainer.batches import collate, pack
from textmill_trainer.checkpoint import checkpoint_step, checkpoints
from textmill_trainer.loop import (
    Interrupted,
    LoopSettings,
    Trained,
    evenly,
    learning_rate_at,
    plain_model,
    train,
)
from textmill_trainer.metrics import parse_metrics, summarize
from textmill_trainer.model import LoraSettings, add_lora, dequantize_in_place, load_nf4
from textmill_trainer.objective import ExampleLosses
from textmill_trainer.observing import StepSeen
from textmill_trainer.packing import install
from textmill_trainer.prepare import Example, encode_all
from textmill_trainer.record_losses import read_record_losses
from textmill_trainer.supervised import Supervised, mean_loss

SETTINGS = LoopSettings(
    epochs=3, batch_size=4, learning_rate=2e-2, warmup_ratio=0.1, evaluations=2, checkpoints=2, seed=7,
    max_padded_tokens=128,
)  # fmt: skip


@pytest.fixture(scope="session")
def examples(tokenizer: Any) -> list[Example]:
    return encode_all(make_records(14), tokenizer, 100)


@pytest.fixture(scope="session")
def eval_examples(tokenizer: Any) -> list[Example]:
    return encode_all(make_records(3, "eval"), tokenizer, 100)


def fresh(base: Path, dropout: float = 0.1) -> Any:
    core = load_nf4(base, torch.device("cpu"))
    dequantize_in_place(core)
    return add_lora(core, LoraSettings(rank=4, alpha=8, dropout=dropout), seed=7)


def adapter(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def after(calls: int) -> Callable[[], bool]:
    """Says stop at the given call and from then on."""
    count = iter(range(10_000))
    return lambda: next(count) >= calls


class Seen:
    """An observer that remembers, and may act on a step."""

    def __init__(self, act: Callable[[StepSeen], None] = lambda seen: None) -> None:
        self.metrics: list[StepMetrics | EvalMetrics] = []
        self.steps: list[StepSeen] = []
        self._act = act

    def step(self, seen: StepSeen) -> None:
        self.metrics.append(seen.metrics)
        self.steps.append(seen)
        self._act(seen)

    def evaluated(self, metrics: EvalMetrics) -> None:
        self.metrics.append(metrics)


def evaluator(model: Any, examples: list[Example]) -> Callable[[int, float], EvalMetrics]:
    def evaluate(step: int, epoch: float) -> EvalMetrics:
        loss = mean_loss(plain_model(model), examples, 128, torch.device("cpu"))
        return EvalMetrics(step=step, epoch=epoch, eval_loss=loss)

    return evaluate


def run(
    model: Any,
    examples: list[Example],
    folder: Path,
    *,
    eval_examples: Any = (),
    settings: LoopSettings = SETTINGS,
    stopping: Callable[[], bool] = lambda: False,
    observer: Seen | None = None,
) -> Trained:
    evaluate = evaluator(model, eval_examples) if eval_examples else None
    observers = [observer] if observer else []
    return train(
        model, Supervised(), examples, settings, folder, evaluate=evaluate, observers=observers, stopping=stopping
    )


def test_it_learns_and_says_so(tiny_base: Path, examples: Any, eval_examples: Any, tmp_path: Path) -> None:
    seen = Seen()
    run(fresh(tiny_base, dropout=0.0), examples, tmp_path, eval_examples=eval_examples, observer=seen)
    metrics = list(parse_metrics((tmp_path / "metrics.jsonl").read_bytes()))
    assert seen.metrics == metrics
    assert {s.total_steps for s in seen.steps} == {12}
    assert [m.step for m in metrics if isinstance(m, EvalMetrics)] == [0, 6, 12]
    steps = [m for m in metrics if isinstance(m, StepMetrics)]
    assert [m.step for m in steps] == list(range(1, 13))
    assert steps[-1].loss < steps[0].loss - 0.5, [s.loss for s in steps]
    assert sum(m.tokens for m in steps) == 3 * sum(len(e.token_ids) for e in examples)
    summary = summarize(tmp_path / "metrics.jsonl", 0, "cpu")
    assert (summary.steps, summary.epochs) == (12, 3.0)
    assert summary.eval_loss_before is not None


@pytest.mark.parametrize("stops", [[1], [6], [3, 4, 2]])
def test_a_resumed_run_is_the_same_run(
    tiny_base: Path, examples: Any, eval_examples: Any, tmp_path: Path, stops: list[int]
) -> None:
    """With dropout, so that the random state counts; bit for bit."""
    straight = fresh(tiny_base)
    run(straight, examples, tmp_path / "straight", eval_examples=eval_examples)
    for steps in stops:
        with pytest.raises(Interrupted):
            run(fresh(tiny_base), examples, tmp_path / "cut", eval_examples=eval_examples, stopping=after(steps))
    resumed = fresh(tiny_base)
    assert run(resumed, examples, tmp_path / "cut", eval_examples=eval_examples).resumed_from == sum(stops)
    assert all(torch.equal(a, b) for a, b in zip(adapter(straight), adapter(resumed), strict=True))
    assert _losses(tmp_path / "straight") == _losses(tmp_path / "cut")
    assert _digests(tmp_path / "straight") == _digests(tmp_path / "cut")
    losses = [(tmp_path / name / "record_losses.jsonl").read_bytes() for name in ("straight", "cut")]
    assert losses[0] == losses[1]


def test_metrics_past_the_checkpoint_are_done_again_not_doubled(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    """As after kill -9: the checkpoint of step 6 is there, and metrics up to step 8."""

    class Killed(BaseException):
        pass

    def die_at_8(seen: StepSeen) -> None:
        if seen.metrics.step == 8:
            raise Killed

    with pytest.raises(Killed):
        run(fresh(tiny_base), examples, tmp_path, observer=Seen(die_at_8))
    assert run(fresh(tiny_base), examples, tmp_path).resumed_from == 6
    assert [step for step, _ in _losses(tmp_path)] == list(range(1, 13))
    assert [line.step for line in read_record_losses(tmp_path / "record_losses.jsonl")] == list(range(1, 13))


def test_only_the_newest_checkpoint_is_kept_and_a_torn_one_is_not_seen(
    tiny_base: Path, examples: Any, tmp_path: Path
) -> None:
    run(fresh(tiny_base), examples, tmp_path)
    (tmp_path / "checkpoints" / ".step-00000099.123").mkdir()
    assert [checkpoint_step(c) for c in checkpoints(tmp_path / "checkpoints")] == [12]


def test_a_checkpoint_of_other_data_is_refused(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    run(fresh(tiny_base), examples, tmp_path)
    with pytest.raises(JobFailed, match="other records or settings"):
        run(fresh(tiny_base), examples[1:], tmp_path)


def test_nan_stops_the_run_and_names_the_records(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    model = fresh(tiny_base)
    next(p for n, p in model.named_parameters() if "lora_B" in n).data.fill_(float("nan"))
    with pytest.raises(JobFailed, match=r"step 1: loss nan.*rec_[0-9a-f]{32}, rec_.*not finite is the loss of rec_"):
        run(model, examples, tmp_path)
    assert not checkpoints(tmp_path / "checkpoints")


def test_only_the_record_whose_own_loss_is_no_number_is_accused(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    class Poisoned(Supervised):
        def losses(self, model: Any, examples: Any, device: torch.device) -> ExampleLosses:
            found = super().losses(model, examples, device)
            factors = torch.tensor([float("inf") if e.record_id == bad else 1.0 for e in examples])
            return ExampleLosses(found.losses_R * factors, found.weights)

    bad = examples[5].record_id
    with pytest.raises(JobFailed, match=rf"loss inf.*not finite is the loss of {bad}\. Look"):
        train(fresh(tiny_base), Poisoned(), examples, SETTINGS, tmp_path)


def test_each_record_has_its_own_loss(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    """With a rate of zero the model stays as it is, so each record's loss is what it has alone."""
    seen, model = Seen(), fresh(tiny_base, dropout=0.0)
    settings = replace(SETTINGS, learning_rate=0.0, epochs=1, max_padded_tokens=64)
    run(model, examples, tmp_path, settings=settings, observer=seen)
    found = {r.record_id: r for s in seen.steps for r in s.records}
    for example in examples:
        alone = mean_loss(plain_model(model), [example], 128, torch.device("cpu"))
        assert found[example.record_id].loss == pytest.approx(alone, rel=2e-3)
        assert found[example.record_id].tokens == sum(example.supervised[1:])
    for step in seen.steps:
        mean = sum(r.loss * r.tokens for r in step.records) / sum(r.tokens for r in step.records)
        assert step.metrics.loss == pytest.approx(mean, rel=1e-6)
    written = list(read_record_losses(tmp_path / "record_losses.jsonl"))
    assert [list(line.records) for line in written] == [list(s.records) for s in seen.steps]


def test_packed_steps_are_padded_steps(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    """In fp32, so that only rounding differs."""
    chains = []
    for packed in (False, True):
        model = fresh(tiny_base, dropout=0.0).float()
        assert install(plain_model(model))
        settings = replace(SETTINGS, packed=packed)
        train(
            model,
            Supervised(partial(pack, share=True) if packed else collate),
            examples,
            settings,
            tmp_path / str(packed),
        )
        chains.append([loss for _, loss in _losses(tmp_path / str(packed))])
    assert chains[0] == pytest.approx(chains[1], rel=1e-4)


def test_the_chain_tells_runs_apart(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    ends = [
        run(fresh(tiny_base), examples, tmp_path / str(n), settings=replace(SETTINGS, epochs=1, **changes)).digest
        for n, changes in enumerate(({}, {}, {"seed": 8}, {"learning_rate": 1.0001e-2}))
    ]
    assert ends[0] == ends[1]
    assert len(set(ends)) == 3


def test_a_checkpoint_whose_weights_changed_is_refused(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    run(fresh(tiny_base), examples, tmp_path)
    path = checkpoints(tmp_path / "checkpoints")[0] / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(JobFailed, match="is damaged: its weights hash to"):
        run(fresh(tiny_base), examples, tmp_path)


def test_a_checkpoint_with_another_runs_metrics_is_refused(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    run(fresh(tiny_base), examples, tmp_path)
    path = checkpoints(tmp_path / "checkpoints")[0] / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(JobFailed, match="is damaged: its steps end with"):
        run(fresh(tiny_base), examples, tmp_path)


def scripted(scores: dict[int, float]) -> Callable[[int, float], EvalMetrics]:
    return lambda step, epoch: EvalMetrics(step=step, epoch=epoch, eval_loss=scores[step], score=scores[step])


WORSE_AFTER_6 = {0: 0.1, 3: 2.0, 6: 1.0, 9: 1.5, 12: 1.2}


def test_the_best_weights_are_kept_also_over_a_resume(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    """Step 0 is the base itself, and no candidate."""
    settings, at_6 = replace(SETTINGS, evaluations=4, keep="best"), []
    model = fresh(tiny_base)

    def copy_at_6(seen: StepSeen) -> None:
        if seen.metrics.step == 6:
            at_6.extend(adapter(model))

    options: Any = {"evaluate": scripted(WORSE_AFTER_6), "observers": [Seen(copy_at_6)]}
    with pytest.raises(Interrupted):
        train(model, Supervised(), examples, settings, tmp_path, stopping=after(10), **options)
    (tmp_path / "best.safetensors").unlink()
    resumed = fresh(tiny_base)
    trained = train(resumed, Supervised(), examples, settings, tmp_path, evaluate=scripted(WORSE_AFTER_6))
    assert (trained.best_step, trained.resumed_from) == (6, 10)
    assert all(torch.equal(a, b) for a, b in zip(at_6, adapter(resumed), strict=True))
    summary = summarize(tmp_path / "metrics.jsonl", 10, "cpu", trained.best_step)
    assert (summary.eval_loss_before, summary.eval_loss_after, summary.digest) == (0.1, 1.0, trained.digest)


def test_the_last_weights_are_kept_when_asked_for(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    model, settings = fresh(tiny_base), replace(SETTINGS, evaluations=4)
    trained = train(model, Supervised(), examples, settings, tmp_path, evaluate=scripted(WORSE_AFTER_6))
    assert trained.best_step is None


def test_a_run_that_gets_no_better_stops_early_and_stays_stopped(
    tiny_base: Path, examples: Any, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, evaluations=4, early_stopping=1, keep="best")
    for resumed_from in (0, 9):
        trained = train(fresh(tiny_base), Supervised(), examples, settings, tmp_path, evaluate=scripted(WORSE_AFTER_6))
        assert (trained.stopped_early, trained.best_step, trained.resumed_from) == (True, 6, resumed_from)
    assert [step for step, _ in _losses(tmp_path)][-1] == 9


def test_an_evaluation_that_is_no_number_stops_the_run(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    scores = {0: 1.0, 6: float("nan")}
    with pytest.raises(JobFailed, match="after step 6 the evaluation's score is nan"):
        train(fresh(tiny_base), Supervised(), examples, SETTINGS, tmp_path, evaluate=scripted(scores))


def test_what_an_evaluation_draws_at_random_changes_no_step(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    def draws(step: int, epoch: float) -> EvalMetrics:
        torch.rand(step + 1)
        return EvalMetrics(step=step, epoch=epoch, eval_loss=1.0)

    drawn = train(fresh(tiny_base), Supervised(), examples, SETTINGS, tmp_path / "a", evaluate=draws)
    assert drawn.digest == run(fresh(tiny_base), examples, tmp_path / "b").digest


def test_a_kill_between_the_parts_of_a_checkpoint_leaves_the_one_before(
    tiny_base: Path, examples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after each file that the second checkpoint writes, and right before its rename."""

    class Killed(BaseException):
        pass

    straight = run(fresh(tiny_base), examples, tmp_path / "straight")
    for files in range(4):
        calls = iter(range(100))

        def dies(path: Path, files: int = files, calls: Any = calls) -> None:
            if "00000012" in str(path) and next(calls) == files:
                raise Killed

        monkeypatch.setattr("textmill_trainer.checkpoint._sync", dies)
        with pytest.raises(Killed):
            run(fresh(tiny_base), examples, tmp_path / str(files))
        monkeypatch.undo()
        assert [checkpoint_step(c) for c in checkpoints(tmp_path / str(files) / "checkpoints")] == [6]
        again = run(fresh(tiny_base), examples, tmp_path / str(files))
        assert (again.resumed_from, again.digest) == (6, straight.digest)
        assert not list((tmp_path / str(files) / "checkpoints").glob(".*"))


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    rates = [learning_rate_at(step, 100, SETTINGS) for step in range(101)]
    assert max(rates) == rates[10] == SETTINGS.learning_rate
    assert 0 < rates[0] < rates[5] < rates[9] < rates[10]
    assert rates[100] == 0.0
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_points_are_spread_to_the_end() -> None:
    assert evenly(10, 2) == {5, 10}
    assert evenly(3, 9) == {1, 2, 3}
    assert evenly(10, 0) == frozenset()


def _digests(folder: Path) -> list[str]:
    metrics = parse_metrics((folder / "metrics.jsonl").read_bytes())
    return [m.digest for m in metrics if isinstance(m, StepMetrics)]


def _losses(folder: Path) -> list[tuple[int, float]]:
    metrics = parse_metrics((folder / "metrics.jsonl").read_bytes())
    return [(m.step, m.loss if isinstance(m, StepMetrics) else m.score) for m in metrics]
