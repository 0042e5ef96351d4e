"""Weights that PyTorch computes from others, as modules and state dicts hold them.

    in place of `weight`                                  the weight
    weight_orig, weight_mask                              pruning: orig · mask
    weight_g, weight_v                                    weight norm: g · v/‖v‖, over all axes on which g has 1
    weight_orig, weight_u, weight_v                       spectral norm: orig/σ with σ = uᵀ W v, as stored
    parametrizations.weight.original0, .original1         weight norm: g, v
    parametrizations.weight.original, .0._u, .0._v        spectral norm, one or several behind each other

All that is said of `weight` is true of `bias`, and of each name on the left.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tconvjax.interop._converted import as_numpy

ALIGNED = 0.99  # cosine between u and W v, 1 where these are singular vectors


def weights_in_use(
    who: str,
    state: Mapping[str, Any],
    prefix: str,
    *,
    others: bool = False,
    spectral_axis: int | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns weight and bias as the layer uses them.

    Args:
      who: the converter, for error messages.
      state: tensors by name.
      prefix: what precedes the names of this layer.
      others: whether tensors that are not understood may lie beside those of the layer.
      spectral_axis: of spectral norm, if it is known.

    Raises:
      ValueError: for a missing weight, which is named beside what is there, and for tensors that are not understood.
    """
    tensors = {
        str(name).removeprefix(prefix): value
        for name, value in state.items()
        if str(name).startswith(prefix) and value is not None
    }
    layer = _Layer(who, tensors, spectral_axis)
    if not layer.holds("weight"):
        names = sorted(map(str, state), key=lambda name: (-_shared(name, prefix), name))
        found = [n for n in names if "weight" in n] or names
        raise ValueError(
            f"{who}: prefix + 'weight' must be a name in the state dict, or what weight norm, spectral norm or pruning "
            f"keep in its place; got prefix={prefix!r}, weights {found[:8]}."
        )
    weight = layer.resolve("weight")
    bias = layer.resolve("bias") if layer.holds("bias") else None
    rest = tensors.keys() - layer.used
    if prefix and not prefix.endswith("."):  # then 'up_' may precede the names of another layer
        rest = {n for n in rest if n.startswith(("weight", "bias"))}
    if others:
        rest = {n for n in rest if n.startswith("parametrizations.")}
    if rest:
        raise ValueError(
            f"{who}: beside weight and bias, a convolution has only what weight norm, spectral norm and pruning keep; "
            f"got {sorted(rest)[:8]} below prefix={prefix!r}, too. Give the tensors of this layer alone, and the "
            "weight in use if something else makes it."
        )
    return weight, bias


class _Layer:
    """The tensors of a layer, by which a weight is computed, and the names that were used for it."""

    def __init__(self, who: str, tensors: Mapping[str, Any], axis: int | None) -> None:
        self.who, self.tensors, self.axis = who, tensors, axis
        self.used: set[str] = set()

    def holds(self, name: str) -> bool:
        """Returns whether a tensor is there, or what stands in its place."""
        start = f"parametrizations.{name}.original"
        places = (name, f"{name}_orig", f"{name}_g", start, f"{start}0")
        return any(place in self.tensors for place in places)

    def take(self, name: str) -> np.ndarray:
        """Returns a tensor that must be there."""
        if name not in self.tensors:
            raise ValueError(
                f"{self.who}: {name} must be there, too; got {sorted(self.tensors)[:8]}. Give all tensors of the layer."
            )
        self.used.add(name)
        return as_numpy(self.who, name, self.tensors[name])

    def resolve(self, name: str) -> np.ndarray:
        """Returns a tensor in use, in its own dtype."""
        if name in self.tensors or not self.holds(name):
            return self.take(name)
        if f"{name}_mask" in self.tensors:
            original = self.resolve(f"{name}_orig")
            return original * self._mask(f"{name}_mask", original)
        if self.holds(f"{name}_g"):
            return self._normed(self.resolve(f"{name}_g"), self.resolve(f"{name}_v"))
        if f"{name}_u" in self.tensors:
            u, v = self.take(f"{name}_u"), self.take(f"{name}_v")
            return self._divided(self.resolve(f"{name}_orig"), u, v)
        start, i, weight = f"parametrizations.{name}.", 0, np.zeros(0)
        if f"{start}original0" in self.tensors:
            weight, i = self._normed(*(self.take(f"{start}original{n}") for n in range(2))), 1
        elif f"{start}original" in self.tensors:
            weight = self.take(f"{start}original")
        while f"{start}{i}._u" in self.tensors:
            weight = self._divided(weight, *(self.take(f"{start}{i}._{n}") for n in "uv"))
            i += 1
        if i == 0:
            raise ValueError(
                f"{self.who}: what makes {name} of other tensors must be weight norm, spectral norm or pruning, "
                f"and among the tensors; got {sorted(self.tensors)[:8]}. Give the {name} in use."
            )
        return weight

    def _mask(self, name: str, original: np.ndarray) -> np.ndarray:
        self.used.add(name)
        mask = self.tensors[name]
        mask = mask.detach().cpu() if hasattr(mask, "detach") else mask
        mask = np.asarray(mask.float() if hasattr(mask, "float") else mask).astype(original.dtype)
        if mask.shape != original.shape:
            raise ValueError(
                f"{self.who}: a mask has the shape of what it masks; got {name} of shape {mask.shape}, original of "
                f"shape {original.shape}."
            )
        return mask

    def _normed(self, g: np.ndarray, v: np.ndarray) -> np.ndarray:
        fits = g.ndim in {0, v.ndim} and all(
            n in {1, m} for n, m in zip(g.shape or (1,) * v.ndim, v.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"{self.who}: the lengths of weight norm have the axes of its directions; got lengths of shape "
                f"{g.shape}, directions of shape {v.shape}."
            )
        axes = tuple(i for i, n in enumerate(g.shape or (1,) * v.ndim) if n == 1)
        wide = _wide(v)
        with np.errstate(invalid="ignore", divide="ignore"):
            norm = np.sqrt(np.sum(np.abs(wide) ** 2, axes, keepdims=True))
            return (_wide(g) * (wide / norm)).astype(v.dtype)

    def _divided(self, weight: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        shape, wide = weight.shape, _wide(weight)
        matrices = {
            axis: np.moveaxis(wide, axis, 0).reshape(n, -1)
            for axis, n in enumerate(shape)
            if u.shape == (n,) and v.shape == (weight.size // n,) and self.axis in {None, axis}
        }
        if not matrices:
            raise ValueError(
                f"{self.who}: the vectors of spectral norm fit the weight along an axis; got u of shape {u.shape}, v "
                f"of shape {v.shape}, weight of shape {shape}."
            )
        u, v = _wide(u), _wide(v)

        # The axis is not stored. Where several fit, the singular vectors tell; before training nothing does.
        def cosine(axis: int) -> float:
            image = matrices[axis] @ v
            return float(abs(u @ image) / (np.linalg.norm(u) * np.linalg.norm(image) or 1))

        axis = max(matrices, key=cosine)
        if len(matrices) > 1 and cosine(axis) < ALIGNED:
            raise ValueError(
                f"{self.who}: spectral norm must be trained where its vectors fit several axes, so that they tell "
                f"which; got a weight of shape {shape}, u of shape {u.shape}. Give the module, or the weight in use."
            )
        sigma = u @ (matrices[axis] @ v)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (wide / sigma).astype(weight.dtype)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _shared(name: str, prefix: str) -> int:
    """Returns how many characters two names begin with in common."""
    return next(
        (i for i, (a, b) in enumerate(zip(name, prefix, strict=False)) if a != b),
        min(len(name), len(prefix)),
    )
