"""What a command would do: runs, parameters and time, the last from two timed steps of every program."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import engine
from experiments.benchmark import run as benchmark_run
from experiments.benchmark.config import Benchmark
from experiments.config import Config, Variant
from experiments.launch import Points
from experiments.meshes import place
from experiments.sweeps import text_of
from experiments.tasks import find
from experiments.training import (
    Length,
    count_parameters,
    side_by_side,
    structure,
    traced_options,
)

TIMED = 2  # steps
COLUMNS = ("settings", "variant", "seeds", "steps", "parameters", "minutes")


class Seconds(NamedTuple):
    """What a program takes, all of its runs together."""

    compile: float
    step: float
    evaluate: float


Known = dict[Any, Seconds]  # by program


class Line(NamedTuple):
    """What lies ahead of one variant, or of a benchmark."""

    cells: tuple[str, ...]  # of the table, without settings and minutes
    runs: int
    seconds: float | None  # None where nobody knows


def show(points: Points, out: Path, console: Console, mesh: Mesh | None, jobs: int) -> None:
    """Prints a line for each variant of each point, and the sum.

    Args:
      points: valid.
      out: folder of run folders; what is complete there takes no time.
      console: for the table.
      mesh: as in `engine.run`.
      jobs: processes that work side by side.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in COLUMNS:
        table.add_column(column)
    known: Known = {}
    runs, total = 0, 0.0
    for point, config in points:
        done = (out / f"{config.name}-{config.digest}" / "summary.json").exists()
        settings = text_of(point)
        for cells, count, seconds in LINES[type(config)](config, known, console, mesh, done=done):
            minutes = "?" if seconds is None else f"{seconds / 60:.1f}"
            table.add_row(settings, *cells, "complete" if done else minutes)
            settings = ""
            runs, total = runs + count, total + (seconds or 0.0) * (not done)
    console.print(table)
    side = f" in {jobs} processes" if jobs > 1 else ""
    console.print(Text(f"points {len(points)}, runs {runs}, minutes {total / 60 / jobs:.1f}{side}"))


def _of_benchmark(config: Benchmark, *_: Any, **__: Any) -> list[Line]:
    units = len(benchmark_run.units(config, {}))
    return [Line((f"{units} units", "", "", ""), 0, None)]


def _of_task(
    config: Config, known: Known, console: Console, mesh: Mesh | None, *, done: bool
) -> list[Line]:
    lines = []
    with jax.enable_x64(config.enable_x64):
        setting = engine.setting_of(config)
        for group in engine.groups(config):
            count = len(group) * len(config.seeds)
            program = (
                config.task,
                str(config.data),
                structure(group[0].options),
                count,
                config.steps,
                config.enable_x64,
            )
            if not done and program not in known:
                with console.status("timing two steps"):
                    known[program] = _timed(config, setting, group[0], count, mesh)
            evaluations = config.steps // config.chunk_steps + 1
            needs = known.get(program, Seconds(0, 0, 0))
            seconds = needs.compile + config.steps * needs.step + evaluations * needs.evaluate
            for variant in group:
                sizes = count_parameters(find(config.task), variant.options, setting)
                parameters = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
                seeds = len(config.seeds)
                cells = (variant.name, str(seeds), str(config.steps), parameters)
                lines.append(Line(cells, seeds, seconds / len(group)))
    return lines


LINES: dict[type, Callable[..., list[Line]]] = {Config: _of_task, Benchmark: _of_benchmark}


def _timed(
    config: Config, setting: Any, variant: Variant, count: int, mesh: Mesh | None
) -> Seconds:
    kind = find(config.task)
    length = Length(config.steps, TIMED)
    programs = side_by_side(kind.make_task, structure(variant.options), length, mesh)
    seeds = jax.random.split(jax.random.key(0), count)
    keys = place(mesh, seeds, "seeds")
    options = place(mesh, traced_options([variant.options] * count), "seeds")
    states = programs.init(setting, seeds)
    setting = place(mesh, setting)
    seconds = []

    def clock(program: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = jax.block_until_ready(program(setting, options, *arguments))
        seconds.append(time.perf_counter() - start)
        return result

    for _ in range(2):
        clock(programs.evaluate, states, keys)
    for first in (0, TIMED) if config.steps else ():
        states, _ = clock(programs.advance, states, keys, first)
    first_evaluation, evaluation, first_steps, steps = (*seconds, 0.0, 0.0)[:4]
    compiling = first_steps - steps + first_evaluation - evaluation
    return Seconds(max(compiling, 0), steps / TIMED, evaluation)
