"""How a run's records were laid out in rows, and what that spared."""

from textmill.contracts.base import StoredContract


class PackingReport(StoredContract):
    """``padding_share`` is the share of positions that would be padding if records were padded; packed there are none.
    ``spared_share`` is the share of those positions that a packed row doesn't have: padding, and with ``shared`` the
    beginnings that records of a row have in common, which are in it once. ``rows`` and ``microbatches`` are those of
    an epoch; packed, a microbatch is one row.

    ``difference`` is how far logits of packed records are from those of the same records alone, relative to their
    size, and ``leak`` how far they would be if the records saw each other; both measured on this model before step 1.
    ``step_tokens`` is the budget asked for, and ``step_tokens_used`` whether it left enough steps.
    """

    packed: bool
    reason: str
    records: int
    tokens: int
    padding_share: float
    shared: bool = False
    spared_share: float | None = None
    rows_padded: int
    microbatches_padded: int
    microbatches_packed: int
    difference: float | None = None
    leak: float | None = None
    step_tokens: int | None = None
    step_tokens_used: bool = False
    steps: int
    steps_counting_records: int
