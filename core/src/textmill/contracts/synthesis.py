"""What can be asked of synth: which records to make of a corpus, how they are asked for, checked and bounded."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from textmill.contracts.base import Contract, Id, Name
from textmill.contracts.datasets import Axis, Strategy, Tool
from textmill.contracts.documents import Language


class Question(Contract):
    """One thing to know about each passage, and the ways of asking for it.

    ``key`` is a regular expression with a group ``key``, matched on the passage: the fact a right answer contains.
    ``ask`` and ``held_out`` have slots like ``{name}``, filled from the groups of the set's ``subject``.
    """

    id: Name
    key: str
    ask: tuple[str, ...] = Field(min_length=1)
    held_out: tuple[str, ...] = ()


class QuestionSet(Contract):
    """The owner's own questions. ``subject`` is matched on each passage; its named groups fill the slots."""

    language: Language
    subject: str
    questions: tuple[Question, ...] = Field(min_length=1)


class AskingTemplate(Contract):
    """The owner's way of asking: ``text`` puts its one slot ``{question}`` into other words, e.g. from a real FAQ.

    The other axes have rules of their own, that no template can state.
    """

    axis: Literal["register", "persona", "indirect"]
    language: Language
    text: str = Field(pattern=r"^[^{}]*\{question\}[^{}]*$")


class AskingOptions(Contract):
    """Into how many more ways of asking each question is put, by axis, besides the wordings it has.

    ``templates`` come before the built-in ones of their axis. ``llm_phrasings`` are written by the LLM for ``plain``
    (all are wanted, unless it has a quota) and ``language``, and kept when they have the same answer. Wordings at least
    ``near_duplicate`` alike count as one; the next takes its place.
    """

    quotas: dict[Axis, Annotated[int, Field(ge=0, le=50)]] = Field(default_factory=dict)
    templates: tuple[AskingTemplate, ...] = ()
    llm_phrasings: int = Field(default=0, ge=0, le=50)
    near_duplicate: float = Field(default=0.95, gt=0, le=1)


class SeedTask(Contract):
    """An example of a task for ``self_instruct``, written by the owner."""

    language: Language
    instruction: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class OwnerPrompt(Contract):
    """A prompt of the owner's for the strategy ``prompt``. ``{passage}`` is the passage, ``{heading}`` its heading."""

    id: Name
    language: Language
    prompt: str = Field(pattern=r"\{passage\}")


class QualityOptions(Contract):
    """What is done about the set as a whole. Each threshold is a similarity from 0 to 1; 1 drops only what is equal."""

    near_duplicate: float = Field(default=0.9, gt=0, le=1)
    contamination: float = Field(default=0.8, gt=0, le=1)
    drop_pii: bool = False


class Judge(Contract):
    """An LLM that is shown passage, question and answer, and says whether the passage bears the answer out.

    ``model`` and ``url`` default to the LLM that writes the records.
    """

    model: str | None = None
    url: str | None = None


class Prices(Contract):
    """Money for a million tokens, in whatever currency the owner thinks in."""

    prompt: float = Field(default=0.0, ge=0)
    completion: float = Field(default=0.0, ge=0)


class Budget(Contract):
    """Caps that no job passes. At a cap no further call is made, and what is paid for becomes the dataset."""

    max_calls: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=0)
    max_cost: float | None = Field(default=None, ge=0)
    prices: Prices = Prices()

    @model_validator(mode="after")
    def _cost_can_be_told(self) -> "Budget":
        if self.max_cost is not None and not self.prices.prompt and not self.prices.completion:
            raise ValueError("'max_cost' needs 'prices': without them no call costs anything; give prices per million")
        return self


class SynthOptions(Contract):
    """How a corpus becomes a dataset.

    Without ``question_sets`` the built-in ways of asking are used, about each passage's subject. ``model`` and
    ``llm_url`` default to the synth service's settings; keys never travel in a job. ``context`` is what the LLM is
    shown with a question whose key is known: the whole passage, or, for small models, the key's sentence alone.
    ``pairs_per_passage`` is how many answers each of ``pairs`` and ``self_instruct`` asks for.
    """

    strategies: tuple[Strategy, ...] = Field(default=("qa",), min_length=1)
    question_sets: tuple[QuestionSet, ...] = ()
    pairs_per_passage: int = Field(default=4, ge=1, le=50)
    styles: tuple[str, ...] = ()
    turns: int = Field(default=3, ge=2, le=10)
    tools: tuple[Tool, ...] = ()
    seed_tasks: tuple[SeedTask, ...] = ()
    evolutions: tuple[Literal["deeper", "wider"], ...] = ("deeper", "wider")
    prompts: tuple[OwnerPrompt, ...] = ()
    asking: AskingOptions = AskingOptions()
    answer_variants: int = Field(default=1, ge=1, le=10)
    model: str | None = None
    llm_url: str | None = None
    temperature: float = Field(default=0.0, ge=0, le=2)
    max_answer_tokens: int = Field(default=96, ge=8, le=8_192)
    context: Literal["passage", "sentence"] = "passage"
    extractive_fallback: bool = True
    judge: Judge | None = None
    quality: QualityOptions = QualityOptions()
    budget: Budget = Budget()
    leave_out_known: Id | None = None
    """A preflight's id: what it found the base model to know already is not asked for."""
    eval_fraction: float = Field(default=0.0, ge=0, lt=1)
    system_prompt: str | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _has_what_its_strategies_need(self) -> "SynthOptions":
        needs = {"styles": "styles", "tools": "tools", "self_instruct": "seed_tasks", "prompt": "prompts"}
        for strategy in self.strategies:
            if strategy in needs and not getattr(self, needs[strategy]):
                raise ValueError(f"the strategy {strategy!r} needs {needs[strategy]!r}; give at least one")
        if set(self.strategies) == {"evolve"}:
            raise ValueError("the strategy 'evolve' needs answers to evolve; give another strategy too, e.g. 'pairs'")
        return self


class MixSource(Contract):
    """A dataset in a mixture. It is gone through ``epochs`` times; of each, the share ``weight`` is taken."""

    dataset_id: Id
    weight: float = Field(default=1.0, gt=0, le=1)
    epochs: int = Field(default=1, ge=1, le=100)
