"""resize and resize_conv."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import each
from jax import export

from tconvjax import bilinear_additive, conv, conv_transpose, resize, resize_conv
from tconvjax._ops import resize as ops_resize
from tconvjax._ops.resize import METHODS

pytestmark = pytest.mark.usefixtures("x64")
FILTERS = [method for method in METHODS if method != "nearest"]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.5, 1, shape)


def kernel(method, d):
    """Weight of an input pixel at distance d >= 0 from where an output pixel looks."""
    if method == "linear":
        return max(0, 1 - d)
    if method == "cubic":
        near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
        return near if d < 1 else far if d < 2 else 0
    radius = int(method[-1])  # of 'lanczos3' or 'lanczos5'
    if d == 0 or d >= radius:
        return float(d == 0)
    return radius * np.sin(np.pi * d) * np.sin(np.pi * d / radius) / (np.pi * d) ** 2


def matrix(method, n, r):
    """The weights of n input pixels for n·r output pixels, those of every output of sum 1."""
    if (
        method == "binomial"
    ):  # as the painting of three ones(r) after another, cropped to the center
        weights = np.zeros((n * r + 2 * (r - 1), n))
        for i in range(n):
            for a in np.ndindex(r, r, r):
                weights[r * i + sum(a), i] += 1
        weights = weights[r - 1 : r - 1 + n * r]
    elif method == "fourier":  # the waves that fit in n pixels, both ends of the band by half
        k = np.arange(-(n // 2), n // 2 + 1)
        share = np.where(2 * abs(k) == n, 0.5, 1)
        apart = (np.arange(n * r)[:, None] + 0.5) / r - 0.5 - np.arange(n)
        weights = np.cos(2 * np.pi * k * apart[..., None] / n) @ share
    elif method in ("nearest", "area"):
        return np.repeat(np.eye(n), r, 0)
    else:
        at = (np.arange(n * r) + 0.5) / r - 0.5
        weights = np.array([[kernel(method, abs(i - j)) for j in range(n)] for i in at])
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.slow
@each("method", FILTERS)
def test_equals_the_definition_and_jax(method):
    cases = [(1, 2), (3, 2), (7, 3), (1, 3), (2, 4), (7, 4), (3, 5), (9, 5)]
    signals = [random(n, 2, seed=n) for n, _ in cases]

    @jax.jit
    def run(signals):
        theirs = {"binomial": "linear", "fourier": "linear", "area": "nearest"}.get(method, method)
        return [
            (resize(x, (r,), method=method), jax.image.resize(x, (n * r, 2), theirs))
            for x, (n, r) in zip(signals, cases, strict=True)
        ]

    for x, (n, r), (got, jax_) in zip(signals, cases, run(signals), strict=True):
        np.testing.assert_allclose(got, matrix(method, n, r) @ x, rtol=0, atol=1e-13)
        if method != "fourier" and (method != "binomial" or r == 2):
            np.testing.assert_allclose(got, jax_, rtol=0, atol=1e-13)


@each("method", METHODS)
def test_axes_and_factors_do_not_mix(method):
    x, scale = random(2, 3, 4, 5, 2), (3, 1, 2)
    by_axis = x
    for axis, r in enumerate(scale, start=1):
        n = x.shape[axis]
        weights = matrix(method, n, r)
        by_axis = np.moveaxis(np.moveaxis(by_axis, axis, -1) @ weights.T, -1, axis)
    np.testing.assert_allclose(resize(x, scale, method=method), by_axis, rtol=0, atol=1e-13)
    assert resize(x[:0], scale, method=method).shape == (0, 9, 4, 10, 2)


@each("r", (2, 3, 4))
def test_fourier_moves_waves_to_the_finer_grid_exactly(r):
    n, k = 9, 3
    wave = lambda at: np.cos(2 * np.pi * k * at / n + 0.4)[:, None]
    fine = (np.arange(n * r) + 0.5) / r - 0.5
    got = resize(wave(np.arange(n)), (r,), method="fourier")
    np.testing.assert_allclose(got, wave(fine), rtol=0, atol=1e-14)


@pytest.mark.slow
@each("n", (8, 9))
def test_fourier_of_long_axes_is_that_of_short_ones(n, monkeypatch):
    for x in (random(2, n, 3), random(2, n, 3) * (1 + 2j)):
        want = resize(x, (3,), method="fourier")
        with monkeypatch.context() as patch:
            patch.setattr(ops_resize, "LONG", 0)
            jax.clear_caches()
            np.testing.assert_allclose(resize(x, (3,), method="fourier"), want, rtol=0, atol=1e-13)
    jax.clear_caches()


def test_bilinear_additive_is_the_sum_of_enlarged_neighbors():
    x = random(2, 3, 4, 12)
    large = np.asarray(resize(x, (2, 3), method="linear"))
    want = np.stack([large[..., :6].sum(-1), large[..., 6:].sum(-1)], -1)
    got = bilinear_additive(x, (2, 3))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)
    half = bilinear_additive(x.astype(np.float16), (2, 3))
    assert half.dtype == np.float16
    with pytest.raises(ValueError, match=r"^bilinear_additive: .*channels=12, scale=\(5,\)"):
        bilinear_additive(x, (5,))
    with pytest.raises(TypeError, match=r"^bilinear_additive: a filter needs"):
        bilinear_additive(x.astype(int), (2, 3))


def test_an_infinite_pixel_reaches_no_further_than_its_filter():
    x = np.array([[1.0], [2.0], [np.inf], [4.0], [5.0]])
    np.testing.assert_array_equal(resize(x, (3,), method="lanczos3")[1::3], x)
    np.testing.assert_allclose(resize(x, (2,), method="linear")[:3, 0], (1, 1.25, 1.75))


def test_nearest_repeats_pixels_of_any_kind():
    x = np.random.default_rng(0).integers(-9, 9, (3, 4, 2))
    want = x.repeat(2, 0).repeat(3, 1)
    for kind in (np.int8, bool, np.float16, np.complex64):
        got = resize(x.astype(kind), (2, 3))
        assert got.dtype == kind
        np.testing.assert_array_equal(got, want.astype(kind))


@each("method", METHODS)
def test_keeps_constants(method):
    assert jnp.ptp(resize(jnp.full((3, 4, 1), 0.7), (2, 3), method=method)) < 1e-6


@each("r", (2, 3, 4))
def test_binomial_passes_parabolas_without_ripple(r):
    i = np.arange(9.0)[:, None]
    rough = lambda method: abs(
        np.diff(resize(3 * i**2 - i, (r,), method=method)[2 * r : -2 * r, 0], 3)
    )
    assert rough("binomial").max() < 1e-12
    assert r == 2 or rough("linear").max() > 0.1


@each("method", FILTERS)
def test_is_linear_and_so_are_its_transformations(method):
    x, u, y = random(2, 3, 4, 2), random(2, 3, 4, 2, seed=1), random(2, 6, 12, 2, seed=2)
    run = lambda x: resize(x, (2, 3), method=method)

    @jax.jit
    def transformed(x, u, y):
        return jax.vmap(run)(x), jax.jvp(run, (x,), (u,))[1], jax.vjp(run, x)[1](y)[0]

    mapped, tangent, cotangent = transformed(x, u, y)
    np.testing.assert_allclose(mapped, run(x), rtol=0, atol=1e-13)
    np.testing.assert_allclose(tangent, run(u), rtol=0, atol=1e-13)
    np.testing.assert_allclose(np.vdot(cotangent, u), np.vdot(y, run(u)), rtol=1e-12)
    real, imaginary = map(np.asarray, (run(x), run(u)))
    np.testing.assert_allclose(run(x + 2j * u), real + 2j * imaginary, rtol=0, atol=1e-13)


def test_half_precision_calculates_in_float32():
    x = jnp.asarray(random(4, 3, 2), jnp.bfloat16)
    got = resize(x, (3, 2), method="lanczos3")
    want = resize(x.astype(jnp.float32), (3, 2), method="lanczos3").astype(jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.astype(jnp.float32), want.astype(jnp.float32))


def test_exports_with_symbolic_sizes():
    run = jax.jit(lambda x: resize(x, (2, 3), method="cubic"))
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, h, w, 2"), jnp.float32)
    x = random(2, 1, 4, 2).astype(np.float32)
    np.testing.assert_allclose(export.export(run)(shape).call(x), run(x), atol=1e-6)
    with pytest.raises(ValueError, match=r"method='fourier' needs, .* known sizes; got \(h, w\)"):
        export.export(jax.jit(lambda x: resize(x, (2, 3), method="fourier")))(shape)


def test_a_linear_resize_conv_with_zeros_exports_with_symbolic_sizes():
    w = random(3, 3, 2, 4).astype(np.float32)
    run = jax.jit(lambda x: resize_conv(x, w, scale=2, method="linear"))
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, h, w, 2"), jnp.float32)
    x = random(2, 5, 4, 2).astype(np.float32)
    np.testing.assert_allclose(export.export(run)(shape).call(x), run(x), atol=1e-5)
    fused = jax.jit(lambda x: resize_conv(x, w, scale=2, method="linear", implementation="fused"))
    with pytest.raises(ValueError, match=r"'linear' with 'zeros' known sizes.*h"):
        export.export(fused)(shape)


@each("mode", ("zeros", "circular", "reflect", "replicate"))
def test_resize_conv_is_resize_then_conv(mode):
    x, w, pads = random(1, 4, 3, 4), random(3, 2, 2, 6, seed=1), ((2, 1), (0, 3))
    numpy_mode = {"zeros": "constant", "circular": "wrap", "replicate": "edge"}.get(mode, mode)
    big = np.einsum("nh,mw,bhwc->bnmc", matrix("binomial", 4, 2), matrix("binomial", 3, 3), x)
    big = np.pad(big, ((0, 0), *pads, (0, 0)), numpy_mode)
    options = {"scale": (2, 3), "method": "binomial", "padding": pads, "padding_mode": mode}
    got = resize_conv(x, w, kernel_dilation=(2, 1), feature_group_count=2, **options)
    want = oracles.conv(big, w, (1, 1), ((0, 0), (0, 0)), (2, 1), 2)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_nearest_then_conv_is_one_transposed_convolution():
    x, w = random(5, 4, 3), random(3, 2, 3, 2, seed=1)
    hold = np.zeros((4, 4, 3, 2))  # the kernel, painted over two rows and three columns
    for i in range(2):
        for j in range(3):
            hold[i : i + 3, j : j + 2] += w
    got = resize_conv(x, w, scale=(2, 3), padding=((2, 2), (1, 1)))
    want = conv_transpose(x, hold, strides=(2, 3), padding=0)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@each("method", ("nearest", "binomial"))
def test_commutes_with_convolution_by_one(method):
    x, w = random(5, 4, 3), random(1, 1, 3, 2, seed=1)
    after = resize_conv(x, w, scale=2, method=method)
    np.testing.assert_allclose(resize(conv(x, w), (2, 2), method=method), after, atol=1e-13)


def test_resize_conv_is_linear_in_both_arguments_and_so_are_its_transformations():
    x, w, y = random(2, 4, 3, 2), random(3, 2, 2, 3, seed=1), random(2, 8, 9, 3, seed=2)
    run = lambda x, w: resize_conv(x, w, scale=(2, 3), method="cubic", padding_mode="reflect")

    @jax.jit
    def transformed(x, w):
        return run(x, w), jax.vjp(run, x, w)[1](y), jax.vmap(run, (None, 0))(x, w[None])[0]

    out, (to_x, to_w), mapped = transformed(x, w)
    np.testing.assert_allclose(mapped, out, rtol=0, atol=1e-12)
    u, v = random(*x.shape, seed=3), random(*w.shape, seed=4)
    np.testing.assert_allclose(np.vdot(to_x, u), np.vdot(y, run(u, w)), rtol=1e-12)
    np.testing.assert_allclose(np.vdot(to_w, v), np.vdot(y, run(x, v)), rtol=1e-12)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("scale", "method", "error", "message"),
    [
        (2, "nearest", TypeError, r"scale=2. Write \(2, 2\)"),
        ("22", "nearest", TypeError, "scale='22'"),
        ((2, 0), "nearest", ValueError, r"scale must be positive; got scale=0"),
        ((2, "2"), "nearest", TypeError, "scale must be a number; got str"),
        ((2, np.nan), "nearest", ValueError, "scale must be positive"),
        ((2, 0.1), "nearest", ValueError, "must leave at least one pixel"),
        (None, "nearest", TypeError, "scale or output_shape must be given"),
        ((2, 2), "bicubic", ValueError, "method='bicubic'. Did you mean 'cubic'?"),
        ((2,) * 3, "nearest", ValueError, r"got shape \(4, 5, 1\) for scale=\(2, 2, 2\)"),
        ((), "nearest", ValueError, r"at least one; got shape \(4, 5, 1\) for scale=\(\)"),
        ((2, 2), "lanczos3", TypeError, "needs a floating or complex x; got dtype int32"),
    ],
)
def test_refuses(scale, method, error, message):
    with pytest.raises(error, match=f"^resize: .*{message}"):
        resize(np.zeros((4, 5, 1), np.int32), scale, method=method)
    with pytest.raises(TypeError, match=r"^resize: x must be an array; got x of type dict\."):
        resize({}, (2,))


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"implementation": "fuse"}, "implementation must be one of 'auto', 'fused', 'plain'"),
        ({"method": "lanczos"}, "Did you mean 'lanczos"),
        ({"scale": (2, 2)}, r"scale=\(2, 2\) for 1 spatial axes"),
        ({"padding": "FULL"}, "padding must be one of"),
        ({"padding_mode": "wrap"}, "padding_mode must be one of"),
        ({"kernel": np.zeros((3, 2, 1))}, "got 1 channels"),
    ],
)
def test_resize_conv_refuses(wrong, message):
    with pytest.raises(ValueError, match=f"^resize_conv: .*{message}"):
        resize_conv(np.zeros((4, 1)), **{"kernel": np.zeros((3, 1, 1)), "scale": 2} | wrong)


def test_plain_is_for_exporters_and_gives_the_same_numbers():
    draw = np.random.default_rng(20161017).normal
    x, kernel = draw(size=(2, 4, 3, 2)).astype("f"), draw(size=(3, 3, 2, 5)).astype("f")
    run = lambda x, i: resize_conv(x, kernel, scale=(2, 3), method="cubic", implementation=i)
    jaxprs = {i: str(jax.make_jaxpr(lambda x, i=i: run(x, i))(x)) for i in ("auto", "plain")}
    assert "tconv_gather" in jaxprs["auto"]
    assert "tconv_" not in jaxprs["plain"]
    np.testing.assert_allclose(run(x, "plain"), run(x, "auto"), atol=1e-4)


def test_nothing_is_enlarged_before_the_arguments_are_right(monkeypatch):
    from tconvjax._ops import resize as module

    monkeypatch.setattr(module, "enlarge", lambda *_: pytest.fail("enlarged first"))
    with pytest.raises(ValueError, match="resize_conv: padding must be"):
        resize_conv(jnp.ones((4, 3, 2)), jnp.ones((3, 3, 2, 5)), scale=2, padding=(1,))


def weights_of(n, scale=None, **options):
    """The matrix of a resize of n pixels, read off its impulse responses."""
    return np.asarray(resize(np.eye(n), scale, **options))


def test_corners_are_aligned_as_by_interpolation_between_knots():
    x = random(6, 2)
    at = np.arange(12) * 5 / 11
    want = np.stack([np.interp(at, np.arange(6), column) for column in x.T], -1)
    got = resize(x, output_shape=(12,), method="linear", align_corners=True)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)
    one = resize(x, output_shape=(1,), method="linear", align_corners=True, antialias=False)
    np.testing.assert_array_equal(one, x[:1])


@pytest.mark.parametrize(
    ("m", "options", "want"),
    [
        (3, {"method": "area"}, [[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]),
        (2, {"method": "linear", "antialias": False}, [[1, 3, 0, 0, 0], [0, 0, 0, 3, 1]]),
        (3, {}, [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]),
        (2, {"nearest_mode": "ceil"}, [[0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]),
        (2, {"nearest_mode": "floor", "half_pixel_centers": False}, [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]),
        (2, {"nearest_mode": "ceil", "half_pixel_centers": False}, [[1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]),
    ],
)  # fmt: skip
def test_five_pixels_by_hand(m, options, want):
    want = np.array(want) / np.sum(want, 1, keepdims=True)
    np.testing.assert_allclose(weights_of(5, output_shape=(m,), **options), want, atol=1e-15)


def test_ties_are_rounded_as_named():
    """Two pixels from four look at 1/2 and 5/2."""
    got = [
        weights_of(4, output_shape=(2,), nearest_mode=mode).argmax(1).tolist()
        for mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ]
    assert got == [[0, 2], [1, 3], [0, 2], [1, 3]]


def test_border_pixels_repeat_and_the_cubic_kernel_has_a_parameter():
    """Output 0 of 8 from 4 looks at −1/4: taps −2 to 1, of which two are beyond the border."""
    a = -0.75
    d = np.array([1.75, 0.75, 0.25, 1.25])
    w = np.where(d < 1, (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4))
    options = {"method": "cubic", "cubic_coeff_a": a, "output_shape": (8,)}
    repeated = weights_of(4, exclude_outside=False, **options)[0]
    np.testing.assert_allclose(repeated, [w[:3].sum(), w[3], 0, 0], atol=1e-15)
    cut = weights_of(4, **options)[0]
    np.testing.assert_allclose(cut, np.array([w[2], w[3], 0, 0]) / w[2:].sum(), atol=1e-15)


@pytest.mark.slow
def test_any_size_is_that_of_jax():
    x = random(7, 9, 2)
    cases = [
        (shape, method, antialias)
        for shape in ((5, 20), (11, 4))
        for method in ("nearest", "linear", "cubic", "lanczos3", "lanczos5")
        for antialias in (True, False)
    ]

    @jax.jit
    def run(x):
        ours = [resize(x, output_shape=s, method=m, antialias=a) for s, m, a in cases]
        return ours, [jax.image.resize(x, (*s, 2), m, antialias=a) for s, m, a in cases]

    for case, got, want in zip(cases, *run(x), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-13, err_msg=str(case))


@each("method", [m for m in METHODS if m not in ("nearest", "binomial")])
def test_whole_factors_are_a_case_of_any_size(method):
    from tconvjax._ops.sampling import Ratio, Rule, resample

    x = jnp.asarray(random(5, 2))
    for r in (2, 3):
        got = resample(x, 0, Ratio(5 * r), Rule(method))
        np.testing.assert_allclose(got, resize(x, (r,), method=method), rtol=0, atol=1e-13)


def test_a_scale_is_kept_where_the_sizes_have_another_ratio():
    """1.3 times 5 pixels are 6; output pixel o looks at (o + 1/2)/1.3 − 1/2, not at (o + 1/2)·5/6 − 1/2."""
    ramp = np.arange(5.0)[:, None]
    for scale, shape, r in (((1.3,), None, 1.3), (None, (6,), 6 / 5), ((1.3,), (6,), 6 / 5)):
        got = resize(ramp, scale, output_shape=shape, method="linear")[:, 0]
        want = np.clip((np.arange(6) + 0.5) / r - 0.5, 0, 4)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)


def test_fourier_keeps_waves_at_any_size_that_holds_them():
    n, k = 9, 2
    wave = lambda at: np.cos(2 * np.pi * k * at / n + 0.4)[:, None]
    for m in (5, 7, 11, 20):
        at = (np.arange(m) + 0.5) * n / m - 0.5
        got = resize(wave(np.arange(n)), output_shape=(m,), method="fourier")
        np.testing.assert_allclose(got, wave(at), rtol=0, atol=1e-13)


def test_any_size_is_linear_and_so_are_its_transformations():
    x, u, y = random(2, 5, 44, 2), random(2, 5, 44, 2, seed=1), random(2, 7, 3, 2, seed=2)
    run = lambda x: resize(
        x, output_shape=(7, 3), method="cubic"
    )  # more taps than a loop is made of

    @jax.jit
    def transformed(x, u, y):
        return jax.vmap(run)(x), jax.jvp(run, (x,), (u,))[1], jax.vjp(run, x)[1](y)[0]

    mapped, tangent, cotangent = transformed(x, u, y)
    np.testing.assert_allclose(mapped, run(x), rtol=0, atol=1e-13)
    np.testing.assert_allclose(tangent, run(u), rtol=0, atol=1e-13)
    np.testing.assert_allclose(np.vdot(cotangent, u), np.vdot(y, run(u)), rtol=1e-12)
    half = resize(x.astype(np.float16), output_shape=(7, 3), method="area")
    assert half.dtype == np.float16
    kinds = resize(np.arange(3, dtype=np.int8)[:, None], output_shape=(4,))
    assert kinds.dtype == np.int8


def test_resize_conv_of_a_chosen_shape_is_resize_then_conv():
    x, w = random(1, 4, 3, 2), random(3, 2, 2, 5, seed=1)
    for padding, grown in (("SAME", (0, 0)), ("VALID", (2, 1)), (((1, 0), (0, 0)), (1, 1))):
        got = resize_conv(x, w, 2, output_shape=(7, 6), method="linear", padding=padding)
        large = tuple(m + g for m, g in zip((7, 6), grown, strict=True))
        want = conv(resize(x, output_shape=large, method="linear"), w, padding=padding)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"^resize_conv: implementation='fused' needs whole"):
        resize_conv(x, w, 2, output_shape=(7, 6), implementation="fused")
    with pytest.raises(ValueError, match=r"^resize_conv: output_shape must hold, .*\(9, 20\)"):
        resize_conv(x, w, 2, output_shape=(9, 20))


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"cubic_coeff_a": -0.75}, ValueError, "cubic_coeff_a belongs to 'cubic'"),
        ({"method": "area", "align_corners": True}, ValueError, "align_corners belongs to"),
        ({"nearest_mode": "round"}, ValueError, "nearest_mode must be one of"),
        ({"method": "binomial"}, ValueError, "'binomial' needs whole factors"),
        ({"output_shape": (6, 0)}, ValueError, "output_shape must be at least 1"),
        ({"output_shape": (6.5, 6)}, TypeError, "output_shape must be an integer"),
        ({"scale": (2, 2)}, ValueError, r"output_shape must hold, .*scale=\(2, 2\)"),
        ({"method": "cubic", "cubic_coeff_a": None}, TypeError, "cubic_coeff_a must be a finite"),
    ],
)
def test_sizes_and_options_that_do_not_fit_are_refused(wrong, error, message):
    with pytest.raises(error, match=f"^resize: .*{message}"):
        resize(np.zeros((4, 5, 1)), **{"output_shape": (6, 6)} | wrong)
