"""A chain of hashes over a run: two runs with the same last digest took the same steps.

Each step's digest hashes the one before it, the records in their order, the state of the random generator after the
step, the bits of each record's loss, and every so often the trained weights. Knows no loop.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence

import torch

from textmill_trainer.observing import RecordLoss

WEIGHTS_EVERY = 16
"""Steps. An adapter of 5 million weights takes 15 ms to hash, about the hundredth part of a step on a CPU."""
_OFTEN_BYTES = 256 << 20
"""More weights than this are hashed at checkpoints alone."""


def step_digest(previous: str, step: int, records: Sequence[RecordLoss], weights: str | None) -> str:
    """In hex. ``weights`` is their hash at this step, if it is due."""
    digest = hashlib.sha256(f"{previous}/{step}/{weights}".encode())
    for record in records:
        digest.update(f"{record.record_id}/{record.tokens}/".encode() + struct.pack("<d", record.loss))
    digest.update(random_state())
    return digest.hexdigest()


def weights_due(step: int, parameters: Sequence[torch.nn.Parameter]) -> bool:
    """Whether the step's digest takes in the weights, besides those of checkpoints."""
    return step % WEIGHTS_EVERY == 0 and sum(p.nbytes for p in parameters) <= _OFTEN_BYTES


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names and bits, in hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name}/{tuple(tensor.shape)}/{tensor.dtype}/".encode())
        bits = tensor.detach().contiguous().cpu().view(torch.uint8).numpy()
        digest.update(bits.data.cast("B"))
    return digest.hexdigest()


def seed_step(seed: int, step: int) -> None:
    """Start the random generators of a step: what ran between steps, or before a resume, can't change it."""
    torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:7]))


def random_state() -> bytes:
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    return b"".join(s.numpy().tobytes() for s in states)
