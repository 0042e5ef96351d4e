"""Repairs of trained models."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.xla_metadata import set_xla_metadata

from tconvjax import _layers as layers
from tconvjax import _repairs as repairs
from tconvjax._repair import Repaired
from tconvjax._repair import repair as repair_params
from tconvjax._repairs import Report
from tconvjax.linen._convolution import ConvTranspose, ResizeConv, spec_of

KERNEL = ("params", "kernel")  # path in the variables of one layer


def balance(module: nn.Module, variables: Any, *args: Any, **kwargs: Any) -> tuple[Any, Report]:
    """Repairs the transposed convolutions of a trained model: a constant stays constant again.

    Every kernel of a `ConvTranspose`, of this module or of Flax, becomes `analysis.balance(kernel)`, the nearest one
    without a checkerboard on constants.

    Args:
      module: any Linen module; its layers are found by tracing one call.
      variables: of the module; not changed.
      *args: of the call: arrays, to measure the change of the output as well, or `jax.ShapeDtypeStruct`.
      **kwargs: of `module.apply`: `rngs`, `method`, `mutable` and the keywords of the call.

    Returns:
      The variables, in the same containers and boxes, with balanced kernels; and the change of each layer, the skipped
      layers with reasons (a kernel dilated, masked, or smaller than its strides), and the change of the output. Layers
      that `nn.vmap` or `nn.scan` stacked along leading axes are one layer here.

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
    kwargs |= {"mutable": kwargs.get("mutable") or []}  # so that `apply` returns a pair
    given = variables, args, kwargs
    kernels, report = repairs.repaired(_candidates(module, *given))
    new_kernels = {("params", *path, "kernel"): kernel for path, kernel in kernels.items()}
    new = jax.tree.map_with_path(lambda path, leaf: new_kernels.get(_names(path), leaf), variables)
    if not repairs.is_abstract(given):
        before, after = (module.apply(v, *args, **kwargs)[0] for v in (variables, new))
        report = report._replace(output_change=repairs.relative_change(before, after))
    return new, report


def repair(module: nn.Module, variables: Any, *args: Any, **options: Any) -> Repaired:
    """Repairs a trained model on data: patterns that its upsampling leaves in the output fade.

    Args:
      module: any Linen module.
      variables: of the module; not changed.
      *args: of the call: data as varied as those to come.
      **options: `strength`, `iterations` and `layers` of `tconvjax.repair`.

    Returns:
      As `tconvjax.repair`; `params` are the variables, in which only the kernels that make the pattern are new.

    Raises:
      TypeError: if `module` is not a Linen module.
      ValueError: as `tconvjax.repair`.

    Example:
      >>> layer = ConvTranspose(1, (4, 4), 2, padding=1)
      >>> x = jax.random.normal(jax.random.key(0), (16, 16, 16, 4)) + 1
      >>> found = repair(layer, layer.init(jax.random.key(1), x), x)
      >>> list(found.layers), found.after < found.before
      (["params['params']['kernel']"], True)

    References:
      See `tconvjax.repair`.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"repair: module must be a linen.Module; got {type(module).__name__}. For NNX: tconvjax.nnx.repair."
        )
    return repair_params(module.apply, variables, *args, **options)


def artifact_free(layer: ConvTranspose, variables: Any) -> tuple[ResizeConv, Any]:
    """Returns a resize-convolution to replace a transposed convolution, and its variables.

    Output size, alignment and receptive field are equal: `k − s + 1` taps on the image enlarged by 'nearest'. Its
    kernel comes as near as possible to the trained layer, and it has the same bias.

    Args:
      layer: of kernel_size at least strides, undilated, unmasked and with padding_mode 'zeros'.
      variables: of the layer alone, `{"params": {"kernel": ..., "bias": ...}}`; not changed.

    Returns:
      A layer of the same name and dtypes, and its variables, in the same containers and boxes.

    Raises:
      ValueError: for another layer, or variables without its kernel.
      TypeError: if `layer` is not a `ConvTranspose` of this module.

    Example:
      >>> layer, x = ConvTranspose(3, (4, 4), 2, padding=1), jnp.zeros((1, 16, 16, 8))
      >>> new, variables = artifact_free(layer, layer.init(jax.random.key(0), x))
      >>> new.kernel_size, new.padding, new.apply(variables, x).shape
      ((3, 3), ((1, 1), (1, 1)), (1, 32, 32, 3))

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003.
    """
    if not isinstance(layer, ConvTranspose):
        raise TypeError(
            f"artifact_free: layer must be a tconvjax.linen.ConvTranspose; got {type(layer).__name__}. For NNX: "
            "tconvjax.nnx.artifact_free."
        )
    kernels = [x for path, x in jax.tree.leaves_with_path(variables) if _names(path) == KERNEL]
    if len(kernels) != 1:
        raise ValueError(
            "artifact_free: variables must be those of the layer, with a kernel at ['params']['kernel']; got "
            f"{jax.tree.map(jnp.shape, variables)}."
        )
    kernel_size, *_, options = spec_of(layer, layers.CONV_TRANSPOSE, None)
    new_options = repairs.resize_conv_options(layer, kernel_size, options)
    kernel = repairs.fitted(layer, options, layers.effective_kernel(layer, options, kernels[0]))
    return ResizeConv(layer.features, **new_options, name=layer.name), jax.tree.map_with_path(
        lambda path, x: kernel if _names(path) == KERNEL else x, variables
    )


def _candidates(
    module: nn.Module, variables: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[tuple[str, ...], repairs.Candidate]:
    """Returns the transposed convolutions in one call, by their paths; the call is traced, with abstract arrays."""
    leaves, tree = jax.tree.flatten((variables, args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")}
    stored = {_names(path): leaf for path, leaf in jax.tree.leaves_with_path(variables)}
    candidates: dict[tuple[str, ...], repairs.Candidate] = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y, layer, method = call(*args, **kwargs), context.module, context.method_name
        if isinstance(layer, ConvTranspose | nn.ConvTranspose) and method == "__call__":
            value = nn.unbox(layer.get_variable("params", "kernel"))
            kernel = stored.get(("params", *layer.path, "kernel"))
            options = layer.clone(parent=None)  # without the tracers
            candidates[layer.path] = repairs.Candidate(options, value.shape, kernel)
        return y

    def trace(arrays: Mapping[int, jax.Array]) -> None:
        merged = [arrays.get(*leaf) for leaf in enumerate(leaves)]
        variables, args, kwargs = jax.tree.unflatten(tree, merged)
        module.apply(variables, *args, **kwargs)

    # New metadata, since nn.jit would reuse an old trace without calling the layers.
    with nn.intercept_methods(record), set_xla_metadata(balance=uuid4().hex):
        jax.eval_shape(trace, arrays)
    return candidates


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Returns the keys on the way to a leaf, without those inside of a box such as `nn.Partitioned`."""
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
