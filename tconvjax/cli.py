"""Command line: `tconvjax explain` predicts from a layer's integers, `tconvjax measure` looks at images.

Exit status: 0 fine, 1 a limit of `measure --fail-above` exceeded, 2 bad input, in one line.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tconvjax import analysis, metrics
from tconvjax.geometry import Padding, conv_transpose_geometry

LONGEST = 1 << 16  # input pixels per axis that `explain` draws
SHOWN = 32  # entries of an overlap that it prints
SUFFIXES = (".png", ".jpg", ".jpeg", ".npy")


class _Parser(argparse.ArgumentParser):
    """Answers bad arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = _Parser(prog="tconvjax", description="Learned upsampling, understood.")
    commands = parser.add_subparsers(dest="command", required=True)

    explain = commands.add_parser(
        "explain", help="sizes, overlap and alignment of a transposed convolution"
    )
    explain.add_argument(
        "--kernel", type=int, nargs="+", required=True, help="kernel size, one per axis"
    )
    explain.add_argument(
        "--stride", type=int, nargs="+", default=[1], help="one for all axes, or one per axis"
    )
    explain.add_argument(
        "--padding", default="SAME", help="'SAME', 'VALID' or pixels of the forward convolution"
    )
    explain.add_argument("--output-padding", type=int, help="extra pixels at the high end")
    explain.add_argument("--dilation", type=int, default=1, help="output pixels between taps")
    explain.add_argument("--input", type=int, nargs="+", default=[8], help="input pixels")
    explain.add_argument("--json", action="store_true", help="print JSON")

    measure = commands.add_parser("measure", help="checkerboard metrics of images")
    measure.add_argument(
        "paths", nargs="+", type=Path, help="PNG, JPEG or npy files, or folders of them"
    )
    measure.add_argument(
        "--period", type=int, action="append", help="in pixels; repeat for several (2)"
    )
    measure.add_argument(
        "--fail-above",
        action="append",
        default=[],
        metavar="METRIC=VALUE",
        help="exit 1 beyond a limit",
    )
    measure.add_argument("--json", action="store_true", help="print JSON")

    options = parser.parse_args(arguments)
    try:
        return {"explain": _explain, "measure": _measure}[options.command](options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"tconvjax {options.command}: {error}", file=sys.stderr)
        return 2


def _explain(options: argparse.Namespace) -> int:
    rank = max(len(options.kernel), len(options.stride), len(options.input))
    k, s, n = (
        tuple(v * rank if len(v) == 1 else v)
        for v in (options.kernel, options.stride, options.input)
    )
    if max(n) > LONGEST:
        raise ValueError(f"--input must be at most {LONGEST}; got {max(n)}.")
    padding: Padding
    try:
        padding = int(options.padding)
    except ValueError:
        padding = options.padding.upper()
    layer = {
        "strides": s,
        "padding": padding,
        "output_padding": options.output_padding,
        "kernel_dilation": options.dilation,
    }
    geometry = conv_transpose_geometry("conv_transpose", n, k, **layer)
    shift = analysis.center_map(k, s, padding, kernel_dilation=options.dilation).shift
    overlaps = [  # the map of all axes is their product
        analysis.overlap_map((n[i],), k[i], **layer | {"strides": s[i]}).tolist()
        for i in range(rank)
    ]
    counts = analysis.tap_counts(k, s) if options.dilation == 1 else None
    if options.json:
        result = {
            "input": list(n),
            "output": list(geometry.big),
            "forward_padding": [list(pair) for pair in geometry.padding],
            "tap_counts": None if counts is None else counts.tolist(),
            "overlap_by_axis": overlaps,
            "center_shift": list(shift),
            "random_kernel_harmonic_share": 1 - 1 / prod(s),
        }
        print(json.dumps(result, indent=2))
        return 0
    formula = "s(n - 1) + d(k - 1) + 1 - low - high"
    print(
        f"output size   {_by(n)} -> {_by(geometry.big)}    {formula} per axis, (low, high) = {geometry.padding}"
    )
    if counts is not None:
        even = bool(counts.min() == counts.max())
        ratio = "even" if even else f"max/min {counts.max()}/{counts.min()}"
        print(f"taps by phase {counts.tolist()}    {ratio}: {_advice(even=even, stride=prod(s))}")
    for i, overlap in enumerate(overlaps):
        more = " .." if len(overlap) > SHOWN else ""
        print(f"taps, axis {i}  {' '.join(map(str, overlap[:SHOWN]))}{more}")
    print(f"center shift  {_by(shift)} output pixels against half-pixel alignment")
    return 0


def _advice(*, even: bool, stride: int) -> str:
    if stride == 1:
        return "no upsampling, no checkerboard"
    start = f"a random kernel still starts with a checkerboard of {1 - 1 / stride:.0%} of a constant's energy"
    return start if even else f"equal weights make a checkerboard, and {start}"


def _measure(options: argparse.Namespace) -> int:
    periods = options.period or [2]
    limits = [_limit(text) for text in options.fail_above]
    groups: dict[tuple[int, ...], list[np.ndarray]] = {}
    for path in _files(options.paths):
        image = _read(path)
        groups.setdefault(image.shape, []).append(image)
    results: list[dict[str, Any]] = []
    for shape, images in sorted(groups.items()):
        batch = np.stack(images)
        values: dict[str, float] = {}
        for period in periods:
            try:
                fraction = metrics.phase_mean_fraction(batch, period)
                contrast = metrics.band_contrast(batch, period)
            except ValueError as error:
                raise ValueError(f"images of {_by(shape[:2])} pixels: {error}") from None
            values[f"phase_mean_fraction_{period}"] = float(fraction.mean())
            values |= {
                f"band_contrast_{o}_{period}": float(v) for o, v in contrast._asdict().items()
            }
        results.append({"size": list(shape[:2]), "images": len(images), "metrics": values})
    known = list(results[0]["metrics"])
    for name, _ in limits:
        if name not in known:
            raise ValueError(
                f"--fail-above: METRIC must be one of {', '.join(known)}; got {name!r}."
            )
    exceeded = [
        (name, limit) for name, limit in limits if any(r["metrics"][name] > limit for r in results)
    ]
    if options.json:
        print(json.dumps({"sizes": results}, indent=2))
    else:
        for result in results:
            print(f"{result['images']} images of {_by(result['size'])}")
            for name, value in result["metrics"].items():
                print(f"  {name:28} {value:.4g}{' dB' if 'contrast' in name else ''}")
    for name, limit in exceeded:
        print(f"tconvjax measure: {name} is above {limit:g}", file=sys.stderr)
    return 1 if exceeded else 0


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


def _read(path: Path) -> np.ndarray:
    """Returns one image as (height, width, channels) in float32."""
    try:
        array = _decode(path)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    array = array[..., None] if array.ndim == 2 else array
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


def _by(values: Sequence[Any]) -> str:
    return " x ".join(str(v) if isinstance(v, int) else f"{v:g}" for v in values)


if __name__ == "__main__":
    sys.exit(main())
