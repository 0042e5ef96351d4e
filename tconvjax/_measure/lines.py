"""Lines of spectra at fractions of small denominators, against their neighborhood.

The ratio t of the power at a frequency to the mean of K neighbors on the same axis is its own null on an axis full of
edges. For noise it is F(2, 2a), at frequency 1/2, where spectra are real, F(1, 2a); a = K/1.9, as the K bins of a Hann
window are worth K/1.9 independent ones: the squared autocorrelation of their powers adds up to 1 + 2·(4/9) + 2/36.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import gcd, inf, sqrt
from typing import NamedTuple

import numpy as np
from scipy import special

from tconvjax._measure.fields import ZOOM, Key, Spectrum

FLOOR = 1e-12  # power that counts as rounding, over the gain: about a millionth of a grey level
HANN = 1.9  # bins of a Hann window that are worth an independent one
POWER = 1.64  # standard deviations above a needed ratio: 19 of 20 are found
PEAK = 0.8  # of the power within a bin that a line has at its fraction
COMB_LIMIT = 1e-4  # least p-value of a line that counts in a comb: a texture with one line is none
FEWEST = 16  # pixels along a direction
REPEATED = 4  # periods in a picture; two or three of something are no grid
FEW_LINES = 8  # period up to which one line is a pattern


class Fractions(NamedTuple):
    """Frequencies over/period in lowest terms, ordered by period: each is of its period, and of no shorter one."""

    over: np.ndarray
    period: np.ndarray

    @property
    def half(self) -> np.ndarray:
        """Where the frequency is 1/2."""
        return self.period == 2

    @property
    def periods(self) -> list[int]:
        """The periods, each once."""
        found: list[int] = np.unique(self.period).tolist()
        return found


class Lines(NamedTuple):
    """Lines of one spectrum, one entry for each fraction.

    Attributes:
      ratio: power over that of the neighborhood.
      p: probability that noise reaches this ratio.
      power: at the fraction.
      floor: mean power of the neighborhood.
      peak: whether the largest power within a bin is at the fraction.
      open: whether the picture is large enough for it.
      gain: of the spectrum.
      neighbors: number of bins of the neighborhood.
    """

    ratio: np.ndarray
    p: np.ndarray
    power: np.ndarray
    floor: np.ndarray
    peak: np.ndarray
    open: np.ndarray
    gain: float
    neighbors: int


Table = dict[Key, Lines]


def fractions(periods: Iterable[int]) -> Fractions:
    """Returns the frequencies of patterns of the given periods, up to 1/2."""
    found = [(q, p) for p in sorted(periods) for q in range(1, p // 2 + 1) if gcd(q, p) == 1]
    return Fractions(*np.array(found).T)


def table_of(spectra: Mapping[Key, Spectrum], at: Fractions) -> Table:
    """Returns the lines of spectra at fractions; a period of which a picture has too few has none."""
    return {key: _lines(spectrum, at) for key, spectrum in spectra.items()}


def _lines(spectrum: Spectrum, at: Fractions) -> Lines:
    power = np.abs(spectrum.values) ** 2
    last = len(power) - 1
    floor, neighbors = _neighborhood(power, 2 * last // ZOOM)
    index = np.rint(2 * last * at.over / at.period).astype(int)
    near = np.minimum(index[:, None] + np.arange(-ZOOM, ZOOM + 1), last)
    ratio = power[index] / (floor[index] + FLOOR * spectrum.gain + np.finfo(float).tiny)
    p = tail(ratio, neighbors, half=at.half)
    # The window has a line of its own at 0.
    pixels = 2 * last // ZOOM
    seen = (index >= 2 * ZOOM) & (REPEATED * at.period <= pixels) & (pixels >= FEWEST)
    p[~seen] = 1.0
    peak = seen & (power[index] >= PEAK * power[near].max(1))
    return Lines(ratio, p, power[index], floor[index], peak, seen, spectrum.gain, neighbors)


def _neighborhood(power: np.ndarray, bins: int) -> tuple[np.ndarray, int]:
    """Returns the mean power of the nearest whole bins but those of the line itself, four wide, and their number."""
    n, count = bins // 2, int(np.clip(bins // 6, 4, 24))
    i = np.arange(len(power))[:, None]
    last = max((n - count - 2) * ZOOM, ZOOM) + i % ZOOM
    start = np.clip(i - (count // 2 + 1) * ZOOM, ZOOM, last)
    at = start - start % ZOOM + i % ZOOM + ZOOM * np.arange(count + 5)
    good = (np.abs(at - i) >= 2 * ZOOM) & (at < len(power))
    good &= np.cumsum(good, 1) <= count
    total = (power[np.minimum(at, len(power) - 1)] * good).sum(1)
    return total / np.maximum(good.sum(1), 1), count


def tail(ratio: np.ndarray, neighbors: int, *, half: np.ndarray) -> np.ndarray:
    """Returns the probability that noise reaches a ratio; `half` where the frequency is 1/2."""
    a = neighbors / HANN
    x = a / (a + np.where(half, 0.5, 1.0) * ratio)
    p: np.ndarray = np.where(half, special.betainc(a, 0.5, x), x**a)  # I_x(a, 1) is x^a
    return p


def needed(p: float, neighbors: int, *, half: bool) -> float:
    """Returns the ratio that noise reaches with a probability."""
    a, b = neighbors / HANN, 0.5 if half else 1.0
    return a * (1 / float(special.betaincinv(a, b, p)) - 1) / b


def pooled(tables: Sequence[Table], least: float) -> Table:
    """Returns the lines of a set by Fisher's sum, in which no table counts by a smaller p-value than `least`.

    Ratios are the largest, heights those of the median picture; a picture that is too small for a line does not count.
    """
    keys = dict.fromkeys(key for table in tables for key in table)
    return {key: _pooled([t[key] for t in tables if key in t], least) for key in keys}


def _pooled(lines: Sequence[Lines], least: float) -> Lines:
    if len(lines) == 1:
        return lines[0]
    seen = np.stack([one.open for one in lines])
    count = seen.sum(0)
    ratios = np.where(seen, [one.ratio for one in lines], 0.0)
    best = ratios.argmax(0), np.arange(ratios.shape[1])
    sums = np.where(seen, -np.log(np.maximum([one.p for one in lines], least)), 0.0).sum(0)

    def median(name: str) -> np.ndarray:
        values = np.stack([getattr(one, name) / one.gain**2 for one in lines])
        middle: np.ndarray = np.nanmedian(np.where(seen | (count == 0), values, np.nan), 0)
        return middle

    return Lines(
        ratio=ratios[best],
        p=np.where(count > 0, special.gammaincc(np.maximum(count, 1), sums), 1.0),
        power=median("power"),
        floor=median("floor"),
        peak=np.stack([one.peak for one in lines])[best],
        open=count > 0,
        gain=1.0,
        neighbors=lines[0].neighbors,
    )


def above(table: Table, usual: Mapping[Key, np.ndarray], at: Fractions) -> Table:
    """Returns the lines by what they have more than the same lines of a reference set have on average."""
    found = {}
    for key, lines in table.items():
        times = np.maximum(1.0, usual[key]) if key in usual else np.ones(len(lines.p))
        p = np.where(lines.open, tail(lines.ratio / times, lines.neighbors, half=at.half), 1.0)
        found[key] = lines._replace(ratio=lines.ratio / times, p=p, floor=lines.floor * times)
    return found


def usual(tables: Sequence[Table]) -> dict[Key, np.ndarray]:
    """Returns the mean ratios of the lines of a set, over pictures that are large enough; 1 without any."""
    found = {}
    for key in dict.fromkeys(key for table in tables for key in table):
        own = [table[key] for table in tables if key in table]
        seen = np.stack([one.open for one in own])
        total = np.where(seen, [one.ratio for one in own], 0.0).sum(0)
        found[key] = np.where(seen.any(0), total / np.maximum(seen.sum(0), 1), 1.0)
    return found


def combs(lines: Lines, at: Fractions) -> np.ndarray:
    """Returns for each period the probability that noise has such a comb in one spectrum.

    Up to 8 its strongest line counts; beyond, Fisher's sum over its lines.
    """
    p = np.where(lines.peak, lines.p, 1.0)
    first = np.flatnonzero(np.diff(at.period, prepend=0))
    count = np.diff(first, append=len(p))
    single = np.minimum(1.0, np.minimum.reduceat(p, first) * count)
    sums = np.add.reduceat(-np.log(np.maximum(p, COMB_LIMIT)), first)
    found: np.ndarray = np.where(at.period[first] <= FEW_LINES, single, special.gammaincc(count, sums))  # fmt: skip
    return found


def heights(key: Key, lines: Lines, at: Fractions) -> np.ndarray:
    """Returns the root mean squares of the waves of lines, without the power of their neighborhood.

    In grey levels for a picture, which was multiplied with 2|f|; relative for a local energy.
    """
    power = np.maximum(lines.power - lines.floor, 0.0)
    found: np.ndarray = np.sqrt(power) * _per_root_of_power(key, lines, at)
    return found


def _per_root_of_power(key: Key, lines: Lines, at: Fractions) -> np.ndarray:
    two = np.where(at.half, 1.0, sqrt(2))
    flattened = 1.0 if key.is_energy else 2 * at.over / at.period * sqrt(key.steps)
    found: np.ndarray = two / (lines.gain * flattened)
    return found


def least(key: Key, lines: Lines, at: Fractions, i: int, p: float) -> float:
    """Returns the height of a line that 19 of 20 pictures show at a p-value."""
    if not lines.open[i]:
        return inf
    root = sqrt(needed(p, lines.neighbors, half=bool(at.half[i]))) + POWER
    return float(root * sqrt(lines.floor[i]) * _per_root_of_power(key, lines, at)[i])
