"""Finds the places of a program that can make a checkerboard, in its jaxpr, before it runs."""

from collections.abc import Callable
from typing import Any

import jax

from tconvjax._program import naming
from tconvjax._program.finding import SEVERITIES as SEVERITIES
from tconvjax._program.finding import Cost as Cost
from tconvjax._program.finding import Finding as Finding
from tconvjax._program.finding import Measured as Measured
from tconvjax._program.measuring import measured
from tconvjax._program.program import Place, traced, walk
from tconvjax._program.responses import reader_of
from tconvjax._program.rules import findings_of, not_understood, resizes_of


def audit(
    fn: Callable[..., Any],
    *args: Any,
    run: bool = False,
    gradients: bool = False,
    everything: bool = False,
) -> list[Finding]:
    """Finds what makes checkerboards in a JAX function, without running it.

    A finding is a resampler: all that is linear between two nonlinear operations and makes the grid of an image finer.
    A transposed convolution and the filter behind it are one, and so are zeros inserted by hand and a convolution,
    convolutions whose results are interleaved, a dense layer and the reshape that makes patches of it. A constant per
    channel is followed through it; the weights decide whether it stays constant, the integers how uneven the pixels
    are. Looks through `jit`, `scan`, `while`, `cond`, `checkpoint`, `custom_jvp`, `custom_vjp` and `shard_map`.

    Args:
      fn: a function of pytrees: a model of Flax, Equinox, Haiku, Keras or torchax, or plain `jax.lax`. A model that is
        a pytree (Flax NNX, Equinox) keeps its state, statistics and random streams included, if it or its method is
        passed; a function that closes over it may change it.
      *args: arguments of `fn`: arrays, or `jax.ShapeDtypeStruct` in their place, for a model of any size. Other leaves
        reach `fn` unchanged. Weights known by shape alone count as random.
      run: run the program on `args`, which must be arrays with numbers, and measure what each resampler does to the
        output; the severity is then by effect: 'high' for patterns of half a grey level of 255, 'medium' for 3 dB of
        contrast, else 'low'. Trained networks cancel most of what their weights alone suggest.
      gradients: also judge gradients: those of strided convolutions and sums over windows reach some pixels more often
        than others. Branches that fill each other's holes are judged by their sum. Maximum pools are no finding: the
        content, not a fixed phase, decides which pixel gets their gradient.
      everything: also return clean places, with severity 'none'.

    Returns:
      Findings in the order of the program. None means that the program is clean; operations that hide what they do
      (callbacks, custom calls) are findings of kind 'not_understood'.

    Raises:
      TypeError: if `fn` is not callable.
      ValueError: for `run` with arrays known by shape alone. Errors of `fn` while it is traced pass through.

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
    unknown = [x for x in jax.tree.leaves(args) if isinstance(x, jax.ShapeDtypeStruct)]
    if run and unknown:
        raise ValueError(
            f"audit: args must be arrays with numbers for run=True; got {unknown[0]}. Give arrays, or leave run out."
        )
    findings, backward = _audited(fn, args, run=run)
    if gradients:
        if not backward:
            found, _ = _audited(fn, args, gradients=True, differentiated=True)
        else:
            found, _ = _audited(fn, args, gradients=True)
        findings += found
    return [finding for finding in findings if everything or finding.severity != "none"]


def _audited(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    run: bool = False,
    gradients: bool = False,
    differentiated: bool = False,
) -> tuple[list[Finding], bool]:
    """Returns the findings of a program, or of its gradients, and whether it takes gradients itself."""
    names = naming.of_arguments(fn, args)
    program, inputs = traced(fn, args, names, gradients=differentiated)
    reader = reader_of(inputs, backward=gradients)
    places: list[Place] = []
    for place in walk(program, inputs, naming.of_closure(fn)):
        reader.read(place)
        if place.equation is not None and not gradients:
            places.append(place)
    reader.finish()
    images = place.inputs
    resizes = [
        (p.number, finding) for p in places for finding in resizes_of(p, reader.lanes, images)
    ]
    hidden = [(p.number, not_understood(p)) for p in reader.hidden if not gradients]
    used = [e for e in reader.enlargements if e.ended]
    effects = measured(used, images, reader.lanes) if run else {}
    found = findings_of(used, images, reader.lanes, effects)
    ordered = sorted([*resizes, *hidden, *found], key=lambda pair: pair[0])
    return [finding for _, finding in ordered], any(p.backward for p in places)
