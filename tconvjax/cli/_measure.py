"""`tconvjax measure`: is there a grid in these images?"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np

from tconvjax._measure import LARGEST, PERIODS, measured
from tconvjax._measure.measurement import Measurement
from tconvjax._measure.pictures import Picture, pictures_of
from tconvjax._measure.sheets import SMALLEST
from tconvjax.cli import _images as reading
from tconvjax.cli import _pictures as drawing
from tconvjax.cli._errors import printable

HELP = "checkerboards and other grids in images"
DESCRIPTION = (
    "Says whether there is a grid in images: a checkerboard, stripes, what upsampling leaves. All files form one set, "
    "and each is judged by itself, too (--each). Files that cannot be read are named, and the others are measured."
)
COPIES = 40  # float64 copies of a picture in memory while it is measured
NAMES = 40  # letters of a path in a table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        help="PNG, JPEG, WebP, BMP, TIFF, npy or npz files, or folders of them and of folders",
    )
    parser.add_argument(
        "--period",
        type=int,
        action="append",
        help=f"in pixels; repeat for several ({PERIODS[0]} to {PERIODS[-1]})",
    )
    parser.add_argument(
        "--tile",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="size of the cells of sheets of samples, or height and width; a single sheet is found by itself",
    )
    parser.add_argument(
        "--reference", type=Path, help="file or folder of clean images of the same kind"
    )
    parser.add_argument("--each", action="store_true", help="print a line for each image")
    parser.add_argument(
        "--fail-on",
        choices=("pattern", "undecided"),
        help="exit 1 if there is a pattern; with 'undecided', unless the images are clean",
    )
    parser.add_argument("--picture", type=Path, help="file to draw the spectrum to")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Measures images; returns the exit status."""
    drawing.check(options.picture)
    periods = sorted(set(options.period or PERIODS))
    for period in periods:
        if period not in PERIODS:
            raise ValueError(
                f"--period must be at least {PERIODS[0]} and at most {PERIODS[-1]}; got {period}."
            )
    tile = options.tile and (options.tile * 2)[:2]
    if tile and (min(tile) < SMALLEST or len(options.tile) > 2):
        raise ValueError(f"--tile must be one or two integers >= {SMALLEST}; got {options.tile}.")
    problems: list[str] = []
    pictures = _read(options.paths, problems)
    usual = _read([options.reference], problems) if options.reference else None
    found = None
    try:
        given = _some(pictures)
        reference = None if usual is None else _some(usual)
        if given and (usual is None or reference):
            found = measured(given, reference, periods=periods, tile=tile)
    except ValueError as error:
        problems.append(str(error).removeprefix("measure: "))
    for problem in problems:
        print(f"tconvjax measure: {printable(problem)}", file=sys.stderr)
    if found is None:
        return 2
    print(
        json.dumps(found.as_dict(), indent=2) if options.json else _table(found, each=options.each)
    )
    if options.picture:  # last, so that a failure to draw loses nothing
        drawing.save(found.plot(), options.picture)
    failed = {None: (), "pattern": ("pattern",), "undecided": ("pattern", "undecided")}[
        options.fail_on
    ]
    return 2 if problems else int(found.verdict in failed)


def _read(paths: Sequence[Path], problems: list[str]) -> Iterator[Picture]:
    """Yields the pictures of files and folders, and notes what cannot be read."""
    files: list[Path] = []
    for path in paths:
        try:
            files += reading.files(path)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    shown = len(files) > 1 and sys.stderr.isatty()
    rank = None
    for i, file in enumerate(files, 1):
        if shown:
            print(f"\r{i}/{len(files)} ", end="" if i < len(files) else "\r", file=sys.stderr)
        try:
            for name, array in reading.arrays(file).items():
                _refuse_large(name, array)
                for picture in pictures_of(name, array, "pixels"):
                    own = picture.name.removeprefix("pixels")
                    rank = rank or picture.levels.ndim
                    if picture.levels.ndim != rank:
                        raise ValueError(
                            f"{name}: must have {rank - 1} axes of space, as the first; got {picture.levels.ndim - 1}."
                        )
                    yield picture._replace(name=f"{name}{own}")
        except (ValueError, TypeError) as error:
            problems.append(str(error))


def _some(pictures: Iterator[Picture]) -> Iterator[Picture] | None:
    """Returns pictures, of which one is read already; None if there is none."""
    first = next(pictures, None)
    return None if first is None else chain([first], pictures)


def _refuse_large(name: str, array: np.ndarray) -> None:
    """Raises if a picture needs more memory than is free; Linux may end a process that uses more."""
    pixels = array.size // max(1, len(array)) if array.ndim > 3 else array.size
    needed = COPIES * 8 * min(pixels, 4 * LARGEST) + 16 * array.size
    if needed > (free := _free()):
        raise ValueError(
            f"{name}: measuring it takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Measure crops."
        )


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


def _table(found: Measurement, *, each: bool) -> str:
    """Returns the sentence, and a line for the images, for each of them, and for the reference."""
    count = len(found.images)
    name = f"{count} images" if count != 1 else printable(found.images[0].path)
    if found.tile:
        name = f"{count} tiles of {_by(found.tile)}"
    rows = [(name, found)]
    if each and count > 1:
        rows += [(printable(image.path), image) for image in found.images]
    if found.reference:
        rows.append((f"reference, {len(found.reference.images)}", found.reference))
    width = min(NAMES, max(len(name) for name, _ in rows))
    head = f"{'':{width}}  {'verdict':9}  {'period':>6}  {'orientation':11}  {'dB':>5}  {'levels':>6}  looks like"
    return "\n".join([found.text, "", head, *(_row(name, width, row) for name, row in rows)])


def _row(name: str, width: int, found: Measurement) -> str:
    name = name if len(name) <= width else f"..{name[2 - width :]}"
    number = lambda value, form: "-" if value is None else format(value, form)
    return (
        f"{name:{width}}  {found.verdict:9}  {number(found.period, 'd'):>6}  {found.orientation or '-':11}  "
        f"{number(found.contrast, '.1f'):>5}  {number(found.amplitude, '.3g'):>6}  {found.cause or '-'}"
    )


def _by(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))
