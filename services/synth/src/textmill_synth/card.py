"""Renders the dataset card: what is in it, what was left out and why, what it cost, and some of its records."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import jinja2

from textmill.contracts.datasets import Counts, DatasetManifest, Record


def render_card(
    manifest: DatasetManifest, examples: Sequence[Record], passages_skipped: int, prompt_keys: Mapping[str, str]
) -> str:
    """Markdown with a YAML head that the Hugging Face Hub understands."""
    return _template().render(
        manifest=manifest,
        examples=examples,
        passages_skipped=passages_skipped,
        prompt_keys=prompt_keys,
        yields={name: _yield(counts) for name, counts in manifest.counts_by_strategy.items()},
        languages=sorted({record.language for record in examples}),
    )


def _yield(counts: Counts) -> str:
    return f"{100 * counts.accepted / counts.requested:.0f} %" if counts.requested else "-"


@cache
def _template() -> jinja2.Template:
    text = files("textmill_synth").joinpath("templates", "card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # A text with a bar or a line break must not break the table it is shown in.
    environment.filters["cell"] = lambda text: " ".join(str(text).replace("|", "\\|").split())
    return environment.from_string(text)
