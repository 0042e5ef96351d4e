"""Images that a command reads."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tconvjax.cli._errors import one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".npy", ".npz")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # Pillow tries the decoders of these alone
LARGEST = 1 << 28  # numbers in an image


def files(path: Path) -> list[Path]:
    """Returns the path of a file, or the paths of the images in a folder and in the folders below."""
    if not path.is_dir():
        return [path]
    images = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_dir())
    if not images:
        raise ValueError(f"{path}: holds no image ({', '.join(SUFFIXES)}).")
    return images


def read(path: Path) -> np.ndarray:
    """Returns one image as (height, width, channels) in float32."""
    found = arrays(path, alpha=False)
    if len(found) != 1:
        raise ValueError(f"{path}: must hold one image; got {len(found)} arrays.")
    (array,) = found.values()
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3:
        raise ValueError(
            f"{path}: expected (height, width) or (height, width, channels); got shape {array.shape}."
        )
    # NumPy and JAX store any numbers as wider integers; their largest value is not that of a pixel.
    narrow = array.dtype.kind in "iu" and array.dtype.itemsize <= 2
    largest = np.iinfo(array.dtype).max if narrow else 1
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
        array /= largest
        bound = (8 * np.abs(array).sum()) ** 2  # of all sums of squares, of Laplacians too
    if not np.isfinite(bound):
        raise ValueError(f"{path}: holds pixels that are not finite in float32, or not if squared.")
    return array


def arrays(path: Path, *, alpha: bool = True) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by their names, as they are stored: one, or all of an npz file.

    Raises:
      ValueError: for a file that is damaged or no image, for other numbers than real ones, none, or too many.
      ImportError: without pillow.
    """
    try:
        found = _decode(path, alpha=alpha)
    except ImportError:
        raise
    except Exception as error:  # a decoder may raise anything on a broken file
        raise ValueError(f"{path}: cannot be read: {one_line(error)}") from None
    for name, array in found.items():
        if not 0 < array.size <= LARGEST:
            raise ValueError(
                f"{name}: must hold at least 1 number and at most {LARGEST}; got shape {array.shape}."
            )
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name}: pixels must be real numbers; got dtype {array.dtype}.")
    return found


def _decode(path: Path, *, alpha: bool) -> dict[str, np.ndarray]:
    if not path.is_file():  # a pipe would block
        raise ValueError("it is not a file" if path.exists() else "there is no such file")
    with path.open("rb") as file:
        start = file.read(6)
    name = str(path)
    if start == b"\x93NUMPY":  # the content decides, not the name
        # Memory-mapped: `arrays` refuses an array that is too large before it fills the memory.
        return {name: np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))}
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as members:  # their sizes stand before them
            size = sum(member.file_size for member in members.infolist())
        if size > 8 * LARGEST:
            raise ValueError(f"it holds more than {8 * LARGEST} bytes")
        with np.load(path, allow_pickle=False) as stored:
            return {f"{name}[{key}]": stored[key] for key in stored.files}
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
        if image.mode == "I":  # 16 bits before Pillow 10.3: python-pillow/Pillow#3796
            return {name: np.asarray(image).astype(np.uint16)}
        if image.mode in ("L", "RGB") or image.mode.startswith(("I;16", "F")):
            return {name: np.asarray(image)}
        # Bits become black and white, a palette its colors.
        mode = "L" if image.mode in ("1", "LA") else "RGB"
        if alpha and (image.mode.endswith(("A", "a")) or "transparency" in image.info):
            mode = {"L": "LA", "RGB": "RGBA"}[mode]
        return {name: np.asarray(image.convert(mode))}


def _quiet_open(path: Path, pillow: Any) -> Any:
    """Opens an image of a known format without Pillow's warning about its size, which `_decode` limits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
        try:
            return pillow.open(path, formats=FORMATS)
        except pillow.UnidentifiedImageError:
            raise ValueError(f"it is none of {', '.join(FORMATS)}, npy and npz") from None
