"""Says in one message which records a run refuses, and what to do about it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from textmill.contracts.masking import RefusalReason, RefusedRecord

_NAMED = 3
"""Records named for each reason; all of them are in the report."""
REMEDIES: Mapping[RefusalReason, str] = {
    "no_answer": "leave them out, or give them an assistant turn",
    "empty_answer": "leave them out, or write the answer",
    "too_long": "raise max_tokens, or split the passages smaller: cut, they would train half an answer",
    "no_end_of_turn": "give the base model a chat template that ends an answer with one of the tokens at which "
    "generation stops, or add the token that it does write to eos_token_id in generation_config.json",
    "answer_not_rendered": "give the base model a chat template that writes all of an answer",
    "tools_not_rendered": "take a base model whose chat template knows tools, or a dataset without the strategy tools",
    "control_token": "take the token out of the text: there it would end or begin a turn",
    "joined_tokens": "take away the white space that the chat template writes at the end of add_generation_prompt",
    "not_in_vocabulary": "take these characters out of the text, or a base model whose vocabulary has them",
    "turns_not_separable": "mend the chat template, so that what it writes for add_generation_prompt begins the turn",
    "template_error": "mend the chat template, or leave out what it doesn't know (a system message, a role, a tool)",
}


def refusal_message(refused: Sequence[RefusedRecord]) -> str:
    """How many by reason, the first of each by name with what is wrong, and the remedy."""
    records = "1 record" if len(refused) == 1 else f"{len(refused)} records"
    return f"{records} can't be trained on, and none is left out silently. " + "; ".join(_by_reason(refused))


def count_by_reason(refused: Sequence[RefusedRecord]) -> dict[RefusalReason, int]:
    """The most frequent first."""
    reasons = [r.reason for r in refused]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons), key=lambda r: (-reasons.count(r), r))}


def _by_reason(refused: Sequence[RefusedRecord]) -> Iterator[str]:
    order = list(count_by_reason(refused))
    for reason, group in groupby(sorted(refused, key=lambda r: order.index(r.reason)), key=lambda r: r.reason):
        found = list(group)
        named = ", ".join(f"{r.record_id} ({r.detail})" for r in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        yield f"{reason} {len(found)}: {named}{more}; {REMEDIES[reason]}"
