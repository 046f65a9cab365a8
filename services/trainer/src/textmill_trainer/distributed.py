"""A run over several processes, one for each GPU: who does what of a step, and how the frozen weights are spread.

Each step's records are shared out by tokens; each process's loss is divided by the weight of the whole step, so that
the sum of their gradients is that of one process. What is trained (an adapter, mostly) is whole in every process: a
checkpoint is so the same for any number of them. Frozen weights, NF4 or not, lie in parts, one in each process, and
are put together layer by layer as they are needed (FSDP2, ``fully_shard``). Knows no loop and no job.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process among ``count``. Alone, each method gives back what it got.

    All processes must call these methods in the same order, with the same ``Sequence`` where one is shared out.
    """

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this process's files are the run's."""
        return self.rank == 0

    def shares(self, batch: Sequence[T], tokens: Callable[[T], int]) -> list[list[T]]:
        """The batch in one part for each process: longest first, each to whom has the fewest tokens so far."""
        if self.count == 1:
            return [list(batch)]
        shares: list[list[T]] = [[] for _ in range(self.count)]
        loads = [0] * self.count
        for example in sorted(batch, key=tokens, reverse=True):
            least = loads.index(min(loads))
            shares[least].append(example)
            loads[least] += tokens(example)
        return shares

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Of what is trained; one message for each type of number."""
        if self.count == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        for dtype in sorted({g.dtype for g in gradients}, key=str):
            same = [g for g in gradients if g.dtype == dtype]
            flat = torch.cat([g.reshape(-1) for g in same])
            dist.all_reduce(flat)
            for gradient, part in zip(same, torch.split(flat, [g.numel() for g in same]), strict=True):
                gradient.copy_(part.view_as(gradient))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    def gather(self, value: T) -> list[T]:
        """Everybody's, in order of rank."""
        if self.count == 1:
            return [value]
        found: list[T | None] = [None] * self.count
        dist.all_gather_object(found, value)
        return cast(list[T], found)

    def any(self, value: bool) -> bool:
        """Whether it is so for anybody: a signal may reach one process a step before another."""
        return any(self.gather(value))

    def of_main(self, value: T) -> T:
        """The main process's: numbers that decide something may differ in their last bits."""
        if self.count == 1:
            return value
        found = [value]
        dist.broadcast_object_list(found, src=0)
        return found[0]


ALONE = Ranks()


def padded_turns(shares: Sequence[Sequence[T]], rank: int) -> Iterator[tuple[T, bool]]:
    """This process's parts, each with whether it counts. Everybody gets as many: putting a layer's weights together
    takes all of them, so who has fewer parts runs one again, for nothing."""
    turns = max(len(parts) for parts in shares)
    own = shares[rank]
    spare = next(part for parts in shares for part in parts)
    for turn in range(turns):
        yield (own[turn], True) if turn < len(own) else (spare, False)


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that ``torchrun`` started; without it, this one alone."""
    count = int(os.environ["WORLD_SIZE"]) if is_distributed() else 1
    if count == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


def is_distributed() -> bool:
    """Whether ``torchrun`` has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_rank() -> int:
    """Which of this machine's GPUs is this process's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def shard_frozen(core: PreTrainedModel, ranks: Ranks) -> bool:
    """Leave a part of each decoder layer's frozen weights in each process; what is trained stays whole.

    Embedding, head and last norm stay whole too: the loss uses the head outside of the decoder's own forward. A model
    without frozen weights, as in full fine-tuning, is left as it is. Returns whether anything was spread.
    """
    if ranks.count == 1:
        return False
    decoder = cast(nn.Module, getattr(core, core.base_model_prefix))
    layers = decoder_layers(decoder)
    kept = {p for p in decoder.parameters() if p.requires_grad}
    if not any(p not in kept for layer in layers for p in layer.parameters()):
        return False
    mesh = init_device_mesh(next(decoder.parameters()).device.type, (ranks.count,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params={p for p in layer.parameters() if p.requires_grad})
    sharded = {p for layer in layers for p in layer.parameters()}
    fully_shard(decoder, mesh=mesh, ignored_params={p for p in decoder.parameters() if p not in sharded})
    return True


def put_together(core: PreTrainedModel, whole: PreTrainedModel) -> None:
    """Give ``core``, wherever it is referred to, the modules of ``whole``, which was loaded anew for one process."""
    core.__dict__ = whole.__dict__


def decoder_layers(decoder: nn.Module) -> list[nn.Module]:
    """The longest list of modules that are alike: what all decoders are made of, whatever they call it."""
    lists = [list(m) for m in decoder.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=[])
