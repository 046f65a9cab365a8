"""Which records make up which step: from dataset, seed and epoch alone."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from textmill_trainer.order import MIN_BUDGET_STEPS, Plan, batch_order

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=80)


def plan(sizes: list[int], **changes: Any) -> Plan:
    options: dict[str, Any] = {"seed": 3, "epochs": 4, "batch_size": 8}
    return Plan(sizes, changes.pop("dataset", "abc"), **(options | changes))


def steps(of: Plan) -> list[tuple[int, ...]]:
    return [tuple(of.at(step).records) for step in range(of.total_steps)]


@given(lengths, st.integers(20, 200), st.integers(0, 3))
def test_a_budget_is_kept_and_every_record_is_in_one_batch(sizes: list[int], budget: int, epoch: int) -> None:
    batches = batch_order(sizes, 9, 0, epoch, step_tokens=budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert all(len(b) == 1 or sum(sizes[i] for i in b) <= budget for b in batches)


def test_the_order_follows_from_dataset_seed_and_epoch() -> None:
    sizes = list(range(1, 65))
    assert steps(plan(sizes)) == steps(plan(sizes))
    others = [plan(sizes, dataset="abd"), plan(sizes, seed=4)]
    assert all(steps(plan(sizes)) != steps(other) for other in others)
    every = steps(plan(sizes))
    assert every[:8] != every[8:16]


def test_steps_may_be_asked_for_in_any_order() -> None:
    made = plan(list(range(1, 40)))
    backwards = [tuple(made.at(step).records) for step in reversed(range(made.total_steps))]
    assert backwards[::-1] == steps(made)


def test_epochs_are_counted_by_what_was_done_of_them() -> None:
    made = plan([5] * 20)
    assert [round(3 * made.at(step).epoch, 6) for step in range(6)] == [1, 2, 3, 4, 5, 6]
    assert plan([5] * 20, max_steps=5).total_steps == 5


def test_a_budget_that_leaves_too_few_steps_is_not_used() -> None:
    sizes = [10] * 64
    few, enough = plan(sizes, step_tokens=320), plan(sizes, step_tokens=320, epochs=40)
    assert (few.step_tokens, few.total_steps) == (None, 32)
    assert (enough.step_tokens, enough.total_steps) == (320, 80)
    assert enough.total_steps >= MIN_BUDGET_STEPS
    assert {len(records) for records in steps(enough)} == {32}
