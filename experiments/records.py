"""What a run leaves behind: a folder in which every file is either whole or absent.

runs/<name>-<digest>/
  config.json       the resolved config            environment.json   versions, device, command
  metrics.jsonl     one line per variant, step and seed
  evaluations/      <variant>-<step>.npz and real.npz, arrays for pictures
  checkpoints/      <variant>/<step>, state of all seeds
  tensorboard/      what TensorBoard shows, with --tensorboard
  summary.json      the result; where it is, the run is complete
  *.png, report.html                               what shows it, drawn after it
"""

import contextlib
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import plugins, reading
from experiments.config import describe
from experiments.meshes import from_leader, is_leader
from experiments.resolved import Resolved
from experiments.tasks import TASKS, find
from experiments.training import Kind

SCHEMA = 1  # of summary.json
NUMBER = int | float | None
INTERVAL = {"mean": NUMBER, "low": NUMBER, "high": NUMBER}
CONFIG = {
    "name": str,
    "question": str,
    "source": str,
    "task": str,
    "seeds": [int],
    "steps": int,
    "chunk_steps": int,
    "variants": [{"name": str, "options": {...: object}}],
}
ENVIRONMENT = {"command": str}
SUMMARY = {
    "parameters": {...: {...: int}},
    "variants": {...: {"final": {...: INTERVAL}}},
    "real": {...: NUMBER},
    "notes": {...: NUMBER},
    "claims": [
        {"claim": str, "metric": str, "relation": str, "source": str, "verdict": str, "margin": INTERVAL}
    ],
}  # fmt: skip
LINE = {"variant": str, "step": int, "seed": int}  # of metrics.jsonl, beside its metrics
Metrics = dict[
    str, dict[int, dict[str, list[float]]]
]  # variant -> step -> metric -> one value per seed


class RunError(Exception):
    """A run that cannot start or go on; the message names what was kept."""


class Claimed(RunError):
    """A folder in which another process is working."""


class NoRun(RunError):
    """A file or folder that holds no complete run."""


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
    def kind(self) -> Kind:
        """The kind of its task."""
        return find(self.config["task"])

    @property
    def illustrated(self) -> bool:
        """Whether evaluations hold samples and spectra: runs with data leave them."""
        return bool(self.config.get("data"))

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Returns the arrays of `<variant>-<step>` or `real`: samples and a spectrum."""
        return read_arrays(self.folder / "evaluations" / f"{name}.npz")

    def has_arrays(self, name: str) -> bool:
        """Whether an evaluation left arrays; some variants have nothing to draw."""
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
        if is_leader():
            try:
                stack.enter_context(_claim(folder, describe(config)))
            except RunError as error:
                refusal = error
        if not from_leader(refusal is None):
            raise refusal or RunError(f"{folder}: the leading process cannot use it")
        yield folder


@contextlib.contextmanager
def _claim(folder: Path, described: Any) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Never emptied, and never what a link points to: that may be any file of the user.
        lock = reading.opened(folder / ".lock", flags=os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    except reading.Unreadable as error:
        link = "is a symbolic link" if (folder / ".lock").is_symlink() else error
        raise RunError(f"{folder / '.lock'}: cannot be used: {link}. Remove it.") from None
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
      A function that returns how many `minutes` have passed, and nothing if the run was not done in one sitting.
    """
    started = time.perf_counter()
    fresh = not from_leader((folder / "environment.json").exists())
    if fresh and is_leader():
        write_json(folder / "environment.json", environment(mesh))
    return lambda: {"minutes": round((time.perf_counter() - started) / 60, 2)} if fresh else {}


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file that is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _anew(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _anew(path: Path) -> Iterator[BinaryIO]:
    """Yields a file beside a path that takes its place in the end; what links of either name point to stays."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:
        yield file
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON; numbers that are not finite become null."""
    text = json.dumps(_finite(value), indent=2, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path, shape: Any = object) -> Any:
    """Reads JSON of a shape, see `reading.misfit`, naming the file if it is damaged."""
    try:
        return reading.record(path, shape)
    except reading.Unreadable as error:
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
    """Returns the lines of metrics.jsonl; one that a crash or a disk has damaged is left out, alone.

    Raises:
      RunError: if the file cannot be read.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    try:
        texts = reading.content(path, reading.OF_LINES).split(b"\n")
    except reading.Unreadable as error:
        raise RunError(f"{path}: cannot be read: {error}.") from None
    for text in texts:
        with contextlib.suppress(reading.Unreadable):
            line = reading.parse_json(text)
            if not reading.misfit(line, LINE) and not reading.misfit(
                {key: value for key, value in line.items() if key not in LINE}, {...: NUMBER}
            ):
                lines.append(line)
    return lines


def lacking(
    lines: Sequence[Mapping[str, Any]], names: Iterable[str], steps: range, seeds: Sequence[int]
) -> Iterator[tuple[int, str, int]]:
    """Yields step, variant and seed of each evaluation without a line, or with fewer metrics than others have.

    Args:
      lines: of metrics.jsonl.
      names: of the variants.
      steps: that are evaluated.
      seeds: of every variant.
    """
    found = {(line["step"], line["variant"], line["seed"]): line.keys() for line in lines}
    complete: dict[tuple[str, bool], set[str]] = {}
    for (step, name, _), keys in found.items():
        complete.setdefault((name, step > 0), set()).update(keys)  # losses come with steps
    for step in steps:
        for name in names:
            for seed in seeds:
                at = (step, name, seed)
                if at not in found or found[at] != complete[name, step > 0]:
                    yield at


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
            if name not in LINE and line["seed"] in seeds:
                row = at.setdefault(name, [math.nan] * len(seeds))
                row[list(seeds).index(line["seed"])] = math.nan if value is None else value
    return result


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an npz file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _anew(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub has a flag in their place


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an npz file, naming it if it is damaged; never unpickles."""
    try:
        return reading.archive(path)
    except reading.Unreadable as error:
        raise RunError(f"{path}: cannot be read: {error}.") from None


def read_complete(folder: Path) -> Run:
    """Reads what a complete run left.

    Raises:
      NoRun: if the folder holds none.
      RunError: if it is not there, or a file is damaged or of another version.
    """
    if folder.is_file():
        raise NoRun(f"{folder}: is a file, not the folder of a run.")
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder.")
    if not (folder / "config.json").exists():
        raise NoRun(f"{folder}: is not the folder of a run; it holds no config.json.")
    task = read_json(folder / "config.json", {"task": str})["task"]
    if task == "benchmark":
        raise NoRun(f"{folder}: holds a benchmark; its run has written its report.html.")
    if task not in TASKS and not plugins.is_name(task):
        raise RunError(
            f"{folder}: task {task!r} is of another version; this one knows {', '.join(TASKS)}."
        )
    try:
        find(task)
    except ValueError as error:
        raise RunError(f"{folder}: task: {error}.") from None
    path = folder / "summary.json"
    if not path.exists():
        started = folder / "environment.json"
        command = "the command `run`"
        if started.exists():
            command = read_json(started, ENVIRONMENT)["command"]
        raise NoRun(f"{folder}: the run is not complete. To continue it: {command}")
    return read_run(folder, read_versioned(path, SCHEMA, SUMMARY))


def read_run(folder: Path, summary: dict[str, Any]) -> Run:
    """Reads what a run left beside its summary, all steps of it.

    Raises:
      RunError: if a file is damaged.
    """
    config = read_json(folder / "config.json", CONFIG)
    if config["steps"] < 0 or config["chunk_steps"] < 1:
        raise RunError(f"{folder / 'config.json'}: cannot be read: its steps are none.")
    environment = read_json(folder / "environment.json", ENVIRONMENT)
    run = Run(folder, config, environment, collect(folder, config["seeds"]), summary)
    for step, name, seed in lacking(read_metrics(folder), run.names, run.steps, config["seeds"]):
        raise RunError(
            f"{folder / 'metrics.jsonl'}: lacks variant {name}, step {step}, seed {seed}."
        )
    for name in run.names:
        if name not in summary["variants"]:
            raise RunError(f"{folder / 'summary.json'}: cannot be read: lacks variant {name}.")
    return run


def read_versioned(path: Path, schema: int, shape: Any) -> dict[str, Any]:
    """Reads a summary of a shape, see `reading.misfit`, refusing one with another schema."""
    summary = read_json(path)
    found = summary.get("schema") if isinstance(summary, dict) else None
    if found != schema:
        raise RunError(
            f"{path}: has schema {found!r}, written by another version; this one reads {schema}."
        )
    wrong = reading.misfit(summary, shape)
    if wrong:
        raise RunError(f"{path}: cannot be read: {wrong}.")
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
    """Returns the name of the accelerator, or else of the processor as the system knows it."""
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
