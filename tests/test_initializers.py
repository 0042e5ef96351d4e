"""Every initializer keeps its law, checked on the layer it is for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from jax.nn.initializers import lecun_normal, normal
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tconvjax import analysis, conv, conv_transpose, resize, subpixel_conv
from tconvjax.initializers import (
    balanced_transpose,
    bilinear,
    icnr,
    icnr_transpose,
    variance_scaling_transpose,
)

# kernel size, strides, transpose_kernel
DIVIDES = [((4,), (2,), False), ((2, 6), (2, 3), True), ((3, 2, 4), (3, 1, 2), False)]
DIVIDES_NOT = [((5,), (3,), True), ((3, 5), (2, 3), False), ((3, 4), (2, 3), True)]


def drawn(init, key, *shape):
    """One compilation instead of one per operation."""
    return jax.jit(lambda key: init(key, shape))(key)


def image(rank, *channels):
    return jnp.asarray(np.random.default_rng(7).normal(size=(*(4, 3, 3)[:rank], *channels)))


def on_constants(kernel, strides, features, **options):
    """The whole output for an input that is constant in space, with borders that keep it so."""
    rank = kernel.ndim - 2
    constant = jnp.asarray(np.random.default_rng(8).normal(size=(*(1,) * rank, features)))
    x = jnp.broadcast_to(constant, (*(6, 5, 4)[:rank], features))
    layer = partial(conv_transpose, strides=strides, padding_mode="circular", **options)
    y = jax.jit(layer)(x, kernel)
    return np.asarray(constant).ravel(), np.asarray(y)


def painted(kernel, strides, *, transpose_kernel):
    """The kernel as one pixel paints it, (*kernel_size, in, out), by the layer itself."""
    rank, source = kernel.ndim - 2, kernel.shape[-1 if transpose_kernel else -2]
    pixel = jnp.eye(source).reshape(source, *(1,) * rank, source)
    layer = partial(conv_transpose, strides=strides, padding=0, transpose_kernel=transpose_kernel)
    return np.moveaxis(jax.jit(layer)(pixel, kernel), 0, -2)


def of_layout(shape, *, transpose_kernel):
    return (*shape[:-2], shape[-1], shape[-2]) if transpose_kernel else shape


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("scale", "order"),
    [((2,), "CRD"), ((3, 2), "CRD"), ((3, 2), "DCR"), ((2, 1, 3), "DCR")],
)
def test_icnr_is_nearest_upsampling_of_the_base_convolution(scale, order, key):
    k = (3, 2, 2)[: len(scale)]
    kernel = drawn(icnr(scale, order=order), key, *k, 2, 4 * int(np.prod(scale)))
    x, base = image(len(scale), 2), drawn(lecun_normal(), key, *k, 2, 4)
    got, want = jax.jit(
        lambda: (subpixel_conv(x, kernel, scale=scale, order=order), resize(conv(x, base), scale))
    )()
    np.testing.assert_allclose(got, want, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_icnr_keeps_its_law_in_groups(key):
    kernel = icnr(2)(key, (3, 3, 2, 6 * 4))
    x, base = image(2, 4), lecun_normal()(key, (3, 3, 2, 6))
    want = resize(conv(x, base, feature_group_count=2), (2, 2))
    got = subpixel_conv(x, kernel, scale=2, feature_group_count=2)
    np.testing.assert_allclose(got, want, atol=1e-13)


@pytest.mark.parametrize(
    ("order", "out", "share"),
    [("CRD", 1, 0), ("CRD", 2, 1 / 2), ("DCR", 3, 5 / 8), ("CRD", 4, 3 / 4), ("DCR", 4, 3 / 4)],
)
def test_icnr_in_the_wrong_order_is_a_checkerboard(order, out, share, key):
    """And for one output channel both orders are the same, so tests must have more."""
    other = {"CRD": "DCR", "DCR": "CRD"}[order]
    draws = jax.vmap(lambda key: icnr(2, normal(), order)(key, (1, 1, 1, out * 4)))
    kernels = draws(jax.random.split(key, 4000))
    layer = jax.vmap(lambda w: subpixel_conv(jnp.ones((1, 1, 1)), w, scale=2, order=other))
    y = layer(kernels)
    deviation = jnp.sum((y - y.mean((1, 2), keepdims=True)) ** 2)
    np.testing.assert_allclose(deviation / jnp.sum(y**2), share, atol=0.02)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("k", "s", "transpose_kernel"), DIVIDES)
def test_icnr_transpose_is_nearest_upsampling_of_a_small_layer(k, s, transpose_kernel, key):
    layout = {"transpose_kernel": transpose_kernel}
    layer = partial(conv_transpose, padding=0, **layout)
    channels = of_layout((2, 3), **layout)
    kernel = drawn(icnr_transpose(s, normal(), **layout), key, *k, *channels)
    small = drawn(normal(), key, *(n // t for n, t in zip(k, s, strict=True)), *channels)
    x = image(len(k), 2)
    got, want = jax.jit(lambda: (layer(x, kernel, strides=s), resize(layer(x, small), s)))()
    np.testing.assert_allclose(got, want, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("k", "s", "transpose_kernel"), [*DIVIDES_NOT, ((1, 2), (2, 2), False)])
def test_icnr_transpose_crops_the_last_copies(k, s, transpose_kernel, key):
    """w[a] = W_0[floor(a/s)], entry by entry on the painted kernel."""
    layout = {"transpose_kernel": transpose_kernel}
    channels = of_layout((2, 3), **layout)
    kernel = drawn(icnr_transpose(s, normal(), **layout), key, *k, *channels)
    small = drawn(normal(), key, *(-(-n // t) for n, t in zip(k, s, strict=True)), *channels)
    w, w0 = painted(kernel, s, **layout), painted(small, 1, **layout)
    for a in np.ndindex(k):
        cell = tuple(i // t for i, t in zip(a, s, strict=True))
        np.testing.assert_allclose(
            w[a], w0[cell], rtol=1e-15
        )  # the same, but for the last bit of compilers


def test_icnr_transpose_cropped_has_a_share_that_balance_removes(key):
    shape = (3, 3, 96, 96)
    cropped = icnr_transpose(2)
    share = analysis.harmonic_share(cropped(key, shape), 2)
    np.testing.assert_allclose(share, 11 / 36, atol=0.02)
    mended = balanced_transpose(2, cropped)(key, shape)
    assert analysis.harmonic_share(mended, 2) < 1e-12


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("k", "s", "transpose_kernel"), [*DIVIDES, *DIVIDES_NOT])
def test_balanced_transpose_keeps_constants(k, s, transpose_kernel, key):
    layout = {"transpose_kernel": transpose_kernel}
    shape = of_layout((*k, 2, 3), **layout)
    base = normal(0.3)
    balanced = drawn(balanced_transpose(s, base, **layout), key, *shape)
    _, y = on_constants(balanced, s, 2, **layout)
    pixel = y[(0,) * len(k)]
    np.testing.assert_allclose(y, np.broadcast_to(pixel, y.shape), atol=1e-13)
    assert abs(pixel).min() > 1e-3  # of a constant that is not 0
    _, uneven = on_constants(drawn(base, key, *shape), s, 2, **layout)
    assert uneven.std(tuple(range(len(k)))).min() > 1e-2  # which the base does not keep


@pytest.mark.parametrize(
    ("k", "s", "phases_equal"), [(4, 2, True), (3, 2, False), (2, 2, True), (5, 3, False)]
)
@each("transpose_kernel", (False, True))
def test_variance_scaling_transpose_keeps_the_variance(k, s, phases_equal, transpose_kernel, key):
    init = variance_scaling_transpose(s, transpose_kernel=transpose_kernel)
    shape = (k, k, 32, 64) if transpose_kernel else (k, k, 64, 32)
    variance = variance_by_phase(init(key, shape), s, key, transpose_kernel=transpose_kernel)
    np.testing.assert_allclose(variance.mean(), 1, rtol=0.15)
    assert (variance.max() / variance.min() < 1.15) == phases_equal


@pytest.mark.parametrize(
    ("k", "s", "transpose_kernel"), [(3, 2, False), (3, 2, True), (5, 3, True), (1, 2, False)]
)
def test_variance_scaling_transpose_per_phase_evens_the_phases(k, s, transpose_kernel, key):
    init = variance_scaling_transpose(s, transpose_kernel=transpose_kernel, per_phase=True)
    shape = (k, k, 32, 64) if transpose_kernel else (k, k, 64, 32)
    variance = variance_by_phase(init(key, shape), s, key, transpose_kernel=transpose_kernel)
    want = np.minimum(analysis.tap_counts((k, k), s), 1)  # phases without taps stay empty
    np.testing.assert_allclose(np.sort(variance.ravel()), np.sort(want.ravel()), rtol=0.15)


def variance_by_phase(kernel, s, key, **layout):
    """Of the output for a white input of 64 channels, borders left out; phases count from anywhere."""
    k = kernel.shape[0]
    x = jax.random.normal(key, (8, 12, 12, 64))
    y = np.asarray(conv_transpose(x, kernel, strides=s, **layout))
    y = y[:, k * s : -k * s, k * s : -k * s]
    m = y.shape[1] // s * s
    return np.array([[y[:, i:m:s, j:m:s].var() for j in range(s)] for i in range(s)])


def test_variance_scaling_transpose_per_phase_is_the_same_where_strides_divide(key):
    even = variance_scaling_transpose((2, 3), per_phase=True)(key, (4, 3, 5, 2))
    np.testing.assert_array_equal(even, variance_scaling_transpose((2, 3))(key, (4, 3, 5, 2)))


def test_variance_scaling_transpose_counts_groups(key):
    init = variance_scaling_transpose(2, transpose_kernel=True, feature_group_count=4)
    plain = variance_scaling_transpose(2, feature_group_count=4)
    x = jax.random.normal(key, (8, 12, 12, 64))
    for kernel, transposed in (
        (init(key, (4, 4, 16, 64)), True),
        (plain(key, (4, 4, 16, 64)), False),
    ):
        y = conv_transpose(
            x, kernel, strides=2, transpose_kernel=transposed, feature_group_count=4
        )[:, 4:-4, 4:-4]
        np.testing.assert_allclose(y.var(), 1, rtol=0.1)


@pytest.mark.usefixtures("x64")
@each("s", ((2,), (3,), (4, 1), (2, 3, 2)))
def test_bilinear_is_linear_resizing_and_keeps_constants(s, key):
    k = tuple(2 * t - t % 2 for t in s)
    kernel = bilinear(s)(key, (*k, 2, 2))
    constant, y = on_constants(kernel, s, 2)
    np.testing.assert_allclose(y, np.broadcast_to(constant, y.shape), atol=1e-14)
    x = image(len(s), 2)
    got, want = jax.jit(
        lambda: (conv_transpose(x, kernel, strides=s), resize(x, s, method="linear"))
    )()
    inner = tuple(slice(t, -t) for t in s)  # borders differ
    np.testing.assert_allclose(got[inner], want[inner], atol=1e-14)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("groups", "shape", "source"),
    [
        (3, (4, 1, 3), [0, 1, 2]),  # depthwise
        (3, (4, 1, 6), [0, 0, 1, 1, 2, 2]),  # with multiplier
        (1, (4, 1, 2), [0, 0]),  # one input
        (2, (4, 2, 4), [0, 1, 2, 3]),  # groups
        (1, (4, 2, 4), [0, 1, 0, 1]),
    ],
)
def test_bilinear_enlarges_one_input_for_every_output(groups, shape, source, key):
    features = shape[-2] * groups
    kernel = bilinear(2)(key, shape)
    constant, y = on_constants(kernel, 2, features, feature_group_count=groups)
    np.testing.assert_allclose(y, np.broadcast_to(constant[source], y.shape), atol=1e-14)


@each("groups", (1, 2, 4))
def test_bilinear_serves_both_layouts_of_equal_channels(groups, key):
    kernel = bilinear(2)(key, (4, 4 // groups, 4))
    x = image(1, 4).astype(jnp.float32)
    one, other = (
        conv_transpose(x, kernel, strides=2, feature_group_count=groups, transpose_kernel=flag)
        for flag in (False, True)
    )
    np.testing.assert_array_equal(one, other)


INITS = {
    "icnr": icnr(2),
    "icnr_transpose": icnr_transpose(2),
    "balanced_transpose": balanced_transpose(2),
    "per_phase": variance_scaling_transpose(2, per_phase=True),
    "bilinear": bilinear(2),
}


@each("name", INITS)
def test_has_the_form_of_jax(name, key):
    """Any floating dtype, under jit, and on a mesh with the given sharding."""
    init, shape = INITS[name], (4, 4, 8, 8)
    half = jax.eval_shape(lambda: init(key, shape, jnp.bfloat16))
    assert (half.shape, half.dtype) == (shape, jnp.bfloat16)
    kernel = init(key, shape)
    assert (kernel.shape, kernel.dtype) == (shape, jnp.float32)
    where = P(None, None, "in", "out")
    mesh = jax.make_mesh((2, 4), ("in", "out"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        there = jax.jit(lambda key: init(key, shape, jnp.float32, where))(key)
    assert there.sharding.spec == where
    np.testing.assert_allclose(there, kernel, atol=1e-6)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("init", "shape", "message"),
    [
        (icnr((2, 2)), (3, 3, 8, 6), r"icnr: prod\(scale\) must divide .* \(product 4\)"),
        (icnr((2, 2)), (3, 8, 8), r"icnr: scale must be an int or one int per .* for 1 spatial"),
        (icnr(2), (8, 8), r"icnr: kernel must have shape .* got kernel shape \(8, 8\)"),
        (
            balanced_transpose((2, 2)),
            (3, 1, 1),
            "balanced_transpose: strides must be an int or one",
        ),
        (icnr_transpose(0), (3, 1, 1), "icnr_transpose: strides must be at least 1"),
        (
            balanced_transpose((1, 3)),
            (2, 2, 1, 1),
            r"balanced_transpose: kernel_size must be at least strides .*=\(2, 2\), strides=\(1, 3\)",
        ),
        (bilinear((2, 3)), (4, 4, 1, 1), r"got kernel_size=\(4, 4\), .* Use kernel_size=\(4, 5\)"),
        (bilinear(2), (4, 2, 3), r"bilinear: in // groups must divide out.*got .* \(4, 2, 3\)"),
        (variance_scaling_transpose((2, 2)), (3, 1, 1), "strides must be an int or one int per"),
    ],
)
def test_refuses(init, shape, message, key):
    with pytest.raises(ValueError, match=message):
        init(key, shape)


@pytest.mark.refuses
def test_icnr_refuses_an_unknown_order_before_any_key():
    with pytest.raises(
        ValueError, match="icnr: order must be one of 'CRD', 'DCR'; got order='crd'"
    ):
        icnr(2, order="crd")
