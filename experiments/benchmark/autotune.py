"""Every implementation of every face of a layer, beside what 'auto' would take.

The cost model of `tconvjax._lowerings` is a guess about machines; this is how to see where it is wrong on this one.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import layers, timing
from experiments.benchmark.config import Layer
from tconvjax import _faces as faces  # noqa: PLC2701
from tconvjax import _geometry as geometry  # noqa: PLC2701
from tconvjax import _lowerings as lowerings  # noqa: PLC2701
from tconvjax._arguments import Call  # noqa: PLC2701

SLOWER = 1.15  # chosen over best: what is worth a mark
# The definition by which the others are tested; nobody should be given it.
NAMES = tuple(name for name in lowerings.LOWERINGS if name != "linear_transpose")


def painted(layer: Layer) -> bool:
    """Whether a layer's forward face is paint, with the input as the small image."""
    nearest = layer.kind == "resize_conv" and layer.method == "nearest"
    return layer.kind == "conv_transpose" or nearest


def layer_geometry(layer: Layer) -> geometry.Geometry:
    """Returns the convolution inside a layer: of a nearest resize-convolution both steps in one."""
    options: dict[str, Any] = {
        "strides": layer.scale if layer.kind in ("conv", "conv_transpose") else 1,
        "padding": layer.pads,
        "feature_group_count": layer.groups,
    }
    if painted(layer) and layer.kind == "resize_conv":
        taps = tuple(k + r - 1 for k, r in zip(layer.kernel, layer.scale, strict=True))
        options["strides"] = layer.scale
        return geometry.conv_transpose_geometry("autotune", layer.size, taps, **options)
    if layer.kind == "conv_transpose":
        options["output_padding"] = layer.output_padding
        return geometry.conv_transpose_geometry("autotune", layer.size, layer.kernel, **options)
    size = layer.output_size if layer.kind == "resize_conv" else layer.size
    return geometry.conv_geometry("autotune", size, layer.kernel, **options)


def shapes(layer: Layer) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the roles x, w and y of `faces.FACES`, without the stack axis."""
    at, g = layer_geometry(layer), layer.groups
    big, small = layer.in_features, layer.kernel_features
    if painted(layer):
        big, small = small, big
    return {
        "x": (layer.batch, *at.big, big),
        "w": (*at.kernel_size, big // g, small),
        "y": (layer.batch, *at.small, small),
    }


def measure(
    layer: Layer, dtype: str, *, rounds: int, budget_s: float, names: Sequence[str] = NAMES
) -> list[dict[str, Any]]:
    """Times all implementations of the three faces of a layer, and returns one entry per face.

    An implementation that misses the budget by one call is timed once.

    Args:
      layer: to measure.
      dtype: of all arrays.
      rounds: as in `timing.interleaved`, like `budget_s`.
      budget_s: see there.
      names: of implementations.
    """
    at, of = layer_geometry(layer), shapes(layer)
    random = np.random.default_rng(0)
    arrays = {
        role: jnp.asarray(random.standard_normal(shape, np.float32)).astype(dtype)
        for role, shape in of.items()
    }
    entries = []
    for face, (roles, result) in faces.FACES.items():
        lhs, rhs = (arrays[role] for role in roles)
        subjects, failed = [], {}
        for name in names:
            run = partial(_run, face, at, dtype, name)
            try:
                subjects.append(layers.compiled(name, run, (lhs, rhs)).subject)
            except RuntimeError as error:  # memory
                failed[name] = str(error).strip().splitlines()[0]
        samples = timing.interleaved(subjects, rounds, budget_s)
        chosen = lowerings.cost.choose(
            face, at, lhs.shape, rhs.shape, "cpu" if jax.default_backend() == "cpu" else None
        )
        common = {"layer": layer.name, "dtype": dtype, "face": face, "result": of[result]}
        entries.append({**common, **judge(chosen, samples), "failed": failed})
    return entries


def judge(chosen: str, samples: Mapping[str, timing.Samples]) -> dict[str, Any]:
    """Returns how far a choice is from the best, by medians.

    Args:
      chosen: name of an implementation.
      samples: of every implementation.
    """
    medians = {name: float(np.median(s.seconds)) for name, s in samples.items()}
    best = min(medians, key=lambda name: medians[name])
    ratio = timing.ratio(samples[chosen].seconds, samples[best].seconds)
    of_medians = medians[chosen] / medians[best]
    return {
        "chosen": chosen,
        "best": best,
        "chosen_over_best": of_medians,
        "paired": None if chosen == best else ratio._asdict(),
        "slower": of_medians > SLOWER,
        "median_ms": {name: 1e3 * value for name, value in medians.items()},
    }


def regret(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns how good the choices are together."""
    ratios = [entry["chosen_over_best"] for entry in entries]
    return {
        "faces": len(entries),
        "slower": sum(entry["slower"] for entry in entries),
        "chosen_over_best": timing.geometric_mean(ratios),
    }


def _run(
    face: str, at: geometry.Geometry, dtype: str, name: str, lhs: jax.Array, rhs: jax.Array
) -> jax.Array:
    call = Call(at, jnp.dtype(dtype), implementation=name)
    out = faces.bind(face, lhs[None], rhs[None], call)
    return out[0]
