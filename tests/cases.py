"""One table of geometries, crossed with lowerings and transformations by the test files."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tconvjax import conv
from tconvjax._arguments import IMPLEMENTATIONS


@dataclass(frozen=True)
class Case:
    """A forward convolution from a big to a small image; two images per batch."""

    why: str
    big: tuple[int, ...]
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Any
    kernel_dilation: tuple[int, ...]
    feature_group_count: int
    in_features: int
    out_features: int
    padding_mode: str = "zeros"

    @property
    def options(self) -> dict[str, Any]:
        names = (
            "strides",
            "padding",
            "padding_mode",
            "kernel_dilation",
            "feature_group_count",
        )
        return {name: getattr(self, name) for name in names}

    @property
    def image_shape(self) -> tuple[int, ...]:
        return (2, *self.big, self.in_features)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        per_group = self.in_features // self.feature_group_count
        return (*self.kernel_size, per_group, self.out_features)


def row(why, big, k, s, padding, d=None, g=1, i=2, o=3, mode="zeros"):
    return Case(why, big, k, s, padding, d or (1,) * len(k), g, i, o, mode)


CASES = [
    row("s divides k", (8, 6), (4, 4), (2, 2), 1),
    row("s does not divide k", (7, 9), (3, 3), (2, 2), 1),
    row("axes differ", (7, 8), (2, 3), (3, 1), ((0, 1), (2, 0))),
    row("SAME, odd sizes", (7, 9), (3, 2), (2, 3), "SAME"),
    row("SAME, s > k", (7, 8), (1, 2), (3, 3), "SAME"),
    row("VALID, pixels left over", (8, 9), (3, 2), (2, 2), "VALID"),
    row("SAME_LOWER", (7, 8), (4, 3), (2, 3), "SAME_LOWER"),
    row("SAME_LOWER, s > k", (8, 7), (2, 3), (5, 4), "SAME_LOWER"),
    row("stride 1", (5, 6), (3, 2), (1, 1), "SAME"),
    row("dilation", (9, 8), (3, 2), (2, 2), ((2, 1), (1, 1)), (2, 3)),
    row("gcd of stride and dilation", (11, 9), (3, 3), (4, 2), ((4, 3), (2, 2)), (2, 4)),
    row("negative padding", (9, 8), (3, 3), (2, 2), ((-1, 0), (1, -2))),
    row("padding beyond the kernel", (4, 5), (2, 3), (2, 1), ((3, 2), (4, 1))),
    row("groups", (6, 7), (3, 3), (2, 2), 1, g=2, i=4, o=6),
    row("depthwise with multiplier", (6, 5), (3, 2), (2, 1), "SAME", g=3, i=3, o=6),
    row("one axis", (11,), (5,), (3,), ((2, 1),)),
    row("one axis, groups and dilation", (13,), (3,), (2,), ((1, 2),), (3,), g=2, i=2, o=4),
    row("three axes", (4, 5, 3), (2, 3, 2), (2, 1, 2), "SAME"),
    row("four axes", (3, 4, 2, 3), (2, 3, 1, 2), (1, 2, 2, 1), ((0, 1), (1, 1), 0, (1, 0))),
    row("circular, even kernel", (6, 8), (4, 2), (2, 2), "SAME", mode="circular"),
    row(
        "circular, wider than the image", (3, 4), (5, 3), (2, 1), ((5, 4), (2, 1)), mode="circular"
    ),
    row("circular, groups, dilation", (7, 6), (3, 2), (1, 2), 2, (2, 3), g=2, mode="circular", o=4),
    row("reflect", (7, 5), (3, 4), (2, 1), ((1, 2), (3, 1)), mode="reflect"),
    row("reflect, twice", (3, 2), (3, 3), (1, 1), ((4, 5), (2, 3)), mode="reflect"),
    row(
        "replicate, cropped on one side",
        (6, 7),
        (3, 3),
        (2, 3),
        ((3, -1), (-2, 2)),
        mode="replicate",
    ),
    row("replicate, three axes", (3, 2, 4), (2, 3, 2), (1, 2, 2), 1, mode="replicate"),
    row("one pixel", (1, 1), (3, 3), (2, 2), 1),
    row("unit kernel", (4, 3), (1, 1), (1, 1), 0),
    row("k = s, cropped on both sides", (6, 5), (2, 3), (2, 2), ((1, 1), (0, 0)), i=1, o=2),
]
LOWERINGS = IMPLEMENTATIONS
FEW = [case for case in CASES if case.why in {"axes differ", "dilation", "groups", "three axes"}]


def arrays(case):
    """Big image, forward kernel, small image; random, in float64."""
    draw = np.random.default_rng(20161017).normal
    x, kernel = draw(size=case.image_shape), draw(size=case.kernel_shape)
    small = jax.eval_shape(lambda x, w: conv(x, w, **case.options), x, kernel)
    return tuple(jnp.asarray(a) for a in (x, kernel, draw(size=small.shape)))


def each(name, values):
    """Parametrizes a test with readable names."""
    ids = [getattr(v, "why", getattr(v, "__name__", str(v))) for v in values]
    return pytest.mark.parametrize(name, values, ids=ids)


def together(*functions):
    """Returns the results of all functions of the same arrays, as one program: most of the time goes to compiling."""
    return jax.jit(lambda *args: [f(*args) for f in functions])
