"""Finds the setup of a step that fits into memory and changes no result. No torch.

Free to choose are: how a batch is cut into microbatches (one optimizer step all the same), whether QLoRA's frozen
weights are dequantized once or at each use (the same numbers), and whether activations are kept or computed again.
Batch size, rank, lengths and method are the owner's: where only they would help, the run is refused and told which.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from textmill.contracts.trainforecast import MemoryForecast, Setup
from textmill.contracts.training import TrainOptions
from textmill.errors import JobFailed
from textmill_trainer.geometry import Geometry
from textmill_trainer.memory import Load, growth, peak, total

MARGIN = 1.1
"""The formula is within 5 % on what was measured, and allocators lose some to fragments."""
_LEAST_RANK = 4
_LEAST_TOKENS = 64


@dataclass(frozen=True)
class Rows:
    """What memory has to be found for: rows of at most ``longest`` tokens, ``together`` of them in a batch at most,
    of which a share has a loss."""

    longest: int
    together: int
    scored_share: float = 1.0

    def load(self, options: TrainOptions, setup: Setup, rank: int, cuda: bool) -> Load:
        """Of the largest microbatch that these rows can make; preference pairs go through as two rows."""
        padded = min(self.together * self.longest, max(setup.max_padded_tokens, self.longest))
        return Load(
            method=options.method,
            padded_tokens=padded,
            longest=self.longest,
            scored=round(padded * self.scored_share),
            rank=rank,
            adapter=options.adapter,
            dropout=options.dropout > 0,
            dequantized=setup.dequantized,
            gradient_checkpointing=setup.gradient_checkpointing,
            cuda=cuda,
        )


def find_setup(
    geometry: Geometry, load_of: Callable[[Setup], Load], asked: Setup, longest: int, available_bytes: int | None
) -> Setup:
    """The first of ``ladder`` whose peak fits; ``asked`` if nobody knows what there is.

    Raises:
        JobFailed: none does. The message says what would.
    """
    if available_bytes is None:
        return asked
    for setup in ladder(asked, longest, qlora=load_of(asked).method == "qlora"):
        if total(peak(geometry, load_of(setup))) * MARGIN <= available_bytes:
            return setup
    raise JobFailed(refusal(geometry, load_of(setup), available_bytes))


def ladder(asked: Setup, longest: int, qlora: bool) -> Iterator[Setup]:
    """From what is asked to what takes least, cheapest in time first. A row is never cut."""
    sizes = [asked.max_padded_tokens]
    while sizes[-1] > max(longest, 1):
        sizes.append(max(sizes[-1] // 2, longest, 1))
    kept = [asked.dequantized, False] if qlora and asked.dequantized else [asked.dequantized]
    again = [False, True] if not asked.gradient_checkpointing else [True]
    for checkpointing in again:
        for dequantized in kept:
            for size in sizes:
                yield Setup(max_padded_tokens=size, gradient_checkpointing=checkpointing, dequantized=dequantized)


def refusal(geometry: Geometry, least: Load, available_bytes: int, scale: float = 1.0) -> str:
    """What it would take, what there is, and which smaller run would fit. ``scale`` corrects the formula by a probe."""
    needed = total(peak(geometry, least)) * scale
    fitting = [words for words, load in _smaller(least) if _fits(geometry, load, available_bytes, scale)]
    change = (
        f"fits with {fitting[0]}" if fitting else "no rank or length fits: use a smaller base model or a larger device"
    )
    return (
        f"the run needs {giga(needed)} at least and {giga(available_bytes)} are free, even with a microbatch of one "
        f"row ({least.longest} tokens), NF4 and gradient checkpointing where they apply; it {change}. Results would "
        f"differ, so textmill doesn't choose this by itself"
    )


def _smaller(load: Load) -> Iterator[tuple[str, Load]]:
    """Smaller runs, nearest first: a shorter row, a lower rank, both, then another method."""
    start = [("", load)]
    if load.method != "qlora":
        start.append(("method: qlora, ", replace(load, method="qlora", dequantized=False)))
    for method, base in start:
        for rank in _halved(base.rank, _LEAST_RANK):
            for tokens in _halved(base.longest, _LEAST_TOKENS):
                if (rank, tokens) == (load.rank, load.longest) and not method:
                    continue
                rank_words = f"rank: {rank}, " if base.method != "full" else ""
                smaller = replace(
                    base, rank=rank, longest=tokens, padded_tokens=tokens, scored=min(base.scored, tokens)
                )
                yield f"{method}{rank_words}max_tokens: {tokens}", smaller
            if base.method == "full":
                break


def _fits(geometry: Geometry, load: Load, available_bytes: int, scale: float) -> bool:
    return total(peak(geometry, load)) * scale * MARGIN <= available_bytes


def _halved(value: int, least: int) -> list[int]:
    values = [value]
    while values[-1] // 2 >= least:
        values.append(values[-1] // 2)
    return values


def describe(geometry: Geometry, load: Load, available_bytes: int | None) -> MemoryForecast:
    return MemoryForecast(terms=peak(geometry, load), available_bytes=available_bytes)


def growth_bytes(geometry: Geometry, load: Load) -> int:
    """What a step adds to a loaded model: what a probe of it measures."""
    return total(growth(geometry, load))


def available_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroups: Sequence[Path] = (Path("/sys/fs/cgroup"),)
) -> int | None:
    """Bytes that this process can still take on Linux without swapping: of the machine, or of its container if that has
    less. None elsewhere."""
    found = [left for folder in cgroups for left in [_cgroup_left(folder)] if left is not None]
    if meminfo.exists():
        lines = meminfo.read_text().splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return min(found, default=None)


def _cgroup_left(folder: Path) -> int | None:
    """Of a limit, if there is one (v2, then v1). Page cache is counted as used but given back when it is needed."""
    for limit, used, stat, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        if not (folder / limit).exists():
            continue
        text = (folder / limit).read_text().strip()
        if text == "max":
            return None
        stats = dict(line.split() for line in (folder / stat).read_text().splitlines())
        return max(0, int(text) - int((folder / used).read_text()) + int(stats.get(cache, 0)))
    return None


def giga(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
