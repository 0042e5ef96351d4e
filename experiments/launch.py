"""Runs configs: one, or every point of a sweep, here, in several processes side by side, or as jobs of a cluster.

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
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jax.sharding import Mesh
from rich.console import Console
from rich.text import Text

from experiments import cluster, engine, meshes, records, stopping
from experiments.benchmark import run as benchmark_run
from experiments.benchmark.config import Benchmark
from experiments.config import Config
from experiments.loggers import LoggerError, find
from experiments.records import RunError
from experiments.sweeps import Point, text_of

SCHEMA = 1  # of the sweep's summary.json
Points = Sequence[tuple[Point, Config | Benchmark]]


class Outcome(NamedTuple):
    """What became of one point."""

    folder: str
    status: Literal["complete", "failed", "claimed"]  # by another process, that is
    message: str = ""


STUDIES = {Config: engine.TASK, Benchmark: benchmark_run.STUDY}


def run(
    config: Config | Benchmark,
    out: Path,
    console: Console,
    mesh: Mesh | None = None,
    loggers: Sequence[str] = (),
) -> Path:
    """Runs or continues a config and returns its folder; raises as the engine does."""
    return engine.run(config, out, console, mesh, loggers, STUDIES[type(config)])


class Cluster(NamedTuple):
    """Where jobs run that this machine does not."""

    name: cluster.Name
    settings: dict[str, Any]  # see `cluster.executor_of`
    mesh: str  # of the devices of one job, as `meshes.mesh_of` reads it


def mesh_errors(points: Points, shape: tuple[int, int]) -> list[str]:
    """Returns why a mesh of this shape cannot be used for the points of a sweep."""
    errors = [
        error for _, config in points for error in STUDIES[type(config)].mesh_errors(config, shape)
    ]
    return list(dict.fromkeys(errors))


def logger_errors(points: Points, loggers: Sequence[str]) -> list[str]:
    """Returns why loggers cannot be used for the points of a sweep."""
    if not loggers:
        return []
    why_none = dict.fromkeys(STUDIES[type(config)].no_loggers for _, config in points)
    errors = [f"--tensorboard, --logger: {why}" for why in why_none if why]
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
        if not (out / f"{config.name}-{config.digest}" / "summary.json").exists()
        for error in STUDIES[type(config)].check(config)
    )
    return list(dict.fromkeys(errors))


def sweep(
    points: Points,
    out: Path,
    console: Console,
    *,
    jobs: int | None = None,
    mesh: Mesh | None = None,
    loggers: Sequence[str] = (),
    to: Cluster | None = None,
) -> bool:
    """Runs or continues all points of a sweep, and writes their results together.

    Args:
      points: valid.
      out: folder that holds run folders; the sweep's own is `<name>-sweep-<digest>`, with summary.json and results.csv.
      console: where progress and the table go.
      jobs: processes or jobs that work side by side; None for one here, or as many as a cluster takes.
      mesh: on which the points are trained, one after another; None for one device.
      loggers: names; each logger gets what each point records.
      to: sends every point that is not complete as a job of its own, and waits for them.

    Returns:
      Whether no point failed; those that others work on are left to them.

    Raises:
      RunError: if a process dies.
      Refused: if the cluster does not take the jobs.
      LoggerError: if a logger cannot be made.
      ImportError: if a package is missing.
    """
    outcomes = [Outcome("", "failed")] * len(points)
    ended = (
        _outcomes(points, out, console, jobs or 1, mesh, loggers)
        if to is None
        else _outcomes_of_jobs(points, out, console, jobs, loggers, to)
    )
    for done, (i, outcome) in enumerate(ended, start=1):
        outcomes[i] = outcome
        message = f": {outcome.message}" if outcome.message else ""
        text = f"{done}/{len(points)} {outcome.status} {outcome.folder} {text_of(points[i][0])}{message}"
        console.print(Text(text))
    if meshes.is_leader():
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


def _outcomes_of_jobs(
    points: Points,
    out: Path,
    console: Console,
    jobs: int | None,
    loggers: Sequence[str],
    to: Cluster,
) -> Iterator[tuple[int, Outcome]]:
    """Yields what `_outcomes` does, of points that run elsewhere."""
    folder = _folder(points, out) / "jobs"
    executor = cluster.executor_of(to.name, folder, to.settings, jobs)
    names = [f"{config.name}-{config.digest}" for _, config in points]
    complete = {i for i, name in enumerate(names) if (out / name / "summary.json").exists()}
    for i in sorted(complete):
        if loggers:  # which get its records again
            yield i, _attempt(points[i][1], out, loggers)
        else:
            yield i, Outcome(names[i], "complete")
    left = [i for i in range(len(points)) if i not in complete]
    if not left:
        return
    configs = [points[i][1] for i in left]
    same = ([value] * len(left) for value in (out, to.mesh, loggers, sys.argv))
    sent = cluster.send(executor, _attempt_in_job, configs, *same)
    console.print(Text(f"jobs {', '.join(job.job_id for job in sent)}; they write to {folder}"))
    for place, ended in cluster.results(to.name, sent):
        i = left[place]
        lost = isinstance(ended, cluster.Lost)
        yield i, Outcome(names[i], "failed", ended.message) if lost else Outcome(*ended)


def _attempt_in_job(
    config: Config | Benchmark, out: Path, mesh: str, loggers: Sequence[str], command: list[str]
) -> Outcome:
    """Runs a point where a job has put this process, which may be one of several."""
    sys.argv = command  # as in a spawned process; environment.json of the run records it
    on_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    several = on_slurm and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    try:
        meshes.join("auto" if several else "")
        return _attempt(config, out, loggers, Console(width=120), meshes.mesh_of(mesh))
    except (ValueError, LoggerError) as error:
        return Outcome(f"{config.name}-{config.digest}", "failed", str(error))


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
    """Makes a process end with the one that started it, however that ends."""
    stopping.on_signals(Console(stderr=True), worker=True)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _folder(points: Points, out: Path) -> Path:
    """Returns the folder of a sweep, named after its first point and all digests."""
    digests = json.dumps(sorted(config.digest for _, config in points))
    return out / f"{points[0][1].name}-sweep-{hashlib.sha256(digests.encode()).hexdigest()[:8]}"


def _write(points: Points, outcomes: Sequence[Outcome], out: Path) -> Path:
    """Writes summary.json, and results.csv with a line for each point, variant and metric."""
    folder, name = _folder(points, out), points[0][1].name
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
