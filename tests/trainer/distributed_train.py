"""Trains a tiny model in each way, in as many processes as torchrun starts: MODEL FOLDER [WAY...].

Each process has ``FOLDER/<way>/rank-<n>``; a checkpoint that is there already is resumed from.
"""

import json
import sys
from pathlib import Path

import torch
from tests.trainer.distributed_data import SETTINGS, examples, load

from textmill_trainer import loop
from textmill_trainer.distributed import joined, shard_frozen
from textmill_trainer.supervised import Supervised


def main() -> None:
    base, root, *ways = sys.argv[1:]
    torch.set_num_threads(1)
    with joined() as ranks:
        for way in ways:
            model = load(Path(base), way)
            sharded = shard_frozen(loop.plain_model(model), ranks)
            folder = Path(root, way, f"rank-{ranks.rank}")
            trained = loop.train(model, Supervised(), examples(), SETTINGS, folder, ranks=ranks)
            local = sum(getattr(p, "_local_tensor", p).numel() for p in model.parameters() if not p.requires_grad)
            told = {"digest": trained.digest, "sharded": sharded, "local": local}
            (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
