"""May one model's weights be loaded into an engine that was started with another's? Only files are compared.

An engine that swaps weights keeps all else it read at its start: shapes, tokenizer, chat template, sampling defaults.
So all of that has to be the same.
"""

import hashlib
import json
from pathlib import Path

_NAMES_ONLY = {"_name_or_path", "_model_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
"""Keys of config.json that change no tensor: our engines are started with a data type of their own."""
_KEPT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def same_geometry(one: Path, other: Path) -> bool:
    return _fingerprint(one) == _fingerprint(other)


def _fingerprint(folder: Path) -> dict[str, str]:
    config = json.loads((folder / "config.json").read_bytes())
    shape = {key: value for key, value in config.items() if key not in _NAMES_ONLY}
    found = {"config.json": json.dumps(shape, sort_keys=True)}
    for name in _KEPT_FILES:
        path = folder / name
        found[name] = _without_version(path) if path.is_file() else ""
    return found


def _without_version(path: Path) -> str:
    """The content's hash; the version of the library that wrote the file doesn't count."""
    data = path.read_bytes()
    if path.name == "generation_config.json":
        values = json.loads(data)
        values.pop("transformers_version", None)
        data = json.dumps(values, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()
