"""One YAML file that names the whole way, checked before anything starts.

A wrong key or value is named with its line, what is allowed there, and the nearest right one. Knows no service.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from textmill.contracts.base import Contract, Name
from textmill.contracts.jobs import EvaluateOptions, SplitRule
from textmill.contracts.loadoptions import LoadtestOptions
from textmill.contracts.synthesis import QuestionSet, SynthOptions
from textmill.contracts.training import TrainOptions
from textmill.errors import BadRequest


class Sources(Contract):
    """What is milled. ``files`` are paths or patterns beside the recipe, ``urls`` are fetched by ingest."""

    files: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()


class Synthesis(SynthOptions):
    """``questions`` are files beside the recipe, each a question set in YAML. Tools' schemas may be YAML as well."""

    questions: tuple[str, ...] = ()

    @field_validator("tools", mode="before")
    @classmethod
    def _schemas_as_json(cls, tools: Any) -> Any:
        """What isn't a list of mappings is left to be named as a mistake."""
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            return tools
        return [
            {**tool, "parameters": json.dumps(tool["parameters"])} if isinstance(tool.get("parameters"), dict) else tool
            for tool in tools
        ]


class DeploymentSection(Contract):
    name: Name


class Recipe(Contract):
    """The stages in their order. Leave off later ones, and the run ends there."""

    name: Name
    sources: Sources
    split: SplitRule = SplitRule()
    synthesis: Synthesis | None = None
    training: TrainOptions | None = None
    deployment: DeploymentSection | None = None
    evaluation: EvaluateOptions | None = None
    loadtest: LoadtestOptions | None = None
    folder: Annotated[Path, Field(exclude=True)] = Path()

    @model_validator(mode="after")
    def _in_order(self) -> "Recipe":
        objective = self.training.objective if self.training is not None else "supervised"
        if objective == "dpo":
            raise ValueError(
                "a recipe makes no preference pairs: upload them to POST /v1/preferences, then POST /v1/runs"
            )
        needs = {
            "training": "sources" if objective == "pretrain" else "synthesis",
            "deployment": "training",
            "evaluation": "deployment",
            "loadtest": "deployment",
        }
        if self.evaluation is not None and self.synthesis is None:
            raise ValueError("'evaluation' asks the questions that 'synthesis' makes; add it or take 'evaluation' out")
        for stage, needed in needs.items():
            if getattr(self, stage) is not None and getattr(self, needed) is None:
                raise ValueError(f"'{stage}' needs the section '{needed}'; add it or take '{stage}' out")
        return self

    def files(self) -> list[Path]:
        """The files that ``sources.files`` names, sorted. Raises ``BadRequest`` for a pattern that matches none."""
        found: list[Path] = []
        for pattern in self.sources.files:
            matches = sorted(p for p in self.folder.glob(pattern) if p.is_file())
            if not matches:
                raise BadRequest(f"sources.files: {pattern!r} matches no file in {self.folder.resolve()}")
            found += [path for path in matches if path not in found]
        return found


@dataclass(frozen=True)
class _Located:
    """A YAML document with the line of every key and item."""

    value: Any
    lines: Mapping[tuple[str | int, ...], int]


def load(path: Path) -> Recipe:
    """Raises ``BadRequest`` with every mistake in the file, each with its line."""
    located = _read_yaml(path)
    recipe: Recipe = _validate(Recipe, path, located)
    recipe = recipe.model_copy(update={"folder": path.parent})
    if not recipe.sources.files and not recipe.sources.urls:
        raise BadRequest(f"{path}: 'sources' names neither files nor urls; add one of them")
    recipe.files()
    if recipe.synthesis is not None:
        sets = tuple(load_questions(path.parent / name) for name in recipe.synthesis.questions)
        synthesis = recipe.synthesis.model_copy(update={"question_sets": (*recipe.synthesis.question_sets, *sets)})
        recipe = recipe.model_copy(update={"synthesis": synthesis})
    return recipe


def load_questions(path: Path) -> QuestionSet:
    """Raises ``BadRequest`` like ``load``."""
    questions: QuestionSet = _validate(QuestionSet, path, _read_yaml(path))
    return questions


def _read_yaml(path: Path) -> _Located:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except FileNotFoundError as exc:
        raise BadRequest(f"no file {path}; give the path of a recipe, such as examples/zhouyi/recipe.yaml") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise BadRequest(f"{path} can't be read: {exc}") from exc
    except yaml.YAMLError as exc:
        raise BadRequest(f"{path} is no YAML: {exc}") from exc
    if node is None or not isinstance(value, dict):
        raise BadRequest(f"{path} holds {type(value).__name__}, not keys with values")
    lines: dict[tuple[str | int, ...], int] = {}
    _note_lines(node, (), lines)
    return _Located(value, lines)


def _note_lines(node: yaml.Node, where: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]) -> None:
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*where, key.value)] = key.start_mark.line + 1
            _note_lines(value, (*where, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*where, index), lines)


def _validate(model: type[BaseModel], path: Path, located: _Located) -> Any:
    try:
        return model.model_validate(located.value)
    except ValidationError as exc:
        errors = exc.errors()
        inner = {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}
        # A list whose only item is wrong is also reported as too short: only the innermost word helps.
        lines = [
            _explain(model, path, located, error) for error in errors if error["loc"] not in inner or not error["loc"]
        ]
        raise BadRequest("\n".join(lines)) from exc


def _explain(model: type[BaseModel], path: Path, located: _Located, error: Any) -> str:
    where: tuple[str | int, ...] = error["loc"]
    known = where
    while known not in located.lines:
        known = known[:-1]
    named = where[:-1] if where[-1:] == ("[key]",) else where  # pydantic's mark for a wrong key of a mapping
    at = f"{path}:{located.lines[known]}: {'.'.join(map(str, named)) or 'recipe'}"
    if error["type"] == "extra_forbidden":
        allowed = _keys_at(model, where[:-1])
        return f"{at}: unknown key{_nearest(str(where[-1]), allowed)}; allowed here: {', '.join(allowed)}"
    if error["type"] == "literal_error":
        allowed = [word.strip("' ") for word in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
        nearest = _nearest(str(error["input"]), allowed)
        return f"{at}: {error['input']!r} is not allowed{nearest}; allowed: {', '.join(allowed)}"
    if error["type"] == "missing":
        return f"{at}: missing; add it"
    value = "" if isinstance(error["input"], dict | list) else f" (it is {error['input']!r})"
    return f"{at}: {error['msg'].removeprefix('Value error, ')}{value}"


def _nearest(word: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f" — did you mean '{close[0]}'?" if close else ""


def _keys_at(model: type[BaseModel], where: Sequence[str | int]) -> list[str]:
    """The keys that the model has at this place of the document."""
    current: type[BaseModel] = model
    for part in where:
        if isinstance(part, str) and part in current.model_fields:
            inner = _model_in(current.model_fields[part].annotation)
            if inner is not None:
                current = inner
    return sorted(name for name, field in current.model_fields.items() if not field.exclude)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside ``Model | None`` or ``tuple[Model, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
