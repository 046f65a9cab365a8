"""Starts a run as several processes, one for each GPU, and says how they ended. torchrun does the starting.

All of them do the same until training is over; each has a work folder of its own, of which only the main one's is the
run's. Knows nothing of what they do.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from textmill_trainer.workfolder import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, TrainSpec, WorkFolder

_NOT_SHARED = {"process.log"}
_LOOK_EVERY_S = "0.2"


def process_count(spec: TrainSpec) -> int:
    """As set, else one for each GPU that this process sees, else one."""
    if spec.gpus is not None:
        return spec.gpus
    import torch

    return max(1, torch.cuda.device_count())


def own_rank() -> int | None:
    """Which process of several this is; None for one that torchrun didn't start."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


def rank_folder(folder: WorkFolder, rank: int) -> WorkFolder:
    return folder if rank == 0 else WorkFolder(folder.root / f"rank-{rank}")


def launch(folder: WorkFolder, count: int) -> int:
    """Run to the end. Returns the main process's exit code. torchrun hands a SIGTERM on to all processes."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    for rank in range(1, count):
        _copy_inputs(folder, rank_folder(folder, rank).root)
    folder.exit_code.unlink(missing_ok=True)
    arguments = ["-m", "textmill_trainer.train", str(folder.root), "--parent", str(os.getpid())]
    with suppress(ChildFailedError, SignalException):
        torchrun(["--standalone", "--nproc-per-node", str(count), "--monitor-interval", _LOOK_EVERY_S, *arguments])
    if folder.exit_code.exists():
        return int(folder.exit_code.read_text())
    _show_error(folder, count)
    return EXIT_FAILED


def leave(folder: WorkFolder, rank: int, code: int) -> int:
    """Tell the launcher how the run ended. Returns this process's exit code: torchrun kills all others for one that
    isn't 0, so that only a failure may have one."""
    if rank == 0:
        folder.exit_code.write_text(str(code))
    return 0 if code in (EXIT_DONE, EXIT_INTERRUPTED) else code


def _copy_inputs(folder: WorkFolder, target: Path) -> None:
    """Before any process starts: each then reads and writes as if it were alone."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in folder.root.iterdir():
        if path.is_file() and path.name not in _NOT_SHARED:
            (target / path.name).symlink_to(path)
    for path in (folder.checkpoints, folder.reports):
        if path.exists():
            shutil.copytree(path, target / path.name)


def _show_error(folder: WorkFolder, count: int) -> None:
    """The main process was killed because another one had failed: that one's error is the run's."""
    for rank in range(1, count):
        error = rank_folder(folder, rank).error
        if error.exists() and not folder.error.exists():
            shutil.copyfile(error, folder.error)
