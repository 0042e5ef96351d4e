"""Images where programs can index them: all of a set, or those that the next steps draw, read while others run.

What a step draws is a function of its key, so the host knows it before; nothing of a set's order is ever saved.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.source import Arrays, Streamed

LIMIT = 2**28  # bytes of a table with a part of a set
MEASURED = 4096  # images that stand for a set


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Table:
    """Images on the device, indexed by the number of the record."""

    images: jax.Array  # (rows, height, width, channels)
    rows: jax.Array | None = None  # (records,) the place of each in `images`; None: in order

    def __len__(self) -> int:
        """Returns the number of records of the set."""
        return len(self.images if self.rows is None else self.rows)

    def __getitem__(self, index: jax.Array) -> jax.Array:
        """Returns the images of records; a part of a set has only those it was made for."""
        return self.images[index if self.rows is None else self.rows[index]]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of an image, `(height, width, channels)`."""
        return self.images.shape[1:]


def table_of(data: Arrays | Streamed, numbers: Any = (), capacity: int = 1) -> Table:
    """Returns a table of a set in memory, or of a part of one that is not.

    Args:
      data: a set.
      numbers: numbers of records, any shape, with repetitions.
      capacity: images of a part, at least as many as there are distinct numbers; equal ones are equal programs.
    """
    if isinstance(data, Arrays):
        return Table(jnp.asarray(data.image))
    distinct = np.unique(np.asarray(numbers, int))
    images = np.zeros((capacity, *data.shape), np.float32)
    images[: len(distinct)] = data.images(distinct)
    rows = np.zeros(len(data), np.int32)
    rows[distinct] = np.arange(len(distinct))
    return Table(jnp.asarray(images), jnp.asarray(rows))


def piece_of(data: Arrays | Streamed, steps: int, draws: int) -> tuple[int, int]:
    """Returns in how many steps at a time so many are done, a divisor of them, and how many images these draw at most.

    Args:
      data: in memory, it is all steps at once.
      steps: that are done.
      draws: images that a step draws.
    """
    if isinstance(data, Arrays):
        return steps, len(data)
    fit = max(1, LIMIT // (4 * math.prod(data.shape)))
    piece = max(p for p in range(1, steps + 1) if steps % p == 0 and (p == 1 or p * draws <= fit))
    return piece, min(len(data), piece * draws)


def one_ahead(make: Callable[[Any], Any], of: Sequence[Any]) -> Iterator[Any]:
    """Yields what `make` returns for each of some values, made in a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, of[0])
        for following in of[1:]:
            made, ahead = ahead.result(), pool.submit(make, following)
            yield made
        yield ahead.result()


def evenly(records: int, count: int) -> np.ndarray:
    """Returns the numbers of so many records, or of all if there are no more, evenly spaced."""
    if count >= records:
        return np.arange(records)
    return np.asarray(jnp.linspace(0, records - 1, count).astype(int))
