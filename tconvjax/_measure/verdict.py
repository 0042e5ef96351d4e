"""The verdict on a picture or a set: which lines no file has made, their period, orientation and height."""

from collections.abc import Collection, Sequence
from math import inf, lcm, log10, sqrt
from typing import Literal, NamedTuple

import numpy as np

from tconvjax._measure.fields import Key
from tconvjax._measure.lines import Fractions, Table, combs, heights, least
from tconvjax._measure.traces import Files, Traits

ALPHA = 0.005  # probability of a pattern in a clean picture, or set
# Parts of it; edges and the energy of textures have heavy tails.
SHARE = {"luma": 0.8, "chroma": 0.2, "plain": 1e-4, "energy1": 1e-4, "energy2": 1e-4}
WORTH = 1.0  # grey levels of a pattern that a clean picture would have shown
OF_COMB, OF_OTHERS = 1e-3, 1e-6  # p-values of lines that belong to a pattern
SHORT = 8  # period up to which lines of other combs belong, too
OVERTONE = 0.1  # height over that of the strongest line

Verdict = Literal["pattern", "clean", "undecided"]


class Judged(NamedTuple):
    """A verdict; fields as in `Measurement`."""

    verdict: Verdict
    period: int | None
    orientation: str | None
    contrast: float | None
    amplitude: float | None
    cause: str | None
    p_value: float
    limit: float


class Line(NamedTuple):
    """A line of a pattern."""

    height: float
    ratio: float
    period: int
    key: Key


def judged(table: Table, at: Fractions, traits: Traits) -> Judged:
    """Returns the verdict on lines."""
    alone = {
        (key, period): p
        for key, lines in table.items()
        for period, p in zip(at.periods, combs(lines, at).tolist(), strict=True)
    }
    scores = _shared(alone)
    lattice = [p * SHARE[key.field] for (key, n), p in scores.items() if key.is_energy and n == 8]
    files = Files(table, at, traits, min(lattice, default=1.0))
    found, reasons = [], set()
    explained: set[tuple[Key, int]] = set()
    for comb, p in scores.items():
        if p < ALPHA:
            reason = files.reason(*comb)
            if reason is None:
                found.append(comb)
            else:
                reasons.add(reason)
                explained.add(comb)
    enlarged = traits.enlarged if traits.enlarged and _shows(scores, traits.enlarged[0]) else None
    limit = _limit(table, at)
    counted = found or [comb for comb in scores if comb not in explained]
    p_value = min((scores[comb] for comb in counted), default=1.0)
    if not found and not enlarged:
        verdict: Verdict = "clean" if limit <= WORTH else "undecided"
        return Judged(verdict, None, None, None, None, min(reasons, default=None), p_value, limit)
    lines = _lines_of(table, at, found, explained)
    of_picture = bool(lines) and not lines[0].key.is_energy
    cause = f"{enlarged[1]} enlargement" if enlarged else "upsampling" if of_picture else None
    period: int | None = _period(lines, at) if lines else None
    if enlarged and not of_picture:
        period = enlarged[0]
    return Judged(
        "pattern",
        period,
        _orientation({line.key.direction for line in lines}, period) if lines else "both axes",
        10 * log10(max(line.ratio for line in lines)) if lines else None,
        _amplitude(lines) if of_picture else None,
        cause,
        p_value,
        limit,
    )


def _shared(alone: dict[tuple[Key, int], float]) -> dict[tuple[Key, int], float]:
    """Corrects for many looks: a period may spend 1/period² of the error, fields and their directions share it."""
    periods = {period for _, period in alone}
    total = sum(period**-2.0 for period in periods)
    keys = list(dict.fromkeys(key for key, _ in alone))
    ways = {name: sum(key.field == name for key in keys) for name in SHARE}
    return {
        (key, period): min(1.0, p * ways[key.field] * total * period**2 / SHARE[key.field])
        for (key, period), p in alone.items()
    }


def _shows(scores: dict[tuple[Key, int], float], factor: int) -> bool:
    """Whether the energy has the comb of an enlargement."""
    return min((p for (key, n), p in scores.items() if key.is_energy and n == factor), default=1.0) < ALPHA  # fmt: skip


def _lines_of(
    table: Table,
    at: Fractions,
    found: Sequence[tuple[Key, int]],
    explained: Collection[tuple[Key, int]],
) -> list[Line]:
    """Returns the lines of a pattern, the strongest first: of the picture if any are there, else of its energy."""
    own = [comb for comb in found if not comb[0].is_energy] or list(found)
    fields = {key.field for key, _ in own}
    fields = next(({name} for name in ("luma", "plain") if name in fields), fields)
    lines = []
    for key, row in table.items():
        if key.field not in fields:
            continue
        high = heights(key, row, at)
        for i in np.flatnonzero(row.peak & (row.p < OF_COMB)).tolist():
            period = int(at.period[i])
            others = period <= SHORT and row.p[i] < OF_OTHERS and (key, period) not in explained
            if (key, period) in own or others:
                lines.append(Line(float(high[i]), float(row.ratio[i]), period, key))
    lines.sort(key=lambda line: -line.height)
    return [line for line in lines if line.height > OVERTONE * lines[0].height]


def _period(lines: Sequence[Line], at: Fractions) -> int:
    """Returns the fundamental: all lines are its multiples."""
    common = lcm(*{line.period for line in lines})
    return common if common <= at.periods[-1] else lines[0].period


def _orientation(directions: Collection[tuple[int, ...]], period: int | None) -> str:
    """Returns the name of the directions in which a pattern varies."""
    axes = {d for d in directions if sum(map(abs, d)) == 1}
    if not axes:
        return "board" if period == 2 or len(directions) > 1 else "diagonal"
    rank = len(next(iter(axes)))
    if len(axes) > 1:
        return "both axes" if rank == 2 else "several axes"
    (one,) = axes
    names = {(0, 1): "columns", (1, 0): "rows", (1,): "samples"}
    return names.get(one, f"axis {one.index(1)}")


def _amplitude(lines: Sequence[Line]) -> float:
    """Returns the root mean square of all waves; at frequency (1/2, 1/2) two directions have the same."""
    waves: dict[tuple[object, ...], float] = {}
    for i, line in enumerate(lines):
        same = (line.key.field, line.key.channel, *map(abs, line.key.direction))
        waves[same if line.period == 2 else (i,)] = line.height
    return sqrt(sum(height**2 for height in waves.values()))


def _limit(table: Table, at: Fractions) -> float:
    """Returns the smallest pattern of the shortest period that is found in 19 of 20, in the direction that hides it."""
    rows = {key: row for key, row in table.items() if key.field == "luma"}
    shortest = np.flatnonzero(at.period == at.periods[0]).tolist()
    looks = at.periods[0] ** 2 * sum(period**-2.0 for period in at.periods) * len(shortest)
    share = ALPHA * SHARE["luma"] / (looks * max(len(rows), 1))
    return max((least(key, row, at, shortest[-1], share) for key, row in rows.items()), default=inf)
