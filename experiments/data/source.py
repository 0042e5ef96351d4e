"""What a data set is, and how it is split.

A source has `__len__` and `__getitem__(int) -> dict of arrays`, as Grain's, tfds.data_source and those of Hugging Face
(`with_format("numpy")`) have; a list of dicts is one, too. A record holds

    image   (height, width, channels) or (height, width), uint8 or floating in [-1, 1]
    label   one value; optional
    mask    (height, width), bool or integers; optional
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

HELD_OUT = 5  # one of so many, of each class


class Source(Protocol):
    """What a function of the user returns."""

    def __len__(self) -> int:
        """Returns the number of records."""

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """Returns a record."""


@dataclass(frozen=True)
class Arrays:
    """A source in memory, of the host or the device, in one form; made by `arrays`."""

    image: np.ndarray | jax.Array  # (n, height, width, channels) float32 in [-1, 1]
    label: np.ndarray | None = None  # (n,) int32: 0, 1, ..
    mask: np.ndarray | jax.Array | None = None  # (n, height, width) int32: 0, 1, ..

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self.image)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """Returns a record, or several for a list of numbers."""
        if np.any(np.asarray(index) >= len(self)):  # which arrays of the device do not check
            raise IndexError(index)
        return {name: column[index] for name, column in vars(self).items() if column is not None}

    @property
    def classes(self) -> int:
        """The number of labels, 0 for a set without."""
        return 0 if self.label is None else int(self.label.max()) + 1


class Split(NamedTuple):
    """Two parts of a set, each sorted by class."""

    train: Arrays
    test: Arrays


def arrays(image: Any, label: Any = None, mask: Any = None) -> Arrays:
    """Returns stacked records in the one form that tasks see.

    Args:
      image: `(n, height, width)` or with channels after; uint8, or floating in [-1, 1].
      label: `(n,)`; numbered in the order of its values.
      mask: `(n, height, width)`; bool, or integers, numbered in the order of their values.

    Raises:
      ValueError: if something else is given.
    """
    image = image[..., None] if image.ndim == 3 else image
    if image.ndim != 4 or 0 in image.shape:
        raise ValueError(
            f"images must be (height, width) or (height, width, channels), and at least one; got {image.shape} stacked"
        )
    if image.dtype == np.uint8:
        image = image.astype(np.float32) / 127.5 - 1
    elif not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"images must be uint8, or floating in [-1, 1]; got {image.dtype}")
    low, high = float(image.min()), float(image.max())
    if not -1.001 < low <= high < 1.001:  # NaN among others; room for rounding
        raise ValueError(
            f"floating images must lie in [-1, 1]; got values from {low:g} to {high:g}. Scale them, or give uint8"
        )
    if label is not None:
        if label.shape != image.shape[:1]:
            raise ValueError(f"a label must be one value per image; got {label.shape} stacked")
        label = _numbered(label)
    if mask is not None:
        mask = mask[..., 0] if mask.ndim == 4 and mask.shape[-1] == 1 else mask
        if mask.shape != image.shape[:3]:
            raise ValueError(
                f"a mask must be as large as its image; got {mask.shape} and {image.shape} stacked"
            )
        if mask.dtype != bool and not np.issubdtype(mask.dtype, np.integer):
            raise ValueError(f"masks must be bool or integers, got {mask.dtype}")
        mask = mask.astype(np.int32) if mask.dtype == bool else _numbered(mask)
    return Arrays(image.astype(np.float32), label, mask)


def _numbered(values: Any) -> np.ndarray:
    """Replaces values by their places in the sorted list of all."""
    return np.unique(values, return_inverse=True)[1].astype(np.int32).reshape(values.shape)


def stacked(source: Source) -> Arrays:
    """Reads a whole source.

    Raises:
      ValueError: if it is none, or its records differ in keys or shapes.
    """
    if isinstance(source, Arrays):
        return source
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ValueError(
            f"a source must have __len__ and __getitem__; got {type(source).__name__}. Return one, such as a list of "
            "dicts"
        )
    if not len(source):
        raise ValueError("the source is empty")
    columns: dict[str, list[np.ndarray]] = {}
    for i in range(len(source)):
        record = source[i]
        if not isinstance(record, Mapping) or "image" not in record:
            got = sorted(record) if isinstance(record, Mapping) else type(record).__name__
            raise ValueError(f"record {i}: must be a dict with an 'image'; got {got}")
        for name in ("image", "label", "mask"):
            if name not in record and name not in columns:
                continue
            column = columns.setdefault(name, [])
            value = np.asarray(record[name]) if name in record else None
            if len(column) < i or value is None:
                raise ValueError(f"records 0 and {i}: only one of them has a {name!r}")
            if column and column[0].shape != value.shape:
                raise ValueError(
                    f"records 0 and {i} differ in the shape of {name!r}: {column[0].shape} and {value.shape}. Give all "
                    "the same size"
                )
            column.append(value)
    return arrays(**{name: np.stack(column) for name, column in columns.items()})


def split(data: Arrays) -> Split:
    """Holds out every fifth image of each class.

    Raises:
      ValueError: if these are not two.
    """
    label = np.zeros(len(data), int) if data.label is None else data.label
    order = np.argsort(label, kind="stable")
    place = np.arange(len(data)) - np.searchsorted(label[order], label[order])  # within its class
    test = place % HELD_OUT == HELD_OUT - 1
    if test.sum() < 2:
        raise ValueError(
            f"too few images: every fifth of a class is held out, and at least two must be; got {len(data)} images in "
            f"{max(1, data.classes)} classes"
        )
    return Split(Arrays(**data[order[~test]]), Arrays(**data[order[test]]))
