"""Checkpoints of a training state, by orbax, behind three functions.

Only calls that exist from orbax 0.11.36 on and warn nowhere are used; the API is moving towards 1.0.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
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
        with _save_errors(store):
            store.close()


def save(store: orbax.training.Checkpointer, step: int, state: Any) -> None:
    """Saves a state while the run goes on; a crash leaves the previous step valid."""
    with _save_errors(store):
        store.save_checkpointables(step, {"state": state}, overwrite=False)


@contextlib.contextmanager
def _save_errors(store: orbax.training.Checkpointer) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # orbax has one for every kind of mishap
        reason = str(error).rpartition(": ")[2]
        raise RunError(
            f"{store.directory}: a checkpoint cannot be saved: {reason}. What was saved before stays; the same command "
            "continues."
        ) from error


def load_latest(store: orbax.training.Checkpointer, like: Any) -> tuple[int, Any] | None:
    """Returns the newest step and its state, with the structure and placement of `like`, or None if there is none.

    Raises:
      RunError: if it cannot be read, or holds arrays of other shapes or dtypes.
    """
    if store.latest is None:
        return None
    step = store.latest.step
    place = store.directory / str(step)
    # As NumPy's: orbax makes those of JAX in a thread of its own, where `jax.enable_x64` is not known and float64
    # becomes float32 without a word.
    as_saved = jax.tree.map(lambda _: np.ndarray, like)
    try:
        saved = store.load_checkpointables(step, {"state": as_saved})["state"]
    except Exception as error:  # orbax has one for every kind of damage
        raise RunError(
            f"{place}: this checkpoint cannot be read. Delete its folder: the same command then continues from the one "
            "before."
        ) from error

    def placed(path: Any, loaded: np.ndarray, expected: jax.Array) -> jax.Array:
        array = jax.make_array_from_callback(
            loaded.shape, expected.sharding, lambda index: np.asarray(loaded[index])
        )
        if not (loaded.dtype == array.dtype == expected.dtype and loaded.shape == expected.shape):
            raise RunError(
                f"{place}: state{jax.tree_util.keystr(path)} is {loaded.dtype}{list(loaded.shape)}; the run "
                f"needs {expected.dtype}{list(expected.shape)}. Move the run's folder away, or delete that of this "
                "checkpoint."
            )
        return array

    return step, jax.tree_util.tree_map_with_path(placed, saved, like)


def drop_after(folder: Path, step: int) -> None:
    """Deletes the checkpoints of later steps, in a store that nobody has opened."""
    for path in folder.glob("*") if folder.is_dir() else ():
        if path.name.isdigit() and int(path.name) > step:
            shutil.rmtree(path)
