"""The loop learns, stops when told, resumes exactly, and refuses numbers that aren't."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import make_records

from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill.errors import JobFailed
from textmill_trainer.checkpoint import checkpoint_step, checkpoints
from textmill_trainer.loop import Interrupted, LoopSettings, evenly, learning_rate_at, train
from textmill_trainer.metrics import parse_metrics, summarize
from textmill_trainer.model import LoraSettings, add_lora, dequantize_in_place, load_nf4
from textmill_trainer.prepare import Example, encode_all

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


def never() -> bool:
    return False


def after(calls: int) -> Callable[[], bool]:
    """Says stop at the given call and from then on."""
    count = iter(range(10_000))
    return lambda: next(count) >= calls


def quiet(metric: StepMetrics | EvalMetrics, total_steps: int) -> None:
    pass


def test_it_learns_and_says_so(tiny_base: Path, examples: Any, eval_examples: Any, tmp_path: Path) -> None:
    model, reported = fresh(tiny_base), []
    train(model, examples, eval_examples, SETTINGS, tmp_path, lambda m, total: reported.append((m, total)), never)
    metrics = list(parse_metrics((tmp_path / "metrics.jsonl").read_bytes()))
    assert [m for m, _ in reported] == metrics
    assert {total for _, total in reported} == {12}
    assert [m.step for m in metrics if isinstance(m, EvalMetrics)] == [0, 6, 12]
    steps = [m for m in metrics if isinstance(m, StepMetrics)]
    assert [m.step for m in steps] == list(range(1, 13))
    assert steps[-1].loss < steps[0].loss - 0.5
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
    train(straight, examples, eval_examples, SETTINGS, tmp_path / "straight", quiet, never)
    for steps in stops:
        with pytest.raises(Interrupted):
            train(fresh(tiny_base), examples, eval_examples, SETTINGS, tmp_path / "cut", quiet, after(steps))
    resumed = fresh(tiny_base)
    assert train(resumed, examples, eval_examples, SETTINGS, tmp_path / "cut", quiet, never) == sum(stops)
    assert all(torch.equal(a, b) for a, b in zip(adapter(straight), adapter(resumed), strict=True))
    assert _losses(tmp_path / "straight") == _losses(tmp_path / "cut")


def test_metrics_past_the_checkpoint_are_done_again_not_doubled(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    """As after kill -9: the checkpoint of step 6 is there, and metrics up to step 8."""

    class Killed(BaseException):
        pass

    def die_at_8(metric: StepMetrics | EvalMetrics, total_steps: int) -> None:
        if metric.step == 8:
            raise Killed

    with pytest.raises(Killed):
        train(fresh(tiny_base), examples, [], SETTINGS, tmp_path, die_at_8, never)
    assert train(fresh(tiny_base), examples, [], SETTINGS, tmp_path, quiet, never) == 6
    assert [step for step, _ in _losses(tmp_path)] == list(range(1, 13))


def test_only_the_newest_checkpoint_is_kept_and_a_torn_one_is_not_seen(
    tiny_base: Path, examples: Any, tmp_path: Path
) -> None:
    train(fresh(tiny_base), examples, [], SETTINGS, tmp_path, quiet, never)
    (tmp_path / "checkpoints" / ".step-00000099.123").mkdir()
    assert [checkpoint_step(c) for c in checkpoints(tmp_path / "checkpoints")] == [12]


def test_a_checkpoint_of_other_data_is_refused(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    train(fresh(tiny_base), examples, [], SETTINGS, tmp_path, quiet, never)
    with pytest.raises(JobFailed, match="other records or settings"):
        train(fresh(tiny_base), examples[1:], [], SETTINGS, tmp_path, quiet, never)


def test_nan_stops_the_run_and_names_the_records(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    model = fresh(tiny_base)
    next(p for n, p in model.named_parameters() if "lora_B" in n).data.fill_(float("nan"))
    with pytest.raises(JobFailed, match=r"step 1: loss nan.*rec_[0-9a-f]{32}, rec_"):
        train(model, examples, [], SETTINGS, tmp_path, quiet, never)
    assert not checkpoints(tmp_path / "checkpoints")


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


def _losses(folder: Path) -> list[tuple[int, float]]:
    metrics = parse_metrics((folder / "metrics.jsonl").read_bytes())
    return [(m.step, m.loss if isinstance(m, StepMetrics) else m.eval_loss) for m in metrics]
