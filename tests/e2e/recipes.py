"""Recipes for tests: the example's, cut down to what a test has time for."""

from pathlib import Path
from typing import Any

import yaml

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "zhouyi"


def small_recipe(language: str, files: list[str], **changes: Any) -> dict[str, Any]:
    """The example's recipe on some of its files; ``changes`` are merged section by section."""
    recipe: dict[str, Any] = yaml.safe_load((EXAMPLE / "recipe.yaml").read_text())
    recipe["sources"] = {"files": [str(Path(language) / name) for name in files]}
    recipe["synthesis"]["questions"] = [f"questions.{language}.yaml"]
    recipe["training"] |= {"epochs": 2}
    recipe["loadtest"] = {"concurrencies": [1, 4], "requests_per_level": 8, "seconds_per_level": 5}
    for section, values in changes.items():
        recipe[section] = recipe.get(section, {}) | values
    return recipe


def write_recipe(folder: Path, recipe: dict[str, Any]) -> Path:
    """The recipe beside links to the example's texts, as an owner would lay it out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("en", "zh", "questions.en.yaml", "questions.zh.yaml"):
        link = folder / name
        if not link.exists():
            link.symlink_to(EXAMPLE / name)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True))
    return path
