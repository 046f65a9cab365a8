"""Renders the dataset card: what is in it, what was left out and why, what it cost, and some of its records."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import jinja2

from textmill.contracts.datasets import DatasetManifest, Record
from textmill.contracts.documents import Language
from textmill.contracts.quality import QualityReport
from textmill.store import ObjectStore


def put_card(
    store: ObjectStore,
    manifest: DatasetManifest,
    quality: QualityReport,
    examples: Sequence[Record],
    prompt_keys: Mapping[str, str] | None = None,
    passages_skipped: int | None = None,
) -> None:
    """Write the card to the manifest's ``card_key``."""
    text = render_card(manifest, quality, examples, prompt_keys or {}, passages_skipped)
    store.put(manifest.card_key, text.encode())


def render_card(
    manifest: DatasetManifest,
    quality: QualityReport,
    examples: Sequence[Record],
    prompt_keys: Mapping[str, str],
    passages_skipped: int | None,
) -> str:
    """Markdown with a YAML head that the Hugging Face Hub understands. ``passages_skipped`` None: nothing was asked."""
    return _template().render(
        manifest=manifest,
        quality=quality,
        train=quality.balance["train"],
        examples=examples,
        passages_skipped=passages_skipped,
        prompt_keys=prompt_keys,
        languages=_languages(quality),
        size=_size_category(sum(manifest.records.values())),
    )


def _languages(quality: QualityReport) -> Sequence[Language]:
    return sorted({language for balance in quality.balance.values() for language in balance.languages})


def _size_category(rows: int) -> str:
    """As the Hub's ``size_categories`` has it."""
    names = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for limit, name in names if rows < limit), "1M<n<10M")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


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
    environment.filters["percent_of"] = _percent
    return environment.from_string(text)
