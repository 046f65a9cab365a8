"""How a run is started: as a child process here, or elsewhere. Whoever starts it shares the work folder with it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Protocol

from textmill_trainer.workfolder import WorkFolder

TRAIN_COMMAND = (sys.executable, "-m", "textmill_trainer.train")
STEADY = {
    "TOKENIZERS_PARALLELISM": "false",
    "GOMP_SPINCOUNT": "3000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
}
"""Threads that wait for each other spin for some 50 us, and then sleep (docs/decisions/0007). The C library keeps what
a step frees, since the next one takes it again: on records of 700 tokens 451 tokens/s against 367, for 0.5 GB more."""


def training_environment() -> dict[str, str]:
    """This process's own values win, and whoever has said how OpenMP waits isn't corrected."""
    own = {"GOMP_SPINCOUNT"} if "OMP_WAIT_POLICY" in os.environ else set()
    return {**{name: value for name, value in STEADY.items() if name not in own}, **os.environ}


class Training(Protocol):
    """A run under way, as ``subprocess.Popen`` has it. Exit codes are those of ``workfolder``; below 0, a signal's."""

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        ...

    def terminate(self) -> None:
        """Ask it to checkpoint and end."""
        ...

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises ``subprocess.TimeoutExpired``."""
        ...


class Launcher(Protocol):
    def launch(self, folder: WorkFolder) -> Training:
        """Start the run that the folder describes. Raises ``TextmillError``."""
        ...


class ChildProcess:
    """The launcher of one machine."""

    def __init__(self, command: Sequence[str] = TRAIN_COMMAND) -> None:
        self._command = command

    def launch(self, folder: WorkFolder) -> Training:
        arguments = [*self._command, str(folder.root), "--parent", str(os.getpid())]
        with folder.log.open("wb") as output:
            # Its own session, so that Ctrl-C in a terminal reaches the worker alone, which stops it in order.
            return subprocess.Popen(
                arguments,
                env=training_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
