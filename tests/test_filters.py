"""upfirdn and blur_pool."""

from functools import partial
from itertools import product
from math import comb

import jax
import numpy as np
import pytest
from cases import each
from jax import export
from scipy import signal

from tconvjax import _geometry as geometry
from tconvjax import analysis, blur_pool, conv_transpose, hold, max_blur_pool, resize, upfirdn

pytestmark = pytest.mark.usefixtures("x64")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.5, 1, shape)


def defined(x, h, up, down, pads):
    """Inserts zeros, pads or crops, convolves where the filter fits and subsamples; x (*spatial, channels)."""
    z = np.zeros((*(n * u for n, u in zip(x.shape, up, strict=False)), x.shape[-1]))
    z[tuple(slice(None, None, u) for u in up)] = x
    z = np.pad(z, (*((max(lo, 0), max(hi, 0)) for lo, hi in pads), (0, 0)))
    z = z[
        tuple(
            slice(max(-lo, 0), n - max(-hi, 0)) for (lo, hi), n in zip(pads, z.shape, strict=False)
        )
    ]
    y = np.zeros((*(n - k + 1 for n, k in zip(z.shape, h.shape, strict=False)), x.shape[-1]))
    for o in product(*map(range, y.shape[:-1])):
        for a in product(*map(range, h.shape)):
            y[o] += h[a] * z[tuple(i + k - 1 - t for i, k, t in zip(o, h.shape, a, strict=True))]
    return y[tuple(slice(None, None, d) for d in down)]


CASES = [  # up, down, padding, filter shape
    ((2, 1), (1, 3), ((2, 1), (0, 1)), (4, 3)),
    ((1, 1), (2, 3), ((-1, 2), (3, -1)), (3, 2)),
    ((3, 2), (1, 1), ((2, 0), (-1, 4)), (2, 5)),
    ((3, 2), (2, 2), ((0, 5), (2, -3)), (3, 4)),
    ((1, 1), (1, 1), ((0, 0), (6, 7)), (1, 3)),
    ((2,), (3,), ((4, 3),), (5,)),
    ((2, 1, 1), (1, 2, 1), ((1, 1),) * 3, (2, 3, 1)),
    ((2, 1), (1, 1), ((6, 7), (5, 6)), (14, 11)),  # more taps than a loop is made of
]


@pytest.mark.parametrize(("up", "down", "padding", "size"), CASES)
def test_upfirdn_is_its_four_steps(up, down, padding, size):
    x, h = random(2, *(5, 4, 3)[: len(size)], 2), random(*size, seed=1)
    want = [defined(image, h, up, down, padding) for image in x]
    got = upfirdn(x, h, up=up, down=down, padding=padding)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("up", "down", "k"), [(1, 1, 4), (3, 1, 5), (1, 2, 3), (3, 2, 7), (4, 2, 2)]
)
def test_upfirdn_is_that_of_scipy(up, down, k):
    x, h = random(7), random(k, seed=1)
    got = upfirdn(x[:, None], h, up=up, down=down, padding=((k - 1, k - up),))
    np.testing.assert_allclose(got[:, 0], signal.upfirdn(h, x, up, down), rtol=0, atol=1e-13)


def test_upfirdn_is_a_filter_then_a_rate():
    x, h = random(6, 5, 2), random(3, 4, seed=1)
    every = upfirdn(x, h, padding=2)
    np.testing.assert_allclose(upfirdn(x, h, down=(2, 3), padding=2), every[::2, ::3], atol=1e-13)
    inner = resize(x, (2, 2), method="binomial")[2:-2, 2:-2]
    hat = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    np.testing.assert_allclose(
        upfirdn(x, hat, up=2, padding=((2, 1),) * 2)[2:-2, 2:-2], inner, atol=1e-13
    )


@pytest.mark.parametrize(("up", "down", "padding", "size"), CASES[1:4])
def test_upfirdn_is_linear_in_both_arguments_and_so_are_its_transformations(
    up, down, padding, size
):
    x, h = random(2, 4, 3, 2), random(*size, seed=1)
    run = lambda x, h: upfirdn(x, h, up=up, down=down, padding=padding)
    y = random(*jax.eval_shape(run, x, h).shape, seed=2)

    @jax.jit
    def transformed(x, h):
        maps = jax.vmap(run, (3, None), 3)(x[..., None], h), jax.vmap(run, (None, 0))(x, h[None])
        return run(x, h), jax.vjp(run, x, h)[1](y), maps

    out, (to_x, to_h), (over_x, over_h) = transformed(x, h)
    np.testing.assert_allclose(over_x[..., 0], out, rtol=0, atol=1e-12)
    np.testing.assert_allclose(over_h[0], out, rtol=0, atol=1e-12)
    u, v = random(*x.shape, seed=3), random(*h.shape, seed=4)
    np.testing.assert_allclose(np.vdot(to_x, u), np.vdot(y, run(u, h)), rtol=1e-12)
    np.testing.assert_allclose(np.vdot(to_h, v), np.vdot(y, run(x, v)), rtol=1e-12)


def up_two(x):
    return upfirdn(x, np.array([[1, 2, 0.5], [3, 1, 1]], x.dtype), up=2)


def pooled(x):
    return blur_pool(x, (2, 2))


def held(x):
    return hold(x, (2, 2), order=1)


@each("function", (up_two, pooled, held))
def test_dtypes_are_kept_and_half_precision_calculates_in_float32(function):
    x = random(2, 5, 4, 2)
    for kind in (np.float32, np.complex64):
        got = function(x.astype(kind))
        assert got.dtype == kind
        np.testing.assert_allclose(got, function(x), rtol=1e-5, atol=1e-5)
    half = x.astype(np.float16)
    want = np.asarray(function(half.astype(np.float32)), np.float16)
    np.testing.assert_array_equal(function(half), want)
    assert function(half).dtype == np.float16
    assert function(x[:0]).shape[0] == 0


@each("function", (up_two, pooled, held))
def test_exports_with_symbolic_sizes(function):
    sizes = export.symbolic_shape("b, h, w, c", constraints=("h >= 4", "w >= 4"))
    exported = export.export(jax.jit(function))(jax.ShapeDtypeStruct(sizes, np.float64))
    x = random(2, 5, 4, 2)
    np.testing.assert_allclose(exported.call(x), function(x), rtol=0, atol=1e-13)


NUMPY_MODES = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}


@each("mode", geometry.PADDING_MODES)
@pytest.mark.parametrize(("size", "strides"), [(4, (2, 3)), (3, (1, 2)), (1, (2, 2)), (6, (3, 1))])
def test_blur_pool_is_blur_then_every_sth(mode, size, strides):
    x = random(2, 5, 4, 2)
    want = np.pad(x, ((0, 0), *(((size - 1) // 2, size // 2),) * 2, (0, 0)), NUMPY_MODES[mode])
    taps = np.array([comb(size - 1, a) for a in range(size)]) / 2 ** (size - 1)
    for axis in (1, 2):
        want = np.apply_along_axis(np.convolve, axis, want, taps, "valid")
    want = want[:, :: strides[0], :: strides[1]]
    got = blur_pool(x, strides, filter_size=size, padding_mode=mode)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


def test_blur_pool_keeps_constants_and_removes_the_finest_pattern():
    for mode in ("circular", "reflect", "replicate"):
        assert np.ptp(blur_pool(np.full((5, 6, 1), 0.7), (2, 2), padding_mode=mode)) < 1e-15
    board = np.indices((6, 8)).sum(0)[..., None] % 2 - 0.5
    assert abs(blur_pool(board, (2, 2), padding_mode="circular")).max() < 1e-15


def test_blur_pool_moves_with_the_stride():
    x = random(8, 6, 2)
    run = lambda x: blur_pool(x, (2, 3), padding_mode="circular")
    moved = run(np.roll(x, (2, 3), (0, 1)))
    np.testing.assert_allclose(moved, np.roll(run(x), (1, 1), (0, 1)), atol=1e-15)


def test_blur_pool_is_linear_and_so_are_its_transformations():
    x, u, y = random(2, 5, 4, 2), random(2, 5, 4, 2, seed=1), random(2, 3, 2, 2, seed=2)
    run = lambda x: blur_pool(x, (2, 3))
    mapped, cotangent = jax.jit(lambda x: (jax.vmap(run)(x), jax.vjp(run, x)[1](y)[0]))(x)
    np.testing.assert_allclose(mapped, run(x), rtol=0, atol=1e-14)
    np.testing.assert_allclose(np.vdot(cotangent, u), np.vdot(y, run(u)), rtol=1e-12)


@pytest.mark.parametrize(("strides", "size"), [((2, 3), 4), ((1, 2), 3), ((4, 1), 1)])
def test_max_blur_pool_blurs_the_largest(strides, size):
    x = random(2, 5, 4, 2)
    pads = ((0, 0), *(((s - 1) // 2, s // 2) for s in strides), (0, 0))
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, pads, constant_values=-np.inf), strides, (1, 2)
    )
    want = blur_pool(windows.max((-1, -2)), strides, filter_size=size, padding_mode="replicate")
    got = max_blur_pool(x, strides, filter_size=size, padding_mode="replicate")
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("pool", "s", "levels", "drift"),
    [
        (max_blur_pool, 2, 3, -3.5),
        (partial(max_blur_pool, filter_size=3), 2, 3, 0.0),
        (partial(max_blur_pool, filter_size=3, aligned=True), 2, 3, 0.0),
        (max_blur_pool, 3, 2, 2.0),  # 1/2 + 3/2
        (partial(max_blur_pool, filter_size=5, aligned=True), 3, 2, 0.0),
        (blur_pool, 2, 3, 0.0),
        (partial(blur_pool, filter_size=3), 2, 2, 1.5),  # (s − 1)/2 · (1 + 2)
        (blur_pool, 3, 2, 2.0),
    ],
)
def test_levels_move_an_image_as_far_as_they_say(pool, s, levels, drift):
    """The center of one pixel, halved level by level and enlarged again, over all places of a period."""
    period, n = s**levels, 8 * s**levels
    places = np.arange(4 * period, 5 * period)
    y = np.eye(n)[places][..., None]
    for _ in range(levels):
        y = pool(y, (s,))
    y = np.asarray(resize(y, (period,)))[..., 0]
    centers = (y * np.arange(n)).sum(1) / y.sum(1)
    np.testing.assert_allclose(np.mean(centers - places), drift, atol=1e-9)


@each("order", (0, 1, 2))
@each("mode", geometry.PADDING_MODES)
def test_hold_is_a_convolution_with_ones(order, mode):
    x, scale = random(2, 6, 7, 2), (2, 3)
    want = x
    for axis, s in enumerate(scale, start=1):
        taps = np.ones(1)
        for _ in range(order + 1):
            taps = np.convolve(taps, np.ones(s) / s)
        pads = [(0, 0)] * 4
        pads[axis] = (len(taps) - 1) // 2, len(taps) // 2
        want = np.pad(want, pads, NUMPY_MODES[mode])
        want = np.apply_along_axis(np.convolve, axis, want, taps, "valid")
    got = hold(x, scale, order=order, padding_mode=mode)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("k", "s"), [(3, 2), (4, 2), (5, 3), (2, 3)])
@each("order", (0, 1, 2))
def test_hold_raises_the_zero_order_of_any_kernel(k, s, order):
    kernel = random(k, k, 2, 3)
    impulse = np.zeros((9, 9, 2))
    impulse[4, 4] = 1  # of both inputs: a kernel with one input is painted
    painted = conv_transpose(impulse, kernel, strides=s)
    smooth = hold(painted, (s, s), order=order)
    assert analysis.zero_order(painted[:, :, None], s) == 0
    assert analysis.zero_order(smooth[:, :, None], s) == order + 1
    flat = hold(conv_transpose(np.ones((9, 9, 2)), kernel, strides=s), (s, s), order=order)
    inside = slice(3 * s, -3 * s)
    assert np.ptp(flat[inside, inside], (0, 1)).max() < 1e-13


def test_hold_of_order_two_is_the_filter_of_stylegan():
    x, taps = random(6, 5, 2), np.array([1, 3, 3, 1]) / 8
    want = upfirdn(x, np.outer(taps, taps), padding=((1, 2), (1, 2)))
    got = hold(x, (2, 2), order=2, padding_mode="zeros")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: hold(x, 2), TypeError, r"hold: scale must be a sequence .* got scale=2"),
        (lambda x: hold(x, (2,), order=-1), ValueError, "hold: order must be at least 0"),
        (lambda x: hold(x, (2,), padding_mode="same"), ValueError, "hold: padding_mode"),
        (lambda x: hold(x.astype(int), (2,)), TypeError, "hold: a filter needs"),
        (lambda x: max_blur_pool(x * 1j, (2,)), TypeError, "max_blur_pool: the largest pixel"),
        (lambda x: max_blur_pool(x, (2,), filter_size=0), ValueError, "filter_size"),
        (lambda x: max_blur_pool(x, (2,), aligned=True), ValueError, "filter_size=4. Use 3 or 5"),
        (lambda x: blur_pool(x, (2,), filter_size=2000), ValueError, "at most 1024 taps"),
        (lambda x: hold(x, (2,), order=2000), ValueError, "order=2000, which makes"),
    ],
)
def test_holds_and_max_blur_pools_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((4, 1)))


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            {"filter": np.ones((9, 2))},
            ValueError,
            r"spatial shape \(4, 5\).*filter shape \(9, 2\). Pad more",
        ),
        ({"padding": (-2, 0)}, ValueError, r"padding=\(\(-2, -2\), \(0, 0\)\)"),
        ({"padding": "no"}, ValueError, "must be an int, .* got padding='no'"),
        ({"padding": (1, 2, 3)}, ValueError, r"got padding=\(1, 2, 3\) for 2 spatial axes"),
        ({"padding": 1.5}, TypeError, "padding must be an integer; got 1.5"),
        ({"up": 0}, ValueError, r"up must be at least 1; got up=\(0, 0\)"),
        ({"down": (2,)}, ValueError, r"got down=\(2,\) for 2 spatial axes"),
        (
            {"filter": np.ones(())},
            ValueError,
            r"at least one; got shape \(4, 5, 1\) for filter shape \(\)",
        ),
        ({"filter": np.ones((2, 2, 2))}, ValueError, r"for filter shape \(2, 2, 2\)"),
        ({"filter": np.ones((2, 0))}, ValueError, r"shape of filter must be at least 1"),
        (
            {"filter": np.ones((2, 2), int), "x": np.ones((4, 5, 1), int)},
            TypeError,
            "floating or complex",
        ),
        ({"filter": None}, TypeError, "filter must be an array; got filter of type NoneType"),
    ],
)
def test_upfirdn_refuses(wrong, error, message):
    arguments = {"x": np.ones((4, 5, 1)), "filter": np.ones((3, 2))} | wrong
    with pytest.raises(error, match=f"^upfirdn: .*{message}"):
        upfirdn(arguments.pop("x"), arguments.pop("filter"), **arguments)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"strides": 2}, TypeError, r"got strides=2. Write \(2, 2\)"),
        ({"strides": (2, 0)}, ValueError, r"strides must be at least 1; got strides=\(2, 0\)"),
        ({"strides": (2, 2, 2)}, ValueError, r"got shape \(4, 1, 1\) for strides=\(2, 2, 2\)"),
        ({"filter_size": 0}, ValueError, "filter_size must be at least 1"),
        ({"padding_mode": "reflection"}, ValueError, "Did you mean 'reflect'?"),
        ({"strides": (2, 2)}, ValueError, r"needs at least 2 pixels .* got spatial shape \(4, 1\)"),
        ({"x": np.ones((4, 1, 1), int)}, TypeError, "got dtype int"),
    ],
)
def test_blur_pool_refuses(wrong, error, message):
    arguments = {"x": np.ones((4, 1, 1)), "strides": (2,)} | wrong
    with pytest.raises(error, match=f"^blur_pool: .*{message}"):
        blur_pool(arguments.pop("x"), arguments.pop("strides"), **arguments)
