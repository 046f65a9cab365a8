"""The answer of a load test in words: what the owner asked, answered first; then why; then what to do."""

from collections.abc import Sequence

from textmill.contracts.capacity import CapacityFinding, LoadKind
from textmill.contracts.loadreport import Comparison, Knee, Level, Verdict

_UNITS: dict[LoadKind, str] = {"concurrency": "concurrent requests", "rate": "requests per second"}


def verdict_of(
    levels: Sequence[Level],
    capacity: CapacityFinding | None,
    knee: Knee | None,
    comparisons: Sequence[Comparison],
) -> Verdict:
    if levels and not any(level.valid for level in levels):
        return _invalid(levels)
    if capacity is not None:
        return _of_capacity(capacity, levels)
    if comparisons:
        return _of_comparison(comparisons)
    return _of_sweep(levels, knee)


def load_words(load: float, kind: LoadKind) -> str:
    """ "1,000 concurrent requests", "2.5 requests per second"."""
    text = f"{load:,.0f}" if load == round(load) else f"{load:.3g}"
    return f"{text} {_UNITS[kind] if load != 1 else _UNITS[kind].replace('requests', 'request')}"


def _invalid(levels: Sequence[Level]) -> Verdict:
    doubts = list(dict.fromkeys(doubt.message for level in levels for doubt in level.doubts))
    return Verdict(
        answer="invalid",
        headline="Nothing can be said of the target: the load generator itself could explain every result.",
        reasons=tuple(doubts[:5]),
        advice=("Run the load test on a machine of its own, or with more cores, or with less load.",),
    )


# -- capacity ----------------------------------------------------------------------------------------------------------


def _of_capacity(found: CapacityFinding, levels: Sequence[Level]) -> Verdict:
    reasons = [_interval(found)]
    missed = [level for level in levels if level.judgement is not None and level.judgement.met is False]
    if missed:
        lowest = min(missed, key=lambda level: (level.load, level.number))
        assert lowest.judgement is not None
        reasons.append(f"At {load_words(lowest.load, found.kind)}: {lowest.judgement.why}.")
    spoiled = sum(1 for trial in found.trials if trial.met is None)
    if spoiled:
        reasons.append(f"{spoiled} of {len(found.trials)} stages were spoiled by the load generator and count nowhere.")
    advice = () if found.stopped == "decided" else (f"The search ended because {found.why}.",)
    return Verdict(answer=found.verdict or "measured", headline=_headline(found), reasons=tuple(reasons), advice=advice)


def _headline(found: CapacityFinding) -> str:
    if found.stopped == "no answers":
        return "The target answered nothing, so there is no capacity to speak of; the errors below say what it said."
    held = _held(found)
    if found.wanted is None or found.verdict is None:
        return f"It holds {held} within the SLO." if held else "No load was confirmed to meet the SLO."
    wanted = load_words(found.wanted, found.kind)
    if found.verdict == "yes":
        return f"Yes: it holds {wanted} within the SLO."
    if found.verdict == "no":
        return f"No: it doesn't hold {wanted} within the SLO" + (f"; it holds {held}." if held else ".")
    return f"Undecided: the stages don't settle whether it holds {wanted} within the SLO."


def _held(found: CapacityFinding) -> str:
    return load_words(found.low, found.kind) if found.low is not None else ""


def _interval(found: CapacityFinding) -> str:
    sure = f"with {found.confidence:.0%} confidence"
    one_sided = f"with {0.5 + found.confidence / 2:.0%} confidence"
    unit = _UNITS[found.kind]
    if found.low is not None and found.high is not None:
        return f"The capacity lies from {found.low:,g} to {found.high:,g} {unit}, {sure}."
    if found.low is not None:
        return f"The capacity is at least {found.low:,g} {unit}, {one_sided}; no upper end was confirmed."
    if found.high is not None:
        return f"The capacity is below {found.high:,g} {unit}, {one_sided}; no lower end was confirmed."
    return "Neither end of the capacity was confirmed by repeated stages."


# -- comparison and sweep ----------------------------------------------------------------------------------------------


def _of_comparison(comparisons: Sequence[Comparison]) -> Verdict:
    rows = [(one, row) for one in comparisons for row in one.rows if row.finding != "no difference shown"]
    if not rows:
        return Verdict(
            answer="measured",
            headline="No difference between the two targets was shown.",
            reasons=("All intervals of the differences hold 0.",),
            advice=("More rounds or longer stages would show smaller differences.",),
        )
    reasons = [
        f"At {load_words(one.load, one.kind)}: b's {row.name}"
        f"{f' p{row.percent:g}' if row.percent else ''} is {abs(row.difference):.3g} {row.unit} "
        f"{'lower' if row.difference < 0 else 'higher'} ({row.low:.3g} to {row.high:.3g})."
        for one, row in rows
    ]
    return Verdict(
        answer="measured",
        headline=f"The two targets differ in {len(rows)} figures; see the table for both.",
        reasons=tuple(reasons[:12]),
    )


def _of_sweep(levels: Sequence[Level], knee: Knee | None) -> Verdict:
    valid = [level for level in levels if level.valid]
    if not any(level.succeeded for level in levels):
        return Verdict(answer="measured", headline="The target answered no request; the errors below say why.")
    best = max(valid, key=lambda level: level.output_tokens_per_s)
    most = (
        f"{best.output_tokens_per_s:,.0f} tokens/s and {best.requests_per_s:,.3g} requests/s "
        f"at {load_words(best.load, best.kind)}"
    )
    reasons = [f"The most it gave was {most}."]
    if knee is not None:
        reasons.append(f"Throughput stops growing at about {load_words(float(f'{knee.load:.2g}'), valid[0].kind)}.")
    elif len(valid) > 2:
        reasons.append("Throughput still grew at the highest load, so its knee lies beyond.")
    judged = [level for level in valid if level.judgement is not None]
    if not judged:
        return Verdict(answer="measured", headline=f"It gave up to {most}.", reasons=tuple(reasons[1:]))
    return Verdict(
        answer="measured",
        headline=_sweep_headline(judged),
        reasons=tuple(reasons),
        advice=("Single stages may have had luck: a capacity search repeats them and gives an interval.",),
    )


def _sweep_headline(judged: Sequence[Level]) -> str:
    met = [level for level in judged if level.judgement is not None and level.judgement.met]
    missed = [level for level in judged if level.judgement is not None and level.judgement.met is False]
    if not met:
        return "No load that was tried met the SLO."
    top = max(met, key=lambda level: level.load)
    if not missed:
        return f"All loads that were tried met the SLO, up to {load_words(top.load, top.kind)}."
    low = min(missed, key=lambda level: level.load)
    return (
        f"It met the SLO up to {load_words(top.load, top.kind)} and missed it from {load_words(low.load, low.kind)} on."
    )
