"""What the engine costs: seeds side by side and one after another, on several devices, and a sweep of 100 runs.

    .venv/bin/python tests/scaling.py [seeds] [devices] [sweep]

Prints a table each; on a quiet machine some eight minutes. Devices are forced host devices, which share the cores.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COUNTS = (1, 2, 4, 8)
CHUNK = 5  # steps between two looks at the clock
ROUNDS = 5
RUNS = 100
TINY = [
    "--set=seeds=[0,1]",
    "--set=steps=2",
    "--set=chunk_steps=2",
    "--set=classifier_steps=3",
    "--set=options.samples=16",
    "--set=options.batch_size=2",
    "--set=options.generator_features=[4,4,4]",
    "--set=options.discriminator_features=[4,4,4]",
    '--set=variant=[{name="up"}]',
    '--set=expect=[{claim="c",metric="phase_mean_fraction_2",relation="up > real at init",source="s"}]',
]


def main() -> None:
    """Measures what is asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="*", default=["seeds", "devices", "sweep"])
    parser.add_argument("--on", type=int, help=argparse.SUPPRESS)  # devices of a child
    options = parser.parse_args()
    if options.on:
        print(f"{of_devices(options.on):.3f}")
        return
    if "seeds" in options.what:
        of_seeds()
    if "devices" in options.what:
        print("devices   ms per step of eight seeds")
        for count in COUNTS:
            flags = f"--xla_force_host_platform_device_count={count}"
            done = child([sys.executable, __file__, f"--on={count}"], XLA_FLAGS=flags)
            print(f"{count:7}   {1e3 * float(done):.0f}", flush=True)
    if "sweep" in options.what:
        of_sweep()


def chunk_of(count: int, devices: int = 1, *, vmapped: bool | None = None) -> Callable[[], None]:
    """Returns a function that trains so many seeds of `last_two` in configs/checkerboard.toml for a chunk."""
    import jax  # here, as a child sets its devices first
    import jax.numpy as jnp

    from experiments import config, engine, meshes
    from experiments.tasks import gan
    from experiments.training import Length, side_by_side, structure, traced_options

    resolved = config.load(ROOT / "configs" / "checkerboard.toml", ["classifier_steps=5"])
    setting, options = engine.setting_of(resolved), resolved.variants[0].options
    mesh = meshes.mesh_of(f"seeds={devices}") if devices > 1 else None
    keys = jnp.stack([jax.random.key(seed) for seed in range(count)])
    length = Length(10 * CHUNK, CHUNK)
    init, advance, _, _ = side_by_side(
        gan.make_task, structure(options), length, mesh, vmapped=vmapped
    )
    placed: list[Any] = [
        meshes.place(mesh, setting),
        meshes.place(mesh, traced_options([options] * count), "seeds"),
    ]
    keys = meshes.place(mesh, keys, "seeds")
    state = init(setting, keys)

    def chunk() -> None:
        nonlocal state
        state, log = advance(*placed, state, keys, 0)
        jax.block_until_ready((state, log))

    chunk()  # compiles
    return chunk


def of_seeds() -> None:
    """Prints the time of a step of several seeds, interleaved: programs of all, vmapped or mapped, and one for each."""
    one = chunk_of(1)
    print("ms per step   seeds   vmapped   mapped   programs of one")
    for count in COUNTS:
        many = [chunk_of(count, vmapped=vmapped) for vmapped in (True, False)]
        rounds = [[*map(clock, many), sum(clock(one) for _ in range(count))] for _ in range(ROUNDS)]
        vmapped, mapped, apart = (
            1e3 * statistics.median(times) / CHUNK for times in zip(*rounds, strict=True)
        )
        print(f"{count:19}   {vmapped:7.0f}   {mapped:6.0f}   {apart:15.0f}", flush=True)


def of_devices(count: int) -> float:
    """Returns the seconds of a step of eight seeds on a mesh."""
    chunk = chunk_of(COUNTS[-1], count)
    return statistics.median(clock(chunk) for _ in range(ROUNDS)) / CHUNK


def of_sweep() -> None:
    """Prints what a sweep of many runs of two steps costs, and the same command once all are complete."""
    rates = ",".join(f"{1e-3 * (1 + i / RUNS):.5f}" for i in range(RUNS))
    command = [sys.executable, "-m", "experiments", "sweep", "configs/checkerboard.toml", *TINY]
    print(f"jobs   {RUNS} runs, s   one run, s   each more, s   all complete, s")
    for jobs in (1, 2):
        with tempfile.TemporaryDirectory() as out:
            few, many = (
                [
                    *command,
                    f"--sweep=options.learning_rate={values}",
                    f"--jobs={jobs}",
                    f"--out={out}/{i}",
                ]
                for i, values in enumerate((rates.partition(",")[0], rates))
            )
            alone, took, again = (clock(partial(child, c)) for c in (few, many, many))
        more = (took - alone) / (RUNS - 1)
        print(f"{jobs:4}   {took:11.0f}   {alone:10.1f}   {more:12.2f}   {again:15.1f}", flush=True)


def clock(call: Callable[[], Any]) -> float:
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def child(command: list[str], **environment: str) -> str:
    """Runs a command from the root of the project and returns what it printed."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
