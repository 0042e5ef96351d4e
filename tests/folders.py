"""The smallest run, and folders of runs that nobody trained: what `report` reads, made of random numbers."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from experiments import config, engine, records
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
