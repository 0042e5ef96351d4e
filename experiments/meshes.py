"""Where a run lives: on one device, or on a mesh of devices, which may belong to several processes.

The mesh has an axis for seeds and one for the images of a batch. Along `seeds` every device trains runs of its own and
none waits for another; along `data` the compiler splits batches and adds the gradients. Either gives what one device
gives, up to rounding.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("seeds", "data")


def join(text: str) -> None:
    """Makes this process one of several of the same run; to be called before anything else of JAX.

    Args:
      text: '' for a process of its own; 'auto' where Slurm, Open MPI, Kubernetes or a TPU sets which of how many this
        is; else `ADDRESS:PORT,COUNT,RANK`, the address being that of rank 0.

    Raises:
      ValueError: if nothing sets it, or the others do not answer.
    """
    if not text:
        return
    match = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", text)
    if not match and text != "auto":
        raise ValueError(
            f"--distributed: expected 'auto' or 'ADDRESS:PORT,COUNT,RANK', got {text!r}"
        )
    given: Any = (match[1], int(match[2]), int(match[3])) if match else ()
    try:
        jax.distributed.initialize(*given)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--distributed {text}: the processes did not find each other: {reason}"
        ) from None


def is_leader() -> bool:
    """Whether this process writes what all of them compute."""
    return jax.process_index() == 0


def from_leader(value: Any) -> Any:
    """Returns, in every process, the value of the leading one."""
    if jax.process_count() == 1:
        return value
    return type(value)(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def shape_of(text: str) -> tuple[int, int]:
    """Returns the shape `(seeds, data)` of the mesh that `seeds=N,data=M` describes.

    Args:
      text: an axis that is not named has one device.

    Raises:
      ValueError: if it describes none.
    """
    parts = [re.fullmatch(r"(\w+)=(\d+)", part.strip()) for part in text.split(",")]
    sizes = {part[1]: int(part[2]) for part in parts if part}
    if len(sizes) < len(parts) or not sizes.keys() <= set(AXES) or min(sizes.values()) < 1:
        raise ValueError(f"--mesh: expected 'seeds=N,data=M' with sizes from 1 on, got {text!r}")
    seeds, data = (sizes.get(axis, 1) for axis in AXES)
    return seeds, data


def mesh_of(text: str) -> Mesh | None:
    """Returns the mesh that `seeds=N,data=M` describes.

    Args:
      text: as in `shape_of`; '' for one device of one process, without a mesh.

    Raises:
      ValueError: if it describes none, or not all devices of several processes, or more devices than there are.
    """
    if not text and jax.process_count() == 1:
        return None
    shape = shape_of(text)
    count, there = shape[0] * shape[1], jax.device_count()
    if count > there:
        raise ValueError(f"--mesh: {text} asks for {count} devices; there are {there}")
    if jax.process_count() > 1 and count < there:
        raise ValueError(
            f"--mesh: {text} takes {count} devices; the {jax.process_count()} processes have {there}, all of which "
            "must take part"
        )
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * 2, devices=jax.devices()[:count])


def place(mesh: Mesh | None, values: Any, *axes: str) -> Any:
    """Returns arrays on all devices of a mesh, their first dimensions divided along axes of it.

    Args:
      mesh: None leaves them where they are.
      values: a pytree, the same in each of several processes.
      *axes: of the mesh; without, every device holds the whole.
    """
    if mesh is None:
        return values
    sharding = NamedSharding(mesh, P(*axes))

    def placed(value: Any) -> jax.Array:
        if jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(placed(jax.random.key_data(value)))
        here = np.asarray(jnp.asarray(value))
        return jax.make_array_from_callback(here.shape, sharding, here.__getitem__)

    return jax.tree.map(placed, values)


def along_data(batch: jax.Array) -> jax.Array:
    """Divides the first axis of a batch among devices, where the mesh around has some for this."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["data"] == 1:
        return batch
    return jax.lax.with_sharding_constraint(batch, P("data"))
