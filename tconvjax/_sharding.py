"""How operators live on meshes: types that JAX checks under `shard_map` and Explicit axes.

Under Auto axes the compiler places everything, and a lowering must know that it may: what the compiler splits it does
not always compute right (`tconvjax._lowerings`). Under Explicit axes every operation states where its result lies;
an operator is one such statement, made here, and its inside is left to the compiler. Under `shard_map` operands must
vary over the same mesh axes.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, auto_axes


def placed(
    function: Callable[..., jax.Array],
    image: jax.Array,
    *others: jax.Array,
    shape: Sequence[int],
    features: tuple[jax.Array, int] | None = None,
) -> jax.Array:
    """Returns `function(image, *others)` of `shape`, placed like the image under Explicit axes.

    Batch and spatial axes of the result lie where those of the image do, its channels where the axis `features`
    (array, axis) does; an axis that the devices do not divide is whole everywhere.
    """
    meshes = (jax.typeof(array).sharding.mesh for array in (image, *others))
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None:
        return function(image, *others)
    source, axis = features or (image, -1)
    wanted = [*_spec(image)[:-1], _spec(source)[axis]]
    taken: set[str] = set()
    spec: list[Any] = []
    for names, size in zip(wanted, shape, strict=True):
        names = () if names is None else names if isinstance(names, tuple) else (names,)
        fits = size % prod(mesh.shape[name] for name in names) == 0 and not taken & {*names}
        spec.append(names if names and fits else None)
        taken |= {*names} if fits else set()
    explicit = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )
    where = NamedSharding(mesh, PartitionSpec(*spec))
    return auto_axes(function, axes=explicit, out_sharding=where)(image, *others)


def mesh_of(*arrays: jax.Array) -> AbstractMesh | None:
    """Returns the mesh over which the compiler may split arrays, where their types or the scope know it."""
    meshes = [jax.typeof(a).sharding.mesh for a in arrays]
    for mesh in (*meshes, jax.sharding.get_abstract_mesh()):
        axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
        if prod(size for size, kind in axes if kind != AxisType.Manual) > 1:
            return mesh
    return None


def whole(array: jax.Array, axes: Sequence[int], mesh: AbstractMesh | None) -> jax.Array:
    """Keeps the compiler from splitting `axes` over the devices of `mesh`, if any; the other axes are its choice."""
    if mesh is None:
        return array
    spec = [None if axis in axes else PartitionSpec.UNCONSTRAINED for axis in range(array.ndim)]
    return lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec(*spec)))


def varying_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Marks arrays inside `shard_map` as varying over every mesh axis over which one of them does."""
    axes = [_varying(a) for a in arrays]
    together = frozenset[str]().union(*axes)
    return tuple(
        lax.pcast(a, tuple(together - own), to="varying") if together - own else a
        for a, own in zip(arrays, axes, strict=True)
    )


def like(array: jax.Array, shape: Sequence[int], dtype: Any) -> Any:
    """Returns an abstract array of `shape` and `dtype` that varies over the mesh axes over which `array` does."""
    return jax.typeof(array).update(shape=tuple(shape), dtype=dtype, weak_type=False)


def _varying(array: jax.Array) -> frozenset[str]:
    return jax.typeof(array).manual_axis_type.varying


def _spec(array: jax.Array) -> tuple[Any, ...]:
    spec = jax.typeof(array).sharding.spec
    return (*spec, *(None,) * (array.ndim - len(spec)))
