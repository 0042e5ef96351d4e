"""What a run leaves behind: a folder in which every file is either whole or absent.

runs/<name>-<digest>/
  config.json       the resolved config            environment.json   versions, device, command
  metrics.jsonl     one line per variant, step and seed
  evaluations/      <variant>-<step>.npz and real.npz, arrays for pictures
  checkpoints/      <variant>/<step>, state of all seeds
  tensorboard/      what TensorBoard shows, if asked for
  summary.json      the result, written last       *.png, report.html
"""

import contextlib
import fcntl
import importlib.metadata
import itertools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.config import describe
from experiments.meshes import agreed, leads
from experiments.resolved import Resolved
from experiments.tasks import TASKS

SCHEMA = 1  # of summary.json
Metrics = dict[
    str, dict[int, dict[str, list[float]]]
]  # variant -> step -> metric -> one value per seed


class RunError(Exception):
    """A run that cannot start or go on; the message says what was kept."""


class Claimed(RunError):
    """A folder in which another process is working."""


class Run(NamedTuple):
    """What a run left for those who read it, as plain values."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: Metrics
    summary: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of the variants."""
        return [variant["name"] for variant in self.config["variants"]]

    @property
    def steps(self) -> range:
        """Steps with an evaluation, the first and the last among them."""
        return range(0, self.config["steps"] + 1, self.config["chunk_steps"])

    @property
    def measured(self) -> list[str]:
        """Names of the metrics in the summary."""
        return list(dict.fromkeys(m for v in self.summary["variants"].values() for m in v["final"]))

    @property
    def illustrated(self) -> bool:
        """Whether evaluations hold samples and spectra, as those of runs with data do."""
        return TASKS[self.config["task"]].prepare is not None

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Returns the arrays of `<variant>-<step>` or `real`: samples and a spectrum."""
        return read_arrays(self.folder / "evaluations" / f"{name}.npz")

    def has_arrays(self, name: str) -> bool:
        """Says whether an evaluation left arrays; some variants have nothing to draw."""
        return (self.folder / "evaluations" / f"{name}.npz").exists()


@contextlib.contextmanager
def open_folder(out: Path, config: Resolved) -> Iterator[Path]:
    """Makes or continues the folder of a config, for this process, or those of one run, alone.

    Raises:
      RunError: if the folder belongs to another config or another process, or cannot be written.
    """
    folder = out / f"{config.name}-{config.digest}"
    with contextlib.ExitStack() as stack:
        refusal = None
        if leads():
            try:
                stack.enter_context(_claim(folder, describe(config)))
            except RunError as error:
                refusal = error
        if not agreed(refusal is None):
            raise refusal or RunError(f"{folder}: the leading process cannot use it")
        yield folder


@contextlib.contextmanager
def _claim(folder: Path, described: Any) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written: {error}. Choose another place with --out."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Claimed(
                f"{folder}: another process is working in this folder. Wait for it to end."
            ) from None
        path = folder / "config.json"
        if path.exists():
            if read_json(path) != described:
                raise RunError(
                    f"{folder}: holds the results of another config; they are left alone. Move the folder away or "
                    "choose another place with --out."
                )
        else:
            others = sorted(p.name for p in folder.iterdir() if p.name[0] != ".")
            if others:
                raise RunError(
                    f"{folder}: holds files but no config.json ({', '.join(others[:3])}); they are left alone. Move "
                    "the folder away or choose another place with --out."
                )
            write_json(path, described)
        yield


def begin(folder: Path, mesh: Mesh | None = None) -> Callable[[], dict[str, float]]:
    """Writes environment.json where there is none.

    Returns:
      What says how many `minutes` have passed, and nothing of a run that was not done in one sitting.
    """
    started = time.perf_counter()
    fresh = not agreed((folder / "environment.json").exists())
    if fresh and leads():
        write_json(folder / "environment.json", environment(mesh))
    return lambda: {"minutes": round((time.perf_counter() - started) / 60, 2)} if fresh else {}


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file that is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON; numbers that are not finite become null."""
    text = json.dumps(_finite(value), indent=2, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads JSON, naming the file if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}.") from None


def append_metrics(
    folder: Path, variant: str, step: int, seeds: Sequence[int], metrics: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Appends one line per seed to metrics.jsonl, and returns them."""
    lines = []
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for index, seed in enumerate(seeds):
            values = {name: float(v[index]) for name, v in metrics.items()}
            lines.append(_finite({"variant": variant, "step": step, "seed": seed, **values}))
            file.write(json.dumps(lines[-1], allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return lines


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of metrics.jsonl; a line cut off by a crash ends the list."""
    path = folder / "metrics.jsonl"
    lines: list[dict[str, Any]] = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def forget_metrics_after(folder: Path, variant: str, step: int) -> list[dict[str, Any]]:
    """Drops the lines of a variant that are newer than its checkpoint, to be written again; returns its others."""
    lines = [r for r in read_metrics(folder) if r["variant"] != variant or r["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_bytes(folder / "metrics.jsonl", text.encode())
    return [line for line in lines if line["variant"] == variant]


def collect(folder: Path, seeds: Sequence[int]) -> Metrics:
    """Returns metrics.jsonl as variant -> step -> metric -> one value per seed, seeds in order."""
    result: Metrics = {}
    for line in read_metrics(folder):
        at = result.setdefault(line["variant"], {}).setdefault(line["step"], {})
        for name, value in line.items():
            if name not in ("variant", "step", "seed"):
                row = at.setdefault(name, [math.nan] * len(seeds))
                row[list(seeds).index(line["seed"])] = math.nan if value is None else value
    return result


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an npz file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub wants a flag
    temporary.replace(path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an npz file, naming it if it is damaged; never unpickles."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{path}: cannot be read: {error}.") from None


def read_complete(folder: Path) -> Run:
    """Reads what a complete run left.

    Raises:
      RunError: if the folder holds none, or a file is damaged or of another version.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder.")
    if not (folder / "config.json").exists():
        raise RunError(f"{folder}: is not the folder of a run; it holds no config.json.")
    task = read_json(folder / "config.json").get("task")
    if task == "benchmark":
        raise RunError(f"{folder}: holds a benchmark; its run has written its report.html.")
    if task not in TASKS:
        raise RunError(
            f"{folder}: task {task!r} is of another version; this one knows {', '.join(TASKS)}."
        )
    path = folder / "summary.json"
    if not path.exists():
        started = folder / "environment.json"
        command = read_json(started)["command"] if started.exists() else "the command `run`"
        raise RunError(f"{folder}: the run is not complete. To continue it: {command}")
    return read_run(folder, read_versioned(path, SCHEMA))


def read_run(folder: Path, summary: dict[str, Any]) -> Run:
    """Reads what a run left beside its summary, all steps of it.

    Raises:
      RunError: if a file is damaged.
    """
    config = read_json(folder / "config.json")
    path = folder / "metrics.jsonl"
    try:
        metrics = collect(folder, config["seeds"])
        found = {(line["variant"], line["step"], line["seed"]) for line in read_metrics(folder)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: cannot be read: {error!r}.") from None
    run = Run(folder, config, read_json(folder / "environment.json"), metrics, summary)
    for at in itertools.product(run.names, run.steps, config["seeds"]):
        if at not in found:
            raise RunError(f"{path}: lacks variant {at[0]}, step {at[1]}, seed {at[2]}.")
    return run


def read_versioned(path: Path, schema: int) -> dict[str, Any]:
    """Reads a summary, refusing one with another schema."""
    summary = read_json(path)
    found = summary.get("schema") if isinstance(summary, dict) else None
    if found != schema:
        raise RunError(
            f"{path}: has schema {found!r}, written by another version; this one reads {schema}."
        )
    return dict(summary)


def environment(mesh: Mesh | None = None) -> dict[str, Any]:
    """Returns what a reader needs to know about the machine, the software and the devices in use."""
    packages = ("tconvjax", "jax", "jaxlib", "flax", "optax", "numpy", "torch", "keras")
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    device = jax.devices()[0]
    name, changed = commit()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "device": f"{device.platform} ({device.device_kind})",
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "mesh": None if mesh is None else dict(mesh.shape),
        "versions": versions,
        "commit": name,
        "uncommitted_changes": changed,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "command": f"python -m experiments {shlex.join(sys.argv[1:])}",
    }


def processor() -> str:
    """Returns the name of the processor as the system knows it; that of the accelerator where there is one."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit(root: Path = Path(__file__).parent.parent) -> tuple[str, bool] | tuple[None, None]:
    """Returns the commit of this project and whether tracked files differ from it, as far as git knows.

    Args:
      root: what git must have checked out, not a folder within.
    """
    place = [f"--git-dir={root / '.git'}", f"--work-tree={root}", "--no-optional-locks"]
    what = ["describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(
            ["git", *place, *what], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    name, _, changed = done.stdout.strip().partition("-")
    return name, bool(changed)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
