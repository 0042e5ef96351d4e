"""The smallest runs, and folders of runs that nobody trained: what `report` reads, made of random numbers."""

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import config, engine, pictures, records
from experiments.benchmark import report, summary
from experiments.tasks import gan

CHECKERBOARD = Path(__file__).parent.parent / "configs" / "checkerboard.toml"
TINY = [
    "--quick",
    "--set=steps=6",
    "--set=chunk_steps=2",
    "--set=classifier_steps=3",
    "--set=options.samples=6",
    "--set=options.batch_size=2",
    "--set=options.generator_features=[4,4,4]",
    "--set=options.discriminator_features=[4,4,4]",
    '--set=variant=[{name="last_two",upsamplers=["resize_conv","conv_transpose","conv_transpose"]},{name="none"}]',
    '--set=expect=[{claim="c",metric="phase_mean_fraction_2",relation="last_two > none at init",source="s"}]',
]
# What the engine does with a run it does with the smallest network of all tasks that has images and steps.
SUPERRESOLUTION = CHECKERBOARD.with_name("superresolution.toml")
SMALL = [
    "--quick",
    "--set=seeds=[0,1]",
    "--set=steps=6",
    "--set=chunk_steps=2",
    "--set=data={source='shapes',count=60,size=24}",
    "--set=options.features=4",
    "--set=options.samples=16",
    "--set=options.batch_size=2",
    "--set=variant=[{name='painted',upsampler='conv_transpose'},{name='resized'}]",
    "--set=options.upsampler='resize_conv'",
    '--set=expect=[{claim="c",metric="harmonic_share",relation="painted > resized at init",source="s"}]',
]
ENVIRONMENT = {
    "command": "python -m x",
    "cores": 2,
    "commit": "c0ffee",
    "uncommitted_changes": True,
}


def tiny(*settings):
    """Returns the smallest config, resolved."""
    given = [option.removeprefix("--set=") for option in TINY if option != "--quick"]
    return config.load(CHECKERBOARD, [*given, *settings], quick=True)


def small(*settings):
    """Returns the config of `SMALL`, resolved."""
    given = [option.removeprefix("--set=") for option in SMALL if option != "--quick"]
    return config.load(SUPERRESOLUTION, [*given, *settings], quick=True)


@contextlib.contextmanager
def two_curves():
    """Draws two of the metrics of a run alone: curves take most of the time of a page."""
    every = pictures.curves
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "curves", lambda run: dict(list(every(run).items())[:2]))
        yield


def make_run(out, resolved):
    """Writes what a run leaves, but for pages and checkpoints, and returns its folder."""
    rng = np.random.default_rng(0)
    names = (*gan.METRICS, "generator_loss")
    seeds = len(resolved.seeds)
    with records.open_folder(out, resolved) as folder:
        records.write_json(folder / "environment.json", ENVIRONMENT)
        images = lambda *shape: rng.uniform(-1, 1, (*shape, 16, 32, 32, 1)).astype(np.float32)
        power = lambda *shape: rng.uniform(0.5, 2, (*shape, 32, 32)).astype(np.float32)
        real = {"samples": images(), "spectrum": power()}
        records.write_arrays(folder / "evaluations" / "real.npz", real)
        for variant in resolved.variants:
            for step in range(0, resolved.steps + 1, resolved.chunk_steps):
                arrays = {"samples": images(seeds), "spectrum": power(seeds)}
                path = folder / "evaluations" / f"{variant.name}-{step}.npz"
                records.write_arrays(path, arrays)
                values = {name: rng.uniform(1, 2, seeds) for name in names}
                records.append_metrics(folder, variant.name, step, resolved.seeds, values)
        measured = {metric: rng.uniform() for metric in gan.METRICS}
        setting = SimpleNamespace(images=images(), real=measured, notes={"note": 0.5})
        records.write_json(folder / "summary.json", engine.summarize(resolved, folder, setting))
    return folder


def make_benchmark(out, question):
    """Writes the page of a benchmark that nobody ran, with all of its parts, and returns it."""
    rng = np.random.default_rng(0)
    given = config.load(CHECKERBOARD.with_name("benchmark.toml"), quick=True)
    resolved = replace(given, question=question, only=given.only[:2])
    ratio = lambda: dict(zip(("low", "mean", "high"), np.sort(rng.uniform(0.8, 2, 3)), strict=True))
    timed = lambda peer: {
        **dict.fromkeys(("median_ms", "min_ms", "gflops", "compile_s"), rng.uniform(1, 100)),
        **dict.fromkeys(("peak_share", "roofline_share"), rng.uniform()),
        "peer": peer, "ratio": None if peer == "ours" else ratio(), "temporary_bytes": 10**6,
    }  # fmt: skip
    layers = [
        {"layer": layer.name, "dtype": "float32", "pass": direction, **timed(peer)}
        for layer in resolved.selected
        for direction in ("forward", "train")
        for peer in ("ours", "lax", "torch")
    ]
    skipped = {"layer": layers[0]["layer"], "dtype": "float32", "pass": "train", "peer": "keras"}
    medians = {"median_ms": {"phase": 2.0, "planes": 1.0}, "chosen_over_best": 2.0, "slower": True}
    chosen = {
        "layer": "up",
        "dtype": "float32",
        "face": "paint",
        "chosen": "phase",
        "best": "planes",
    }
    results = {
        "layers": [*layers, skipped | {"skipped": "keras is not installed"}],
        "models": [{"model": "dcgan", **timed(peer)} for peer in ("ours", "flax")],
        "autotune": [chosen | medians],
    }
    here = {
        "processor": "a processor", "peak_gflops": {"float32": 100.0}, "bandwidth_gb_s": 20.0,
        "load_per_core": 0.1,
    }  # fmt: skip
    with records.open_folder(out, resolved) as folder:
        device = {"device": "cpu (cpu)"}
        records.write_json(folder / "environment.json", ENVIRONMENT | device)
        report.write(resolved, folder, results, summary.summarize(resolved, results, here))
    return folder / "report.html"
