"""What a converter believes: classes that the peer itself defines, and numbers that were compared.

A layer that can be called must be of the peer's own class, not of a subclass or a wrapper, which may compute anything.
It is then run beside the converted one. An object that cannot be called has its attributes to go by, and nothing that
could contradict them.
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
TF32 = 2.0**-10  # in which accelerators multiply float32 unless they are told otherwise


def described(value: Any) -> str:
    """Returns the name of a class or function and of the module that defines it."""
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__qualname__} of {kind.__module__}"


def is_own(cls: type, pattern: str, packages: tuple[str, ...], *, called: bool) -> bool:
    """Returns whether a class has a name of the pattern and, if it can be called, is defined in one of the packages."""
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
    """Returns the converted layer if it computes what its source does on a random image, and else raises.

    Args:
      who: the converter, for error messages.
      source: the layer of the peer.
      run: calls it on an image `(1, *spatial, channels)`, without changing it.
      converted: the layer.
      on_cpu: whether the source runs on the CPU, where float32 is multiplied as it is.
    """
    x = image(converted)
    with jax.ensure_compile_time_eval():
        try:
            want = np.asarray(run(x))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise ValueError(
                f"{who}: a layer must work before it is converted; got {described(source)}, which fails on an image of "
                f"shape {x.shape} with {reason!r}. Convert the layer that its weights belong to."
            ) from error
        got = np.asarray(run_converted(converted, x))
    kernel = converted.parameters.get("kernel", x)
    exact = all(float(jnp.finfo(a.dtype).eps) <= FLOAT32 for a in (kernel, want))
    eps = FLOAT32 if on_cpu and jax.default_backend() == "cpu" else TF32
    coarsest = max(float(jnp.finfo(a.dtype).eps) for a in (kernel, want, got))
    taps = prod(kernel.shape[:-1])
    tolerance = 16 * eps * taps**0.5 + (0 if exact else 4 * coarsest)
    difference = relative_difference(got, want)
    if not difference <= tolerance:
        raise ValueError(
            f"{who}: both layers must compute the same; got a relative difference of {difference:.2g} from "
            f"{described(source)} on a random image of shape {x.shape}, where rounding explains {tolerance:.1g}. "
            "Remove what changes its weights or images, or give the weights in use."
        )
    return converted


def relative_difference(got: np.ndarray, want: np.ndarray) -> float:
    """Returns the largest difference, as a part of the largest value; infinite where shapes or NaNs differ."""
    if got.shape != want.shape:
        return np.inf
    wide = np.complex128 if np.iscomplexobj(got) or np.iscomplexobj(want) else np.float64
    got, want = got.astype(wide), want.astype(wide)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore"):
        differences = np.where(same, 0, np.abs(got - want))
    largest = np.max(np.abs(want), where=np.isfinite(want), initial=0)
    worst = np.max(np.where(np.isnan(differences), np.inf, differences), initial=0)
    return float(worst / (largest or 1))


def run_converted(converted: Converted, x: np.ndarray) -> Any:
    """Returns the output of a converted layer, computed as exactly as the device can."""
    if converted.layer in SHUFFLES:
        return converted.to_nnx()(jnp.asarray(x))
    plain = "plain" if converted.layer == "ResizeConv" else "dilated"
    module, variables = converted.to_linen(precision="highest", implementation=plain)
    return module.apply(variables, jnp.asarray(x))


def image(converted: Converted) -> np.ndarray:
    """Returns a random image `(1, *spatial, channels)`, not square, on which the layer has some output."""
    arguments = converted.arguments
    if converted.layer in SHUFFLES:
        scale = arguments["scale"]
        small, factor = (converted.layer == "pixel_shuffle"), prod(scale)
        n = [(2 + i) * (1 if small else s) for i, s in enumerate(scale)]
        shape, dtype = (1, *n, 3 * factor if small else 3), np.dtype(np.float32)
    else:
        kernel = converted.parameters["kernel"]
        rank, dtype = kernel.ndim - 2, kernel.dtype
        read = {n: arguments.get(n, 1) for n in ("strides", "kernel_dilation")}
        strides, dilation = (geo.per_axis(converted.layer, n, v, rank) for n, v in read.items())
        padding = arguments["padding"]
        widest = 0 if isinstance(padding, str) else int(np.max(np.abs(padding)))
        reach = [e + 2 * widest for e in geo.kernel_extent(kernel.shape[:-2], dilation)]
        if converted.layer == "ConvTranspose":
            n = [3 + i - (-r // s) for i, (r, s) in enumerate(zip(reach, strides, strict=True))]
        else:
            n = [r + s + i for i, (r, s) in enumerate(zip(reach, strides, strict=True))]
        shape = (1, *n, arguments["in_features"])
    draw = random.Random(0)
    parts = 1 + np.issubdtype(dtype, np.complexfloating)
    values = [np.array([draw.gauss() for _ in range(prod(shape))]) for _ in range(parts)]
    whole = values[0] if parts == 1 else values[0] + 1j * values[1]
    return whole.reshape(shape).astype(dtype)


def writable(who: str, c: Converted, layers: tuple[str, ...]) -> Converted:
    """Returns the layer that is to be written, or refuses one that computes in another dtype than its kernel's."""
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


def same_layer(who: str, c: Converted, again: Converted) -> None:
    """Raises unless what was written, when it is read again, is the layer that was given."""
    (facts, *arrays), (others, *copies) = (_canonical(who, layer) for layer in (c, again))
    pairs = zip(arrays, copies, strict=True)
    if facts != others or not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
        raise ValueError(
            f"{who}: what is written must be what was given; got {facts}, and {others} when it is read again, or "
            "another kernel or bias. Please report this layer."
        )


def _canonical(who: str, c: Converted) -> tuple[Any, np.ndarray, np.ndarray]:
    """Returns what fixes the numbers of a layer, whatever words it is described in: facts, kernel and bias."""
    place = crops(who, c) if c.layer == "ConvTranspose" else boundary(who, c)
    groups, scale = (c.arguments.get(n, 1) for n in ("feature_group_count", "scale"))
    facts = (c.layer, *sizes(c), groups, scale, place)
    return facts, forward_kernel(c), c.parameters.get("bias", np.zeros(0))
