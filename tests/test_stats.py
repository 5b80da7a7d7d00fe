"""Intervals cover what they should, and correlations are those of textbooks."""

import numpy as np
import pytest

from srlib.errors import InputError
from srlib.stats import Interval, crossed, interval, rank_correlation, reach, spread


def test_an_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for k in range(200):
        found = interval(generator.normal(3.0, 2.0, 30), draws=300, seed=k)
        covered += found.low <= 3.0 <= found.high
    assert 175 <= covered <= 198


def test_an_interval_is_the_same_each_time_and_about_the_statistic() -> None:
    samples = [1.0, 2.0, 4.0, 8.0]
    one = interval(samples)
    assert one == interval(samples) and one.low < one.value == 3.75 < one.high and one.sure
    many = np.random.default_rng(0).normal(size=50)
    assert interval(many) == interval(many) != interval(many, seed=1)
    assert not interval([-1.0, 1.0, -2.0, 2.5]).sure
    rows = np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 4.0]])
    assert interval(rows, lambda drawn: (drawn[:, 1] - drawn[:, 0]).max()).value == 2
    assert interval([2.0, 2.0, 2.0]) == Interval(2, 2, 2)
    wide, narrow = (interval(np.arange(20.0), level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_an_interval_reads_as_a_number_and_its_bounds() -> None:
    assert Interval(0.314, -0.1, 0.5).text() == "0.31 (\u22120.10 to 0.50)"
    assert Interval(0.314, -0.1, 0.5).text(1, signed=True) == "+0.3 (\u22120.1 to +0.5)"


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 25, 100], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([106, 86, 100, 101, 99, 103, 97, 113, 112, 110], [7, 0, 27, 50, 28, 29, 20, 12, 6, 17], -29 / 165),
        ([1, 1, 2, 3], [1, 1, 2, 3], 1.0),
        ([1, 1, 2, 2], [1, 2, 1, 2], 0.0),
    ],
)
def test_rank_correlations_of_known_pairs(x: list[float], y: list[float], expected: float) -> None:
    assert rank_correlation(x, y) == pytest.approx(expected)


def test_what_has_no_answer_is_refused() -> None:
    for samples in ([1.0], [], [1.0, np.nan], 3.0):
        with pytest.raises(InputError):
            interval(samples)
    with pytest.raises(InputError, match="level"):
        interval([1.0, 2.0], level=1)
    with pytest.raises(InputError, match="statistic isn't finite"):
        interval([1.0, 2.0], lambda drawn: float("nan"))
    pairs = np.array([[1.0, 1.0], [2.0, 3.0], [3.0, 2.0], [5.0, 4.0]])
    found = interval(pairs, lambda drawn: rank_correlation(*drawn.T))
    assert found.value == pytest.approx(0.8) and found.low < 0.8 < found.high == pytest.approx(1)
    with pytest.raises(InputError, match=r"of 2000 draws have no answer \(one of the two is the same"):
        interval(pairs[:2], lambda drawn: rank_correlation(*drawn.T))
    for x, y in (([1, 2], [1, 2, 3]), ([1], [1]), ([1, 1], [1, 2]), ([1, np.inf], [1, 2])):
        with pytest.raises(InputError):
            rank_correlation(x, y)


@pytest.mark.parametrize(
    ("seeds", "images", "deviations"),
    [(3, 23, (0.05, 0.3, 0.05)), (3, 23, (0.1, 0.1, 0.1)), (3, 4, (0.1, 0.1, 0.1)), (5, 14, (0.2, 0.02, 0.02))],
)
def test_an_interval_over_seeds_and_images_covers_the_mean(
    seeds: int, images: int, deviations: tuple[float, float, float]
) -> None:
    """Seeds, images and their interaction drawn anew a thousand times, few seeds as in the book."""
    generator, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        parts = zip(deviations, ((seeds, 1), (1, images), (seeds, images)), strict=True)
        found = crossed(1.5 + sum(generator.normal(0, deviation, shape) for deviation, shape in parts))
        covered += found.low <= 1.5 <= found.high
    assert 920 <= covered <= 990


def test_an_interval_over_seeds_and_images_is_students_where_one_of_them_varies_alone() -> None:
    """Equal images: that of three seeds; equal seeds: that of four images. Made by hand, t at 0.975 from a table."""
    for samples, t, count in (
        (np.repeat([[1.0], [2.0], [3.0]], 4, axis=1), 4.302653, 3),
        (np.repeat([[1.0, 2.0, 3.0, 2.0]], 3, axis=0), 3.182446, 4),
    ):
        found = crossed(samples)
        one = samples[:, 0] if count == 3 else samples[0]
        half = t * one.std(ddof=1) / np.sqrt(count)
        assert found == pytest.approx((2.0, 2 - half, 2 + half), abs=1e-6)
    assert crossed(np.full((2, 2), 0.5)) == Interval(0.5, 0.5, 0.5)
    wide, narrow = (crossed(samples, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low
    for wrong in (np.zeros((1, 5)), np.zeros((5, 1)), np.zeros(5), np.full((2, 2), np.nan)):
        with pytest.raises(InputError):
            crossed(wrong)
    with pytest.raises(InputError, match="level"):
        crossed(np.eye(2), level=1.0)


def test_the_spread_of_some_runs() -> None:
    found = spread([1.0, 2.0, 6.0])
    assert found[:3] == (3.0, 1.0, 6.0) and found.range == 5.0 and found.deviation == pytest.approx(np.sqrt(7))
    assert spread([2.0]).range == 0 and np.isnan(spread([2.0]).deviation)
    for wrong in ([], [np.inf], [[1.0]]):
        with pytest.raises(InputError, match="no spread"):
            spread(wrong)


def test_the_reach_of_chance_holds_what_it_says() -> None:
    """A figure lies beyond it in one of twenty cases, with the deviation known from a few others alone."""
    generator = np.random.default_rng(0)
    others, figures = generator.normal(0, 0.3, (4000, 5)), generator.normal(0, 0.3, 4000)
    beyond = [abs(x) > reach(float(row.std(ddof=1)), 4) for x, row in zip(figures, others, strict=True)]
    assert np.mean(beyond) == pytest.approx(0.05, abs=0.012)
    assert reach(0.0, 1) == 0 and reach(1.0, 10**6) == pytest.approx(1.96, abs=1e-3)
    for deviation, freedom, level in ((-1.0, 3, 0.95), (float("nan"), 3, 0.95), (1.0, 0, 0.95), (1.0, 3, 1.0)):
        with pytest.raises(InputError, match="no bound"):
            reach(deviation, freedom, level=level)
