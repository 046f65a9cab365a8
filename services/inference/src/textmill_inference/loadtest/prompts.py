"""What a load test asks when it isn't told by a whole ``Traffic``: given prompts, a dataset's questions, or ours."""

from collections.abc import Iterable

from pydantic import ValidationError

from textmill.contracts.jobs import LoadtestJob
from textmill.contracts.load import Fixed, GivenPrompts, Message, TraceEntry, Traffic
from textmill.errors import BadRequest, NotFound
from textmill.store import ObjectStore
from textmill_inference.evaluation.questions import held_out

TRACES = "traffic/traces/"
"""All traces lie below it. Any other key is refused, or a load test could send out whatever is stored."""
_DEFAULT_PROMPTS = (
    "Explain in two sentences what a lighthouse is for.",
    "Name three things to check before a long bicycle ride, and say why.",
    "What is the difference between weather and climate?",
    "Write a short note that asks a neighbour to water the plants.",
)
_MOST_PROMPTS = 1_000


def traffic_of(job: LoadtestJob, store: ObjectStore) -> Traffic:
    """The job's own traffic, else its prompts, else its dataset's held-out questions, else a few of ours.

    Raises:
        NotFound: no such dataset.
        JobFailed: the dataset has no held-out questions.
    """
    if job.traffic is not None:
        return job.traffic
    if job.dataset_id is not None and not job.prompts:
        questions = held_out(store, job.dataset_id, _MOST_PROMPTS)
        conversations = tuple(tuple(Message.model_validate(m) for m in q.messages) for q in questions)
    else:
        conversations = tuple((Message(content=prompt),) for prompt in job.prompts or _DEFAULT_PROMPTS)
    return Traffic(prompts=GivenPrompts(conversations=conversations), output=Fixed(value=job.max_tokens))


def read_trace(store: ObjectStore, key: str) -> Iterable[TraceEntry]:
    """Raises ``BadRequest`` for what is no trace."""
    if not key.startswith(TRACES):
        raise BadRequest(f"{key!r} is no trace: their keys begin with {TRACES}; POST /v1/traffic/traces makes one")
    try:
        lines = store.get(key).splitlines()
        return [TraceEntry.model_validate_json(line) for line in lines if line.strip()]
    except NotFound as exc:
        raise BadRequest(f"no trace at {key!r}; GET /v1/traffic/traces lists them with their lines_key") from exc
    except ValidationError as exc:
        raise BadRequest(f"{key!r} holds a line that is no trace entry: {exc.errors()[0]['msg']}") from exc
