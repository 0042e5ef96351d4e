"""Runs configs: one, or every point of a sweep, here or in several processes side by side.

Every point is a run of its own in a folder of its own, claimed by the folder's lock while a process works there, and
left alone when it is complete. So a sweep may be stopped and started again, and any number of commands, on any number
of machines that share the folder, may drive it together: each takes what the others have not.
"""

import concurrent.futures
import csv
import hashlib
import io
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jax.sharding import Mesh
from rich.console import Console
from rich.text import Text

from experiments import engine, records, stopping
from experiments.benchmark import run as benchmark_run
from experiments.benchmark.config import Benchmark
from experiments.config import Config
from experiments.loggers import LoggerError, find
from experiments.meshes import leads
from experiments.records import RunError
from experiments.sweeps import Point, text_of

SCHEMA = 1  # of the sweep's summary.json
Points = Sequence[tuple[Point, Config | Benchmark]]


class Outcome(NamedTuple):
    """What became of one point."""

    folder: str
    status: Literal["complete", "failed", "claimed"]  # by another process, that is
    message: str = ""


def run(
    config: Config | Benchmark,
    out: Path,
    console: Console,
    mesh: Mesh | None = None,
    loggers: Sequence[str] = (),
) -> Path:
    """Runs or continues a config and returns its folder; raises as the engine does."""
    if isinstance(config, Benchmark):
        return benchmark_run.run(config, out, console)
    return engine.run(config, out, console, mesh, loggers)


def mesh_errors(points: Points, mesh: Mesh) -> list[str]:
    """Returns why a mesh cannot be used for the points of a sweep."""
    errors = []
    for _, config in points:
        if isinstance(config, Benchmark):
            errors.append("--mesh: a benchmark measures one device")
        else:
            errors += engine.mesh_errors(config, mesh)
    return list(dict.fromkeys(errors))


def logger_errors(points: Points, loggers: Sequence[str]) -> list[str]:
    """Returns why loggers cannot be used for the points of a sweep."""
    errors = []
    if loggers and any(isinstance(config, Benchmark) for _, config in points):
        errors.append("--tensorboard, --logger: a benchmark has no metrics along training")
    for name in loggers:
        try:
            find(name)
        except LoggerError as error:
            errors.append(str(error))
    return errors


def check(points: Points, out: Path) -> list[str]:
    """Returns what is wrong with the data of all points that are not complete, before any of them runs."""
    errors = (
        error
        for _, config in points
        if isinstance(config, Config)
        and not (out / f"{config.name}-{config.digest}" / "summary.json").exists()
        for error in engine.check(config)
    )
    return list(dict.fromkeys(errors))


def sweep(
    points: Points,
    out: Path,
    console: Console,
    *,
    jobs: int = 1,
    mesh: Mesh | None = None,
    loggers: Sequence[str] = (),
) -> bool:
    """Runs or continues all points of a sweep, and writes what they say together.

    Args:
      points: valid.
      out: folder that holds run folders; the sweep's own is `<name>-sweep-<digest>`, with summary.json and results.csv.
      console: where progress and the table go.
      jobs: processes that work side by side.
      mesh: on which the points are trained, one after another; None for one device.
      loggers: names of those who are told what each point records.

    Returns:
      Whether no point failed; those that others work on are left to them.

    Raises:
      RunError: if a process dies.
      LoggerError: if a logger cannot be made.
      ImportError: if a package is missing.
    """
    outcomes = [Outcome("", "failed")] * len(points)
    for done, (i, outcome) in enumerate(
        _outcomes(points, out, console, jobs, mesh, loggers), start=1
    ):
        outcomes[i] = outcome
        said = f": {outcome.message}" if outcome.message else ""
        text = (
            f"{done}/{len(points)} {outcome.status} {outcome.folder} {text_of(points[i][0])}{said}"
        )
        console.print(Text(text))
    if leads():
        folder = _write(points, outcomes, out)
        console.print(Text(f"summary {folder / 'summary.json'}"))
    return all(outcome.status != "failed" for outcome in outcomes)


def _outcomes(
    points: Points,
    out: Path,
    console: Console,
    jobs: int,
    mesh: Mesh | None,
    loggers: Sequence[str],
) -> Iterator[tuple[int, Outcome]]:
    """Yields the number of a point and what became of it, as they end."""
    if jobs == 1:
        for i, (_, config) in enumerate(points):
            yield i, _attempt(config, out, loggers, console, mesh)
        return
    with concurrent.futures.ProcessPoolExecutor(
        min(jobs, len(points)), multiprocessing.get_context("spawn"), _start_worker
    ) as pool:
        futures = {
            pool.submit(_attempt, config, out, loggers): i for i, (_, config) in enumerate(points)
        }
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise RunError(
                "a process of the sweep died, perhaps for want of memory; what it had saved stays. The same command "
                "continues; --jobs takes fewer processes."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _attempt(
    config: Config | Benchmark,
    out: Path,
    loggers: Sequence[str],
    console: Console | None = None,
    mesh: Mesh | None = None,
) -> Outcome:
    name = f"{config.name}-{config.digest}"
    try:
        with Path(os.devnull).open("w") as nowhere:
            run(config, out, console or Console(file=nowhere), mesh, loggers)
    except records.Claimed:
        return Outcome(name, "claimed", "another process is working there")
    except RunError as error:
        return Outcome(name, "failed", str(error))
    return Outcome(name, "complete")


def _start_worker() -> None:
    """Lets a process end with the one that started it, however that ends."""
    stopping.on_signals(Console(stderr=True), worker=True)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write(points: Points, outcomes: Sequence[Outcome], out: Path) -> Path:
    """Writes summary.json, and results.csv with a line for each point, variant and metric."""
    digests = json.dumps(sorted(config.digest for _, config in points))
    name = points[0][1].name
    folder = out / f"{name}-sweep-{hashlib.sha256(digests.encode()).hexdigest()[:8]}"
    entries: list[dict[str, Any]] = []
    axes = list(dict.fromkeys(key for point, _ in points for key in point))
    columns = [*axes, "variant", "metric", "mean", "low", "high", "seeds"]
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(columns)
    for (point, _), outcome in zip(points, outcomes, strict=True):
        entry: dict[str, Any] = {"settings": point, **outcome._asdict()}
        path = out / outcome.folder / "summary.json"
        if path.exists():
            result = records.read_json(path)
            entry |= {key: result[key] for key in ("variants", "claims") if key in result}
            for variant, at in entry.get("variants", {}).items():
                for metric, value in at["final"].items():
                    numbers = [value[key] for key in columns[-4:]]
                    lines.writerow([*(point[axis] for axis in axes), variant, metric, *numbers])
        entries.append(entry)
    folder.mkdir(parents=True, exist_ok=True)
    records.write_bytes(folder / "results.csv", text.getvalue().encode())
    records.write_json(folder / "summary.json", {"schema": SCHEMA, "name": name, "points": entries})
    return folder
