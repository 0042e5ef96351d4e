"""What the engine does with a benchmark; what was recorded is not measured again.

runs/<name>-<digest>/
  config.json, environment.json   as for every run
  machine.json    peaks, bandwidth, load        results.json   one entry per layer, dtype, pass and peer
  autotune.json   one entry per layer and face  summary.json   the result, written last
  benchmark.png, report.html
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from experiments import pictures, records, stopping
from experiments.benchmark import autotune, layers, machine, models, report, summary
from experiments.benchmark.config import Benchmark, Layer
from experiments.engine import Study
from experiments.loggers import Loggers

Entries = list[dict[str, Any]]
ENTRIES = [{...: object}]
Results = dict[str, Entries]  # 'layers', 'models' and 'autotune' -> entries
BUSY = 0.5  # waiting processes per core at the start from which a machine is not quiet


class Unit(NamedTuple):
    """What is measured and recorded whole, or not at all."""

    section: str  # of the results
    key: Mapping[str, str]  # what all of its entries have
    measure: Callable[[], Entries]


def units(config: Benchmark, here: Mapping[str, Any]) -> list[Unit]:
    """Returns everything that a benchmark measures, in order."""
    how: dict[str, Any] = {"rounds": config.rounds, "budget_s": config.budget_s}

    def of_layer(layer: Layer, dtype: str) -> Unit:
        key = {"layer": layer.name, "dtype": dtype}
        if config.mode == "autotune":
            return Unit("autotune", key, partial(autotune.measure, layer, dtype, **how))
        call = partial(layers.measure, layer, dtype, config.peers, here, **how)
        return Unit("layers", key, call)

    found = []
    if config.mode != "models":
        found += [of_layer(layer, dtype) for dtype in config.dtypes for layer in config.selected]
    if config.mode in ("models", "all"):
        found += [
            Unit("models", {"model": name}, partial(models.measure, name, config.peers, **how))
            for name in config.models
        ]
    return found


def _measure(todo: list[Unit], results: Results, folder: Path, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("", total=len(todo))
        for unit in todo:
            stopping.check()
            progress.update(bar, description=" ".join(unit.key.values()))
            if not any(unit.key.items() <= entry.items() for entry in results[unit.section]):
                entries = unit.measure()
                results[unit.section] += entries
                _write(folder, results)
                progress.console.print(report.line(unit.key, entries))
            progress.advance(bar)


def _machine(config: Benchmark, folder: Path, console: Console) -> Any:
    """Measures the machine once per folder."""
    path = folder / "machine.json"
    if not path.exists():
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        if load > BUSY:
            console.print(
                f"this machine is busy: {load:.1f} processes per core. Threads of torch and JAX that wait for a core "
                "distort the ratios; run the benchmark alone.",
                style="yellow",
            )
        with console.status("measuring the machine"):
            found = machine.measure(config.dtypes) | {"load_per_core": round(load, 2)}
        records.write_json(path, found)
    return records.read_json(path)


def _read(folder: Path) -> Results:
    results: Results = {"layers": [], "models": [], "autotune": []}
    if (folder / "results.json").exists():
        results |= records.read_json(folder / "results.json", {...: ENTRIES})
    if (folder / "autotune.json").exists():
        results["autotune"] = records.read_json(folder / "autotune.json", ENTRIES)
    return results


def _write(folder: Path, results: Results) -> None:
    """Writes each file whole, so that no unit is there in part."""
    if results["autotune"]:
        records.write_json(folder / "autotune.json", results["autotune"])
    else:
        kept = {section: results[section] for section in ("layers", "models")}
        records.write_json(folder / "results.json", kept)


def _perform(
    config: Benchmark, folder: Path, console: Console, loggers: Loggers, mesh: Mesh | None
) -> dict[str, Any]:
    """Measures whatever is not recorded yet."""
    del loggers, mesh  # which a benchmark refuses
    here = _machine(config, folder, console)
    results = _read(folder)
    _measure(units(config, here), results, folder, console)
    return summary.summarize(config, results, here)


def _draw(config: Benchmark, folder: Path, found: Mapping[str, Any], console: Console) -> None:
    page = folder / "report.html"
    try:
        report.write(config, folder, _read(folder), found)
        console.print(Text(f"report {page}"))
    except Exception as error:
        reason = pictures.reason(error)
        console.print(
            Text(f"{page}: cannot be made: {reason}. The same command tries again.", "yellow")
        )


STUDY = Study(
    verb="measure",
    schema=summary.SCHEMA,
    shape={},
    perform=_perform,
    tabulate=lambda folder, found, console: report.print_tables(_read(folder), found, console),
    draw=_draw,
    draw_later=_draw,
    mesh_errors=lambda config, shape: ["--mesh: a benchmark measures one device"],  # noqa: ARG005
    check=lambda config: [],  # noqa: ARG005
    no_loggers="a benchmark has no metrics along training",
)
