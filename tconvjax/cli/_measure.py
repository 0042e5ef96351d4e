"""`tconvjax measure`: checkerboards in images, with what white noise would give."""

import argparse
import json
import sys
import warnings
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
from tconvjax.cli import _pictures as pictures
from tconvjax.cli._errors import one_line, printable

HELP = "checkerboard metrics of images"
DESCRIPTION = (
    "Measures periodic patterns in images, all of one size together, and what white noise of that size gives. Integers "
    "of 8 and 16 bits are divided by the largest of their kind, wider ones and floats are taken as they are; alpha is "
    "dropped. Files that cannot be read are named, the others measured."
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
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".npy")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # the decoders of others are not asked
LARGEST = 1 << 28  # numbers in an image
COPIES = 30  # of an image, in float32, that measuring holds at once: measured, 20 of eight images
LONGEST = 64  # pixels of a period, whose harmonics grow with its square


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
    known = _names(periods, options.reference) if limits else []
    for name, _ in limits:
        if name not in known:
            raise ValueError(
                f"--fail-above: METRIC must be one of {', '.join(known)}; got {name!r}."
            )
    groups, problems = _groups(options.paths)
    references, more = _groups([options.reference] if options.reference else [])
    problems += more
    results: dict[Shape, dict[str, Any]] = {}
    for shape, images in sorted(groups.items()):
        size, reference = _by(shape[:2]), references.get(shape)
        if references and not reference:
            problems.append(
                f"images of {size} pixels: --reference must hold some of their size and channels, {_by(shape)}, to "
                "compare spectra."
            )
        try:
            measured = _measured(images, periods, reference)
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
        most = max(results, key=lambda shape: len(groups[shape]))
        pictures.spectrum(options.picture, np.stack(groups[most]), periods)
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
    """Returns means over images, or one value of the set, by name."""
    named = {f"{f.__name__}*_{p}": f(images, p) for p in periods for f in PERIODIC}
    named["checkerboard_coefficient"] = metrics.checkerboard_coefficient(images)
    values = {}
    for name, value in named.items():
        fields = value._asdict() if hasattr(value, "_asdict") else {"": value}
        for field, numbers in fields.items():
            values[name.replace("*", f"_{field}" if field else "")] = jnp.mean(numbers)
    return values


def _names(periods: tuple[int, ...], reference: Path | None) -> list[str]:
    """Returns the names of the metrics, of an image that is large enough for the periods."""
    image = jax.ShapeDtypeStruct((1, 4 * max(periods), 4 * max(periods), 1), np.float32)
    return list(jax.eval_shape(partial(_metrics, periods), image, image if reference else None))


def _measured(
    images: Sequence[np.ndarray],
    periods: tuple[int, ...],
    reference: Sequence[np.ndarray] | None,
) -> dict[str, Any]:
    """Returns the metrics of images of one size, and what white noise gives."""
    needed = COPIES * 4 * sum(image.size for image in (*images, *(reference or ())))
    if needed > (free := _free()):  # XLA would end the process
        raise ValueError(
            f"measuring them takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Measure crops of "
            "them, or fewer at a time."
        )
    batch = np.stack(images)
    found = _metrics(periods, batch, np.stack(reference) if reference else None)
    values = {name: float(value) for name, value in found.items()}
    null = metrics.null(partial(_patterns, periods), batch, samples=SAMPLES)
    noise = {n: {"mean": float(null.mean[n]), "upper": float(null.upper[n])} for n in null.mean}
    return {"metrics": values, "noise": noise}


def _free() -> float:
    """Returns the bytes that this process may still take, where the system tells."""
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
    """Returns the images of each shape, and what is wrong with the others."""
    groups: dict[Shape, list[np.ndarray]] = {}
    problems = []
    for path in paths:
        try:
            files = _files(path)
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        for file in files:
            try:
                image = _read(file)
            except ValueError as error:
                problems.append(str(error))
                continue
            groups.setdefault(image.shape, []).append(image)
    return groups, problems


def _files(path: Path) -> list[Path]:
    """Returns the images that a path names; folders inside of a folder are left out, whatever their names."""
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.is_dir())
    if not found:
        raise ValueError(f"{path}: holds no image ({', '.join(SUFFIXES)}).")
    return found


def _read(path: Path) -> np.ndarray:
    """Returns one image as (height, width, channels) in float32."""
    try:
        array = _decode(path)
    except ImportError:
        raise
    except Exception as error:  # decoders raise whatever they like at a broken file
        raise ValueError(f"{path}: cannot be read: {one_line(error)}") from None
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3:
        raise ValueError(
            f"{path}: expected (height, width) or (height, width, channels); got shape {array.shape}."
        )
    if not 0 < array.size <= LARGEST:
        raise ValueError(
            f"{path}: must hold at least 1 number and at most {LARGEST}; got shape {array.shape}."
        )
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: pixels must be real numbers; got dtype {array.dtype}.")
    # Wider integers are what NumPy and JAX make of any numbers, not the depth of an image.
    depth = array.dtype.kind in "iu" and array.dtype.itemsize <= 2
    most = np.iinfo(array.dtype).max if depth else 1
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
        array /= most
        largest = (8 * np.abs(array).sum()) ** 2  # more than any sum of squares, of Laplacians too
    if not np.isfinite(largest):
        raise ValueError(f"{path}: holds pixels that are not finite in float32, or not if squared.")
    return array


def _decode(path: Path) -> np.ndarray:
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("it is not a file" if path.exists() else "there is no such file")
    with path.open("rb") as file:
        start = file.read(6)
    if start == b"\x93NUMPY":  # by content, as are the others: a name may say anything
        # Mapped, so that an array that is too large is refused before it fills the memory.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            f'{path}: reading images needs pillow. Run: pip install "tconvjax[png]"'
        ) from None
    with _quiet_open(path, Image) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"it holds {image.n_frames} images. Save each as a file")
        if image.width * image.height * len(image.getbands()) > LARGEST:  # before it is decoded
            raise ValueError(
                f"it holds more than {LARGEST} numbers, {image.width} x {image.height} pixels"
            )
        if image.mode == "I":  # what older pillows make of 16 bits
            return np.asarray(image).astype(np.uint16)
        if image.mode in ("L", "RGB") or image.mode.startswith(("I;16", "F")):
            return np.asarray(image)
        # Bits to black and white, a palette to its colors, alpha to nothing.
        return np.asarray(image.convert("L" if image.mode in ("1", "LA") else "RGB"))


def _quiet_open(path: Path, pillow: Any) -> Any:
    """Opens an image of a format that is known; size is judged here, so Pillow need not warn of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
        try:
            return pillow.open(path, formats=FORMATS)
        except pillow.UnidentifiedImageError:
            raise ValueError(f"it is none of {', '.join(FORMATS)} and npy") from None


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
