"""Checkpoints of a training state, by orbax, behind three functions.

Only calls that exist from orbax 0.11.36 on and warn nowhere are used; the API is moving towards 1.0.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint.experimental import v1 as orbax

from experiments.records import RunError

logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax's: what goes wrong is raised, too


@contextlib.contextmanager
def open_checkpoints(folder: Path) -> Iterator[orbax.training.Checkpointer]:
    """Yields a store of the newest two steps, and waits for the last save.

    Raises:
      RunError: if a save fails; the step before stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = orbax.training.Checkpointer(
        folder.resolve(),
        preservation_policy=orbax.training.preservation_policies.LatestN(2),
        cleanup_tmp_directories=True,
    )
    try:
        yield store
    finally:
        with _told(store):
            store.close()


def save(store: orbax.training.Checkpointer, step: int, state: Any) -> None:
    """Saves a state while the run goes on; a crash leaves the previous step valid."""
    with _told(store):
        store.save_checkpointables(step, {"state": state}, overwrite=False)


@contextlib.contextmanager
def _told(store: orbax.training.Checkpointer) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # orbax has one for every kind of mishap
        reason = str(error).rpartition(": ")[2]
        raise RunError(
            f"{store.directory}: a checkpoint cannot be saved: {reason}. What was saved before stays; the same command "
            "continues."
        ) from error


def load_latest(store: orbax.training.Checkpointer, like: Any) -> tuple[int, Any] | None:
    """Returns the newest step and its state, in the structure of `like`, or None if there is none.

    Raises:
      RunError: if it cannot be read.
    """
    if store.latest is None:
        return None
    step = store.latest.step
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like
    )
    try:
        return step, store.load_checkpointables(step, {"state": abstract})["state"]
    except Exception as error:  # orbax has one for every kind of damage
        raise RunError(
            f"{store.directory / str(step)}: this checkpoint cannot be read. Delete its folder: the same command then "
            "continues from the one before."
        ) from error
