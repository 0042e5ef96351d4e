"""Sweeps: the points that a `[sweep]` table spans.

mode = "grid", every combination, or "zip", the first values together, then the second ones;
[sweep.axes] with a list of values for each dotted key; [[sweep.exclude]] tables that drop the points they match.
"""

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

MOST = 10_000  # points
Point = dict[str, Any]  # values by dotted key


def points(sweep: Any, errors: list[str]) -> list[Point]:
    """Returns the points of a sweep in the order of its axes, the last one fastest; without axes one, the file itself.

    Args:
      sweep: the table.
      errors: gets a line for everything that is wrong; the points are then not all there.
    """
    if not isinstance(sweep, dict):
        errors.append(f"sweep: expected a table, got {sweep!r}")
        return []
    for key in sweep.keys() - {"mode", "axes", "exclude"}:
        errors.append(f"sweep.{key}: unknown key; expected one of 'mode', 'axes', 'exclude'")
    mode, excludes = sweep.get("mode", "grid"), sweep.get("exclude", [])
    if mode not in ("grid", "zip"):
        errors.append(f"sweep.mode: expected 'grid' or 'zip', got {mode!r}")
    axes = _flat(sweep.get("axes", {}), "sweep.axes", errors)
    for key, values in list(axes.items()):
        if not isinstance(values, list) or not values:
            errors.append(f"sweep.axes.{key}: expected a list of values, got {values!r}")
            del axes[key]
    if mode == "zip" and len({len(values) for values in axes.values()}) > 1:
        lengths = ", ".join(f"{key} has {len(values)}" for key, values in axes.items())
        errors.append(f"sweep.axes: a zip needs axes of one length; {lengths}")
        return []
    counts = [len(values) for values in axes.values()]
    count = max(counts, default=1) if mode == "zip" else math.prod(counts)
    if count > MOST:
        errors.append(f"sweep.axes: expected at most {MOST} points; these axes span {count}")
        return []
    rows = zip(*axes.values(), strict=True) if mode == "zip" else itertools.product(*axes.values())
    every = [dict(zip(axes, row, strict=True)) for row in rows]
    if not isinstance(excludes, list):
        errors.append(f"sweep.exclude: expected [[sweep.exclude]] tables, got {excludes!r}")
        excludes = []
    for i, exclude in enumerate(excludes):
        dropped = _flat(exclude, f"sweep.exclude[{i}]", errors)
        for key in dropped.keys() - axes.keys():
            errors.append(f"sweep.exclude[{i}].{key}: is no axis of the sweep")
        left = [point for point in every if not dropped.items() <= point.items()]
        if len(left) == len(every) and dropped.keys() <= axes.keys():
            errors.append(f"sweep.exclude[{i}]: drops no point; none matches {dropped}")
        every = left
    if not every and axes:
        errors.append("sweep: no point is left")
    return every


def text_of(point: Point) -> str:
    """Returns a point as one would write it with `--set`."""
    return (
        " ".join(f"{key}={json.dumps(value, default=str)}" for key, value in point.items())
        or "the file itself"
    )


def _flat(table: Any, path: str, errors: list[str]) -> dict[str, Any]:
    """Returns nested tables as one with dotted keys, in which TOML writes `options.latent` with or without quotes."""
    if not isinstance(table, Mapping):
        errors.append(f"{path}: expected a table, got {table!r}")
        return {}
    flat: dict[str, Any] = {}
    for key, value in table.items():
        inner = _flat(value, path, errors) if isinstance(value, Mapping) else None
        flat |= {key: value} if inner is None else {f"{key}.{k}": v for k, v in inner.items()}
    return flat
