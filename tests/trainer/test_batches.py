"""The order of training and how batches are cut and padded."""

from hypothesis import given
from hypothesis import strategies as st

from textmill_trainer.batches import batch_order, collate, microbatches
from textmill_trainer.prepare import Example

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=80)


def example(length: int) -> Example:
    return Example(f"rec_{length}", "doc_1", tuple(range(1, length + 1)), (False,) * (length - 1) + (True,))


@given(lengths, st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_each_record_is_in_one_batch_of_an_epoch(sizes: list[int], batch_size: int, seed: int, epoch: int) -> None:
    batches = batch_order(sizes, batch_size, seed, epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert max(map(len, batches)) <= batch_size
    assert batches == batch_order(sizes, batch_size, seed, epoch)


def test_epochs_and_seeds_differ() -> None:
    sizes = list(range(64))
    orders = {str(batch_order(sizes, 4, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_records_of_like_length_share_a_batch() -> None:
    sizes = [10 + 37 * i % 100 for i in range(128)]
    padded = sum(len(b) * max(sizes[i] for i in b) for b in batch_order(sizes, 8, 0, 0))
    assert padded < 1.15 * sum(sizes)


@given(lengths, st.integers(1, 200))
def test_microbatches_hold_the_memory_bound(sizes: list[int], bound: int) -> None:
    parts = microbatches([example(n) for n in sizes], bound)
    assert sorted(len(e.token_ids) for part in parts for e in part) == sorted(sizes)
    assert all(len(p) == 1 or len(p) * max(len(e.token_ids) for e in p) <= bound for p in parts)


def test_padding_is_on_the_right_and_unsupervised() -> None:
    batch = collate([example(2), example(4)])
    assert batch.token_ids_BT.tolist() == [[1, 2, 0, 0], [1, 2, 3, 4]]
    assert batch.supervised_BT.tolist() == [[False, True, False, False], [False, False, False, True]]
