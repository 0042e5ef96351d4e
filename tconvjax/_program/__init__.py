"""Finds the places of a program that can make a checkerboard, in its jaxpr, before it runs."""

from collections.abc import Callable
from typing import Any

from tconvjax._program.finding import SEVERITIES as SEVERITIES
from tconvjax._program.finding import Cost as Cost
from tconvjax._program.finding import Finding as Finding
from tconvjax._program.program import traced, walk
from tconvjax._program.rules import findings_of


def audit(fn: Callable[..., Any], *args: Any, everything: bool = False) -> list[Finding]:
    """Finds the operations of a JAX function that make checkerboards, without running it.

    Looks through `jit`, `scan`, `while`, `cond`, `checkpoint`, `custom_jvp`, `custom_vjp` and `shard_map`. Finds
    convolutions of dilated images (dilated by the convolution or by a `pad`), the faces of this library, pixel shuffles
    (reshapes and transposes that join a part of the channels to a spatial axis), resizes, and strided convolutions and
    sums over windows whose gradient reaches some pixels more often than others. Gradients that paint unevenly are
    listed; operations that `checkpoint` repeats are not. Maximum pools are no finding: the content, not a fixed phase,
    decides which pixel gets their gradient. The audit misses zeros scattered between pixels (`.at[::2].set`), phases
    stacked by hand, and slices that drop pixels. It lists a pattern even if a later layer smooths it.

    Args:
      fn: a function of pytrees: a model of Flax, Equinox, Haiku or Keras, or plain `jax.lax`. A model that is a pytree
        (Flax NNX, Equinox) keeps its state, statistics and random streams included, if it or its method is passed; a
        function that closes over it may change it.
      *args: arguments of `fn`: arrays, or `jax.ShapeDtypeStruct` in their place, for a model of any size. Other leaves
        reach `fn` unchanged. Weights known by shape alone count as random.
      everything: also return clean places, with severity 'none'.

    Returns:
      Findings in the order of the program.

    Raises:
      TypeError: if `fn` is not callable. Errors of `fn` while it is traced pass through.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> kernel = jnp.ones((3, 3, 1, 1))
      >>> upsample = lambda x: jax.lax.conv_transpose(x, kernel, (2, 2), "SAME")
      >>> (finding,) = audit(upsample, jax.ShapeDtypeStruct((1, 8, 8, 1), "float32"))
      >>> finding.kind, finding.severity, finding.overlap_ratio, round(finding.harmonic_share, 2)
      ('transposed_convolution', 'high', 4.0, 0.19)

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003; for gradients the section "Artifacts in Gradients".
    """
    if not callable(fn):
        raise TypeError(f"audit: fn must be callable; got an object of type {type(fn).__name__}.")
    program, inputs = traced(fn, args)
    findings = [finding for place in walk(program, inputs) for finding in findings_of(place)]
    return [finding for finding in findings if everything or finding.severity != "none"]
