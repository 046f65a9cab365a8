"""How a run is started: as a child process here, or elsewhere. Whoever starts it shares the work folder with it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Protocol

from textmill_trainer.workfolder import WorkFolder

TRAIN_COMMAND = (sys.executable, "-m", "textmill_trainer.train")
STEADY = {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
"""The environment's own values win. Threads that spin while they wait make a step on two idle cores twice as fast (0.75
against 1.6 s), and, where training shares the cores with other busy programs, ten times as slow."""


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
                env={**STEADY, **os.environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
