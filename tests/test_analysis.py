"""Predictions from integers and weights, against the layer itself and the numbers of the field."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each

from tconvjax import analysis, conv_transpose, initializers


def test_tap_counts_of_the_field():
    assert analysis.tap_counts(3, 2).tolist() == [2, 1]
    assert analysis.tap_counts((3, 3), (2, 2)).tolist() == [[4, 2], [2, 1]]
    for k, s, counts in (
        (5, 2, (3, 2)),
        (5, 3, (2, 2, 1)),
        (6, 4, (2, 2, 1, 1)),
        (9, 4, (3, 2, 2, 2)),
    ):
        assert tuple(analysis.tap_counts(k, s)) == counts
    assert analysis.tap_counts((3,) * 3, 2).max() == 8
    assert analysis.tap_counts(4, (2, 4)).shape == (2, 4)


@each("strides", (1, 2, 3, (3, 2)))
@each("kernel_size", ((3, 2), (4, 5), (1, 3)))
def test_overlap_map_is_a_layer_of_ones(kernel_size, strides):
    options = {"strides": strides, "padding": 1, "output_padding": 0}
    want = conv_transpose(jnp.ones((5, 4, 1)), jnp.ones((*kernel_size, 1, 1)), **options)[..., 0]
    np.testing.assert_array_equal(analysis.overlap_map((5, 4), kernel_size, **options), want)


def test_overlap_map_of_the_article():
    """Odena et al. 2016: in the interior of a k3 s2 layer 1, 2, 1, 2; in 2-D 4, 2 / 2, 1."""
    row = analysis.overlap_map((6,), 3, strides=2)
    assert row.tolist() == [1, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1]
    square = analysis.overlap_map((6, 6), 3, strides=2)
    assert set(square[2:-2, 2:-2].ravel().tolist()) == {1, 2, 4}


@each("transpose_kernel", (False, True))
@each("strides", ((2, 2), (3, 2), (2, 4)))
def test_phase_gains_are_the_answer_to_a_constant(strides, transpose_kernel, key):
    shape = (5, 4, 3, 2) if transpose_kernel else (5, 4, 2, 3)
    kernel = jax.random.normal(key, shape)
    constant = jax.random.normal(key, (2,))
    y = conv_transpose(
        jnp.broadcast_to(constant, (6, 6, 2)),
        kernel,
        strides=strides,
        padding=0,
        transpose_kernel=transpose_kernel,
    )
    gains = analysis.phase_gains(kernel, strides, transpose_kernel=transpose_kernel)
    assert gains.shape == (*strides, 2, 3)
    for p in itertools.product(*map(range, strides)):
        pixel = y[2 * strides[0] + p[0], 3 * strides[1] + p[1]]
        np.testing.assert_allclose(pixel, constant @ gains[p], atol=1e-5)


@pytest.mark.parametrize(("rank", "share"), [(1, 0.100), (2, 0.190), (3, 0.271)])
def test_harmonic_share_of_ones(rank, share):
    np.testing.assert_allclose(
        analysis.harmonic_share(jnp.ones((3,) * rank + (1, 1)), 2), share, atol=5e-4
    )


@pytest.mark.parametrize(
    ("rank", "s", "k"), [(1, 2, 3), (2, 2, 4), (2, 3, 5), (3, 2, 3), (2, 4, 2)]
)
def test_random_kernels_share_one_minus_one_over_s(rank, s, k, key):
    """E[energy on the harmonics] / E[energy] = 1 - s^-d, whatever k, also for k < s."""
    gains = jax.vmap(lambda w: analysis.phase_gains(w, s))(
        jax.random.normal(key, (10_000, *(k,) * rank, 1, 1))
    )
    phases = tuple(range(1, rank + 1))
    deviation = jnp.sum((gains - gains.mean(phases, keepdims=True)) ** 2)
    np.testing.assert_allclose(deviation / jnp.sum(gains**2), 1 - s**-rank, atol=0.02)


def test_harmonic_share_is_that_of_the_dft_and_zero_for_nearest(key):
    kernel = jax.random.normal(key, (5, 3, 2, 4))
    painted = np.flip(np.asarray(kernel, np.float64), (0, 1))
    phase = np.exp(-2j * np.pi * np.outer(np.arange(3), np.arange(5)) / 3)
    phase2 = np.exp(-2j * np.pi * np.outer(np.arange(2), np.arange(3)) / 2)
    energy = np.sum(abs(np.einsum("qa,rb,abio->qrio", phase, phase2, painted)) ** 2, (2, 3))
    want = 1 - energy[0, 0] / energy.sum()
    np.testing.assert_allclose(analysis.harmonic_share(kernel, (3, 2)), want, rtol=1e-5)
    assert analysis.harmonic_share(jnp.ones((2, 2, 1, 1)), 2) == 0
    assert analysis.harmonic_share(jnp.zeros((3, 3, 1, 1)), 2) == 0
    assert jnp.isfinite(
        jax.grad(lambda w: analysis.harmonic_share(w, 2))(jnp.zeros((3, 1, 1)))
    ).all()


SHIFTS = [  # lax SAME, in output pixels; rows s = 2, 3, 4, columns k = 1..9
    (2, [-0.5, 0, 0.5, 0, 0.5, 0, 0.5, 0, 0.5]),
    (3, [-1, -0.5, 0, 0.5, 0, 0.5, 0, 0.5, 0]),
    (4, [-1.5, -1, -0.5, 0, 0.5, 0, 0.5, 0, 0.5]),
]


@pytest.mark.parametrize(("s", "row"), SHIFTS)
def test_center_shift_of_same_padding(s, row):
    assert [analysis.center_map(k, s).shift[0] for k in range(1, 10)] == row


def test_center_shift_of_pytorch_layers():
    for k, s, p, shift in ((4, 2, 1, 0), (3, 2, 1, -0.5), (2, 2, 0, 0)):
        assert analysis.center_map((k, k), s, padding=p).shift == (shift, shift)


def test_k3_s2_has_a_variance_ratio_of_four(key):
    """Random weights: the four phases of a 2-D k3 s2 layer have variances 4 : 2 : 2 : 1."""
    x = jax.random.normal(key, (16, 16, 16, 64))
    kernel = jax.random.normal(jax.random.fold_in(key, 1), (3, 3, 64, 64))
    y = conv_transpose(x, kernel, strides=2, padding=0)[:, 2:-2, 2:-2]
    variance = jnp.array([[y[:, i::2, j::2].var() for j in (0, 1)] for i in (0, 1)])
    np.testing.assert_allclose(variance / variance[1, 1], [[4, 2], [2, 1]], rtol=0.1)


@pytest.mark.parametrize(
    ("k", "s", "phases_equal"), [(4, 2, True), (3, 2, False), (2, 2, True), (5, 3, False)]
)
@each("transpose_kernel", (False, True))
def test_variance_scaling_transpose_keeps_the_variance(k, s, phases_equal, transpose_kernel, key):
    init = initializers.variance_scaling_transpose(s, transpose_kernel=transpose_kernel)
    shape = (k, k, 32, 64) if transpose_kernel else (k, k, 64, 32)
    x = jax.random.normal(key, (8, 12, 12, 64))
    y = conv_transpose(x, init(key, shape), strides=s, transpose_kernel=transpose_kernel)[
        :, k * s : -k * s, k * s : -k * s
    ]
    m = y.shape[1] // s * s
    variance = jnp.array([y[:, i:m:s, j:m:s].var() for i in range(s) for j in range(s)])
    np.testing.assert_allclose(variance.mean(), 1, rtol=0.15)
    assert (variance.max() / variance.min() < 1.15) == phases_equal


def test_variance_scaling_transpose_counts_groups(key):
    init = initializers.variance_scaling_transpose(2, transpose_kernel=True, feature_group_count=4)
    plain = initializers.variance_scaling_transpose(2, feature_group_count=4)
    x = jax.random.normal(key, (8, 12, 12, 64))
    for kernel, transposed in (
        (init(key, (4, 4, 16, 64)), True),
        (plain(key, (4, 4, 16, 64)), False),
    ):
        y = conv_transpose(
            x, kernel, strides=2, transpose_kernel=transposed, feature_group_count=4
        )[:, 4:-4, 4:-4]
        np.testing.assert_allclose(y.var(), 1, rtol=0.1)


def test_adjoint_error_sees_a_transpose_that_is_not(key):
    x, y = jax.random.normal(key, (2, 5))
    assert analysis.adjoint_error(lambda u: jnp.roll(u, 1), lambda v: jnp.roll(v, -1), x, y) < 1e-6
    assert analysis.adjoint_error(lambda u: jnp.roll(u, 1), lambda v: jnp.roll(v, 1), x, y) > 1e-2
    assert analysis.adjoint_error(lambda u: u, lambda v: v, 0 * x, y) == 0
    with pytest.raises(ValueError, match=r"got x \(5, 1\) -> \(5, 1\), y \(5,\) -> \(5,\)"):
        analysis.adjoint_error(lambda u: u, lambda v: v, x[:, None], y)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: analysis.tap_counts((3, 3), (2, 2, 2)),
            "kernel_size must be an int or one int per",
        ),
        (lambda: analysis.tap_counts(0, 2), "kernel_size must be at least 1"),
        (lambda: analysis.phase_gains(jnp.ones((3, 3)), 2), "at least one spatial axis"),
        (
            lambda: analysis.phase_gains(jnp.ones((3, 1, 1)), (2, 2)),
            "strides must be an int or one",
        ),
        (
            lambda: analysis.overlap_map((4,), 3, strides=2, padding="FULL"),
            "padding must be one of",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
