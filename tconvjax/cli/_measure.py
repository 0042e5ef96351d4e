"""`tconvjax measure`: checkerboards in images, beside the values for white noise."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tconvjax import metrics
from tconvjax.cli import _images as reading
from tconvjax.cli import _pictures as pictures
from tconvjax.cli._errors import one_line, printable

HELP = "checkerboard metrics of images"
DESCRIPTION = (
    "Measures periodic patterns in images, all images of one size together, and in white noise of that size. Integers "
    "of 8 and 16 bits are divided by the largest of their type, wider ones and floats are used as they are; alpha is "
    "dropped. Files that cannot be read are named, and the others are measured."
)
Shape = tuple[int, ...]
PERIODIC: tuple[Callable[..., Any], ...] = (
    metrics.phase_mean_fraction,
    metrics.band_contrast,
    metrics.coherence,
    metrics.cyclic_variance_depth,
    metrics.cyclic_difference_depth,
)
SAMPLES = 64  # draws of white noise
COPIES = (
    30  # float32 copies of an image in memory while it is measured; a run on eight images needed 20
)
LONGEST = 64  # pixels of a period; the number of its harmonics grows with the square


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        help="PNG, JPEG, WebP, BMP, TIFF or npy files, or folders of them",
    )
    parser.add_argument(
        "--period", type=int, action="append", help="in pixels; repeat for several (2)"
    )
    parser.add_argument(
        "--reference", type=Path, help="file or folder of real images to compare the spectra with"
    )
    parser.add_argument(
        "--fail-above",
        action="append",
        default=[],
        metavar="METRIC=VALUE",
        help="exit 1 beyond a limit",
    )
    parser.add_argument("--picture", type=Path, help="PNG file to draw the spectrum to")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Measures images; returns the exit status."""
    pictures.check(options.picture)
    periods = tuple(dict.fromkeys(options.period or [2]))
    for period in periods:
        if not 2 <= period <= LONGEST:
            raise ValueError(f"--period must be at least 2 and at most {LONGEST}; got {period}.")
    limits = [_limit(text) for text in options.fail_above]
    names = _names(periods, options.reference) if limits else []
    for name, _ in limits:
        if name not in names:
            raise ValueError(
                f"--fail-above: METRIC must be one of {', '.join(names)}; got {name!r}."
            )
    groups, problems = _groups(options.paths)
    references, reference_problems = _groups([options.reference] if options.reference else [])
    problems += reference_problems
    results: dict[Shape, dict[str, Any]] = {}
    for shape, images in sorted(groups.items()):
        size, reference = _by(shape[:2]), references.get(shape)
        if references and not reference:
            problems.append(
                f"images of {size} pixels: --reference must hold some of their size and channels, {_by(shape)}, to "
                "compare spectra."
            )
        try:
            measured = _metrics_and_noise(images, periods, reference)
        except (ValueError, MemoryError, jax.errors.JaxRuntimeError) as error:
            problems.append(f"images of {size} pixels: {one_line(error)}")
            continue
        results[shape] = {"size": list(shape[:2]), "images": len(images), **measured}
    for problem in problems:
        print(f"tconvjax measure: {printable(problem)}", file=sys.stderr)
    if not results:
        return 2
    sizes = list(results.values())
    print(json.dumps({"sizes": sizes}, indent=2) if options.json else _table(sizes))
    exceeded = [
        (name, limit)
        for name, limit in limits
        if any(r["metrics"].get(name, limit) > limit for r in sizes)
    ]
    for name, limit in exceeded:
        print(f"tconvjax measure: {name} is above {limit:g}", file=sys.stderr)
    if options.picture:  # last, so that a failure to draw loses nothing
        most_common = max(results, key=lambda shape: len(groups[shape]))
        pictures.spectrum(options.picture, np.stack(groups[most_common]), periods)
    return 2 if problems else int(bool(exceeded))


def _metrics(
    periods: tuple[int, ...], images: ArrayLike, reference: ArrayLike | None
) -> dict[str, jax.Array]:
    values = _patterns(periods, images)
    if reference is None:
        return values
    return values | {"log_spectral_distance": metrics.log_spectral_distance(images, reference)}


@partial(jax.jit, static_argnums=0)
def _patterns(periods: tuple[int, ...], images: ArrayLike) -> dict[str, jax.Array]:
    """Returns the mean of each metric over the images, or its one value for all of them, by name."""
    named = {f"{f.__name__}*_{p}": f(images, p) for p in periods for f in PERIODIC}
    named["checkerboard_coefficient"] = metrics.checkerboard_coefficient(images)
    values = {}
    for name, value in named.items():
        fields = value._asdict() if hasattr(value, "_asdict") else {"": value}
        for field, numbers in fields.items():
            values[name.replace("*", f"_{field}" if field else "")] = jnp.mean(numbers)
    return values


def _names(periods: tuple[int, ...], reference: Path | None) -> list[str]:
    """Returns the names of the metrics."""
    size = 4 * max(periods)  # large enough for all periods
    image = jax.ShapeDtypeStruct((1, size, size, 1), np.float32)
    return list(jax.eval_shape(partial(_metrics, periods), image, image if reference else None))


def _metrics_and_noise(
    images: Sequence[np.ndarray],
    periods: tuple[int, ...],
    reference: Sequence[np.ndarray] | None,
) -> dict[str, Any]:
    """Returns the metrics of images of one size, and their values for white noise."""
    needed = COPIES * 4 * sum(image.size for image in (*images, *(reference or ())))
    if needed > (free := _free()):  # Linux may end a process that uses more
        raise ValueError(
            f"measuring them takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Measure crops of "
            "them, or fewer at a time."
        )
    batch = np.stack(images)
    measured = _metrics(periods, batch, np.stack(reference) if reference else None)
    values = {name: float(value) for name, value in measured.items()}
    null = metrics.null(partial(_patterns, periods), batch, samples=SAMPLES)
    noise = {n: {"mean": float(null.mean[n]), "upper": float(null.upper[n])} for n in null.mean}
    return {"metrics": values, "noise": noise}


def _free() -> float:
    """Returns the bytes that this process may still allocate; infinity if the system does not report them."""
    free = [float("inf")]
    with suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            free.append(limit - pages * resource.getpagesize())
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [1024.0 * int(n.split()[1]) for n in lines if n.startswith("MemAvailable")]
    return min(free)


def _table(results: Sequence[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        count = result["images"]
        lines.append(f"{count} image{'s' * (count != 1)} of {_by(result['size'])}")
        lines.append(f"  {'':32} {'value':>10} {'noise':>10} {'95 %':>10}")
        for name, value in result["metrics"].items():
            null = result["noise"].get(name)
            noise = f"{null['mean']:>10.4g} {null['upper']:>10.4g}" if null else f"{'':21}"
            lines.append(f"  {name:32} {value:>10.4g} {noise}{_unit(name)}")
    return "\n".join(lines)


def _groups(paths: Sequence[Path]) -> tuple[dict[Shape, list[np.ndarray]], list[str]]:
    """Returns the images by shape, and one problem for each path or file without an image."""
    groups: dict[Shape, list[np.ndarray]] = {}
    problems = []
    for path in paths:
        try:
            files = reading.files(path)
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        for file in files:
            try:
                image = reading.read(file)
            except ValueError as error:
                problems.append(str(error))
                continue
            groups.setdefault(image.shape, []).append(image)
    return groups, problems


def _limit(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        limit = float(value)
    except ValueError:
        limit = float("nan")
    if not np.isfinite(limit):
        raise ValueError(f"--fail-above: expected METRIC=VALUE with a finite number; got {text!r}.")
    return name, limit


def _unit(name: str) -> str:
    return "  dB" if name.startswith(("band_contrast", "log_spectral")) else ""


def _by(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))
