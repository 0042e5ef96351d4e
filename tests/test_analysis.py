"""Predictions from integers and weights, against the layer itself and the numbers of the field."""

import itertools
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each

from tconvjax import analysis, conv, conv_transpose, resize
from tconvjax.analysis import CenterMap, Layer


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


@pytest.mark.parametrize(
    ("k", "s", "n", "shift"),  # in input pixels
    [(2, 2, 8, 0), (4, 2, 7, 0), (3, 2, 8, 0.5), (5, 2, 8, 0.5), (3, 2, 7, -0.5), (5, 2, 9, -0.5),
     (1, 2, 8, -0.5), (3, 3, 9, 0), (3, 3, 8, 0), (3, 3, 7, -1)],
)  # fmt: skip
def test_center_shift_of_strided_convolutions(k, s, n, shift):
    """A symmetric kernel of sum 1 shows, on the image x[n] = n, where its outputs are centered."""
    centers = analysis.center_map(k, s, transpose=False, input_shape=(n,))
    assert centers.shift[0] == pytest.approx(-shift / s)
    y = conv(jnp.arange(float(n))[:, None], jnp.full((k, 1, 1), 1 / k), strides=s)[1:-1, 0]
    at = centers.scale[0] * np.asarray(y) + centers.offset[0]
    np.testing.assert_allclose(at, np.arange(1, len(y) + 1), atol=1e-5)


def test_center_map_of_convolutions_reads_divisible_sizes_by_default():
    for k, s in ((3, 2), (3, 3), (5, 2)):
        even = analysis.center_map(k, s, transpose=False, input_shape=(4 * s,))
        assert analysis.center_map(k, s, transpose=False) == even


@pytest.mark.parametrize(
    ("down", "up", "drifts"),
    [
        (analysis.center_map(2, 2, transpose=False), 3, [0.5, 1.5, 3.5, 7.5]),  # pools
        (analysis.center_map(2, 2, transpose=False), 5, [0.5, 1.5, 3.5, 7.5]),
        (analysis.center_map(2, 2, transpose=False), 4, [0, 0, 0, 0]),
        (analysis.center_map(3, 2, transpose=False), 3, [0, 0, 0, 0]),
        (analysis.center_map(3, 2, transpose=False, input_shape=(7,)), 3, [1, 3, 7, 15]),
    ],
)
def test_drift_of_an_encoder_and_decoder(down, up, drifts):
    """The sum over levels l = 1, 2, .. of 2^(l-1) (up - down shift), in pixels of full resolution."""
    for level, drift in enumerate(drifts, start=1):
        layers = [down] * level + [analysis.center_map(up, 2)] * level
        assert reduce(CenterMap.then, layers) == ((1,), (drift,))


def test_center_map_of_two_layers_is_where_an_impulse_lands():
    first, second = analysis.center_map((4, 3), 2, 1), analysis.center_map((6, 2), (3, 2), 0)
    both = first.then(second)
    x = jnp.zeros((4, 5, 1)).at[1, 3].set(1)
    y = conv_transpose(x, jnp.ones((4, 3, 1, 1)), strides=2, padding=1)
    y = conv_transpose(y, jnp.ones((6, 2, 1, 1)), strides=(3, 2), padding=0)[..., 0]
    for axis, i in enumerate((1, 3)):
        centroid = (y.sum(1 - axis) @ jnp.arange(float(y.shape[axis]))) / y.sum()
        np.testing.assert_allclose(both.scale[axis] * i + both.offset[axis], centroid, rtol=1e-6)


def column(*taps):
    return np.array(taps, float)[:, None, None]


def convolved(*kernels):
    return column(*reduce(np.convolve, [np.ravel(w) for w in kernels]))


def keys_cubic(s, a):
    """Keys 1981 at half-pixel positions."""
    t = abs((np.arange(4 * s) - (4 * s - 1) / 2) / s)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    return column(*np.where(t < 1, near, a * (t**3 - 5 * t**2 + 8 * t - 4)))


RANDOM = np.random.default_rng(3).normal(size=7)
ORDERS = [  # why, kernel, stride, zero order
    ("random", column(*RANDOM), 2, 0),
    ("random, s divides k", column(*RANDOM[:6]), 3, 0),
    ("nearest", np.ones((3, 1, 1)), 3, 1),
    ("balanced", None, 2, 1),
    ("linear of the grid", column(1, 2, 1), 2, 2),
    ("triangle", convolved(np.ones(3), np.ones(3)), 3, 2),
    ("half-pixel linear, s = 2", column(1, 3, 3, 1), 2, 3),
    ("half-pixel linear, s = 3", column(1, 2, 3, 2, 1), 3, 2),
    ("half-pixel linear, s = 4", column(1, 3, 5, 7, 7, 5, 3, 1), 4, 2),
    *[(f"cubic, s = {s}", keys_cubic(s, -0.5), s, 3) for s in (2, 3, 4)],
    ("cubic of PyTorch", keys_cubic(2, -0.75), 2, 1),
    *[(f"hold of order {h}", convolved(RANDOM[:4], *[np.ones(3)] * (h + 1)), 3, h + 1)
      for h in range(3)],
    ("hold of a pyramid", convolved([1, 3, 3, 1], [1, 1]), 2, 4),
]  # fmt: skip


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("kernel", "s", "order"), [o[1:] for o in ORDERS], ids=[o[0] for o in ORDERS]
)
def test_zero_order_is_the_first_degree_with_ripple(kernel, s, order):
    """The table and its meaning: polynomials of degree < L come out as polynomials, of degree L they do not."""
    kernel = analysis.balance(column(*RANDOM), s) if kernel is None else kernel
    assert analysis.zero_order(kernel, s) == order
    for degree in (order - 1, order):
        if degree < 0:
            continue
        x = np.linspace(-1, 1, 40)[:, None] ** degree
        y = np.asarray(conv_transpose(x, kernel, strides=s, padding=0))[20:-20, 0]
        ripple = abs(np.diff(y, n=degree + 1)).max()
        assert (ripple < 1e-12) == (degree < order)


def test_zero_order_counts_channels_axes_and_layouts():
    flat, smooth = column(1, 1, 0, 0), column(1, 3, 3, 1)
    pair = np.concatenate([smooth, flat], -1)
    assert analysis.zero_order(pair, 2) == 1  # the worst pair
    assert analysis.zero_order(np.concatenate([smooth, 0 * flat], -1), 2) == 3  # nothing, no ripple
    both = smooth[:, None] * flat[None]  # two axes: the harmonics of each alone count
    assert analysis.zero_order(both, 2) == 1
    assert analysis.zero_order(both, (2, 1)) == 3
    assert analysis.zero_order(both, (1, 2)) == 1
    assert analysis.zero_order(pair.swapaxes(1, 2), 2, transpose_kernel=True) == 1
    assert analysis.zero_order(smooth, 1) == np.inf
    assert analysis.zero_order(0 * smooth, 2) == np.inf
    assert analysis.zero_order(column(1, np.nan), 2) == 0


def test_zero_order_forgives_the_rounding_of_its_dtype(key):
    drawn = jax.random.normal(key, (5, 4, 8, 8))
    assert analysis.zero_order(drawn, (2, 3)) == 0
    assert analysis.zero_order(analysis.balance(drawn, (2, 3)), (2, 3)) == 1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("k", "s"), [((5,), (2,)), ((4, 6), (2, 3)), ((3, 5), (2, 3))])
def test_balance_is_an_orthogonal_projection_onto_equal_gains(k, s):
    """As a matrix over all taps: symmetric, idempotent, and Πs − 1 conditions fewer than taps."""
    taps, conditions = int(np.prod(k)), int(np.prod(s)) - 1
    units = jnp.eye(taps).reshape(taps, *k, 1, 1)
    change = jax.jit(jax.vmap(partial(analysis.balance, strides=s)))(units)
    matrix = np.asarray(change).reshape(taps, taps)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-14)
    np.testing.assert_allclose(matrix @ matrix, matrix, atol=1e-14)
    np.testing.assert_allclose(np.trace(matrix), taps - conditions)


@pytest.mark.usefixtures("x64")
@each("transpose_kernel", (False, True))
def test_balance_makes_every_gain_the_weighted_mean(transpose_kernel, key):
    kernel = jax.random.normal(key, (3, 5, 2, 4), complex)
    layout = {"strides": (2, 3), "transpose_kernel": transpose_kernel}
    before = np.asarray(analysis.phase_gains(kernel, **layout))
    after = analysis.phase_gains(analysis.balance(kernel, **layout), **layout)
    weights = 1 / analysis.tap_counts((3, 5), (2, 3))
    mean = np.einsum("pq,pqio->io", weights, before) / weights.sum()
    np.testing.assert_allclose(after, np.broadcast_to(mean, after.shape), atol=1e-14)


def test_balance_keeps_the_mean_gain_where_strides_divide_and_passes_gradients(key):
    kernel = jax.random.normal(key, (4, 2, 3))
    mean = lambda w: analysis.phase_gains(w, 2).mean(0)
    np.testing.assert_allclose(mean(analysis.balance(kernel, 2)), mean(kernel), atol=1e-6)
    loss = lambda w: jnp.sum(jnp.sin(analysis.balance(w, 2)))
    slope = jax.grad(loss)(kernel)
    np.testing.assert_allclose(slope, analysis.balance(slope, 2), atol=1e-6)  # stays in the plane


def test_k3_s2_has_a_variance_ratio_of_four(key):
    """Random weights: the four phases of a 2-D k3 s2 layer have variances 4 : 2 : 2 : 1."""
    x = jax.random.normal(key, (16, 16, 16, 64))
    kernel = jax.random.normal(jax.random.fold_in(key, 1), (3, 3, 64, 64))
    y = conv_transpose(x, kernel, strides=2, padding=0)[:, 2:-2, 2:-2]
    variance = jnp.array([[y[:, i::2, j::2].var() for j in (0, 1)] for i in (0, 1)])
    np.testing.assert_allclose(variance / variance[1, 1], [[4, 2], [2, 1]], rtol=0.1)


def test_adjoint_error_sees_a_transpose_that_is_not(key):
    x, y = jax.random.normal(key, (2, 5))
    assert analysis.adjoint_error(lambda u: jnp.roll(u, 1), lambda v: jnp.roll(v, -1), x, y) < 1e-6
    assert analysis.adjoint_error(lambda u: jnp.roll(u, 1), lambda v: jnp.roll(v, 1), x, y) > 1e-2
    assert analysis.adjoint_error(lambda u: u, lambda v: v, 0 * x, y) == 0
    with pytest.raises(ValueError, match=r"got x \(5, 1\) -> \(5, 1\), y \(5,\) -> \(5,\)"):
        analysis.adjoint_error(lambda u: u, lambda v: v, x[:, None], y)


@pytest.mark.parametrize(
    ("k", "s", "ratio"),
    [(3, 2, 4), (5, 2, 9 / 4), (7, 2, 16 / 9), (5, 3, 4), (6, 4, 4), (9, 4, 9 / 4), (6, 3, 1)],
)
def test_phase_variance_of_the_field(k, s, ratio):
    assert analysis.phase_variance((k, k), s) == ratio
    assert analysis.phase_variance(k, s) == pytest.approx(ratio**0.5)
    assert analysis.phase_variance((k, 1), s) == np.inf  # a phase without taps


@pytest.mark.parametrize(
    ("k", "energies"),
    [
        (1, [1, 0, 0, 0]),
        (3, [4, 2, 2, 1]),
        (4, [4, 4, 4, 4]),
        (5, [9, 6, 6, 4]),
        (7, [16, 12, 12, 9]),
    ],
)
def test_gradient_coverage_is_the_energy_of_a_gradient(k, energies):
    """Of a convolution with white weights, so summed over an orthonormal basis of kernels."""
    y = jnp.asarray(np.random.default_rng(4).choice([-1.0, 1.0], (12, 12, 1)), jnp.float32)

    def gradient(kernel):
        layer = partial(conv, strides=2, padding=((0, k - 2),) * 2)
        forward = lambda x: layer(x, kernel.reshape(k, k, 1, 1))
        return jax.linear_transpose(forward, jnp.zeros((24, 24, 1)))(y)[0]

    gradients = jax.jit(jax.vmap(gradient))(jnp.eye(k * k))
    inner = np.asarray(gradients).reshape(-1, 12, 2, 12, 2)[:, 4:-4, :, 4:-4]
    energy = np.mean(np.sum(inner**2, 0), (0, 2)).ravel()
    np.testing.assert_allclose(energy, energies, atol=1e-5)
    coverage = analysis.gradient_coverage((k, k), 2)
    np.testing.assert_allclose(coverage.ravel(), energy / energy.sum(), atol=1e-6)


NETWORK = [  # up, down and dilated, padded unevenly; k >= s and k < s
    Layer((3, 2), (2, 3), 0),
    Layer((3, 4), (2, 1), "SAME", transpose=False),
    Layer(2, 3, ((0, 1), (1, 0)), (1, 2), (1, 1)),
    Layer((2, 1), (1, 2), "VALID", transpose=False),
    Layer((1, 3), 2, "SAME"),
]


def applied(x, layers, kernel_of):
    """The network itself, one channel, with kernels by size."""
    for layer in layers:
        options = {"strides": layer.strides, "padding": layer.padding}
        options["kernel_dilation"] = layer.kernel_dilation
        if layer.transpose:
            options["output_padding"] = layer.output_padding
        k = layer.kernel_size
        k = (k,) * (x.ndim - 1) if isinstance(k, int) else k
        face = conv_transpose if layer.transpose else conv
        x = face(x, kernel_of((*k, 1, 1)), **options, implementation="dilated")
    return x


@each("depth", (1, 3, 5))
def test_stacked_overlap_is_a_network_of_ones(depth):
    want = jax.jit(lambda x: applied(x, NETWORK[:depth], jnp.ones))(jnp.ones((4, 3, 1)))[..., 0]
    np.testing.assert_array_equal(analysis.stacked_overlap((4, 3), NETWORK[:depth]), want)


def test_stacked_overlap_of_one_layer_is_its_overlap_map():
    got = analysis.stacked_overlap((5, 4), [Layer((3, 5), (2, 3), 1)])
    want = analysis.overlap_map((5, 4), (3, 5), strides=(2, 3), padding=1)
    np.testing.assert_array_equal(got, want)


@each("depth", (1, 2, 3))
def test_stacked_overlap_has_the_product_of_the_strides_as_period(depth):
    inner = analysis.stacked_overlap((20,), [Layer(3, 2, 0)] * depth)[16:-16]
    period = 2**depth
    np.testing.assert_array_equal(inner[period:], inner[:-period])
    assert (inner[period // 2 :] != inner[: -(period // 2)]).any()
    assert inner[:period].tolist() == {1: [2, 1], 2: [3, 2, 3, 1]}.get(depth, [*inner[:period]])


@each("depth", (1, 2, 3, 5))
def test_fields_are_the_rows_and_columns_of_the_jacobian(depth):
    layers = NETWORK[:depth]
    jacobian = jax.jit(jax.jacrev(lambda x: applied(x, layers, jnp.ones)))(jnp.ones((4, 5, 1)))
    seen = np.asarray(jacobian)[:, :, 0, :, :, 0] > 0
    fields = (
        (analysis.receptive_field, (seen.any((1, 3)), seen.any((0, 2)))),
        (analysis.projective_field, (seen.any((1, 3)).T, seen.any((0, 2)).T)),
    )
    for field, per_axis in fields:
        for ranges, matrix in zip(field((4, 5), layers), per_axis, strict=True):
            for (start, stop), row in zip(ranges, matrix, strict=True):
                marked = np.flatnonzero(row)
                assert (start, stop) == ((marked[0], marked[-1] + 1) if row.any() else (0, 0))


@pytest.mark.parametrize(("k", "s"), [(3, 2), (4, 2), (5, 3), (1, 2), (7, 4)])
def test_outputs_in_a_row_see_as_many_inputs_as_the_formula_says(k, s):
    """r outputs depend on floor((r + k - 1)/s) .. floor((r + k - 2)/s) + 1 inputs, in the interior."""
    (field,) = analysis.receptive_field((12,), [Layer(k, s, 0)])
    inner = field[2 * k : -2 * k]
    for r in (1, 2, 5) if k >= s else (2, 5):  # below, an output may see none
        start, stop = np.where(np.ptp(inner, 1), inner.T, ((99,), (0,)))
        runs = range(len(inner) - r + 1)
        sizes = {stop[n : n + r].max() - start[n : n + r].min() for n in runs}
        assert sizes == {(r + k - 1) // s, (r + k - 2) // s + 1}


def test_receptive_field_of_vgg16():
    """Araujo et al. 2019: 212 pixels at the fifth pool."""
    same, pool = Layer(3, transpose=False), Layer(2, 2, "VALID", transpose=False)
    layers = [layer for n in (2, 2, 3, 3, 3) for layer in (*[same] * n, pool)]
    (field,) = analysis.receptive_field((480,), layers)
    assert np.ptp(field, 1).max() == 212


def test_projective_field_grows_from_layer_to_layer():
    for depth, size in ((1, 3), (2, 7), (3, 15)):  # s·(size − 1) + k
        (field,) = analysis.projective_field((5,), [Layer(3, 2, 0)] * depth)
        assert set(np.ptp(field, 1)) == {size}


@pytest.mark.usefixtures("x64")
@each("s", (2, (3, 2)))
def test_periodic_layers_commute_with_whole_shifts(s):
    draw = np.random.default_rng(5).normal
    kernel = jnp.asarray(draw(size=(3, 4, 2, 2)))
    options = {"strides": s, "padding_mode": "circular"}
    up, down = (lambda x, f=f: f(x, kernel, **options) for f in (conv_transpose, conv))
    error = partial(analysis.equivariance_error, strides=s)
    assert error(up, draw(size=(4, 5, 2)), (6, -6)) < 1e-14  # pixels of the output
    assert error(up, draw(size=(3, 4, 5, 2)), (6, 12)) < 1e-14  # with a batch
    assert error(down, draw(size=(12, 12, 2)), (-6, 12)) < 1e-14  # pixels of the input
    assert error(down, draw(size=(12, 12, 2)), (1, 0)) > 0.1
    assert (
        error(partial(conv_transpose, kernel=kernel, strides=s), jnp.ones((4, 5, 2)), (6, 6)) > 0.1
    )


@pytest.mark.usefixtures("x64")
def test_an_encoder_and_decoder_commutes_with_shifts_by_all_its_strides():
    kernel = jnp.asarray(np.random.default_rng(6).normal(size=(3, 1, 1)))
    options = {"strides": 2, "padding_mode": "circular"}

    def network(x):
        for layer in (conv, conv, conv_transpose, conv_transpose):
            x = jnp.tanh(layer(x, kernel, **options))
        return x

    x = np.random.default_rng(7).normal(size=(16, 1))
    errors = [analysis.equivariance_error(network, x, (t,)) for t in range(9)]
    assert [bool(e < 1e-14) for e in errors] == [t % 4 == 0 for t in range(9)]


def pink_fields(n=64):
    """Amplitude 1/f, no mean and nothing at the Nyquist frequency; a batch of 16."""
    f = np.fft.fftfreq(n)
    radius = np.hypot(f[:, None], f[None])
    radius[0], radius[:, 0] = radius[0], radius[:, 0]
    gain = np.divide(1, radius, where=radius > 0, out=np.zeros_like(radius))
    gain[n // 2], gain[:, n // 2] = 0, 0
    noise = np.random.default_rng(11).normal(size=(16, n, n))
    return np.fft.ifft2(np.fft.fft2(noise) * gain).real[..., None]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("taps", "decibels"),
    [((1, 1), 7.6), ((1, 2, 1), 14.4), ((1, 3, 3, 1), 19.7), ((1, 4, 6, 4, 1), 24.3), (None, -3.5)],
)
def test_part_of_a_pixel_is_off_by_the_energy_of_the_aliases(taps, decibels):
    """Σ_q 4 sin²(πq/s) ‖Y_q‖²; the better the kernel suppresses them, the smaller."""
    if taps is None:
        kernel = jnp.asarray(np.random.default_rng(12).normal(size=(4, 4, 1, 16)))
    else:
        kernel = jnp.asarray(np.multiply.outer(taps, taps)[..., None, None].astype(float))
    up = jax.jit(partial(conv_transpose, kernel=kernel, strides=2, padding_mode="circular"))
    x = pink_fields()
    error = analysis.equivariance_error(up, x, (1, 0), 2)
    np.testing.assert_allclose(-20 * np.log10(error), decibels, atol=1.5)
    spectrum = np.fft.fft2(np.asarray(up(x)), axes=(1, 2))
    frequency = np.fft.fftfreq(128) * 128  # rows: beyond ±32 lies the alias, q = 1
    power = np.sum(abs(spectrum) ** 2, (0, 2, 3))
    alias = 4 * power[abs(frequency) > 32].sum() / power.sum()
    np.testing.assert_allclose(error, alias**0.5, rtol=1e-10)


def test_equivariance_error_of_other_dtypes_and_of_nothing():
    x = pink_fields(16).astype(np.float32)
    nearest = partial(resize, scale=(2, 2))
    want = float(analysis.equivariance_error(nearest, x, (1, 1), 2))
    half = analysis.equivariance_error(nearest, jnp.asarray(x, jnp.bfloat16), (1, 1), 2)
    np.testing.assert_allclose(half, want, rtol=0.05)
    turned = analysis.equivariance_error(nearest, x * np.complex64(1j), (1, 1), 2)
    np.testing.assert_allclose(turned, want, rtol=1e-5)
    assert analysis.equivariance_error(nearest, 0 * x, (1, 1), 2) == 0
    assert jnp.isnan(analysis.equivariance_error(nearest, jnp.nan * x, (1, 1), 2))


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: analysis.tap_counts((3, 3), (2, 2, 2)), "strides must be an int or one int"),
        (lambda: analysis.tap_counts(0, 2), "kernel_size must be at least 1"),
        (lambda: analysis.phase_variance(3, 0), "phase_variance: strides must be at least 1"),
        (lambda: analysis.gradient_coverage((3, 3), (2,)), "gradient_coverage: strides must be"),
        (lambda: analysis.phase_gains(jnp.ones((3, 3)), 2), "at least one spatial axis"),
        (lambda: analysis.phase_gains(jnp.ones((3, 1, 1)), (2, 2)), "strides must be an int or"),
        (lambda: analysis.zero_order(jnp.ones((3, 3)), 2), "zero_order: kernel must have shape"),
        (
            lambda: analysis.balance(jnp.ones((3, 1, 1, 1)), 2),
            r"balance: kernel_size must be at least strides .*=\(3, 1\), strides=\(2, 2\)",
        ),
        (lambda: analysis.overlap_map((4,), 3, strides=2, padding="FULL"), "padding must be one"),
        (
            lambda: analysis.stacked_overlap((4,), [Layer(3, transpose=False, output_padding=1)]),
            "stacked_overlap: output_padding goes with transpose=True",
        ),
        (
            lambda: analysis.receptive_field((2,), [Layer(5, 1, 0, transpose=False)]),
            "receptive_field: the padded input must hold the dilated kernel",
        ),
        (
            lambda: analysis.center_map(3, 2).then(analysis.center_map((3, 3), 2)),
            r"CenterMap.then: both maps .* scale=\(2,\) and then scale=\(2, 2\)",
        ),
        (
            lambda: analysis.equivariance_error(lambda x: x, jnp.ones((4, 1)), (1,), 2),
            r"equivariance_error: fn must enlarge or reduce .* strides=\(2,\), .* \(4,\) -> \(4,\)",
        ),
        (
            lambda: analysis.equivariance_error(lambda x: x, jnp.ones((4, 1)), (1, 1)),
            r"strides=\(1, 1\), spatial shape \(4,\)",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: analysis.balance(np.ones((3, 1, 1), int), 2), "balance: kernel must be floating"),
        (lambda: analysis.projective_field((4,), Layer(3, 2)), "must be a sequence of tconvjax"),
        (lambda: analysis.projective_field((4,), [(3, 2)]), r"analysis.Layer; got \[\(3, 2\)\]"),
        (
            lambda: analysis.equivariance_error(lambda x: x, jnp.ones((4, 1)), (0.5,)),
            "equivariance_error: shift must be an integer; got 0.5",
        ),
        (
            lambda: analysis.equivariance_error(lambda x: x, jnp.ones((4, 1), int), (1,)),
            "equivariance_error: x must be floating or complex",
        ),
    ],
)
def test_refuses_the_kind(call, message):
    with pytest.raises(TypeError, match=message):
        call()
