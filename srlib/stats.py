"""How sure a mean or a correlation over a few images is, and what of it is chance of the seed.

Bootstrap intervals, intervals of a mean over seeds and images together, the spread over seeds, and rank correlation.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from srlib.errors import InputError


class Interval(NamedTuple):
    """A number and the bounds between which resampling puts it."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 2, signed: bool = False) -> str:
        """As "0.31 (0.12 to 0.48)", with a sign for differences."""
        sign = "+" if signed else ""
        value, low, high = (f"{number:{sign}.{digits}f}".replace("-", "\u2212") for number in self)
        return f"{value} ({low} to {high})"

    @property
    def sure(self) -> bool:
        """Whether 0 lies outside the bounds, so that the number's sign can be told."""
        return self.low > 0 or self.high < 0


def interval(
    samples: Any,
    statistic: Callable[[np.ndarray], float] = np.mean,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """A statistic of samples with its percentile bootstrap interval (Efron, 1979).

    ``samples`` is array-like with one sample along its first axis, such as a difference or a row of numbers for each
    image; ``statistic`` makes one number of such an array, by default the mean. Samples are drawn with replacement
    ``draws`` times, the same ones for the same ``seed`` and count. It takes samples for independent: those of one image
    are alike, and their interval is then too narrow. A draw of few samples may be one sample over and over, of which
    there is no correlation: draws for which the statistic raises InputError are left out, up to a tenth of them.

    Raises InputError for fewer than two samples, a level outside (0, 1), values that aren't finite, and for a statistic
    that isn't finite or has no answer for too many draws.
    """
    array = np.asarray(samples, dtype=np.float64)
    if array.ndim == 0 or len(array) < 2:
        raise InputError("an interval needs two samples or more; give one for each image")
    if not 0 < level < 1 or draws < 1:
        raise InputError(f"level {level} with {draws} draws makes no interval; give a level such as 0.95, and draws")
    if not np.isfinite(array).all():
        raise InputError("there are samples that aren't finite; look at what made them")
    generator = np.random.default_rng(seed)
    value, drawn = float(statistic(array)), []
    for _ in range(draws):
        try:
            drawn.append(statistic(array[generator.integers(len(array), size=len(array))]))
        except InputError as error:
            refused = error
    if len(drawn) < 0.9 * draws:
        raise InputError(f"{draws - len(drawn)} of {draws} draws have no answer ({refused}); give more samples")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    if not np.isfinite([value, low, high]).all():
        raise InputError("the statistic isn't finite for these samples or some draws of them; give more samples")
    return Interval(value, float(low), float(high))


class Spread(NamedTuple):
    """A few runs of one thing: their mean, the lowest and the highest, and the standard deviation (with n - 1)."""

    mean: float
    low: float
    high: float
    deviation: float

    @property
    def range(self) -> float:
        """From the lowest to the highest."""
        return self.high - self.low


def reach(deviation: float, freedom: int, *, level: float = 0.95) -> float:
    """How far from its true value a single figure lies at most in ``level`` of all cases, in the unit of ``deviation``:
    its standard deviation, estimated with ``freedom`` degrees of freedom, times Student's t. Raises InputError for a
    deviation that is negative or not finite, fewer than one degree of freedom, and a level outside (0, 1)."""
    if not (deviation >= 0 and np.isfinite(deviation)) or freedom < 1 or not 0 < level < 1:
        raise InputError(f"no bound from a deviation of {deviation} with {freedom} degrees of freedom at level {level}")
    return float(deviation * scipy.stats.t.ppf((1 + level) / 2, freedom))


def spread(values: Sequence[float]) -> Spread:
    """The spread of some runs' figures, such as a mean PSNR for each seed; of one run the deviation is NaN, as nothing
    can be said of it.

    Raises InputError for no value, and for values that aren't finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise InputError(f"no spread of {values!r:.80}; give one finite number for each run")
    deviation = float(array.std(ddof=1)) if len(array) > 1 else float("nan")
    return Spread(float(array.mean()), float(array.min()), float(array.max()), deviation)


def crossed(samples: Any, *, level: float = 0.95) -> Interval:
    """The mean of samples (seeds, images) with its interval, both seeds and images being draws of many.

    Each seed is measured on each image, such as the difference of two networks' PSNR on an image, trained with that
    seed. The mean's variance is that of the two-way layout with random effects: the variance of the seeds' means over
    the number of seeds, plus that of the images' means over the number of images, less the interaction, which is in
    both (its mean square over the number of samples), and at least the larger of the two. The interval is Student's,
    with Satterthwaite's (1946) degrees of freedom, so that few seeds make it as wide as they should. A bootstrap over
    three seeds would be too narrow: three draws hold the same seed thrice in a ninth of all cases. It takes seeds for
    independent, and images too.

    Raises InputError for fewer than two seeds or images, values that aren't finite, and a level outside (0, 1).
    """
    array = np.asarray(samples, dtype=np.float64)
    if array.ndim != 2 or min(array.shape) < 2:
        raise InputError(f"samples of shape {array.shape} have no such interval; give two seeds and two images or more")
    if not 0 < level < 1:
        raise InputError(f"level {level} makes no interval; give one such as 0.95")
    if not np.isfinite(array).all():
        raise InputError("there are samples that aren't finite; look at what made them")
    seeds, images = array.shape
    by_seed, by_image, mean = array.mean(1), array.mean(0), float(array.mean())
    rest = array - by_seed[:, None] - by_image + mean
    parts = np.array([by_seed.var(ddof=1) / seeds, by_image.var(ddof=1) / images])
    both = (rest**2).sum() / ((seeds - 1) * (images - 1)) / array.size
    variance, free = parts.sum() - both, np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    if variance < parts.max():
        variance, degrees = parts.max(), free[parts.argmax()]
    elif variance > 0:
        degrees = max(variance**2 / (np.array([*parts, both]) ** 2 / free).sum(), free[:2].min())
    if variance <= 0:
        return Interval(mean, mean, mean)
    half = float(scipy.stats.t.ppf((1 + level) / 2, degrees) * np.sqrt(variance))
    return Interval(mean, mean - half, mean + half)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation of two sequences: 1 where one rises with the other, -1 where it falls, about 0 where
    they have nothing to do with each other. Equal values share the mean of their ranks.

    Raises InputError for sequences of different or too small length, values that aren't finite, and a constant one.
    """
    one, other = (np.asarray(values, dtype=np.float64) for values in (x, y))
    if one.shape != other.shape or one.ndim != 1 or len(one) < 2:
        raise InputError(f"no correlation of shapes {one.shape} and {other.shape}; give two sequences of one length")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise InputError("there are values that aren't finite; leave them out")
    ranks = [_ranks(values) for values in (one, other)]
    if any(rank.std() == 0 for rank in ranks):
        raise InputError("one of the two is the same everywhere, and correlates with nothing; give values that differ")
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, from 0; equal ones share their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = count.cumsum()
    return ((2 * ends - count - 1) / 2)[place]
