"""`tconvjax measure`: checkerboards in images, with what white noise would give."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tconvjax import metrics
from tconvjax.cli import pictures

HELP = "checkerboard metrics of images"
DESCRIPTION = (
    "Measures periodic patterns in images, all of one size together, and what white noise of that size gives. Files "
    "that cannot be read are named, the others measured."
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
SUFFIXES = (".png", ".jpg", ".jpeg", ".npy")
LARGEST = 1 << 28  # numbers in an image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument(
        "paths", nargs="+", type=Path, help="PNG, JPEG or npy files, or folders of them"
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
    periods = options.period or [2]
    limits = [_limit(text) for text in options.fail_above]
    groups, problems = _groups(_files(options.paths))
    references: dict[Shape, list[np.ndarray]] = {}
    if options.reference:
        references, more = _groups(_files([options.reference]))
        problems += more
    results: list[dict[str, Any]] = []
    for shape, images in sorted(groups.items()):
        try:
            result = _measured(images, periods, references.get(shape))
        except ValueError as error:
            problems.append(f"images of {_by(shape[:2])} pixels: {error}")
            continue
        results.append({"size": list(shape[:2]), "images": len(images), **result})
    for problem in problems:
        print(f"tconvjax measure: {problem}", file=sys.stderr)
    if not results:
        return 2
    known = list(results[0]["metrics"])
    for name, _ in limits:
        if name not in known:
            raise ValueError(
                f"--fail-above: METRIC must be one of {', '.join(known)}; got {name!r}."
            )
    exceeded = [
        (name, limit)
        for name, limit in limits
        if any(r["metrics"].get(name, 0) > limit for r in results)
    ]
    print(json.dumps({"sizes": results}, indent=2) if options.json else _table(results))
    for name, limit in exceeded:
        print(f"tconvjax measure: {name} is above {limit:g}", file=sys.stderr)
    if options.picture:  # last, so that a failure to draw loses nothing
        most = max(groups.values(), key=len)
        pictures.spectrum(options.picture, np.stack(most), periods)
    return 2 if problems else int(bool(exceeded))


def _measured(
    images: Sequence[np.ndarray], periods: Sequence[int], reference: Sequence[np.ndarray] | None
) -> dict[str, Any]:
    """Returns metrics of images of one size, means over images or one value of the set, and what white noise gives."""
    batch = np.stack(images)

    @jax.jit
    def measure(images: jax.Array) -> dict[str, jax.Array]:
        named = {f"{f.__name__}*_{p}": f(images, p) for p in periods for f in PERIODIC}
        named["checkerboard_coefficient"] = metrics.checkerboard_coefficient(images)
        values = {}
        for name, value in named.items():
            fields = value._asdict() if hasattr(value, "_asdict") else {"": value}
            for field, numbers in fields.items():
                values[name.replace("*", f"_{field}" if field else "")] = jnp.mean(numbers)
        return values

    values = {name: float(value) for name, value in measure(batch).items()}
    null = metrics.null(measure, batch, samples=SAMPLES)
    noise = {n: {"mean": float(null.mean[n]), "upper": float(null.upper[n])} for n in values}
    if reference:
        distance = metrics.log_spectral_distance(batch, np.stack(reference))
        values["log_spectral_distance"] = float(distance)
    return {"metrics": values, "noise": noise}


def _table(results: Sequence[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        lines.append(f"{result['images']} images of {_by(result['size'])}")
        lines.append(f"  {'':32} {'value':>10} {'noise':>10} {'95 %':>10}")
        for name, value in result["metrics"].items():
            null = result["noise"].get(name)
            noise = f"{null['mean']:>10.4g} {null['upper']:>10.4g}" if null else f"{'':21}"
            lines.append(f"  {name:32} {value:>10.4g} {noise}{_unit(name)}")
    return "\n".join(lines)


def _files(paths: Sequence[Path]) -> list[Path]:
    files = []
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise ValueError(f"{path}: holds no image ({', '.join(SUFFIXES)}).")
            files += found
        else:
            files.append(path)
    return files


def _groups(files: Sequence[Path]) -> tuple[dict[Shape, list[np.ndarray]], list[str]]:
    """Returns the images of each shape, and what is wrong with the others."""
    groups: dict[Shape, list[np.ndarray]] = {}
    problems = []
    for path in files:
        try:
            image = _read(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        groups.setdefault(image.shape, []).append(image)
    return groups, problems


def _read(path: Path) -> np.ndarray:
    """Returns one image as (height, width, channels) in float32."""
    try:
        array = _decode(path)
    except ImportError:
        raise
    except Exception as error:  # decoders raise whatever they like at a broken file
        text = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: cannot be read: {text[0]}") from None
    array = array[..., None] if array.ndim == 2 else array
    if array.size > LARGEST:
        raise ValueError(f"{path}: holds {array.size} numbers, more than {LARGEST}. Cut it.")
    if array.ndim != 3:
        raise ValueError(
            f"{path}: expected (height, width) or (height, width, channels); got shape {array.shape}."
        )
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: pixels must be real numbers; got dtype {array.dtype}.")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: holds pixels that are not finite in float32.")
    return array


def _decode(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            f'{path}: reading images needs pillow. Run: pip install "tconvjax[experiments]"'
        ) from None
    with Image.open(path) as image:
        if image.mode == "1":
            return np.asarray(image.convert("L"))
        if image.mode in ("L", "RGB") or image.mode.startswith(("I", "F")):
            return np.asarray(image)  # 16 and 32 bits as they are
        return np.asarray(image.convert("RGB"))


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
