"""A benchmark in a few numbers: geometric means of ratios over families of layers, and who is slower where.

A ratio is a peer's time over ours: above 1, ours is faster. `torch_best` is the faster of torch's two formats, layer by
layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.benchmark import autotune, layers
from experiments.benchmark.config import Benchmark
from experiments.benchmark.timing import geometric_mean

SCHEMA = 1  # of summary.json
COLUMNS = ("lax", "flax", "keras", "torch_best")
TORCH = ("torch", "torch_channels_last")
TORCH_SHARE = 0.8  # of torch's speed: below is counted

Entries = Sequence[Mapping[str, Any]]
Ratios = dict[str, dict[str, Mapping[str, Any]]]  # layer -> column -> mean, low, high


def summarize(
    config: Benchmark, results: Mapping[str, Any], here: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the content of summary.json.

    Args:
      config: of the run.
      results: content of results.json.
      here: what `machine.measure` found.
    """
    passes = {
        dtype: {
            direction: _of_pass(config, results["layers"], dtype, direction)
            for direction in layers.PASSES
        }
        for dtype in config.dtypes
    }
    return {
        "schema": SCHEMA,
        "name": config.name,
        "question": config.question,
        "mode": config.mode,
        "machine": here,
        "layers": passes if results["layers"] else {},
        "models": [
            {key: value for key, value in entry.items() if key != "times_ms"}
            for entry in results["models"]
        ],
        "autotune": autotune.regret(results["autotune"]) if results["autotune"] else None,
        "skipped": _skipped([*results["layers"], *results["models"]]),
    }


def ratios(entries: Entries, dtype: str, direction: str) -> Ratios:
    """Returns the ratios of one pass by layer and column."""
    found: Ratios = {}
    for entry in entries:
        if (entry["dtype"], entry["pass"]) != (dtype, direction) or not entry.get("ratio"):
            continue
        row = found.setdefault(entry["layer"], {})
        column = "torch_best" if entry["peer"] in TORCH else entry["peer"]
        if column not in row or entry["ratio"]["mean"] < row[column]["mean"]:
            row[column] = entry["ratio"]
    return found


def means(ratios: Ratios, names: Iterable[str]) -> dict[str, float | None]:
    """Returns the geometric mean of every column over those of the layers that have it; None where none has."""
    rows = [ratios[name] for name in names if name in ratios]
    values = {c: [row[c]["mean"] for row in rows if c in row] for c in COLUMNS}
    return {c: geometric_mean(v) if v else None for c, v in values.items()}


def slower(ratios: Ratios, column: str, share: float, limit: str = "mean") -> list[str]:
    """Returns the layers where ours has less than `share` of a peer's speed, by the mean or by the 'high' limit."""
    values = {name: row[column][limit] for name, row in ratios.items() if column in row}
    return [name for name, value in values.items() if value is not None and value < share]


def _of_pass(config: Benchmark, entries: Entries, dtype: str, direction: str) -> dict[str, Any]:
    found = ratios(entries, dtype, direction)
    families: dict[str, list[str]] = {}
    for layer in config.selected:
        families.setdefault(layer.family, []).append(layer.name)
    groups = families | {"all": [layer.name for layer in config.selected]}
    return {
        "families": {
            family: {"layers": len(names), **means(found, names)}
            for family, names in groups.items()
        },
        "slower_than_lax": slower(found, "lax", 1),
        "surely_slower_than_lax": slower(found, "lax", 1, "high"),  # the whole interval
        "below_torch_share": slower(found, "torch_best", TORCH_SHARE),
        "torch_share": TORCH_SHARE,
    }


def _skipped(entries: Entries) -> dict[str, list[str]]:
    """Returns reason -> peers that it kept from some layer or model."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if "skipped" in entry and entry["peer"] not in reasons.setdefault(entry["skipped"], []):
            reasons[entry["skipped"]].append(entry["peer"])
    return reasons
