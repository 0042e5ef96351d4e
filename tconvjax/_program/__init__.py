"""Where a program can make a checkerboard: found in its jaxpr, before it runs."""

from collections.abc import Callable
from typing import Any

from tconvjax._program.finding import SEVERITIES as SEVERITIES
from tconvjax._program.finding import Cost as Cost
from tconvjax._program.finding import Finding as Finding
from tconvjax._program.program import traced, walk
from tconvjax._program.rules import found


def audit(fn: Callable[..., Any], *args: Any, everything: bool = False) -> list[Finding]:
    """Finds what makes checkerboards in any function of JAX, without running it.

    Looks through `jit`, `scan`, `while`, `cond`, `checkpoint`, `custom_jvp`, `custom_vjp` and `shard_map` for
    convolutions over images that are dilated, by themselves or by a `pad`, and the faces of this library, pixel
    shuffles (reshapes and transposes that join a part of the channels to an axis of space), resizes, and strided
    convolutions and sums over windows whose gradient reaches some pixels more often than others. Maximum pools send
    their gradient where the content says, not to a fixed phase, and are no finding. Of a gradient, what it paints
    unevenly is listed; what `checkpoint` calculates again is not. Zeros that are scattered between pixels
    (`.at[::2].set`) and phases that are stacked by hand are not seen, nor what is sliced away; what a later layer
    smooths is listed all the same.

    Args:
      fn: a function of pytrees: a model of Flax, Equinox, Haiku or Keras, or plain `jax.lax`. A model that is a pytree,
        as of Flax NNX and Equinox, is left as it is, statistics and random streams included, if it or its method is
        given and not a function that holds it.
      *args: of `fn`; arrays, or `jax.ShapeDtypeStruct` in their place, for a model of any size. Other leaves reach `fn`
        as they are. Weights that are known by shape alone count as random.
      everything: also return what is clean, with severity 'none'.

    Returns:
      Findings in the order of the program.

    Raises:
      TypeError: if `fn` is not callable. What `fn` itself raises while it is traced goes through.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> kernel = jnp.ones((3, 3, 1, 1))
      >>> upsample = lambda x: jax.lax.conv_transpose(x, kernel, (2, 2), "SAME")
      >>> (finding,) = audit(upsample, jax.ShapeDtypeStruct((1, 8, 8, 1), "float32"))
      >>> finding.kind, finding.severity, finding.overlap_ratio, round(finding.harmonic_share, 2)
      ('transposed_convolution', 'high', 4.0, 0.19)

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003, for gradients its section "Artifacts in Gradients".
    """
    if not callable(fn):
        raise TypeError(f"audit: fn must be callable; got an object of type {type(fn).__name__}.")
    program, inputs = traced(fn, args)
    findings = [finding for place in walk(program, inputs) for finding in found(place)]
    return [finding for finding in findings if everything or finding.severity != "none"]
