"""Checks that all converters share: of classes, of arrays, and of the numbers that both layers compute.

A layer that can be called must be of the peer's own class, not of a subclass or a wrapper, which may compute anything.
`compare` then runs it and the converted layer on the same image. An object that cannot be called only has attributes:
there is no output to compare.
"""

import random
import re
from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tconvjax import _geometry as geo
from tconvjax.interop._converted import SHUFFLES, Converted, boundary, crops, forward_kernel, sizes

FLOAT32 = 2.0**-23
TF32 = 2.0**-10  # the precision in which accelerators multiply float32 by default


def described(value: Any) -> str:
    """Returns the name of a class or function, or of the class of another value, and of its module."""
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__qualname__} of {kind.__module__}"


def as_numpy(who: str, name: str, value: Any, source: Any = None) -> np.ndarray:
    """Returns a copy of an array of floating or complex numbers.

    Args:
      who: the converter, for error messages.
      name: of the weight, for error messages.
      value: an array of NumPy, or any that NumPy can copy.
      source: the array of the peer that `value` was made from, for error messages.
    """
    try:
        array = np.array(value)
        numbers = jnp.issubdtype(array.dtype, jnp.inexact) and jnp.finfo(array.dtype).bits >= 16
    except (TypeError, ValueError, RuntimeError):
        numbers = False
    if not numbers:
        kind = type(value if source is None else source)
        raise TypeError(
            f"{who}: {name} must be an array of floating or complex numbers of at least 16 bits; got "
            f"{kind.__qualname__} of {kind.__module__}, dtype={getattr(value, 'dtype', None)}. Give the numbers that "
            "the layer multiplies with."
        )
    return array


def is_own(cls: type, pattern: str, packages: tuple[str, ...], *, called: bool) -> bool:
    """Returns whether the name of a class matches; if `called`, one of the packages must define the class, too."""
    own = any(f"{cls.__module__}.".startswith(f"{package}.") for package in packages)
    return re.fullmatch(pattern, cls.__name__) is not None and (own or not called)


def compare(
    who: str,
    source: Any,
    run: Callable[[np.ndarray], Any],
    converted: Converted,
    *,
    on_cpu: bool = True,
) -> Converted:
    """Returns the converted layer; raises unless it computes the numbers of its source on a random image.

    Args:
      who: the converter, for error messages.
      source: the layer of the peer.
      run: calls the source on an image `(1, *spatial, channels)` and leaves it unchanged.
      converted: the layer of ours.
      on_cpu: whether the source runs on a CPU, which multiplies float32 in full precision.
    """
    x = random_image(converted)
    with jax.ensure_compile_time_eval():
        try:
            expected = np.asarray(run(x))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise ValueError(
                f"{who}: a layer must work before it is converted; got {described(source)}, which fails on an image of "
                f"shape {x.shape} with {reason!r}. Convert the layer that its weights belong to."
            ) from error
        computed = np.asarray(run_converted(converted, x))
    kernel = converted.parameters.get("kernel", x)
    exact = all(float(jnp.finfo(a.dtype).eps) <= FLOAT32 for a in (kernel, expected))
    eps = FLOAT32 if on_cpu and jax.default_backend() == "cpu" else TF32
    coarsest = max(float(jnp.finfo(a.dtype).eps) for a in (kernel, expected, computed))
    taps = prod(kernel.shape[:-1])
    tolerance = 16 * eps * taps**0.5 + (0 if exact else 4 * coarsest)
    difference = relative_difference(computed, expected)
    if not difference <= tolerance:
        raise ValueError(
            f"{who}: both layers must compute the same; got a relative difference of {difference:.2g} from "
            f"{described(source)} on a random image of shape {x.shape}, where rounding explains {tolerance:.1g}. "
            "Remove what changes its weights or images, or give the weights in use."
        )
    return converted


def relative_difference(computed: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference over the largest value; infinite where shapes or NaNs differ."""
    if computed.shape != expected.shape:
        return np.inf
    wide = np.complex128 if np.iscomplexobj(computed) or np.iscomplexobj(expected) else np.float64
    computed, expected = computed.astype(wide), expected.astype(wide)
    same = (computed == expected) | (np.isnan(computed) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        differences = np.where(same, 0, np.abs(computed - expected))
    largest = np.max(np.abs(expected), where=np.isfinite(expected), initial=0)
    worst = np.max(np.where(np.isnan(differences), np.inf, differences), initial=0)
    return float(worst / (largest or 1))


def run_converted(converted: Converted, x: np.ndarray) -> Any:
    """Returns the output of a converted layer in the highest precision of the device."""
    if converted.layer in SHUFFLES:
        return converted.to_nnx()(jnp.asarray(x))
    plain = "plain" if converted.layer == "ResizeConv" else "dilated"
    module, variables = converted.to_linen(precision="highest", implementation=plain)
    return module.apply(variables, jnp.asarray(x))


def random_image(converted: Converted) -> np.ndarray:
    """Returns a random image `(1, *spatial, channels)`, not square, large enough for some output of the layer."""
    arguments = converted.arguments
    if converted.layer in SHUFFLES:
        scale = arguments["scale"]
        enlarges, factor = (converted.layer == "pixel_shuffle"), prod(scale)
        n = [(2 + i) * (1 if enlarges else s) for i, s in enumerate(scale)]
        shape, dtype = (1, *n, 3 * factor if enlarges else 3), np.dtype(np.float32)
    else:
        kernel = converted.parameters["kernel"]
        rank, dtype = kernel.ndim - 2, kernel.dtype
        strides, dilation = (
            geo.per_axis(converted.layer, name, arguments.get(name, 1), rank)
            for name in ("strides", "kernel_dilation")
        )
        padding = arguments["padding"]
        widest = 0 if isinstance(padding, str) else int(np.max(np.abs(padding)))
        spans = [e + 2 * widest for e in geo.kernel_extent(kernel.shape[:-2], dilation)]
        if converted.layer == "ConvTranspose":
            n = [3 + i - (-e // s) for i, (e, s) in enumerate(zip(spans, strides, strict=True))]
        else:
            n = [e + s + i for i, (e, s) in enumerate(zip(spans, strides, strict=True))]
        shape = (1, *n, arguments["in_features"])
    generator = random.Random(0)
    normal = lambda: np.array([generator.gauss() for _ in range(prod(shape))])
    values = normal()
    if np.issubdtype(dtype, np.complexfloating):
        values = values + 1j * normal()
    return values.reshape(shape).astype(dtype)


def writable(who: str, c: Converted, layers: tuple[str, ...]) -> Converted:
    """Returns the layer; raises unless a writer knows its kind, and its kernel has the dtype that it computes in."""
    if c.layer not in layers:
        raise TypeError(f"{who}: layer must be one of {', '.join(layers)}; got {c.layer}.")
    for name in ("dtype", "preferred_element_type"):
        dtype, kernel = c.arguments.get(name), c.parameters.get("kernel")
        if dtype is not None and kernel is not None and jnp.dtype(dtype) != kernel.dtype:
            raise ValueError(
                f"{who}: elsewhere a layer computes in the dtype of its kernel; got {name}={jnp.dtype(dtype)} with a "
                f"kernel of {kernel.dtype}. Cast the parameters, and leave {name} out."
            )
    return c


def check_round_trip(who: str, c: Converted, read_again: Converted) -> None:
    """Raises unless the layer, written and read again, computes the same numbers."""
    (known, *arrays), (known_again, *arrays_again) = (
        _canonical(who, layer) for layer in (c, read_again)
    )
    pairs = zip(arrays, arrays_again, strict=True)
    if known != known_again or not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
        raise ValueError(
            f"{who}: what is written must be what was given; got {known}, and {known_again} when it is read again, or "
            "another kernel or bias. Please report this layer."
        )


def _canonical(who: str, c: Converted) -> tuple[Any, np.ndarray, np.ndarray]:
    """Returns facts, kernel and bias in one form, the same for all arguments that mean the same layer."""
    read = c.arguments.get
    scale = geo.per_axis(who, "scale", read("scale", 1), c.parameters["kernel"].ndim - 2)
    method = read("method", "nearest").replace("area", "nearest")  # the same by whole factors
    known = (c.layer, scale, method, read("order", "CRD"), facts(who, c))
    return known, forward_kernel(c), c.parameters.get("bias", np.zeros(0))


def facts(who: str, c: Converted) -> dict[str, Any]:
    """Returns the integers and the border of a convolution, equal for all arguments that mean the same."""
    transposed = c.layer == "ConvTranspose"
    names = ("kernel_size", "strides", "kernel_dilation")
    return {
        "transposed": transposed,
        **dict(zip(names, sizes(c), strict=True)),
        "feature_group_count": c.arguments.get("feature_group_count", 1),
        "padding": crops(who, c) if transposed else boundary(who, c),
    }
