"""From where a target's API key is to the key. Nothing here is logged, stored or told to a client."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from textmill.contracts.load import Stage
from textmill.contracts.loadoptions import KeyFrom
from textmill.contracts.loadtest import Measured
from textmill.errors import BadRequest

SET_ASIDE = "TEXTMILL_INFERENCE_LOADTEST_KEY"
SHORTEST = 8
_HIDDEN = "[key]"


class KeySource:
    """``prefix`` is what names of variables must begin with: a service sets some aside, a person's shell needs none."""

    def __init__(
        self, secrets: Path | None = None, environ: Mapping[str, str] | None = None, prefix: str = SET_ASIDE
    ) -> None:
        self._secrets = secrets
        self._environ = os.environ if environ is None else environ
        self._prefix = prefix

    def check(self, place: KeyFrom | None) -> None:
        """Raises ``BadRequest`` where no key can be taken from."""
        if place is not None:
            self.key(place)

    def key(self, place: KeyFrom) -> str:
        """Raises ``BadRequest``."""
        key = self._from_env(place.env) if place.env is not None else self._from_secret(place.secret or "")
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable():
            raise BadRequest(
                f"the key in {place.env or place.secret} is no line of at least {SHORTEST} ASCII characters; a shorter "
                "one could not be told from other text, and so not be kept out of results"
            )
        return key

    def _from_env(self, name: str) -> str:
        if not name.startswith(self._prefix):
            raise BadRequest(
                f"key_from.env {name!r} is not set aside for load tests: put the key into a variable of the inference "
                f"service whose name begins with {self._prefix}, or into its folder of secrets"
            )
        if name not in self._environ:
            raise BadRequest(f"there is no variable {name} where the load test runs; set it and restart the service")
        return self._environ[name].strip()

    def _from_secret(self, name: str) -> str:
        if self._secrets is None:
            raise BadRequest("key_from.secret needs a folder of secrets: set TEXTMILL_INFERENCE_LOADTEST_SECRETS")
        try:
            return (self._secrets / name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise BadRequest(f"no secret {name!r} in the folder of secrets for load tests; mount it there") from exc


def without_key(measured: Measured, key: str) -> Measured:
    """What a server echoes of the key it was sent (some quote it in their errors) must not be kept."""
    text, written = measured.model_dump_json(), _in_json(key)
    if len(key) < SHORTEST or written not in text:
        return measured
    return Measured.model_validate_json(text.replace(written, _HIDDEN))


def refuse_key_inside(stage: Stage, key: str) -> None:
    """A key given in a prompt, a URL or a sampling field would be stored with the report. Raises ``BadRequest``."""
    if len(key) >= SHORTEST and _in_json(key) in stage.model_dump_json():
        raise BadRequest("the target's API key is written in the load test itself; name it by key_from alone")


def _in_json(key: str) -> str:
    return json.dumps(key)[1:-1]
