"""The order of training and how batches are cut and padded."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from textmill_trainer.batches import batch_order, collate, microbatches, pack
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


def test_padding_is_on_the_right_and_predicts_nothing() -> None:
    batch = collate([example(3), example(5)])
    assert batch.token_ids_BT.tolist() == [[1, 2, 0, 0], [1, 2, 3, 4]], "the last token is only predicted"
    assert (batch.targets_N.tolist(), batch.places_N.tolist(), batch.records_N.tolist()) == ([3, 5], [1, 7], [0, 1])


def test_what_follows_the_last_supervised_token_is_not_computed() -> None:
    """As the line feed that templates write behind the end of a turn."""
    ended = Example("rec", "doc", (1, 2, 3, 4, 5), (False, False, True, True, False))
    batch = collate([ended])
    assert batch.token_ids_BT.tolist() == [[1, 2, 3]]
    assert batch.targets_N.tolist() == [3, 4]
    nothing = collate([Example("rec", "doc", (1, 2), (False, False))])
    assert (nothing.token_ids_BT.tolist(), len(nothing.targets_N)) == ([[1]], 0)


few_tokens = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=12)


@given(st.lists(few_tokens, min_size=1, max_size=8), st.booleans())
def test_a_packed_row_holds_what_padded_rows_hold(made_up: list[list[tuple[int, bool]]], share: bool) -> None:
    examples = [
        Example(f"rec_{n}", "doc", tuple(t for t, _ in tokens), tuple(s for _, s in tokens))
        for n, tokens in enumerate(made_up)
    ]
    padded, packed = collate(examples), pack(examples, share=share)
    assert packed.rows is not None
    row, rows = packed.token_ids_BT[0], packed.rows
    # Each record's path through the row is its own tokens, and a token's place in the row has seen the same before it.
    bounds = rows.bounds_R1.tolist()
    paths = [rows.paths_S[a:b] for a, b in pairwise(bounds)]
    for example, path in zip(examples, paths, strict=True):
        assert row[path].tolist() == list(example.token_ids[: len(path)])
        assert rows.positions_BT[0][path].tolist() == list(range(len(path)))
    begun = {tuple(row[path[: n + 1]].tolist()) for path in paths for n in range(len(path))}
    assert len(row) == (len(begun) if share else len(rows.paths_S))
    assert rows.longest == padded.longest
    # Both ways to lay it out again give each token back.
    for places in (rows.joined, rows.padded):
        assert torch.equal(row[places.tokens_S][places.homes_T], row)
    assert rows.padded.tokens_S.view(len(examples), -1).shape[1] == rows.longest
    # The same is predicted, from the same, for the same records.
    assert torch.equal(padded.targets_N, packed.targets_N)
    assert torch.equal(padded.records_N, packed.records_N)
    before = padded.token_ids_BT.flatten()[padded.places_N]
    assert torch.equal(before, row[packed.places_N])
    assert rows.positions_BT[0][packed.places_N].tolist() == (padded.places_N % padded.longest).tolist()
