"""Blind votes: a voter is shown each pair once, the sides shuffled anew for every voter, and no names.

The shuffle follows from salt, pair and voter, so nothing is kept between showing a pair and taking its vote.
"""

import hashlib
from collections import Counter

from textmill.contracts.pairwise import BlindPair, NewVote, NextPair, Outcome, Pair, Vote
from textmill.errors import BadRequest, Conflict, NotFound
from textmill_inference.pairwise.stored import StoredComparison, vote_key, voter_hash


def next_pair(comparison: StoredComparison, voter: str) -> NextPair:
    """A pair that this voter hasn't voted on: one with the fewest votes so far, in an order of the voter's own."""
    if not voter.strip():
        raise BadRequest("say who votes: ?voter=NAME; a name keeps you from seeing a pair twice")
    mine, votes = voter_hash(voter), Counter[str]()
    voted = set()
    for key in comparison.vote_keys():
        *_, pair_id, name = key.split("/")
        votes[pair_id] += 1
        if name == f"{mine}.json":
            voted.add(pair_id)
    salt = comparison.manifest.salt
    left = [pair for pair_id, pair in comparison.pairs.items() if pair_id not in voted]
    if not left:
        return NextPair(pair=None, voted=len(voted))
    chosen = min(left, key=lambda pair: (votes[pair.pair_id], _digest(salt, "order", pair.pair_id, mine)))
    return NextPair(pair=_blind(comparison, chosen, voter, len(left)), voted=len(voted))


def take_vote(comparison: StoredComparison, new: NewVote) -> tuple[Vote, bool]:
    """Store the vote. False if the same was there already.

    Raises:
        NotFound: the comparison has no such pair.
        Conflict: the voter has voted otherwise on this pair.
    """
    pair = comparison.pairs.get(new.pair_id)
    if pair is None:
        raise NotFound(f"this comparison has no pair {new.pair_id!r}; GET .../next gives one")
    left, right = _sides(comparison, pair, new.voter)
    vote = Vote(
        pair_id=pair.pair_id,
        prompt_id=pair.prompt_id,
        voter=" ".join(new.voter.split()),
        choice=new.choice,
        left=left,
        right=right,
        outcome=_outcome(new, left, pair),
        comment=new.comment,
    )
    key = vote_key(comparison.manifest.comparison_id, pair.pair_id, new.voter)
    if comparison.store.create(key, vote.to_json()):
        return vote, True
    known = Vote.model_validate_json(comparison.store.get(key))
    if known.choice != new.choice:
        raise Conflict(f"{known.voter} has voted {known.choice!r} on this pair, and votes stay as they are")
    return known, False


def _blind(comparison: StoredComparison, pair: Pair, voter: str, left_to_vote: int) -> BlindPair:
    left, right = _sides(comparison, pair, voter)
    return BlindPair(
        pair_id=pair.pair_id,
        messages=comparison.sides[pair.prompt_id].prompt.messages,
        left=comparison.text(pair, left),
        right=comparison.text(pair, right),
        left_to_vote=left_to_vote,
    )


def _sides(comparison: StoredComparison, pair: Pair, voter: str) -> tuple[str, str]:
    """Which model stands left and which right for this voter."""
    swapped = _digest(comparison.manifest.salt, "sides", pair.pair_id, voter_hash(voter)) & 1
    return (pair.second, pair.first) if swapped else (pair.first, pair.second)


def _outcome(new: NewVote, left: str, pair: Pair) -> Outcome:
    if new.choice == "tie" or new.choice == "both_bad":
        return new.choice
    return "first" if (new.choice == "left") == (left == pair.first) else "second"


def _digest(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\x1f".join(parts).encode()).digest()[:8])
