"""Arrays as pictures: their rank, their range in grey levels, what of them is transparent."""

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CHANNELS = 4  # more are taken for an axis of space
LEVELS = 255.0
OVERSHOOT, OUTSIDE = 0.25, 0.02  # of the range, and part of the values beyond it, as decoders have


class Picture(NamedTuple):
    """A picture, signal or volume.

    Attributes:
      levels: `(*spatial, channels)` in grey levels of 255, float64; color alone.
      opaque: `spatial`, False where it is transparent; None if nowhere.
      name: where it comes from, such as the path of a file or its place in an array.
    """

    levels: np.ndarray
    opaque: np.ndarray | None
    name: str


def pictures_of(who: str, images: Any, argument: str = "images") -> list[Picture]:
    """Returns the pictures of an array or of a sequence of arrays.

    Raises:
      ValueError, TypeError: for an array of another shape or dtype, without pixels, or with values that are not finite.
    """
    strange = isinstance(images, str | bytes | Mapping | Path | Set)
    if strange or (
        isinstance(images, Iterable)
        and not hasattr(images, "__len__")
        and not hasattr(images, "__array__")
    ):
        raise TypeError(
            f"{who}: {argument} must be an array or a sequence of arrays; got {type(images).__name__}. Write "
            "list(...) of what yields arrays. Read files with `tconvjax measure` or pillow."
        )
    given = [(argument, images)]
    if isinstance(images, Sequence) and not hasattr(images, "shape") and np.ndim(images[:1]) != 1:
        given = [(f"{argument}[{i}]", image) for i, image in enumerate(images)]
    if isinstance(images, Sequence) and not len(images):
        raise ValueError(f"{who}: {argument} must hold at least one image; got none.")
    batches = [_checked(who, name, np.asarray(image)) for name, image in given]
    wide = [batch for batch in batches if _type_range(batch.dtype) is None]
    shared = _shared_range(wide) if wide else (0.0, 1.0)
    pictures = []
    for (name, image), batch in zip(given, batches, strict=True):
        black, white = _type_range(batch.dtype) or shared
        for i, pixels in enumerate(batch):
            own = name if np.ndim(image) <= 3 else f"{name}[{i}]"
            pictures.append(_picture(pixels, black, white, own))
    return pictures


def _checked(who: str, argument: str, array: np.ndarray) -> np.ndarray:
    """Returns a batch `(batch, *spatial, channels)`."""
    shape = array.shape
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"{who}: {argument} must hold real numbers; got dtype {array.dtype}.")
    if array.dtype.kind not in "biu":
        array = array.astype(np.float64)
    if 0 in shape:
        raise ValueError(f"{who}: {argument} must hold pixels; got shape {shape}.")
    if array.ndim == 0 or array.ndim > 5 or (array.ndim > 2 and shape[-1] > CHANNELS):
        remedy = (
            "Channels are last here; write gray pictures as (batch, height, width, 1), a volume as (1, depth, height, "
            "width, 1)."
        )
        raise ValueError(
            f"{who}: {argument} must be (height, width), (height, width, channels) or (batch, height, width, channels) "
            f"with up to {CHANNELS} channels, a signal (length,) or volumes (batch, depth, height, width, channels); "
            f"got shape {shape}. {remedy}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{who}: {argument} must be finite; got values that are not.")
    if array.ndim <= 2:
        return array[None, ..., None]
    return array if array.ndim > 3 else array[None]


def _type_range(dtype: np.dtype) -> tuple[float, float] | None:
    """Returns black and white of bits and of integers of 8 and 16 bits; None for wider ones and floats."""
    if dtype.kind == "b":
        return 0.0, 1.0
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        info = np.iinfo(dtype)
        return float(info.min), float(info.max)
    return None


def _shared_range(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
    """Returns black and white of floats: [0, 1], [−1, 1] or [0, 255] if it holds nearly all, else what they span."""
    low, high = min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)
    size = sum(a.size for a in arrays)
    for black, white in ((0.0, 1.0), (-1.0, 1.0), (0.0, LEVELS)):
        reach = OVERSHOOT * (white - black)
        if black - reach <= low and high <= white + reach:
            outside = sum(int(((a < black) | (a > white)).sum()) for a in arrays)
            if outside <= OUTSIDE * size:
                return black, white
    return low, max(high, low + 1.0)


def _picture(image: np.ndarray, black: float, white: float, name: str) -> Picture:
    """Takes the second of two and the fourth of four channels for alpha."""
    levels = (image.astype(np.float64) - black) * (LEVELS / (white - black))
    opaque = None
    if image.shape[-1] in (2, 4):
        levels, alpha = levels[..., :-1], levels[..., -1]
        if alpha.min() < LEVELS / 2:
            opaque = alpha >= LEVELS / 2
            levels = np.where(
                opaque[..., None], levels, levels[opaque].mean(0) if opaque.any() else 0
            )
    return Picture(levels, opaque, name)
