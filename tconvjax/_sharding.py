"""Operators on meshes: types that JAX checks under `shard_map` and Explicit axes.

Under Auto axes the compiler may split every array, but does not compute every split operation right, so lowerings have
to avoid some (`tconvjax._lowerings`). Under Explicit axes every result has a sharding in its type: the result of an
operator gets one here, and the compiler places the operations inside. Under `shard_map` operands must vary over the
same mesh axes.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeVar

import jax
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, auto_axes

T = TypeVar("T")


def placed(
    function: Callable[..., T],
    image: jax.Array,
    *others: jax.Array,
    shape: Sequence[int],
    features: tuple[jax.Array, int] | None = None,
) -> T:
    """Returns `function(image, *others)`, arrays of `shape`, placed like the image under Explicit axes.

    Its batch and spatial axes are split like those of the image, its channels like `features` (array, axis). An axis is
    whole on all devices if their number does not divide it.
    """
    meshes = (jax.typeof(array).sharding.mesh for array in (image, *others))
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None:
        return function(image, *others)
    source, axis = features or (image, -1)
    names_per_axis = [*_spec(image)[:-1], _spec(source)[axis]]
    used: set[str] = set()
    spec: list[Any] = []
    for names, size in zip(names_per_axis, shape, strict=True):
        names = () if names is None else names if isinstance(names, tuple) else (names,)
        fits = size % prod(mesh.shape[name] for name in names) == 0 and not used & {*names}
        spec.append(names if names and fits else None)
        used |= {*names} if fits else set()
    explicit = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return auto_axes(function, axes=explicit, out_sharding=sharding)(image, *others)


def mesh_of(*arrays: jax.Array) -> AbstractMesh | None:
    """Returns the mesh over which the compiler may split arrays, from their types or the context; None if unknown."""
    meshes = [jax.typeof(a).sharding.mesh for a in arrays]
    for mesh in (*meshes, jax.sharding.get_abstract_mesh()):
        axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
        if prod(size for size, kind in axes if kind != AxisType.Manual) > 1:
            return mesh
    return None


def keep_whole(array: jax.Array, axes: Sequence[int], mesh: AbstractMesh | None) -> jax.Array:
    """Keeps `axes` whole on all devices of `mesh`, if any; the compiler may split the other axes."""
    if mesh is None:
        return array
    spec = [None if axis in axes else PartitionSpec.UNCONSTRAINED for axis in range(array.ndim)]
    return lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec(*spec)))


def varying_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Marks arrays inside `shard_map` as varying over every mesh axis over which one of them varies."""
    axes = [_varying(a) for a in arrays]
    together = frozenset[str]().union(*axes)
    return tuple(
        lax.pcast(a, tuple(together - own), to="varying") if together - own else a
        for a, own in zip(arrays, axes, strict=True)
    )


def abstract_like(array: jax.Array, shape: Sequence[int], dtype: Any) -> Any:
    """Returns an abstract array of `shape` and `dtype` that varies over the same mesh axes as `array`."""
    return jax.typeof(array).update(shape=tuple(shape), dtype=dtype, weak_type=False)


def _varying(array: jax.Array) -> frozenset[str]:
    return jax.typeof(array).manual_axis_type.varying


def _spec(array: jax.Array) -> tuple[Any, ...]:
    spec = jax.typeof(array).sharding.spec
    return (*spec, *(None,) * (array.ndim - len(spec)))
