"""Checkpoints of a training state, by orbax, behind three functions.

Only calls that exist from orbax 0.11.36 on and warn nowhere are used; the API is moving towards 1.0.
"""

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint.experimental import v1 as orbax


def open_checkpoints(folder: Path) -> orbax.training.Checkpointer:
    """Returns a store of the newest two steps; use it in a `with` block, which waits for the last save."""
    folder.mkdir(parents=True, exist_ok=True)
    return orbax.training.Checkpointer(
        folder.resolve(),
        preservation_policy=orbax.training.preservation_policies.LatestN(2),
        cleanup_tmp_directories=True,
    )


def save(store: orbax.training.Checkpointer, step: int, state: Any) -> None:
    """Saves a state; a crash leaves the previous step valid."""
    store.save_checkpointables(step, {"state": state}, overwrite=False)


def load_latest(store: orbax.training.Checkpointer, like: Any) -> tuple[int, Any] | None:
    """Returns the newest step and its state, in the structure of `like`, or None if there is none."""
    if store.latest is None:
        return None
    step = store.latest.step
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like
    )
    return step, store.load_checkpointables(step, {"state": abstract})["state"]
