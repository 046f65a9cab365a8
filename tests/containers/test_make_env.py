"""The script that makes the secrets of a compose installation."""

import hashlib
import subprocess
from pathlib import Path

from container_engine import ROOT

MADE = (
    "TEXTMILL_STORE_SECRET_KEY", "TEXTMILL_TOKEN", "TEXTMILL_API_KEY", "TEXTMILL_SYNTH_LLM_API_KEY",
    "GRAFANA_ADMIN_PASSWORD",
)  # fmt: skip


def make(file: Path) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "deploy" / "make-env.sh")
    return subprocess.run(["sh", script, str(file)], capture_output=True, text=True, timeout=30, check=False)


def values(file: Path) -> dict[str, str]:
    lines = [line.partition("=") for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in lines}


def test_secrets_are_random_long_and_for_the_owner_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert make(tmp_path / name).returncode == 0
    first, second = values(tmp_path / "a"), values(tmp_path / "b")
    assert all(len(first[name]) >= 48 and first[name] != second[name] for name in MADE)
    assert first["TEXTMILL_API_KEY_SHA256"] == hashlib.sha256(first["TEXTMILL_API_KEY"].encode()).hexdigest()
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0


def test_what_is_there_stays_and_what_is_missing_is_made(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("TEXTMILL_TOKEN=mine\nTEXTMILL_API_KEY=\nOTHER=kept\n")
    assert make(file).returncode == 0
    once = values(file)
    assert (once["TEXTMILL_TOKEN"], once["OTHER"]) == ("mine", "kept")
    assert len(once["TEXTMILL_API_KEY"]) == 48
    assert "nothing was missing" in make(file).stdout
    assert values(file) == once


def test_a_key_that_its_digest_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    make(file)
    file.write_text(file.read_text().replace("TEXTMILL_API_KEY=", "TEXTMILL_API_KEY=changed"))
    refused = make(file)
    assert refused.returncode == 1
    assert "delete that line" in refused.stderr
