"""A child process with all its descendants, as one thing that is started, watched and ended. Knows no engine."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_GUARD = Path(__file__).with_name("guard.py")


class GuardedProcess:
    """Runs ``command`` under the guard. The thread that makes one must live as long as the process should.

    Output goes to ``log_path``, which is replaced.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log_path: Path, grace_s: float) -> None:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log_path = log_path
        self._grace_s = grace_s
        with log_path.open("wb") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), str(grace_s), *command],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def group(self) -> int:
        """The id of the process group that all descendants are in."""
        return self._guard.pid

    def alive(self) -> bool:
        return self._guard.poll() is None

    def stop(self) -> None:
        """Ask it to end, wait, and kill what is left of the group. Returns when nothing of it runs."""
        if self.alive():
            self._guard.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(self._grace_s + 5)
        self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)
        self._guard.wait()

    def last_words(self, lines: int = 5) -> str:
        """The end of its output, for an error message."""
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(0, self._log_path.stat().st_size - 4_000))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        return " | ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip())
