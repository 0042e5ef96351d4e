"""Repairs of trained models."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import jax
from flax import linen as nn
from jax.experimental.xla_metadata import set_xla_metadata

from tconvjax import _repairs as repairs
from tconvjax._repairs import Report
from tconvjax.linen._convolution import ConvTranspose


def balance(module: nn.Module, variables: Any, *args: Any, **kwargs: Any) -> tuple[Any, Report]:
    """Repairs the transposed convolutions of a trained model: a constant stays constant again.

    Every kernel of a `ConvTranspose`, of this module or of Flax, becomes `analysis.balance(kernel)`, the nearest one
    without a checkerboard on constants.

    Args:
      module: any Linen module, whose layers are found by following one call.
      variables: of the module; left as they are.
      *args: of the call; arrays also show what changes in the output, of `jax.ShapeDtypeStruct` the shapes are enough.
      **kwargs: of `module.apply`: `rngs`, `method`, `mutable` and the keywords of the call.

    Returns:
      The variables, in the same containers and boxes, with balanced kernels; and what was done to each layer, which
      were skipped and why (a dilated or masked kernel, one smaller than its strides), and the change of the output.
      Layers that `nn.vmap` or `nn.scan` stacked along leading axes are one layer here.

    Raises:
      TypeError: if `module` is not a Linen module.

    Example:
      >>> import jax.numpy as jnp
      >>> layer, x = ConvTranspose(3, (3, 3), 2), jnp.ones((1, 16, 16, 8))
      >>> variables, report = balance(layer, layer.init(jax.random.key(0), x), x)
      >>> report.layers[""].before > 0.3, report.layers[""].after < 1e-9
      (True, True)

    References:
      Sugawara, Shiota & Kiya 2018, arXiv:1806.02658.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"balance: module must be a linen.Module; got {type(module).__name__}. For NNX: tconvjax.nnx.balance."
        )
    kwargs |= {"mutable": kwargs.get("mutable") or []}  # of which `apply` returns a pair
    given = variables, args, kwargs
    kernels, report = repairs.repaired(_met(module, *given))
    at = {("params", *path, "kernel"): kernel for path, kernel in kernels.items()}
    new = jax.tree.map_with_path(lambda path, leaf: at.get(_names(path), leaf), variables)
    if not repairs.is_abstract(given):
        before, after = (module.apply(v, *args, **kwargs)[0] for v in (variables, new))
        report = report._replace(output_change=repairs.relative_change(before, after))
    return new, report


def _met(
    module: nn.Module, variables: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[tuple[str, ...], repairs.Candidate]:
    """Returns the transposed convolutions that one call meets, by their paths; only arrays are abstract in it."""
    leaves, tree = jax.tree.flatten((variables, args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")}
    stored = {_names(path): leaf for path, leaf in jax.tree.leaves_with_path(variables)}
    met: dict[tuple[str, ...], repairs.Candidate] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y, layer, method = call(*args, **kwargs), context.module, context.method_name
        if isinstance(layer, ConvTranspose | nn.ConvTranspose) and method == "__call__":
            one = nn.unbox(layer.get_variable("params", "kernel"))
            kernel = stored.get(("params", *layer.path, "kernel"))
            options = layer.clone(parent=None)  # without the tracers
            met[layer.path] = repairs.Candidate(options, one.shape, kernel)
        return y

    def trace(arrays: Mapping[int, jax.Array]) -> None:
        mixed = [arrays.get(*leaf) for leaf in enumerate(leaves)]
        variables, args, kwargs = jax.tree.unflatten(tree, mixed)
        module.apply(variables, *args, **kwargs)

    # New metadata, since nn.jit does not call the layers again where it finds an old trace.
    with nn.intercept_methods(note), set_xla_metadata(balance=uuid4().hex):
        jax.eval_shape(trace, arrays)
    return met


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Returns the keys on the way to a leaf, without those inside of a box such as `nn.Partitioned`."""
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
