"""Borders: what NumPy pads, and the adjoint of it, for all small sizes and paddings up to three images wide."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from oracles import sources

from tconvjax import _boundary as boundary
from tconvjax._geometry import PADDING_MODES

NUMPY = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}


@each("n", (1, 2, 3, 4))
@each("mode", PADDING_MODES)
def test_pad_is_numpys_and_fold_its_adjoint(mode, n):
    if mode == "reflect" and n == 1:
        pytest.skip("nothing to reflect")
    x = np.random.default_rng(n).normal(size=(2, n, 3)).astype("f")
    pairs = [
        (low, high)
        for low, high in product((-n - 2, -1, 0, 1, n, 2 * n + 3), (-n - 1, -1, 0, 2, 3 * n))
        if n + low + high > 0  # also crops that reach into the other border
    ]
    run = jax.jit(lambda x: [boundary.pad(x, (pair,), mode) for pair in pairs])
    padded = run(jnp.asarray(x))
    draw = np.random.default_rng(20161017)
    ys = [draw.normal(size=p.shape).astype("f") for p in padded]
    folds = jax.jit(
        lambda ys: [
            boundary.fold(y, (n,), (pair,), mode) for y, pair in zip(ys, pairs, strict=True)
        ]
    )(ys)
    for pair, got, y, folded in zip(pairs, padded, ys, folds, strict=True):
        at = sources(n, *pair, mode)
        np.testing.assert_array_equal(got, np.where((at >= 0)[:, None], x[:, at], 0))
        if min(pair) >= 0:
            np.testing.assert_array_equal(got, np.pad(x, ((0, 0), pair, (0, 0)), NUMPY[mode]))
        want = np.zeros((2, n, 3))
        for q, source in enumerate(at):
            if source >= 0:
                want[:, source] += y[:, q]
        np.testing.assert_allclose(folded, want, atol=1e-5)


def test_two_axes_and_any_batch():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 1)).astype("f")
    got = boundary.pad(jnp.asarray(x), ((2, 1), (0, 3)), "reflect")
    want = np.pad(x, ((0, 0), (0, 0), (2, 1), (0, 3), (0, 0)), "reflect")
    np.testing.assert_array_equal(got, want)
    folded = boundary.fold(got, (4, 5), ((2, 1), (0, 3)), "reflect")
    np.testing.assert_allclose(np.vdot(folded, x), np.vdot(got, got), rtol=1e-5)
