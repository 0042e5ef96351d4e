"""Runs a config from start to end, or from where it stopped: train, measure, record, judge, report.

`run` takes every config through its folder, its loggers, its summary and its page. A `Study` holds what differs
between tasks and benchmarks: `TASK` is here, the other in `experiments.benchmark.run`.
"""

import contextlib
import functools
import itertools
import json
import math
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from experiments import checkpoints, claims, data, pictures, records, report, stopping
from experiments.config import Config, Variant
from experiments.data.table import one_ahead, piece_of, table_of
from experiments.loggers import Loggers, open_loggers
from experiments.meshes import from_leader, is_leader, place
from experiments.records import RunError
from experiments.resolved import Resolved
from experiments.tasks import find
from experiments.training import (
    Kind,
    Length,
    count_parameters,
    first_nonfinite,
    side_by_side,
    structure,
    traced_options,
)


class Study(NamedTuple):
    """What the engine needs for configs of one type, tasks or benchmarks; the rest is the same for both."""

    verb: str  # for a complete folder: 'nothing to VERB'
    schema: int  # the version of summary.json
    shape: Any  # the shape of summary.json, see `reading.misfit`
    # (config, folder, console, loggers, mesh) -> the summary, in the process that leads
    perform: Callable[[Any, Path, Console, Loggers, Mesh | None], dict[str, Any]]
    tabulate: Callable[[Path, dict[str, Any], Console], None]  # (folder, summary, console)
    # (config, folder, summary, console): draws pictures and page; what cannot be made is a line, since nothing is lost
    draw: Callable[[Any, Path, dict[str, Any], Console], None]
    draw_later: Callable[[Any, Path, dict[str, Any], Console], None]  # if the page is missing
    mesh_errors: Callable[[Any, tuple[int, int]], list[str]]  # (config, shape of the mesh)
    check: Callable[[Any], list[str]]  # what is wrong with the data of a config
    no_loggers: str = ""  # why it takes none


def run(
    config: Resolved,
    out: Path,
    console: Console,
    mesh: Mesh | None = None,
    loggers: Sequence[str] = (),
    study: Study | None = None,
) -> Path:
    """Runs or continues a config and returns its folder.

    Args:
      config: valid.
      out: folder that holds run folders.
      console: where progress and tables go.
      mesh: to train on, without `mesh_errors`; None for one device. Any mesh continues what another began.
      loggers: names, as `loggers.find` takes them; each gets what is recorded.
      study: fits the type of the config; None for `TASK`.

    Raises:
      RunError: if the folder cannot be used, a loss stops being finite, a logger fails or a peer of a benchmark
        computes something else; what was recorded stays.
      LoggerError: if a logger cannot be made.
      Stopped: at a signal, once everything is saved.
      ImportError: if the data need a package that is not installed.
    """
    study = study or TASK
    with (
        records.open_folder(out, config) as folder,
        open_loggers(loggers if is_leader() else (), folder, config) as opened,
    ):
        path = folder / "summary.json"
        console.print(Text(config.name, "bold"), Text(config.question))
        console.print(Text(f"folder {folder}", "dim"))
        if from_leader(path.exists()):
            console.print(f"complete already; nothing to {study.verb}", style="dim")
            opened.log(records.read_metrics(folder))
            opened.summary = records.read_versioned(path, study.schema, study.shape)
            study.tabulate(folder, opened.summary, console)
            if is_leader() and not (folder / "report.html").exists():
                study.draw_later(config, folder, opened.summary, console)
            return folder
        took = records.begin(folder, mesh)
        summary = study.perform(config, folder, console, opened, mesh)
        if is_leader():
            summary |= took()
            # Its presence means complete; whatever shows it comes after it.
            records.write_json(path, summary)
            opened.summary = summary
            study.tabulate(folder, summary, console)
            study.draw(config, folder, summary, console)
        return folder


def _perform(
    config: Config, folder: Path, console: Console, loggers: Loggers, mesh: Mesh | None
) -> dict[str, Any]:
    """Trains and measures all variants of a task."""
    with (
        jax.enable_x64(config.enable_x64),
        jax.default_matmul_precision("highest"),  # GPUs and TPUs round to 11 or 8 bits otherwise
    ):
        with console.status("training the feature network, measuring real data"):
            stopping.check()
            setting = setting_of(config)
        if is_leader() and setting.arrays:
            records.write_arrays(folder / "evaluations" / "real.npz", setting.arrays)
        with _progress(console) as progress:
            bar = progress.add_task("", total=max(config.steps, 1) * len(config.variants))
            for group in groups(config):
                _train(config, group, setting, folder, loggers, mesh, progress, bar)
        stopping.check()
        if not is_leader():
            return {}
        summary = summarize(config, folder, setting)
        records.read_run(folder, summary)  # raises if one of its lines is damaged
        return summary


def _draw(config: Config, folder: Path, summary: dict[str, Any], console: Console) -> None:
    del config
    page = folder / "report.html"
    try:
        for line in report.write(records.read_run(folder, summary)):
            console.print(Text(line, "yellow"))
        console.print(Text(f"report {page}"))
    except Exception as error:
        remedy = f"The run is complete. To make it: python -m experiments report {folder}"
        line = f"{page}: cannot be made: {pictures.reason(error)}. {remedy}"
        console.print(Text(line, "yellow"))


def _draw_later(config: Config, folder: Path, summary: dict[str, Any], console: Console) -> None:
    del config, summary
    remedy = f"To make its page: python -m experiments report {folder}"
    console.print(Text(f"report.html is missing. {remedy}"))


def mesh_errors(config: Config, shape: tuple[int, int]) -> list[str]:
    """Returns why the runs of a config, or their batches, cannot be divided among devices."""
    errors, (seeds, parts) = [], shape
    for group in groups(config):
        names, runs = ", ".join(v.name for v in group), len(group) * len(config.seeds)
        if runs % seeds:
            errors.append(
                f"--mesh: seeds={seeds} must divide the runs that are trained side by side; {names} with "
                f"{len(config.seeds)} seeds are {runs}"
            )
        size = getattr(group[0].options, "batch_size", None)
        if size is None and parts > 1:
            errors.append(f"--mesh: data={parts}: the task {config.task!r} has no batches")
        elif size is not None and size % parts:
            errors.append(f"--mesh: data={parts} must divide batch_size; for {names} it is {size}")
    return errors


def check(config: Config) -> list[str]:
    """Reads the data, and returns what is wrong with them or with options that do not go with them."""
    check = find(config.task).data.check
    try:
        split = _data(json.dumps(config.data))
        return [
            f"variant.{variant.name}.{error}"
            for variant in config.variants
            for error in check(split, variant.options)
        ]
    except ValueError as error:
        return [f"data: {error}"]


@functools.lru_cache(maxsize=1)
def _data(text: str) -> data.Split | None:
    """Reads a data set, described in JSON, once for all configs in a row that have it; None if a config has none."""
    described = json.loads(text)
    return data.load(described) if described else None


def setting_of(config: Config) -> Any:
    """Returns what all variants share; a process keeps it for other configs with the same data and options.

    Raises:
      RunError: if the data cannot be read.
    """
    shared = {n: getattr(config.variants[0].options, n) for n in find(config.task).shared}
    options = tuple(sorted(shared.items()))
    arguments = options, config.classifier_steps, config.classifier_seed
    try:
        return _prepared(config.task, json.dumps(config.data), *arguments)
    except ValueError as error:  # a record that is read here for the first time
        raise RunError(f"data: {error}. Mend or leave out the record.") from None


@functools.lru_cache(maxsize=2)
def _prepared(
    task: str, data_set: str, options: tuple[tuple[str, Any], ...], classifier_steps: int, seed: int
) -> Any:
    kind = find(task)
    of_classifier = {"classifier_steps": classifier_steps, "seed": seed}
    return kind.data.setting(_data(data_set), kind.options(**dict(options)), **of_classifier)


def clear_programs() -> None:
    """Drops everything that this process compiled: each program holds maps of memory, and a process may have few."""
    side_by_side.cache_clear()
    jax.clear_caches()


def groups(config: Config) -> list[list[Variant]]:
    """Returns the variants that share a program, and so are trained side by side."""
    groups: dict[Any, list[Variant]] = {}
    for variant in config.variants:
        groups.setdefault(structure(variant.options), []).append(variant)
    return list(groups.values())


def _train(
    config: Config,
    group: Sequence[Variant],
    setting: Any,
    folder: Path,
    loggers: Loggers,
    mesh: Mesh | None,
    progress: Progress,
    bar: Any,
) -> None:
    """Trains variants that share a program, from their newest checkpoint on."""
    runs = [(variant, seed) for variant in group for seed in config.seeds]
    seeds = jnp.stack([jax.random.key(seed) for _, seed in runs])
    keys = place(mesh, seeds, "seeds")
    options = place(mesh, traced_options([variant.options for variant, _ in runs]), "seeds")
    here, setting = setting, place(mesh, setting)
    kind, shared = find(config.task), structure(group[0].options)
    split = _data(json.dumps(config.data))
    streamed = split.train if split and isinstance(split.train, data.Streamed) else None
    piece, capacity = config.chunk_steps, 0
    if streamed is not None:
        draws = len(runs) * _draws(kind, shared, setting)
        piece, capacity = piece_of(streamed, config.chunk_steps, draws)
    length = Length(config.steps, piece)
    init, advance, evaluate, draw = side_by_side(kind.make_task, shared, length, mesh)
    before = progress.tasks[bar].completed
    title = ", ".join(variant.name for variant in group)

    def record(step: int, means: dict[str, np.ndarray]) -> None:
        scalars, arrays = jax.device_get(evaluate(setting, options, state, keys))
        lines = _record(config, group, step, folder, means | scalars, arrays)
        checkpoints.save(store, step, state)
        loggers.log(lines)

    def settings(first: int) -> Generator[Any, None, None]:
        """Yields the setting of each piece of the steps to come, with the images that it draws."""
        if streamed is None:
            yield from itertools.repeat(setting)
            return

        def at(step: int) -> Any:
            table = table_of(streamed, draw(here, seeds, step), capacity)
            return setting._replace(images=place(mesh, table))

        yield from one_ahead(at, range(first, config.steps, piece))

    place_of_states = folder / "checkpoints" / group[0].name
    if is_leader():
        checkpoints.drop_after(place_of_states, _whole(config, group, folder))
    from_leader(0)  # no process opens the store before
    with (
        checkpoints.open_checkpoints(place_of_states) as store,
        contextlib.ExitStack() as stack,
    ):
        state = init(setting, seeds)
        found = checkpoints.load_latest(store, state)
        step = -1
        if found is not None:
            step, state = found
        for variant in group if is_leader() else ():
            loggers.log(records.forget_metrics_after(folder, variant.name, step))
        progress.update(bar, completed=before + max(step, 0) * len(group), description=title)
        if step < 0:
            step = 0
            record(step, {})
        pieces = stack.enter_context(contextlib.closing(settings(step)))
        while step < config.steps:
            stopping.check()
            logs = []
            for first in range(step, step + config.chunk_steps, piece):
                try:
                    current = next(pieces)
                except (ValueError, OSError) as error:
                    raise RunError(
                        f"data: {error}; stopped. Kept: everything up to step {step}, in {folder}."
                    ) from None
                state, log = advance(current, options, state, keys, first)
                logs.append(log)
                jax.block_until_ready(logs[-2:-1])  # else the tables of all pieces would wait
            log = jax.tree.map(lambda *parts: np.concatenate(parts, 1), *jax.device_get(logs))
            _check_finite(log, runs, f"everything up to step {step}, in {folder}", "at", step)
            step += config.chunk_steps
            record(step, {name: values.mean(1) for name, values in log.items()})
            progress.update(bar, completed=before + step * len(group))
    progress.update(bar, completed=before + max(config.steps, 1) * len(group))


def _whole(config: Config, group: Sequence[Variant], folder: Path) -> int:
    """Returns the last step up to which metrics.jsonl lacks no evaluation, -1 if it lacks one of the first."""
    steps = range(0, config.steps + 1, config.chunk_steps)
    names = [variant.name for variant in group]
    missing = records.lacking(records.read_metrics(folder), names, steps, config.seeds)
    first = next(missing, (config.steps + config.chunk_steps,))[0]
    return first - config.chunk_steps if first else -1


def _draws(kind: Kind, options: Any, setting: Any) -> int:
    """Returns how many records a step of one run reads."""
    draw = kind.make_task(options, setting, 1).draw
    if draw is None:
        raise RunError(
            "data.in_memory: must be true for a task that does not say what its steps draw. Leave it out."
        )
    return math.prod(jax.eval_shape(draw, jax.random.key(0)).shape)


def _check_finite(
    log: dict[str, np.ndarray],
    runs: Sequence[tuple[Variant, int]],
    kept: str,
    when: str,
    first: int,
) -> None:
    """Ends the run if a number (runs, steps) is not finite; the steps begin at `first`."""
    bad = first_nonfinite(log)
    if bad is not None:
        step, index, name = bad
        variant, seed = runs[index]
        raise RunError(
            f"variant {variant.name}, seed {seed}: {name} is not finite {when} step {first + step}; stopped. Kept: "
            f"{kept}. Try a lower learning rate."
        )


def _record(
    config: Config,
    group: Sequence[Variant],
    step: int,
    folder: Path,
    scalars: dict[str, np.ndarray],
    arrays: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Records the metrics of all runs, and what the pictures need; returns the lines, in the process that leads."""
    runs = [(variant, seed) for variant in group for seed in config.seeds]
    chex.assert_shape(list(scalars.values()), (len(runs),))
    chex.assert_tree_shape_prefix(arrays, (len(runs),))
    at_once = {name: values[:, None] for name, values in scalars.items()}
    _check_finite(at_once, runs, f"everything before, in {folder}", "after", step)
    kind = find(config.task)
    for variant in group:
        missing = set(kind.metrics) - kind.lacking(variant.options) - scalars.keys()
        if missing:
            names = ", ".join(sorted(missing))
            raise RunError(
                f"variant {variant.name}: its evaluation must return every metric of the task {config.task}; it has no "
                f"{names}. Return it, or name it in `lacking`."
            )
    lines = []
    for i, variant in enumerate(group if is_leader() else ()):
        own = slice(i * len(config.seeds), (i + 1) * len(config.seeds))
        of_seeds = {name: values[own] for name, values in scalars.items()}
        own_arrays = {name: values[own] for name, values in arrays.items()}
        if own_arrays:
            records.write_arrays(folder / "evaluations" / f"{variant.name}-{step}.npz", own_arrays)
        lines += records.append_metrics(folder, variant.name, step, config.seeds, of_seeds)
    return lines


def summarize(config: Config, folder: Path, setting: Any) -> dict[str, Any]:
    """Returns the content of summary.json."""
    kind = find(config.task)
    collected = records.collect(folder, config.seeds)
    values = {
        variant.name: {
            name: collected[variant.name][step] for name, step in kind.ends(config.steps).items()
        }
        for variant in config.variants
    }
    return {
        "schema": records.SCHEMA,
        "name": config.name,
        "question": config.question,
        "parameters": {v.name: count_parameters(kind, v.options, setting) for v in config.variants},
        "variants": {
            name: {
                step: {
                    metric: {
                        **claims.interval(at[metric])._asdict(),
                        "seeds": len(at[metric]),
                        "values": at[metric],
                    }
                    for metric in kind.metrics
                    if metric in at
                }
                for step, at in steps.items()
            }
            for name, steps in values.items()
        },
        "real": {metric: setting.real[metric] for metric in kind.metrics if metric in setting.real},
        "notes": dict(setting.notes),
        "claims": [claims.judge(claim, values, setting.real) for claim in config.claims],
    }


TASK = Study(
    verb="train",
    schema=records.SCHEMA,
    shape=records.SUMMARY,
    perform=_perform,
    tabulate=lambda folder, summary, console: report.print_summary(summary, console),  # noqa: ARG005
    draw=_draw,
    draw_later=_draw_later,
    mesh_errors=mesh_errors,
    check=check,
)


class _Rate(ProgressColumn):
    """Optimizer steps per second, all seeds together."""

    def render(self, task: Any) -> Text:
        return Text(f"{task.speed:.1f} steps/s" if task.speed else "- steps/s")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
