"""The recipes that the docs show are valid, and every key that a recipe may have stands in them."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from textmill.contracts.synthesis import AskingOptions, Budget, Judge, OwnerPrompt, Prices, QualityOptions, SeedTask
from textmill_cli.plan import chain_of, preflight_of
from textmill_cli.recipe import Synthesis, load

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECIPES = (DOCS / "recipes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", RECIPES, re.DOTALL)
OWN_QUESTIONS = next(block for block in BLOCKS if block.startswith("language:"))


@pytest.mark.parametrize("text", [block for block in BLOCKS if block.startswith("name:")])
def test_the_recipes_shown_are_valid(tmp_path: Path, text: str) -> None:
    for name in ("a.md", "manuals/a.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "questions.yaml").write_text(OWN_QUESTIONS)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    recipe = load(path)
    jobs = chain_of(recipe, []).then
    assert recipe.synthesis is not None
    (synth,) = [job for job in jobs if job.kind == "synth"]
    sent: dict[str, Any] = recipe.synthesis.model_dump(exclude={"questions"})
    assert {key: value for key, value in synth.model_dump().items() if key in sent} == sent
    pilot = preflight_of(recipe, [], 3).then[-1]
    assert {key: value for key, value in pilot.model_dump().items() if key in sent} == sent


@pytest.mark.parametrize(
    "model", [Synthesis, AskingOptions, SeedTask, OwnerPrompt, QualityOptions, Judge, Budget, Prices]
)
def test_every_key_is_in_an_example(model: type[BaseModel]) -> None:
    shown = "".join(block for block in BLOCKS if block.startswith("name:"))
    missing = [name for name in model.model_fields if not re.search(rf"(?:^|[\s{{-]){name}:", shown)]
    assert missing == []
