"""A sweep that is killed ten times, and one that runs on many devices, against an undisturbed one; some ten minutes.

    .venv/bin/python tests/endurance.py [--seed 0] [--kills 10] [--out FOLDER]

Three variants, four seeds, two settings. The process that works is killed with SIGKILL at random moments and started
again by the same command; summary, table and metrics must then be those of the undisturbed sweep to the last digit. The
same sweep on a mesh of eight devices and in two processes must agree with it to rounding; else the exit status is 1.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments import records

ROOT = Path(__file__).parent.parent
SWEEP = [
    sys.executable,
    *("-m", "experiments", "sweep", "configs/checkerboard.toml"),
    "--set=seeds=[0,1,2,3]",
    "--set=steps=24",
    "--set=chunk_steps=4",
    "--set=classifier_steps=20",
    "--set=options.samples=64",
    "--set=options.batch_size=4",
    "--set=options.generator_features=[16,8,8]",
    "--set=options.discriminator_features=[8,8,8]",
    '--set=expect=[{claim="c",metric="phase_mean_fraction_2",relation="last_two > none at init",source="s"}]',
    "--sweep=options.latent=16,32",
]
TOLERANCE = 0.01  # of a metric's largest value: GANs enlarge rounding with every step


def main() -> int:
    """Runs all, prints what was seen, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path, help="folder of the sweeps (a temporary one)")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp())
    start = time.monotonic()
    finish(out / "straight")
    took = time.monotonic() - start
    print(f"undisturbed: {took:.0f} s", flush=True)
    good = survives(out, took, options.kills, random.Random(options.seed))
    flags = "--xla_force_host_platform_device_count=8"
    finish(out / "mesh", "--mesh=seeds=4,data=2", environment={"XLA_FLAGS": flags})
    good &= agrees(out, "mesh", "8 devices")
    with socket.socket() as found:
        found.bind(("localhost", 0))
        address = f"localhost:{found.getsockname()[1]}"
    both = [
        begin(out / "processes", "--mesh=seeds=2", f"--distributed={address},2,{rank}")
        for rank in range(2)
    ]
    if any(process.wait() for process in both):
        raise SystemExit("two processes: one of them failed")
    good &= agrees(out, "processes", "2 processes")
    return int(not good)


def survives(out: Path, took: float, kills: int, moments: random.Random) -> bool:
    """Kills and continues a sweep, and says whether it ends as the undisturbed one."""
    for i in range(kills):
        process = begin(out / "killed")
        time.sleep(moments.uniform(0.1, 0.4) * took)
        over = process.poll() is not None
        if not over:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        saved = len(list((out / "killed").glob("*/checkpoints/*/*")))
        done = len(list((out / "killed").glob("*/report.html")))
        what = "over already" if over else "killed"
        print(f"{what} {i + 1}: {saved} checkpoints, {done} reports on disk", flush=True)
    finish(out / "killed")
    same = left(out / "killed") == left(out / "straight")
    print("killed and continued:", "equal to the last digit" if same else "NOT equal", flush=True)
    return same


def agrees(out: Path, name: str, title: str) -> bool:
    """Says whether a sweep has the metrics of the undisturbed one, to rounding."""
    found, wanted = (
        {path.name: records.read_json(path / "summary.json") for path in runs(out / folder)}
        for folder in (name, "straight")
    )
    worst = 0.0
    for run, summary in wanted.items():
        for variant, steps in summary["variants"].items():
            for step, metrics in steps.items():
                for metric, entry in metrics.items():
                    a = np.array(entry["values"])
                    b = np.array(found[run]["variants"][variant][step][metric]["values"])
                    scale = max(np.abs(a).max(), 1e-3)
                    worst = max(worst, float(np.abs(a - b).max() / scale))
    print(f"{title}: largest deviation {worst:.1e} of a metric's size", flush=True)
    return worst < TOLERANCE


def left(out: Path) -> dict[str, object]:
    """Returns what must not depend on interruptions."""
    (sweep,) = out.glob("*-sweep-*")
    result: dict[str, object] = {
        name: (sweep / name).read_text() for name in ("summary.json", "results.csv")
    }
    for folder in runs(out):
        summary = records.read_json(folder / "summary.json")
        summary.pop("minutes", None)  # of a run in one sitting
        result[folder.name] = summary, (folder / "metrics.jsonl").read_text()
    return result


def runs(out: Path) -> list[Path]:
    """Returns the folders of the points of a sweep."""
    return sorted(path for path in out.iterdir() if "-sweep-" not in path.name)


def begin(out: Path, *more: str, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """Starts the command in a process group of its own."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [*SWEEP, f"--out={out}", *more],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | (environment or {}),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def finish(out: Path, *more: str, environment: dict[str, str] | None = None) -> None:
    """Runs the command to its end."""
    status = begin(out, *more, environment=environment).wait()
    if status:
        raise SystemExit(f"{out}: status {status}; see {out.with_suffix('.log')}")


if __name__ == "__main__":
    sys.exit(main())
