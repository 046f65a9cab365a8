"""What the votes show: ratings, head-to-head figures, how far people and judge agree. Claims no more than they bear."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

from textmill.contracts.pairwise import (
    ComparisonManifest,
    ComparisonResults,
    HeadToHead,
    Interval,
    Judgement,
    Outcome,
    Pair,
    Rating,
    Source,
    Standings,
)
from textmill_inference.pairwise.bradley_terry import Battle, Fit, fit
from textmill_inference.pairwise.intervals import wilson
from textmill_inference.pairwise.judge import consistent_outcome, position_bias
from textmill_inference.pairwise.stored import StoredComparison

_ELO_A_NAT = 400 / 2.302585
_ELO_MEAN = 1_000
_SCORES: Mapping[Outcome, float] = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}
Votes = Sequence[tuple[Pair, Outcome]]


def results_of(comparison: StoredComparison) -> ComparisonResults:
    """From the votes there are now. Some seconds for thousands of votes."""
    manifest, pairs = comparison.manifest, comparison.pairs
    votes = comparison.votes()
    people: Votes = [(pairs[vote.pair_id], vote.outcome) for vote in votes]
    looks = _by_pair(comparison.judgements(), pairs)
    verdicts = {pair_id: consistent_outcome(both, pairs[pair_id].first) for pair_id, both in looks.items()}
    judged: Votes = [(pairs[pair_id], outcome) for pair_id, outcome in verdicts.items() if outcome is not None]
    standings = []
    if people:
        standings.append(_standings("people", people, len({vote.voter for vote in votes}), manifest))
    if judged:
        standings.append(_standings("judge", judged, 1, manifest))
    among_people, on = _agreement_among(people)
    with_judge, judge_on = _agreement_with(people, verdicts)
    return ComparisonResults(
        comparison=manifest,
        standings=standings,
        position_bias=position_bias(looks) if looks else None,
        people_agree=among_people,
        people_agree_on=on,
        judge_agrees=with_judge,
        judge_agrees_on=judge_on,
        notes=_notes(manifest, standings),
    )


def _by_pair(judgements: Sequence[Judgement], pairs: Mapping[str, Pair]) -> Mapping[str, Sequence[Judgement]]:
    """The look with the comparison's first model on the left comes first."""
    found: dict[str, list[Judgement]] = defaultdict(list)
    for look in judgements:
        if look.pair_id in pairs:
            found[look.pair_id].append(look)
    return {p: sorted(looks, key=lambda look: look.left != pairs[p].first) for p, looks in found.items()}


def _standings(source: Source, votes: Votes, voters: int, manifest: ComparisonManifest) -> Standings:
    models = list(manifest.models)
    groups = {prompt_id: n for n, prompt_id in enumerate(dict.fromkeys(pair.prompt_id for pair, _ in votes))}
    battles = [
        Battle(groups[pair.prompt_id], models.index(pair.first), models.index(pair.second), _SCORES[outcome])
        for pair, outcome in votes
    ]
    fitted = fit(battles, len(models), manifest.resamples, manifest.seed)
    heads = (_head_to_head(i, j, models, votes, fitted) for i, j in combinations(range(len(models)), 2))
    return Standings(
        source=source,
        votes=len(votes),
        prompts=len(groups),
        voters=voters,
        ratings=sorted((_rating(n, models, fitted) for n in range(len(models))), key=lambda r: -r.strength),
        pairs=[head for head in heads if head is not None],
        prior_matters=fitted.prior_matters,
    )


def _rating(number: int, models: Sequence[str], fitted: Fit) -> Rating:
    strength, interval = float(fitted.strengths[number]), fitted.intervals[number]
    return Rating(
        model=models[number],
        strength=strength,
        strength_interval=interval,
        rating=_elo(strength),
        rating_interval=Interval(low=_elo(interval.low), high=_elo(interval.high)),
    )


def _elo(strength: float) -> float:
    return _ELO_MEAN + _ELO_A_NAT * strength


def _head_to_head(i: int, j: int, models: Sequence[str], votes: Votes, fitted: Fit) -> HeadToHead | None:
    """None where nobody voted on these two. The rate's interval counts prompts: votes on one aren't independent."""
    mine = [(pair, outcome) for pair, outcome in votes if {pair.first, pair.second} == {models[i], models[j]}]
    if not mine:
        return None
    counts = Counter(outcome for _, outcome in mine)
    rate = sum(_SCORES[outcome] for _, outcome in mine) / len(mine)
    prompts = len({pair.prompt_id for pair, _ in mine})
    interval = fitted.differences[i, j]
    better = models[i] if interval.low > 0 else models[j] if interval.high < 0 else None
    return HeadToHead(
        first=models[i],
        second=models[j],
        wins=counts["first"],
        losses=counts["second"],
        ties=counts["tie"],
        both_bad=counts["both_bad"],
        win_rate=rate,
        win_rate_interval=wilson(rate * prompts, prompts),
        difference=float(fitted.strengths[i] - fitted.strengths[j]),
        difference_interval=interval,
        shown=better,
    )


def _agreement_among(people: Votes) -> tuple[float | None, int]:
    """Over pairs with several voters: the share of two votes on the same pair that name the same outcome."""
    by_pair = _outcomes(people)
    agree = total = pairs = 0
    for outcomes in by_pair.values():
        if len(outcomes) > 1:
            pairs += 1
            both = list(combinations(outcomes, 2))
            agree += sum(a == b for a, b in both)
            total += len(both)
    return (agree / total if total else None), pairs


def _agreement_with(people: Votes, verdicts: Mapping[str, Outcome | None]) -> tuple[float | None, int]:
    """Over pairs that both voted on, and people with a majority: how often the judge says the same."""
    agree = pairs = 0
    for pair_id, outcomes in _outcomes(people).items():
        ranked = Counter(outcomes).most_common(2)
        verdict = verdicts.get(pair_id)
        if verdict is None or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
            continue
        pairs += 1
        agree += ranked[0][0] == verdict
    return (agree / pairs if pairs else None), pairs


def _outcomes(votes: Votes) -> Mapping[str, list[Outcome]]:
    """By pair; that both are bad says of the two no more than a tie."""
    found: dict[str, list[Outcome]] = defaultdict(list)
    for pair, outcome in votes:
        found[pair.pair_id].append("tie" if outcome == "both_bad" else outcome)
    return found


def _notes(manifest: ComparisonManifest, standings: Sequence[Standings]) -> list[str]:
    notes = []
    if not standings:
        notes.append("Nobody has voted yet.")
    if manifest.same:
        notes.append(f"{manifest.same} pairs have equal answers: they aren't voted on and count for neither side.")
    if manifest.failed:
        notes.append(f"{manifest.failed} pairs miss an answer, since a model gave none: they aren't voted on.")
    notes += [
        f"By the votes of {_WHO[s.source]} some model won or lost everything, or was never compared with the others: "
        "its rating is held by the prior (normal, deviation 5 nats), and only its order means something."
        for s in standings
        if s.prior_matters
    ]
    return notes


_WHO: Mapping[Source, str] = {"people": "people", "judge": "the judge"}
