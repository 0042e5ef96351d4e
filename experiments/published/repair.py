"""What a published network leaves in photographs, and what repairs take away: a table.

    python -m experiments.published.repair upconv_7_photo --packages FOLDER

Contrast is that at period 2, the largest of three orientations, mean over eight crops; cost is the loss of PSNR against
the photographs, mean over the crops. `repair` sees other pictures than those measured.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import tconvjax
from experiments.published import networks, photographs
from tconvjax import analysis, metrics

MARGIN = 8  # pixels at the borders that are not measured


class Measured(NamedTuple):
    """What a network leaves in the crops: contrast in dB and PSNR in dB, means over crops."""

    contrast: float
    orientations: np.ndarray
    psnr: float


def measure(images: Any, photos: np.ndarray) -> Measured:
    """Measures images against the photographs that they shall restore."""
    inner = (slice(MARGIN, -MARGIN),) * 2
    contrasts = np.array([metrics.band_contrast(image[inner], 2) for image in np.asarray(images)])
    errors = [metrics.psnr(y[inner], t[inner]) for y, t in zip(np.clip(images, 0, 1), photos, strict=True)]  # fmt: skip
    return Measured(contrasts.max(1).mean(), contrasts.mean(0), float(np.mean(errors)))


def flat_pattern(fn: Any, params: Any, level: float = 0.5) -> float:
    """Returns the rms of what a network makes of a flat image, beyond its mean, in grey levels of 255."""
    y = np.asarray(fn(params, np.full((1, 48, 48, 3), level, np.float32)))[:, 16:-16, 16:-16]
    return float(255 * (y - y.mean((1, 2), keepdims=True)).std())


def balanced(params: Any, layers: Sequence[str]) -> Any:
    """Returns params with the transposed convolutions of these names balanced, from weights alone."""
    new = {
        name: params[name]
        | {"kernel": analysis.balance(params[name]["kernel"], 2, transpose_kernel=True)}
        for name in layers
    }
    return params | new


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table of one network."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.published.repair", description=__doc__
    )
    parser.add_argument(
        "network", choices=[n for n, p in networks.NETWORKS.items() if p.scale == 2]
    )
    parser.add_argument("--packages", type=Path, help="folder of the wheels (installed packages)")
    parser.add_argument("--crops", type=int, default=24, help="to repair with (24)")
    parser.add_argument("--size", type=int, default=96, help="of these crops, in pixels (96)")
    parser.add_argument("--strength", type=float, nargs="+", default=[0.3], help="(0.3)")
    parser.add_argument("--iterations", type=int, default=8, help="(8)")
    parser.add_argument("--layers", nargs="+", help="names of layers to repair (all that enlarge)")
    options = parser.parse_args(arguments)
    try:
        network = networks.load(options.network, options.packages)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    photos = photographs.measured()
    small = photographs.halved(photos)
    run = jax.jit(network.fn)

    def row(label: str, params: Any, plain: Measured | None = None) -> Measured:
        images = np.concatenate([run(params, part) for part in np.split(small, 4)])
        found = measure(images, photos)
        h, v, d = found.orientations
        cost = f"{plain.psnr - found.psnr:8.3f}" if plain else f"{'':8}"
        flat = flat_pattern(run, params)
        numbers = f"{found.contrast:7.2f}{h:7.1f}{v:6.1f}{d:6.1f}{found.psnr:9.3f}{cost}{flat:7.3f}"
        print(f"{label:34}{numbers}", flush=True)
        return found

    print(f"{'':34}{'largest':>7}{'H':>7}{'V':>6}{'D':>6}{'PSNR':>9}{'cost':>8}{'flat':>7}")
    own = measure(photos, photos * 0.99)
    print(
        f"{'photographs':34}{own.contrast:7.2f}" + "{:7.1f}{:6.1f}{:6.1f}".format(*own.orientations)
    )
    plain = row(network.name, network.params)
    enlarging = [name for name in network.params if name.startswith(("Deconvolution", "conv7"))]
    for layers in [[name] for name in enlarging]:
        row(f"balance {layers[0]}", balanced(network.params, layers), plain)
    if len(enlarging) > 1:
        row("balance all", balanced(network.params, enlarging), plain)
    others = photographs.others(options.size, options.crops)
    paths = options.layers and [f"params['{name}']['kernel']" for name in options.layers]
    for strength in options.strength:
        start = time.perf_counter()
        found = tconvjax.repair(
            network.fn, network.params, others,
            strength=strength, iterations=options.iterations, layers=paths,
        )  # fmt: skip
        row(f"repair, strength {strength:g}", found.params, plain)
        for share in (0.3, 0.5):
            names = [path.split("'")[1] for path in found.layers]
            flat = balanced(found.params, names)
            mixed = jax.tree.map(lambda a, b, share=share: a + share * (b - a), found.params, flat)
            row(f"and {share:g} of the way to balance", mixed, plain)
        print(
            f"    {time.perf_counter() - start:.0f} s; on its own data {found.before:.2f} to {found.after:.2f} dB, "
            f"output changed by {found.change:.5f}; {found.layers}; skipped {found.skipped}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
