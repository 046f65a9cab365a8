"""Strengths of players from who beat whom (Bradley and Terry 1952): the odds that i beats j are exp(s_i - s_j).

Fitted by maximum likelihood with Newton's method; a tie is half a win for each, as Chatbot Arena counts it. Where one
side won everything the likelihood has no maximum (Ford 1957), so each strength has a weak normal prior around 0: its
deviation of 5 is odds of 150 to 1, and it moves forty votes at 3 to 1 by 0.003. Strengths sum to 0.

Intervals: the bootstrap draws whole prompts, since votes on one prompt aren't independent. Where all votes agree it
sees no spread, however few they are. So towards 0 an interval goes as far as it does with four more prompts for each
two players, two won by each: what Agresti and Coull (1998) do for a share. Three wins out of three then show nothing,
ten out of ten do. Away from 0 it goes as far as the votes as they are and the normal approximation let it: Wald's
interval is known to be too wide where nearly all was won (Hauck and Donner 1977), and there the odds have no upper
bound.

Knows players by number and nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from textmill.contracts.pairwise import Interval
from textmill_inference.pairwise.intervals import Z

PRIOR_DEVIATION = 5.0
_STEPS = 100
_LONGEST_STEP = 1.0
_CLOSE = 1e-10
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Battle:
    """One vote. ``score`` is what ``first`` got: 1, 0, or 0.5 for a tie. ``group`` numbers the prompt."""

    group: int
    first: int
    second: int
    score: float


@dataclass(frozen=True)
class Fit:
    """``strengths`` (K) in nats; intervals of 95 % for each, and for each difference of two (i less j)."""

    strengths: Floats
    intervals: Sequence[Interval]
    differences: dict[tuple[int, int], Interval]
    prior_matters: bool


def fit(battles: Sequence[Battle], players: int, resamples: int, seed: int, prior: float = PRIOR_DEVIATION) -> Fit:
    """Strengths with intervals. The same battles and seed give the same."""
    wins_gkk = _wins(battles, players)
    wins_kk = wins_gkk.sum(axis=0)
    strengths = strengths_of(wins_kk, prior)
    drawn_rk = _bootstrap(wins_gkk, resamples, seed, prior)
    doubted_rk = _bootstrap(_with_four_more(wins_gkk), resamples, seed, prior)
    apart_kk = ~_reach(wins_kk + wins_kk.T)
    spread_kk = _covariance(wins_kk, strengths, prior)
    unit = np.eye(players)

    def interval(contrast: Floats, apart: bool) -> Interval:
        """Holds the estimate. Of players that no votes connect it is as wide to both sides as the prior has it."""
        middle, reach = float(contrast @ strengths), Z * float(np.sqrt(contrast @ spread_kk @ contrast))
        ends = np.quantile(np.stack([doubted_rk @ contrast, drawn_rk @ contrast]), [0.025, 0.975], axis=1)
        (low, plain_low), (high, plain_high) = ends.tolist()
        if middle < 0 or apart:
            low = min(low, plain_low, middle - reach)
        if middle > 0 or apart:
            high = max(high, plain_high, middle + reach)
        return Interval(low=min(low, middle), high=max(high, middle))

    pairs = [(i, j) for i in range(players) for j in range(players) if i != j]
    return Fit(
        strengths=strengths,
        intervals=[interval(unit[i] - 1 / players, bool(apart_kk.any())) for i in range(players)],
        differences={(i, j): interval(unit[i] - unit[j], bool(apart_kk[i, j])) for i, j in pairs},
        prior_matters=not _reach(wins_kk).all(),
    )


def strengths_of(wins_kk: Floats, prior: float = PRIOR_DEVIATION) -> Floats:
    """(..., K) from wins (..., K, K), where [i, j] is how often i beat j. ``prior`` may be infinite."""
    games = wins_kk + np.swapaxes(wins_kk, -1, -2)
    weight = 1 / prior**2
    strengths = np.zeros(wins_kk.shape[:-1])
    for _ in range(_STEPS):
        chance = _chance(strengths)
        slope = (wins_kk - games * chance).sum(axis=-1) - weight * strengths
        step = np.linalg.solve(_curvature(games, chance, weight), slope[..., None])[..., 0]
        longest = np.abs(step).max(axis=-1, keepdims=True)
        strengths = strengths + step * np.minimum(1, _LONGEST_STEP / np.maximum(longest, _CLOSE))
        if longest.max(initial=0.0) < _CLOSE:
            break
    return np.asarray(strengths - strengths.mean(axis=-1, keepdims=True))


def _wins(battles: Sequence[Battle], players: int) -> Floats:
    """(G, K, K): of each prompt, how often row beat column."""
    groups = {group: n for n, group in enumerate(dict.fromkeys(battle.group for battle in battles))}
    wins = np.zeros((len(groups), players, players))
    for battle in battles:
        wins[groups[battle.group], battle.first, battle.second] += battle.score
        wins[groups[battle.group], battle.second, battle.first] += 1 - battle.score
    return wins


def _with_four_more(wins_gkk: Floats) -> Floats:
    """The prompts, and for each two players that met four more, two won by each, of as many votes as theirs have."""
    games_gkk = wins_gkk + np.swapaxes(wins_gkk, 1, 2)
    more = []
    for i, j in zip(*np.nonzero(np.triu(games_gkk.sum(axis=0))), strict=True):
        votes = games_gkk[:, i, j]
        won = np.zeros(wins_gkk.shape[1:])
        won[i, j] = votes[votes > 0].mean()
        more += [won, won, won.T, won.T]
    return np.concatenate([wins_gkk, np.array(more)]) if more else wins_gkk


def _chance(strengths: Floats) -> Floats:
    """(..., K, K): how likely row beats column."""
    difference = strengths[..., :, None] - strengths[..., None, :]
    return np.asarray(0.5 * (1 + np.tanh(difference / 2)))


def _curvature(games: Floats, chance: Floats, weight: float) -> Floats:
    """(..., K, K): minus the second derivative. Moving all strengths at once changes nothing, so a 1 is added there."""
    players = games.shape[-1]
    crossed = games * chance * (1 - chance)
    return np.asarray(np.eye(players) * (crossed.sum(axis=-1)[..., None] + weight) - crossed + 1 / players)


def _covariance(wins_kk: Floats, strengths: Floats, prior: float) -> Floats:
    games = wins_kk + wins_kk.T
    return np.asarray(np.linalg.inv(_curvature(games, _chance(strengths), 1 / prior**2)))


def _bootstrap(wins_gkk: Floats, resamples: int, seed: int, prior: float) -> Floats:
    """(R, K): strengths of as many prompts, drawn with replacement."""
    groups, players = wins_gkk.shape[0], wins_gkk.shape[1]
    if not groups:
        return np.zeros((resamples, players))
    counts_rg = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    drawn_wins = counts_rg.astype(np.float64) @ wins_gkk.reshape(groups, -1)
    return strengths_of(drawn_wins.reshape(resamples, players, players), prior)


def _reach(edges_kk: Floats) -> npt.NDArray[np.bool_]:
    """(K, K): whether row leads to column. Where wins lead from all to all the likelihood has a maximum (Ford 1957)."""
    players = len(edges_kk)
    reach = (edges_kk > 0) | np.eye(players, dtype=bool)
    for _ in range(players):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    return np.asarray(reach)
