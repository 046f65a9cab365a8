"""Ratings against solutions worked out by hand, against planted strengths, and where there is no solution."""

import math

import numpy as np
import pytest

from textmill_inference.pairwise.bradley_terry import Battle, fit, strengths_of
from textmill_inference.pairwise.intervals import wilson


def battles(wins, losses, ties=0, first=0, second=1):
    scores = [1.0] * wins + [0.0] * losses + [0.5] * ties
    return [Battle(n, first, second, score) for n, score in enumerate(scores)]


@pytest.mark.parametrize(("wins", "losses"), [(30, 10), (7, 3), (1, 1), (2, 999)])
def test_two_players_differ_by_the_logarithm_of_their_odds(wins, losses):
    strengths = strengths_of(np.array([[0, wins], [losses, 0.0]]), prior=math.inf)
    assert strengths[0] - strengths[1] == pytest.approx(math.log(wins / losses), abs=1e-8)
    assert strengths.sum() == pytest.approx(0, abs=1e-12)


def test_a_tie_is_half_a_win_for_each():
    tied = fit(battles(20, 10, ties=10), 2, 100, 0, prior=math.inf)
    assert tied.strengths[0] - tied.strengths[1] == pytest.approx(math.log(25 / 15), abs=1e-8)


def test_three_players_whose_odds_multiply():
    # 2 to 1, 3 to 1, and so 6 to 1: the likelihood's maximum is at the odds themselves.
    wins = np.array([[0, 2, 6], [1, 0, 3], [1, 1, 0.0]])
    strengths = strengths_of(wins, prior=math.inf)
    assert np.diff(strengths) == pytest.approx([-math.log(2), -math.log(3)], abs=1e-8)


def test_the_maximum_is_where_wins_meet_expectation():
    wins = np.array([[0, 5, 1, 8], [3, 0, 4, 2], [2, 6, 0, 1], [4, 1, 3, 0.0]])
    strengths = strengths_of(wins, prior=math.inf)
    chance = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    expected = ((wins + wins.T) * chance).sum(axis=1) - (np.diag(wins + wins.T) * 0.5)
    assert expected == pytest.approx(wins.sum(axis=1), abs=1e-8)


def test_the_prior_hardly_moves_forty_votes():
    strengths = strengths_of(np.array([[0, 30], [10, 0.0]]))
    moved = math.log(3) - (strengths[0] - strengths[1])
    assert 0.002 < moved < 0.004


def test_a_clean_sweep_has_a_finite_rating_and_says_why():
    swept = fit(battles(12, 0), 2, 200, 0)
    assert 1 < swept.strengths[0] - swept.strengths[1] < 12
    assert swept.prior_matters
    assert not fit(battles(12, 1), 2, 200, 0).prior_matters


def test_players_who_never_met_are_held_by_the_prior():
    apart = fit([*battles(5, 5), *battles(5, 5, first=2, second=3)], 4, 200, 0)
    assert apart.prior_matters
    low, high = apart.differences[0, 2].low, apart.differences[0, 2].high
    assert low < -5 < 5 < high


@pytest.mark.parametrize(
    ("wins", "losses", "shown"),
    [
        (1, 0, False), (2, 0, False), (3, 0, False), (10, 0, True), (20, 0, True), (1_000, 0, True),
        (9, 3, False), (52, 48, False), (70, 30, True), (30, 70, True), (520, 480, False), (600, 400, True),
    ],
)  # fmt: skip
def test_what_so_many_votes_show(wins, losses, shown):
    """As a sign test at 5 % has it, or a little later."""
    interval = fit(battles(wins, losses), 2, 2_000, 0).differences[0, 1]
    assert (interval.low > 0 or interval.high < 0) == shown


def test_a_crowd_on_one_prompt_shows_nothing():
    crowd = [Battle(0, 0, 1, 1.0)] * 50
    assert fit(crowd, 2, 1_000, 0).differences[0, 1].low < 0
    few = [Battle(n % 3, 0, 1, 1.0) for n in range(60)]
    assert fit(few, 2, 1_000, 0).differences[0, 1].low < 0


@pytest.mark.parametrize(("wins", "losses"), [(30, 10), (3, 0), (0, 40), (7, 7)])
def test_an_interval_holds_its_estimate(wins, losses):
    fitted = fit(battles(wins, losses), 2, 500, 0)
    for (i, j), interval in fitted.differences.items():
        assert interval.low <= fitted.strengths[i] - fitted.strengths[j] <= interval.high
    for strength, interval in zip(fitted.strengths, fitted.intervals, strict=True):
        assert interval.low <= strength <= interval.high


def test_votes_on_the_same_prompt_count_as_one_draw():
    """Ten people who say the same of ten prompts know less than a hundred prompts would."""
    once = [Battle(n, 0, 1, float(n % 10 < 7)) for n in range(100)]
    crowd = [Battle(n % 10, 0, 1, float(n % 10 < 7)) for n in range(100)]
    alone, together = fit(once, 2, 1_000, 0), fit(crowd, 2, 1_000, 0)
    assert alone.strengths == pytest.approx(together.strengths)
    width = [f.differences[0, 1].high - f.differences[0, 1].low for f in (alone, together)]
    assert width[1] > 2 * width[0]


def planted(strengths, prompts, seed):
    random = np.random.default_rng(seed)
    found = []
    for prompt in range(prompts):
        for i in range(len(strengths)):
            for j in range(i):
                won = random.random() < 1 / (1 + math.exp(strengths[j] - strengths[i]))
                found.append(Battle(prompt, i, j, float(won)))
    return found


@pytest.mark.parametrize("truth", [(0.8, 0.1, -0.9), (2.5, 0.0, -2.5), (0.0, 0.0, 0.0)])
def test_planted_strengths_lie_within_the_intervals_as_often_as_they_should(truth):
    hits = total = 0
    for seed in range(60):
        fitted = fit(planted(truth, 40, seed), 3, 200, seed)
        for (i, j), interval in fitted.differences.items():
            if i < j:
                total += 1
                hits += interval.low <= truth[i] - truth[j] <= interval.high
    # 95 % of 180 but for chance; with intervals that are too narrow by a third it would be 81 %.
    assert hits / total >= 0.91


def test_planted_strengths_are_found():
    truth = np.array([1.5, 0.5, 0.0, -2.0])
    fitted = fit(planted(list(truth), 2_000, 1), 4, 100, 1)
    assert fitted.strengths == pytest.approx(truth - truth.mean(), abs=0.12)


def test_the_same_votes_and_seed_give_the_same():
    made = planted([0.5, 0.0, -0.5], 20, 3)
    assert fit(made, 3, 200, 5).differences == fit(made, 3, 200, 5).differences


def test_wilson_by_hand():
    # 8 of 10: (0.8 + 0.19207) / 1.38415 -+ 1.96 * sqrt(0.016 + 0.0096036) / 1.38415
    interval = wilson(8, 10)
    assert (interval.low, interval.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 5).low == 0
    assert 0.4 < wilson(0, 5).high < 0.5
