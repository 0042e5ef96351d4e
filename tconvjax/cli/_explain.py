"""`tconvjax explain`: sizes, overlap and alignment of a transposed convolution, from its integers."""

import argparse
import json
import textwrap
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tconvjax import analysis, plot
from tconvjax._geometry import (
    STRING_PADDINGS,
    Geometry,
    Padding,
    Pairs,
    conv_transpose_geometry,
)
from tconvjax.cli import _pictures as pictures

HELP = "sizes, overlap and alignment of a transposed convolution"
DESCRIPTION = "Predicts from the integers of a transposed convolution what it does to an image."
LONGEST = 1 << 16  # most pixels per axis, and most phases, that are counted
SHOWN = 32  # most pixels of an axis that are printed
SHADES = " ░▒▓█"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument(
        "--kernel", type=int, nargs="+", required=True, help="kernel size, one per axis"
    )
    parser.add_argument(
        "--stride", type=int, nargs="+", default=[1], help="one for all axes, or one per axis"
    )
    parser.add_argument(
        "--padding",
        nargs="+",
        default=["SAME"],
        metavar="PIXELS",
        help="'SAME', 'SAME_LOWER', 'VALID', or pixels of the forward convolution, or LOW,HIGH; one for all axes, or "
        "one per axis",
    )
    parser.add_argument("--output-padding", type=int, help="extra pixels at the high end")
    parser.add_argument("--dilation", type=int, default=1, help="output pixels between taps")
    parser.add_argument("--input", type=int, nargs="+", default=[8], help="input pixels")
    parser.add_argument("--picture", type=Path, help="file to draw the overlap to")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Explains a layer; returns the exit status."""
    pictures.check(options.picture)
    padding = _padding(options.padding)
    per_axis = (options.kernel, options.stride, options.input, options.padding)
    rank = max(map(len, per_axis))
    k, s, n = (
        tuple(v * rank if len(v) == 1 else v)
        for v in (options.kernel, options.stride, options.input)
    )
    if not isinstance(padding, str) and len(padding) == 1:
        padding *= rank
    layer: dict[str, Any] = {
        "strides": s,
        "padding": padding,
        "output_padding": options.output_padding,
        "kernel_dilation": options.dilation,
    }
    geometry = conv_transpose_geometry("conv_transpose", n, k, **layer, bounded=False)
    for name, size in (
        ("--input", max(n)),
        ("what --kernel and --dilation span", max(geometry.extent)),
        ("the output of --input, --stride and --padding", max(geometry.big)),
        ("the product of --stride", prod(s)),
    ):
        if size > LONGEST:
            raise ValueError(f"{name} must be at most {LONGEST}; got {size}.")
    centers = analysis.center_map(k, s, padding, kernel_dilation=options.dilation)
    overlaps = [  # the map of all axes is their product
        analysis.overlap_map(
            (n[i],), k[i], **layer | {"strides": s[i], "padding": _axis(padding, i)}
        )
        for i in range(rank)
    ]
    counts = analysis.tap_counts(k, s) if options.dilation == 1 else None
    if options.json:
        result = {
            "input": list(n),
            "output": list(geometry.big),
            "forward_padding": [list(pair) for pair in geometry.padding],
            "tap_counts": None if counts is None else counts.tolist(),
            "variance_by_phase": None if counts is None else (counts / counts.mean()).tolist(),
            "overlap_by_axis": [overlap.tolist() for overlap in overlaps],
            "center_offset": list(centers.offset),
            "center_shift": list(centers.shift),
            "random_kernel_harmonic_share": 1 - 1 / prod(s),
        }
        print(json.dumps(result, indent=2))
    else:
        print("\n".join(_lines(geometry, centers, overlaps, counts)))
    if options.picture:  # last, so that a failure to draw loses nothing
        ax = pictures.axes(4.8, 3.0 if rank == 1 else 4.6)
        plot.overlap_map(n, k, **layer, ax=ax)
        pictures.save(ax.figure, options.picture)
    return 0


def _padding(words: Sequence[str]) -> str | Pairs:
    """Returns a padding by name, or a pair of pixels for each word, 'P' or 'LOW,HIGH'."""
    if len(words) == 1 and words[0].upper() in STRING_PADDINGS:
        return words[0].upper()
    pairs = []
    for word in words:
        try:
            numbers = [int(number) for number in word.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2):
            raise ValueError(
                f"--padding must be {', '.join(STRING_PADDINGS)}, or pixels P or LOW,HIGH for each axis; got {word!r}."
            )
        pairs.append((numbers[0], numbers[-1]))
    return tuple(pairs)


def _axis(padding: str | Pairs, axis: int) -> Padding:
    return padding if isinstance(padding, str) else (padding[axis],)


def _lines(
    geometry: Geometry,
    centers: analysis.CenterMap,
    overlaps: Sequence[np.ndarray],
    counts: np.ndarray | None,
) -> list[str]:
    s = geometry.strides
    lines = [f"output size   {_by(geometry.small)} -> {_by(geometry.big)}"]
    for axis in range(geometry.rank):
        n, k, d = geometry.small[axis], geometry.kernel_size[axis], geometry.kernel_dilation[axis]
        low, high = geometry.padding[axis]
        lines.append(
            f"  axis {axis}      s(n - 1) + d(k - 1) + 1 - low - high = {s[axis]}·{n - 1} + {d}·{k - 1} + 1 "
            f"- {_signed(low)} - {_signed(high)} = {geometry.big[axis]}"
        )
    if counts is not None:
        even = bool(counts.min() == counts.max())
        ratio = "even" if even else f"max/min {counts.max()}/{counts.min()}"
        lines.append(f"taps by phase {_cut(counts)}, {ratio}")
        variance = np.round(counts / counts.mean(), 3)
        lines.append(f"variance      {_cut(variance)} by phase, random kernel, mean 1")
        lines.append(f"advice        {_advice(counts, s)}")
    lines += _overlap_lines(overlaps)
    for axis, (scale, offset, shift) in enumerate(
        zip(centers.scale, centers.offset, centers.shift, strict=True)
    ):
        first = [f"{scale * i + offset:g}" for i in range(min(geometry.small[axis], 6))]
        dots = " .." if geometry.small[axis] > len(first) else ""
        lines.append(
            f"centers       axis {axis}: input i at output {scale}i {_plus(offset)}: {' '.join(first)}{dots}; "
            f"shift {shift:g} against half-pixel alignment"
        )
    return lines


def _overlap_lines(overlaps: Sequence[np.ndarray]) -> list[str]:
    """Returns lines with the number of taps along each axis and, for two axes, a map."""
    lines = []
    for axis, overlap in enumerate(overlaps):
        dots = " .." if len(overlap) > SHOWN else ""
        lines.append(f"taps, axis {axis}  {' '.join(map(str, overlap[:SHOWN]))}{dots}")
    if len(overlaps) == 2:
        image = np.outer(*(overlap[:SHOWN] for overlap in overlaps))
        shades = (image / max(image.max(), 1) * (len(SHADES) - 1)).round().astype(int)
        lines += ["overlap map   (fuller: more taps)"]
        lines += ["              " + "".join(SHADES[v] * 2 for v in row) for row in shades]
    return lines


def _advice(counts: np.ndarray, s: Sequence[int]) -> str:
    if prod(s) == 1:
        return "no upsampling, no checkerboard"
    start = (
        f"a random kernel starts with {1 - 1 / prod(s):.0%} of a constant's energy on the pattern: start with "
        "initializers.balanced_transpose"
    )
    if counts.min() == 0:
        return "the kernel is smaller than the stride and leaves pixels empty: enlarge it"
    if counts.min() < counts.max():
        return (
            f"equal weights make a checkerboard, use a kernel that the stride divides; and {start}"
        )
    return f"taps are even, but {start}"


def _cut(values: np.ndarray) -> str:
    return textwrap.shorten(str(values.tolist()), 8 * SHOWN, placeholder=" ..")


def _by(values: Sequence[Any]) -> str:
    return " x ".join(str(v) if isinstance(v, int) else f"{v:g}" for v in values)


def _signed(number: int) -> str:
    return f"({number})" if number < 0 else str(number)


def _plus(number: float) -> str:
    return f"{'-' if number < 0 else '+'} {abs(number):g}"
