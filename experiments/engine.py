"""Runs a config from start to end, or from where it stopped: train, measure, record, judge, report."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
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

from experiments import checkpoints, claims, records, report
from experiments.config import Config, Variant
from experiments.data import SOURCES
from experiments.records import RunError
from experiments.tasks import TASKS
from experiments.training import first_nonfinite, make_train

SCHEMA = 1  # of summary.json


def run(config: Config, out: Path, console: Console) -> Path:
    """Runs or continues a config and returns its folder.

    Args:
      config: valid.
      out: folder that holds run folders.
      console: where progress and tables go.

    Raises:
      RunError: if the folder cannot be used, or a loss stops being finite; what was recorded stays.
      ImportError: if the data need a package that is not installed.
    """
    with records.open_folder(out, config) as folder:
        console.print(Text(config.name, "bold"), Text(config.question))
        console.print(Text(f"folder {folder}", "dim"))
        if (folder / "summary.json").exists():
            console.print("complete already; nothing to train", style="dim")
            report.print_summary(records.read_json(folder / "summary.json"), console)
            return folder
        started = time.perf_counter()
        fresh = not (folder / "environment.json").exists()
        if fresh:
            records.write_json(folder / "environment.json", records.environment())
        digits = SOURCES[config.data]()
        task = TASKS[config.task]
        with console.status("training the feature network, measuring real data"):
            setting = task.prepare(
                digits,
                config.variants[0].options,
                classifier_steps=config.classifier_steps,
                seed=config.classifier_seed,
            )
        with _progress(console) as progress:
            bar = progress.add_task("", total=config.steps * len(config.variants))
            for variant in config.variants:
                _train(config, variant, setting, folder, progress, bar)
        summary = summarize(config, folder, setting)
        if fresh:  # else it was not one sitting
            summary["minutes"] = round((time.perf_counter() - started) / 60, 2)
        report.write(config, folder, summary, setting)
        records.write_json(folder / "summary.json", summary)  # last: its presence means complete
        report.print_summary(summary, console)
        console.print(Text(f"report {folder / 'report.html'}"))
        return folder


def _train(
    config: Config, variant: Variant, setting: Any, folder: Path, progress: Progress, bar: Any
) -> None:
    """Trains one variant from its newest checkpoint on."""
    done = config.variants.index(variant) * config.steps
    with checkpoints.open_checkpoints(folder / "checkpoints" / variant.name) as store:
        train = make_train(
            TASKS[config.task].make_task(variant.options, setting), config.seeds, config.chunk_steps
        )
        state = train.init()
        found = checkpoints.load_latest(store, state)
        step = -1
        if found is not None:
            step, state = found
        records.forget_metrics_after(folder, variant.name, step)
        progress.update(bar, completed=done + max(step, 0), description=variant.name)
        if step < 0:
            step = 0
            _evaluate(config, variant, train, state, step, folder, {})
            checkpoints.save(store, step, state)
        while step < config.steps:
            state, log = train.advance(state, step)
            bad = first_nonfinite(log)
            if bad is not None:
                at, seed, name = bad
                raise RunError(
                    f"variant {variant.name}, seed {config.seeds[seed]}: {name} is not finite at step {step + at}; "
                    f"stopped. Kept: everything up to step {step}, in {folder}. Try a lower learning rate."
                )
            step += config.chunk_steps
            means = {name: np.asarray(values).mean(1) for name, values in log.items()}
            _evaluate(config, variant, train, state, step, folder, means)
            checkpoints.save(store, step, state)
            progress.update(bar, completed=done + step)


def _evaluate(
    config: Config,
    variant: Variant,
    train: Any,
    state: Any,
    step: int,
    folder: Path,
    means: dict[str, np.ndarray],
) -> None:
    """Measures all seeds, and records the metrics and what the pictures need."""
    scalars, arrays = jax.device_get(train.evaluate(state))
    for name, values in scalars.items():
        for seed, value in zip(config.seeds, values, strict=True):
            if not np.isfinite(value):
                raise RunError(
                    f"variant {variant.name}, seed {seed}: {name} is not finite after step {step}; stopped. Kept: "
                    f"everything before, in {folder}. Try a lower learning rate."
                )
    records.write_arrays(folder / "evaluations" / f"{variant.name}-{step}.npz", arrays)
    records.append_metrics(folder, variant.name, step, config.seeds, {**means, **scalars})


def summarize(config: Config, folder: Path, setting: Any) -> dict[str, Any]:
    """Returns the content of summary.json."""
    metrics = TASKS[config.task].metrics
    collected = records.collect(folder, config.seeds)
    values = {
        variant.name: {
            "init": collected[variant.name][0],
            "final": collected[variant.name][config.steps],
        }
        for variant in config.variants
    }
    return {
        "schema": SCHEMA,
        "name": config.name,
        "question": config.question,
        "variants": {
            name: {
                step: {
                    metric: {
                        **claims.interval(at[metric])._asdict(),
                        "seeds": len(at[metric]),
                        "values": at[metric],
                    }
                    for metric in metrics
                }
                for step, at in steps.items()
            }
            for name, steps in values.items()
        },
        "real": {metric: setting.real[metric] for metric in metrics},
        "notes": setting.notes,
        "claims": [claims.judge(claim, values, setting.real) for claim in config.claims],
    }


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


def stop_at_once_on_signals(console: Console) -> None:
    """Makes SIGINT and SIGTERM end the process with status 130 and 143.

    At once, without unwinding through threads that save or compile: every file of a run folder is whole at any moment,
    and the same command continues from the newest checkpoint.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        del frame
        console.show_cursor()
        for child in multiprocessing.active_children():
            child.kill()
        print("\nstopped; the same command continues", file=sys.stderr, flush=True)
        os._exit(128 + signum)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
