"""The answer of `measure`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from tconvjax._measure.pictures import Picture
from tconvjax._measure.verdict import Judged, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SURE = 1e-12  # p-value from which a smaller one says nothing more
TRACES = {
    "jpeg": "blocks of JPEG",
    "camera": "the color filter of a camera",
    "rounding": "rounding to whole grey levels",
}


@dataclass(frozen=True)
class Measurement:
    """Answer of `measure` for a set of pictures, and for each of them in `images`.

    Attributes:
      verdict: 'pattern', 'clean', or 'undecided' where the picture has too few or too busy pixels to show a pattern of
        one grey level.
      text: the answer in a sentence.
      period: of the pattern in pixels; None without one.
      orientation: 'columns' (it varies along the width), 'rows', 'both axes', 'board', 'diagonal', or 'samples'.
      contrast: power of the strongest line over that of its neighborhood, in dB.
      amplitude: root mean square of the pattern over pixels and channels, in grey levels of 255; None for a pattern of
        the local contrast alone, which leaves the mean as it is.
      cause: what it looks like: 'upsampling', 'nearest enlargement', 'smooth enlargement', None for a pattern of the
        local contrast, which video codecs leave, too; of clean pictures the traces that are no pattern, 'jpeg',
        'camera' or 'rounding', if there are any.
      p_value: probability that noise shows as much somewhere, in [0, 1]; what files and cameras leave does not count.
      limit: smallest amplitude, of the shortest period and in the orientation that hides it best, that would have been
        found in 19 of 20 such pictures.
      path: where the picture comes from; '' for a set.
      tile: size of the cells that a sheet of samples was cut into; None if none was cut.
      images: the same for each picture of a set.
      reference: the same for the reference set, if there is one.
      pictures: the first of them, which `plot` shows.
    """

    verdict: Verdict
    text: str
    period: int | None
    orientation: str | None
    contrast: float | None
    amplitude: float | None
    cause: str | None
    p_value: float
    limit: float
    path: str = ""
    tile: tuple[int, ...] | None = None
    images: tuple["Measurement", ...] = ()
    reference: "Measurement | None" = None
    pictures: tuple[Picture, ...] = field(default=(), repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold: all but the pixels; infinity becomes None."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "pictures"}
        found["limit"] = self.limit if np.isfinite(self.limit) else None
        found["tile"] = None if self.tile is None else list(self.tile)
        found["images"] = [image.as_dict() for image in self.images]
        found["reference"] = None if self.reference is None else self.reference.as_dict()
        return found

    def plot(self) -> "Figure":
        """Returns a figure of the mean spectrum of the pictures, in which harmonics of the period are circled.

        Raises:
          ValueError: for signals and volumes.
          ImportError: without matplotlib.
        """
        pixels = [p.levels for p in self.pictures if p.levels.ndim == 3]
        if not pixels:
            raise ValueError("Measurement.plot: there must be a picture, with height and width.")
        same = [x for x in pixels if x.shape == pixels[0].shape]
        from matplotlib.figure import Figure

        from tconvjax import plot

        figure = Figure(figsize=(5.4, 4.8), dpi=150, layout="constrained")  # pyplot would keep it
        ax = figure.add_subplot()
        plot.spectrum(np.stack(same), [self.period] if self.period else [], ax=ax)
        name = {"pattern": "Pattern", "clean": "No pattern", "undecided": "Undecided"}[self.verdict]
        of = f" of period {self.period}, {self.orientation}" if self.period else ""
        if self.verdict == "pattern" and self.amplitude is None:
            of += ", of the local contrast"
        ax.set_title(f"{name}{of}: {ax.get_title()}", pad=14)
        return figure


def sentence(found: Judged, count: int, *, referred: bool) -> str:
    """Returns the answer in a sentence."""
    what = "picture" if count == 1 else "set"
    beyond = " beyond the reference" if referred else ""
    if found.verdict == "pattern":
        high = "" if found.contrast is None else f", {found.contrast:.0f} dB above its neighborhood"
        levels = (
            ", of the local contrast, not of the mean"
            if found.amplitude is None
            else f", {found.amplitude:.2g} of 255 grey levels (rms)"
        )
        often = f"{found.p_value:.0e}" if found.p_value > SURE else f"below {SURE:.0e}"
        like = f"; it looks like {found.cause}" if found.cause else ""
        if found.cause == "upsampling":
            like += f" from 1/{found.period} of the size"  # the layer whose input has that size
        elif not found.cause:
            like = "; enlarged files, layers after a nearest resize, and video codecs leave that"
        return (
            f"A pattern of period {found.period} ({found.orientation}){beyond}{high}{levels}; noise has that with "
            f"probability {often}{like}."
        )
    least = f"one of the shortest period and {found.limit:.2g} of 255 grey levels (rms) or more"
    if found.verdict == "undecided":
        least = least if np.isfinite(found.limit) else "none at all"
        return f"Undecided: the {what} has too few or too busy pixels; {least} would be found."
    traces = (
        f" It has traces of {TRACES[found.cause]}, which are no pattern." if found.cause else ""
    )
    if found.limit == 0:
        return f"No pattern: the {what} has one color."
    return f"No pattern{beyond}: {least} would be found.{traces}"


def measurement(
    found: Judged, pictures: Sequence[Picture], *, referred: bool, path: str = "", **rest: Any
) -> Measurement:
    """Returns the answer for pictures that were judged together."""
    text = sentence(found, len(pictures), referred=referred)
    return Measurement(**found._asdict(), text=text, path=path, pictures=tuple(pictures), **rest)
