"""What a data set is, and how it is split.

A source has `__len__` and `__getitem__(int) -> dict of arrays`, as Grain's, tfds.data_source and those of Hugging Face
(`with_format("numpy")`) have; a list of dicts is one, too. One that does not fit in memory may have `labels`, an array
or None, so that nothing else is read before the run; several threads at once read its records, and it must give
the same record for the same number. A record holds

    image   (height, width, channels) or (height, width), uint8 or floating in [-1, 1]
    label   one value; optional
    mask    (height, width), bool or integers; optional
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from experiments import plugins

HELD_OUT = 5  # one of so many, of each class
THREADS = 16  # that read side by side; most of the time they wait for the disk
TOGETHER = (
    16  # images that a thread reads at a time; one alone would cost more to hand on than to read
)


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
    def shape(self) -> tuple[int, ...]:
        """That of an image, `(height, width, channels)`."""
        return self.image.shape[1:]

    @property
    def classes(self) -> int:
        """The number of labels, 0 for a set without."""
        return 0 if self.label is None else int(self.label.max()) + 1

    def images(self, index: Any) -> np.ndarray | jax.Array:
        """Returns several images, by their numbers."""
        return self.image[index]

    def part(self, index: np.ndarray) -> "Arrays":
        """Returns the set of some records."""
        return Arrays(**self[index])


@dataclass(frozen=True)
class Streamed:
    """A source that does not fit: records are read when they are needed. Masks are dropped: no task streams them."""

    source: Source
    order: np.ndarray  # the records of the set
    shape: tuple[int, ...]
    label: np.ndarray | None  # (n,) int32: 0, 1, ..

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self.order)

    @property
    def classes(self) -> int:
        """The number of labels, 0 for a set without."""
        return 0 if self.label is None else int(self.label.max()) + 1

    def images(self, index: Any) -> np.ndarray:
        """Reads several images, by their numbers, in threads of Grain.

        Raises:
          ValueError: if one is not as the others, or cannot be read.
        """
        grain, row = _grain(), 0
        images = np.empty((len(index), *self.shape), np.float32)
        numbers = self.order[np.asarray(index)]
        blocks = [numbers[i : i + TOGETHER] for i in range(0, len(numbers), TOGETHER)]
        read = grain.MapDataset.source(blocks).map(self._block)
        try:
            for block in read.to_iter_dataset(grain.ReadOptions(THREADS, 2 * THREADS)):
                images[row : row + len(block)] = block
                row += len(block)
        except ValueError as error:  # of `_image`, with more lines of Grain
            raise ValueError(str(error).partition("\n")[0]) from None
        return images

    def part(self, index: np.ndarray) -> "Streamed":
        """Returns the set of some records."""
        label = None if self.label is None else self.label[index]
        return Streamed(self.source, self.order[index], self.shape, label)

    def _block(self, numbers: np.ndarray) -> np.ndarray:
        return np.stack([self._image(number) for number in numbers])

    def _image(self, number: int) -> np.ndarray:
        try:
            (found,) = arrays(np.asarray(self.source[int(number)]["image"])[None]).image
            if found.shape != self.shape:
                raise ValueError(f"expected {self.shape}, got {found.shape}")
        except Exception as error:  # the user's code runs
            raise ValueError(f"record {number}: {plugins.one_line(error)}") from None
        return np.asarray(found)


class Split(NamedTuple):
    """Two parts of a set, each sorted by class."""

    train: Arrays | Streamed
    test: Arrays | Streamed


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
    columns: dict[str, list[np.ndarray]] = {}
    for record in _records(source):
        for name, value in record.items():
            columns.setdefault(name, []).append(value)
    return arrays(**{name: np.stack(column) for name, column in columns.items()})


def streamed(source: Source) -> Streamed:
    """Reads the labels of a source, and one image.

    Args:
      source: with an attribute `labels`, an array or None; without, every record is read once for its label.

    Raises:
      ValueError: if it is no source, or its records differ in keys or shapes.
      ImportError: if Grain, which reads it, is not installed.
    """
    _grain()
    labels = source.label if isinstance(source, Arrays) else getattr(source, "labels", _records)
    first = next(_records(source))
    if labels is _records:
        found = [record["label"] for record in _records(source) if "label" in record]
        labels = found or None
    labels = None if labels is None else np.asarray(labels)
    if labels is not None and labels.shape != (len(source),):
        raise ValueError(
            f"labels must be one value per image; got {labels.shape} for {len(source)} images"
        )
    shape = arrays(first["image"][None]).image.shape[1:]
    number = None if labels is None else _numbered(labels)
    return Streamed(source, np.arange(len(source)), shape, number)


def _grain() -> Any:
    try:
        import grain
    except ImportError:
        raise ImportError(
            'a package is missing: grain. Run: pip install "tconvjax[experiments,data]"'
        ) from None
    return grain


def _records(source: Source) -> Iterator[dict[str, np.ndarray]]:
    """Yields the records of a source, all with the keys and shapes of the first.

    Raises:
      ValueError: if one has others, or this is no source.
    """
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ValueError(
            f"a source must have __len__ and __getitem__; got {type(source).__name__}. Return one, such as a list of "
            "dicts"
        )
    if not len(source):
        raise ValueError("the source is empty")
    first: dict[str, np.ndarray] = {}
    for i in range(len(source)):
        given = source[i]
        if not isinstance(given, Mapping) or "image" not in given:
            got = sorted(given) if isinstance(given, Mapping) else type(given).__name__
            raise ValueError(f"record {i}: must be a dict with an 'image'; got {got}")
        record = {n: np.asarray(given[n]) for n in ("image", "label", "mask") if n in given}
        first = first or record
        for name in sorted(first.keys() ^ record.keys()):
            raise ValueError(f"records 0 and {i}: only one of them has a {name!r}")
        for name, value in record.items():
            if value.shape != first[name].shape:
                raise ValueError(
                    f"records 0 and {i} differ in the shape of {name!r}: {first[name].shape} and {value.shape}. Give "
                    "all the same size"
                )
        yield record


def split(data: Arrays | Streamed) -> Split:
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
    return Split(data.part(order[~test]), data.part(order[test]))
