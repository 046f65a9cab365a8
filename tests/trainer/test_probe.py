"""A probe measures a step and leaves no trace; a sweep finds the sane rate and leaves none either."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import make_records

from textmill.contracts.trainforecast import Setup, SweepTrial
from textmill.errors import JobFailed
from textmill_trainer.batches import cut
from textmill_trainer.loop import Interrupted, LoopSettings, train
from textmill_trainer.model import LoraSettings, load_model
from textmill_trainer.prepare import Example, encode_all
from textmill_trainer.probe import Probing, TooLarge, measure, measure_until_it_fits
from textmill_trainer.supervised import Supervised
from textmill_trainer.sweep import best, candidates, sweep, trial_steps

CPU = torch.device("cpu")
SETTINGS = LoopSettings(
    epochs=2, batch_size=4, learning_rate=1e-2, warmup_ratio=0.1, evaluations=0, checkpoints=0, seed=7,
    max_padded_tokens=128,
)  # fmt: skip
SETUP = Setup(max_padded_tokens=128)


@pytest.fixture(scope="module")
def examples(tokenizer: Any) -> list[Example]:
    return encode_all(make_records(12), tokenizer, 100)


def fresh(base: Path, method: Any = "qlora") -> Any:
    """With dropout, so that the random state counts."""
    return load_model(base, method, CPU, lora=LoraSettings(4, 8, 0.1), seed=7, dequantized_budget_bytes=1 << 40)


def probing(model: Any, limit_bytes: int | None = None) -> Probing[Example]:
    objective = Supervised()

    def parts_of(batch: Sequence[Example], tokens: int) -> list[list[Example]]:
        return cut(batch, objective.tokens, tokens)

    return Probing(model, objective, CPU, parts_of, lambda parts, setup: 1_000_000, limit_bytes)


def state(model: Any) -> list[torch.Tensor]:
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers())]


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_a_probed_run_is_the_run_that_was_not(
    tiny_base: Path, examples: list[Example], tmp_path: Path, method: Any
) -> None:
    """Weights, gradients, mode and random state bit for bit; and so each loss and each digest of the run."""
    model = fresh(tiny_base, method)
    model.train(False)
    torch.manual_seed(3)
    before, random_state = state(model), torch.get_rng_state()
    step = measure(probing(model), examples[:4], SETUP, again=2)
    assert (step.tokens, step.formula_bytes) == (sum(len(e.token_ids) for e in examples[:4]), 1_000_000)
    assert step.seconds > 0
    assert all(torch.equal(a, b) for a, b in zip(before, state(model), strict=True))
    assert torch.equal(random_state, torch.get_rng_state())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())

    settings = replace(SETTINGS, learning_rate=1e-4 if method == "full" else 1e-2, epochs=1)
    probed = train(model, Supervised(), examples, settings, tmp_path / "probed")
    straight = train(fresh(tiny_base, method), Supervised(), examples, settings, tmp_path / "straight")
    assert probed.digest == straight.digest


def test_a_probe_that_breaks_off_leaves_no_trace_either(tiny_base: Path, examples: list[Example]) -> None:
    model = fresh(tiny_base)
    before = state(model)

    class Breaks(Supervised):
        def weight(self, example: Example) -> float:
            return float("nan")

        def losses(self, model: Any, examples: Any, device: Any) -> Any:
            found = super().losses(model, examples, device)
            (found.losses_R.sum() * float("nan")).backward()  # type: ignore[no-untyped-call]
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    with pytest.raises(TooLarge, match=r"^CUDA out of memory\. Tried to allocate 2 GiB$"):
        measure(replace(probing(model), objective=Breaks()), examples[:4], SETUP)
    assert all(torch.equal(a, b) for a, b in zip(before, state(model), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_memory_that_a_step_takes_is_seen(tiny_base: Path, examples: list[Example]) -> None:
    """A step that holds 200 MB more is seen to take about that much more, and is refused past a limit."""
    model = fresh(tiny_base)

    class Greedy(Supervised):
        def losses(self, model: Any, examples: Any, device: Any) -> Any:
            self.held = None
            self.held = torch.ones(50_000_000)
            return super().losses(model, examples, device)

    measure(probing(model), examples[:4], SETUP)
    plain = measure(probing(model), examples[:4], SETUP)
    greedy = measure(replace(probing(model), objective=Greedy()), examples[:4], SETUP)
    assert plain.grown_bytes is not None
    assert greedy.grown_bytes is not None
    assert 150e6 < greedy.grown_bytes - plain.grown_bytes < 250e6
    with pytest.raises(TooLarge, match="100000000 are free"):
        measure(replace(probing(model, 100_000_000), objective=Greedy()), examples[:4], SETUP)


def test_the_first_setup_that_fits_is_taken(tiny_base: Path, examples: list[Example]) -> None:
    """With real microbatches and real checkpointing: the largest that a step gets through is what counts."""
    model = fresh(tiny_base)
    tried: list[tuple[int, bool]] = []

    class Small(Supervised):
        def losses(self, model: Any, examples: Any, device: Any) -> Any:
            tried.append((len(examples), model.is_gradient_checkpointing))
            if len(examples) > 1 or not model.is_gradient_checkpointing:
                raise torch.OutOfMemoryError("out of memory")
            return super().losses(model, examples, device)

    setups = [Setup(max_padded_tokens=n, gradient_checkpointing=c) for c in (False, True) for n in (512, 16)]
    found = measure_until_it_fits(replace(probing(model), objective=Small()), examples[:3], setups)
    assert found is not None
    assert found[0] == setups[3]
    assert tried == [(3, False), (1, False), (3, True), (1, True), (1, True), (1, True)]
    assert measure_until_it_fits(replace(probing(model), objective=Small()), examples[:3], setups[:2]) is None


@pytest.mark.parametrize("rows", [2, 1])
def test_gradient_checkpointing_changes_no_gradient(tiny_base: Path, examples: list[Example], rows: int) -> None:
    """Also where short rows go through plain attention, which has ended by the time of backward."""
    found = []
    for on in (False, True):
        model: Any = load_model(
            tiny_base, "qlora", CPU, lora=LoraSettings(4, 8, 0.1), seed=7, dequantized_budget_bytes=1 << 40,
            gradient_checkpointing=on,
        )  # fmt: skip
        torch.manual_seed(1)
        model.train()
        losses = Supervised().losses(model.get_base_model(), examples[:rows], CPU)
        losses.losses_R.sum().backward()  # type: ignore[no-untyped-call]
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_sweep_takes_the_sane_rate(tiny_base: Path, examples: list[Example], tmp_path: Path) -> None:
    """Of one too low, a good one and two that destroy; twice the same; and nothing is left behind."""
    model = fresh(tiny_base)
    before, random_state = state(model), torch.get_rng_state()
    rates = [1e-6, 2e-2, 10.0, 1e30]
    found = [
        sweep(model, Supervised(), examples[:8], examples[8:], SETTINGS, tmp_path / "sweep", rates, 6) for _ in range(2)
    ]
    assert found[0].chosen == 2e-2
    low, good, high, endless = found[0].trials
    assert low.loss is not None
    assert good.loss is not None
    assert good.loss < low.loss
    assert high.loss is None or high.loss > good.loss
    assert endless.loss is None
    assert found[0].model_copy(update={"seconds": 0}) == found[1].model_copy(update={"seconds": 0})
    assert all(torch.equal(a, b) for a, b in zip(before, state(model), strict=True))
    assert torch.equal(random_state, torch.get_rng_state())
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_without_an_eval_split_goes_by_its_own_steps(
    tiny_base: Path, examples: list[Example], tmp_path: Path
) -> None:
    found = sweep(fresh(tiny_base), Supervised(), examples, [], SETTINGS, tmp_path / "s", [1e-6, 2e-2], 6)
    assert found.chosen == 2e-2
    assert "its own batches" in found.measured_on


def test_a_sweep_is_bounded_and_can_be_stopped(tiny_base: Path, examples: list[Example], tmp_path: Path) -> None:
    model = fresh(tiny_base)
    found = sweep(model, Supervised(), examples, [], SETTINGS, tmp_path / "s", [1e-3, 2e-2], 2, max_seconds=0)
    assert [t.learning_rate for t in found.trials] == [1e-3]
    with pytest.raises(Interrupted):
        sweep(model, Supervised(), examples, [], SETTINGS, tmp_path / "s", [1e-3], 2, stopping=lambda: True)
    assert [trial_steps(n) for n in (4, 48, 200, 10_000)] == [4, 8, 20, 30]
    assert candidates(2e-3) == [2e-3, 6e-3, 6.7e-4]


def test_near_ties_go_to_the_lower_rate_and_no_survivor_is_an_error() -> None:
    def trials(*losses: float | None) -> list[SweepTrial]:
        return [SweepTrial(learning_rate=10.0**n, steps=3, loss=loss) for n, loss in enumerate(losses)]

    assert best(trials(2.0, 1.005, 1.0, None)) == 10.0
    with pytest.raises(JobFailed, match=r"all learning rates of the sweep diverged \(1, 10\)"):
        best(trials(None, None))
