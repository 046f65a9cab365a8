"""The training process: ``python -m textmill_trainer.train FOLDER``. Its work is in ``stages``.

Reads and writes one ``WorkFolder`` and knows neither store nor bus. It dies with its parent. SIGTERM makes it
checkpoint and exit with ``EXIT_INTERRUPTED``.
"""

import argparse
import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from textmill.contracts.jobs import Progress
from textmill.errors import TextmillError
from textmill_trainer.several import launch, leave, own_rank, process_count, rank_folder
from textmill_trainer.workfolder import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    TrainError,
    TrainSpec,
    WorkFolder,
)

_PR_SET_PDEATHSIG = 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parent", type=int, default=None, help="exit when this process is not, or no longer, ours")
    arguments = parser.parse_args()
    folder = WorkFolder(arguments.folder)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if arguments.parent is not None and not die_with(arguments.parent):
        return EXIT_INTERRUPTED
    rank = own_rank()
    if rank is None:
        return guarded(folder, lambda: run_or_launch(folder, stop))
    own = rank_folder(folder, rank)
    return leave(folder, rank, guarded(own, lambda: run(own, stop)))


def guarded(folder: WorkFolder, action: Callable[[], int]) -> int:
    """The action's exit code; what it raises becomes ``folder.error``."""
    try:
        return action()
    except TextmillError as exc:
        folder.write(folder.error, TrainError(message=str(exc), retryable=exc.retryable))
    except Exception as exc:
        traceback.print_exc()
        folder.write(folder.error, TrainError(message=f"{type(exc).__name__}: {exc}", retryable=False))
    return EXIT_FAILED


def die_with(parent: int) -> bool:
    """Have the kernel send SIGTERM when the parent dies (Linux). False if it is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # The parent may have died before the call: then we have another parent by now.
    return os.getppid() == parent


def run_or_launch(folder: WorkFolder, stop: threading.Event) -> int:
    """In this process, or in one for each GPU."""
    folder.write(folder.progress, Progress(stage="starting"))
    count = process_count(TrainSpec.model_validate_json(folder.spec.read_bytes()))
    if stop.is_set():
        return EXIT_INTERRUPTED
    return run(folder, stop) if count == 1 else launch(folder, count)


def run(folder: WorkFolder, stop: threading.Event) -> int:
    """All stages. Raises ``TextmillError`` for what the owner can mend."""
    spec = TrainSpec.model_validate_json(folder.spec.read_bytes())
    # Importing torch takes seconds, in which a signal must already be heard.
    from textmill_trainer.distributed import joined
    from textmill_trainer.loop import Interrupted
    from textmill_trainer.stages import Run, run_stages

    try:
        with joined() as ranks:
            run_stages(Run(folder, spec, stop.is_set, ranks=ranks))
    except Interrupted:
        return EXIT_INTERRUPTED
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
