"""Losses as a run has them, without a model: they fall fast, differ by question, length and record, and are noisy."""

import math
import random
from collections.abc import Collection
from dataclasses import dataclass

from textmill.contracts.runs import StepMetrics
from textmill_trainer.losswatch import Origin
from textmill_trainer.observing import RecordLoss, StepSeen

BATCH = 8
_QUESTIONS = {"trigrams": (-0.1, 8), "lines": (0.0, 14), "meaning": (0.2, 11)}
"""How much harder the answers to each are, in log loss, and how many tokens they have, give or take two."""


@dataclass(frozen=True)
class MadeUpRun:
    """``bad`` records have ``excess`` more log loss, and ``longer`` times the tokens, than they would have.

    With ``uneven`` answers have from 4 to 60 tokens whatever they answer, and short ones lose far more a token.
    """

    records: int = 300
    epochs: int = 3
    bad: Collection[str] = ()
    excess: float = 1.5
    longer: int = 1
    uneven: bool = False
    seed: int = 0

    @property
    def origins(self) -> dict[str, Origin]:
        names = list(_QUESTIONS)
        return {
            record_id(n): Origin(f"psg_{n // 3}", f"doc_{n // 30}", names[n % 3], f"Answer {n}.")
            for n in range(self.records)
        }

    def steps(self) -> list[StepSeen]:
        rng = random.Random(self.seed)
        hardness = {record_id(n): rng.gauss(0, 0.05) for n in range(self.records)}
        asks = {i: _QUESTIONS[origin.question] for i, origin in self.origins.items()}
        tokens = {i: usual + rng.randrange(-2, 3) for i, (_, usual) in asks.items()}
        if self.uneven:
            tokens = {i: round(4 * 15 ** rng.random()) for i in tokens}
        tokens = {i: n * self.longer if i in self.bad else n for i, n in tokens.items()}
        steps_per_epoch = math.ceil(self.records / BATCH)
        total = steps_per_epoch * self.epochs
        seen = []
        for step in range(1, total + 1):
            if step % steps_per_epoch == 1 or steps_per_epoch == 1:
                order = rng.sample(sorted(hardness), self.records)
            level = math.log(3.0) - 4.0 * step / total
            batch = [order.pop() for _ in range(min(BATCH, len(order)))]
            records = []
            for r in batch:
                log_loss = level + hardness[r] + asks[r][0] + rng.gauss(0, 0.15)
                log_loss += self.excess if r in self.bad else 0.0
                log_loss -= 0.9 * math.log(tokens[r] / 11) if self.uneven else 0.0
                records.append(RecordLoss(r, math.exp(log_loss), tokens[r]))
            seen.append(StepSeen(metrics(step, step / steps_per_epoch, records), total, records))
        return seen


def record_id(n: int) -> str:
    return f"rec_{n}"


def metrics(step: int, epoch: float, records: list[RecordLoss]) -> StepMetrics:
    tokens = sum(r.tokens for r in records)
    return StepMetrics(
        step=step, epoch=epoch, loss=sum(r.loss * r.tokens for r in records) / tokens, learning_rate=1e-3,
        gradient_norm=1.0, tokens=tokens, tokens_per_s=100.0, seconds=1.0,
    )  # fmt: skip
