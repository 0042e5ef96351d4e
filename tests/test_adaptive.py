"""carafe and dysample."""

from itertools import product

import jax
import numpy as np
import pytest
from cases import each
from jax.test_util import check_grads

from tconvjax import _geometry as geometry
from tconvjax import carafe, dysample, resize

pytestmark = pytest.mark.usefixtures("x64")
NUMPY_MODES = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.5, 1, shape)


@each("mode", geometry.PADDING_MODES)
def test_carafe_is_a_weighted_sum_over_a_window(mode):
    scale, window = (2, 3), (3, 5)
    x, kernels = random(2, 3, 4, 2), random(2, 6, 12, 15, seed=1)
    around = np.pad(x, ((0, 0), (1, 1), (2, 2), (0, 0)), NUMPY_MODES[mode])
    want = np.zeros((2, 6, 12, 2))
    for b, i, j in np.ndindex(2, 6, 12):
        seen = around[b, i // 2 : i // 2 + 3, j // 3 : j // 3 + 5]
        want[b, i, j] = np.einsum("uvc,uv", seen, kernels[b, i, j].reshape(window))
    got = carafe(x, kernels, scale=scale, window=window, padding_mode=mode)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


def test_carafe_keeps_constants_if_the_kernels_are_averages():
    kernels = jax.nn.softmax(random(6, 8, 25))
    flat = carafe(np.full((3, 4, 2), 0.7), kernels, scale=(2, 2), padding_mode="replicate")
    assert np.ptp(flat) < 1e-15
    one = np.zeros((4, 9))
    one[:, 4] = 1
    x = random(2, 3)
    got = carafe(x, one, scale=(2,), window=9)
    np.testing.assert_array_equal(got, resize(x, (2,)))


@each("rank", (1, 2, 3))
def test_dysample_without_offsets_is_linear(rank):
    x, scale = random(2, *(3, 4, 2)[:rank], 6), (2, 3, 4)[:rank]
    large = tuple(n * r for n, r in zip(x.shape[1:-1], scale, strict=True))
    got = dysample(x, np.zeros((2, *large, 3, rank)), scale=scale)
    np.testing.assert_allclose(got, resize(x, scale, method="linear"), rtol=0, atol=1e-14)


def test_dysample_looks_where_it_is_told_and_stays_inside():
    x, offsets, scale = random(2, 3, 4, 4), 2 * random(2, 6, 12, 2, 2, seed=1), (2, 3)
    want = np.zeros((2, 6, 12, 4))
    for b, i, j, g in np.ndindex(2, 6, 12, 2):
        at = np.array([(i + 0.5) / 2 - 0.5, (j + 0.5) / 3 - 0.5]) + offsets[b, i, j, g]
        at = np.clip(at, 0, (2, 3))
        for u, v in product(range(3), range(4)):
            near = max(0, 1 - abs(at[0] - u)) * max(0, 1 - abs(at[1] - v))
            want[b, i, j, 2 * g : 2 * g + 2] += near * x[b, u, v, 2 * g : 2 * g + 2]
    np.testing.assert_allclose(dysample(x, offsets, scale=scale), want, rtol=0, atol=1e-13)
    assert np.ptp(dysample(np.full_like(x, 0.7), offsets, scale=scale)) < 1e-15


def test_both_are_differentiable_in_both_arguments_and_map():
    x, kernels, offsets = random(3, 2, 2), random(6, 4, 9, seed=1), 0.3 * random(6, 4, 1, 2, seed=2)
    reassemble = lambda x, k: carafe(x, k, scale=(2, 2), window=3)
    sample = lambda x, o: dysample(x, o, scale=(2, 2))
    for run, other in ((reassemble, kernels), (sample, offsets)):
        check_grads(run, (x, other), order=1, rtol=1e-4, atol=1e-4)
        mapped = jax.vmap(run)(x[None], other[None])[0]
        np.testing.assert_allclose(mapped, run(x, other), rtol=0, atol=1e-14)


def test_dtype_is_that_of_the_image_and_half_precision_adds_in_float32():
    x, kernels, offsets = (
        random(3, 2, 2),
        random(6, 4, 25, seed=1),
        0.3 * random(6, 4, 2, 2, seed=2),
    )
    for run, other in ((carafe, kernels), (dysample, offsets)):
        want = np.asarray(run(x, other, scale=(2, 2)))
        half = x.astype(np.float16), other.astype(np.float16)
        got = run(*half, scale=(2, 2))
        in_single = run(*(a.astype(np.float32) for a in half), scale=(2, 2))
        assert got.dtype == np.float16
        np.testing.assert_array_equal(got, np.asarray(in_single, np.float16))
        rotated = run(x * 1j, other, scale=(2, 2))
        np.testing.assert_allclose(rotated, want * 1j, rtol=0, atol=1e-14)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, k, _: carafe(x, k, scale=(2,), window=4),
            "carafe: window must be odd, .* got window",
        ),
        (
            lambda x, k, _: carafe(x, k, scale=(2,), window=3),
            r"\(\*batch, .* = \(8, 3\); got \(8, 5\)",
        ),
        (lambda x, k, _: carafe(x, k, scale=(2,), padding_mode="no"), "carafe: padding_mode"),
        (
            lambda x, _, o: dysample(x, o, scale=(3,)),
            r"offsets .*\(12, '..', 1\); got float64\[8, 2, 1\]",
        ),
        (lambda x, _, o: dysample(x[:, :3], o, scale=(2,)), "got groups=2, channels=3"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((4, 4)), np.ones((8, 5)), np.zeros((8, 2, 1)))
    with pytest.raises(TypeError, match="a filter needs"):
        carafe(np.ones((4, 4), int), np.ones((8, 5)), scale=(2,))


def test_dysample_of_nothing_is_nothing():
    for shape in ((4, 6, 0), (0, 4, 6, 2)):
        x = np.zeros(shape)
        offsets = np.zeros((*shape[:-3], 8, 12, 1, 2))
        assert dysample(x, offsets, scale=(2, 2)).shape == (*shape[:-3], 8, 12, shape[-1])


def test_dysample_looks_at_the_border_from_any_distance():
    x = np.random.default_rng(0).normal(size=(4, 5, 2))
    offsets = np.zeros((4, 5, 2, 2))
    offsets[0, 0, 0], offsets[1, 1, 1] = (np.inf, -np.inf), (-1e300, 1e300)
    want = x.copy()
    want[0, 0, 0], want[1, 1, 1] = x[-1, 0, 0], x[0, -1, 1]
    np.testing.assert_array_equal(dysample(x, offsets, scale=(1, 1)), want)
    offsets[2, 2, 0, 1] = np.nan
    want[2, 2, 0] = np.nan
    np.testing.assert_array_equal(dysample(x, offsets, scale=(1, 1)), want)
    moved = jax.grad(lambda o: dysample(x, o, scale=(1, 1))[0, 0, 0])(offsets)
    assert not np.any(moved[0, 0, 0])


def test_an_int_serves_all_axes_where_another_argument_fixes_their_number():
    x = random(4, 3, 2)
    np.testing.assert_array_equal(
        dysample(x, np.zeros((8, 6, 1, 2)), 2), dysample(x, np.zeros((8, 6, 1, 2)), scale=(2, 2))
    )
    kernels = random(8, 6, 15, seed=1)
    np.testing.assert_array_equal(
        carafe(x, kernels, 2, window=(3, 5)), carafe(x, kernels, scale=(2, 2), window=(3, 5))
    )
    with pytest.raises(TypeError, match=r"carafe: scale must be a sequence .* got scale=2"):
        carafe(x, random(8, 6, 9), 2, window=3)
    with pytest.raises(TypeError, match=r"carafe: kernels must be real for a real x; .*complex128"):
        carafe(x, kernels + 1j, 2, window=(3, 5))
