"""pixel_shuffle, pixel_unshuffle and subpixel_conv."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import each
from jax import export
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tconvjax import (
    bilinear_additive,
    blur_pool,
    carafe,
    conv,
    conv_transpose,
    dysample,
    hold,
    max_blur_pool,
    max_pool,
    max_unpool,
    pixel_conv_transpose,
    pixel_shuffle,
    pixel_unshuffle,
    resize,
    subpixel_conv,
    upfirdn,
)
from tconvjax._ops.subpixel import ORDERS

pytestmark = pytest.mark.usefixtures("x64")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.5, 1, shape)


def shuffled(x, scale, order):
    """By entries, one batch axis."""
    channels = x.shape[-1] // np.prod(scale)
    small = x.shape[1:-1]
    y = np.empty((len(x), *(n * r for n, r in zip(small, scale, strict=True)), channels), x.dtype)
    for pixel in np.ndindex(small):
        for number, phase in enumerate(np.ndindex(scale)):  # the last axis counts fastest
            at = tuple(m * r + p for m, r, p in zip(pixel, scale, phase, strict=True))
            for c in range(channels):
                k = {"CRD": c * np.prod(scale) + number, "DCR": number * channels + c}[order]
                y[(slice(None), *at, c)] = x[(slice(None), *pixel, k)]
    return y


@each("order", ORDERS)
@each("scale", ((3,), (2, 3), (3, 1, 2)))
def test_moves_every_entry_and_back(scale, order):
    x = np.arange(2 * 60 * 12).reshape(2, *(5, 4, 3)[: len(scale)], -1)
    want = shuffled(x, scale, order)
    np.testing.assert_array_equal(pixel_shuffle(x, scale, order=order), want)
    np.testing.assert_array_equal(pixel_unshuffle(want, scale, order=order), x)
    one = pixel_shuffle(x[0], scale, order=order)  # no batch axis
    np.testing.assert_array_equal(one, want[0])
    two = pixel_shuffle(x[:, None], list(scale), order=order)
    np.testing.assert_array_equal(two[:, 0], want)


def test_keeps_any_dtype_and_zero_sizes():
    x = random(3, 2, 12) > 0.5
    for kind in (bool, np.int8, np.float16, np.complex64):
        got = pixel_shuffle(x.astype(kind), (2, 3))
        assert got.dtype == kind
        np.testing.assert_array_equal(got, shuffled(x[None].astype(kind), (2, 3), "CRD")[0])
    assert pixel_shuffle(np.zeros((0, 3, 2, 12)), (2, 3)).shape == (0, 6, 6, 2)
    assert pixel_unshuffle(np.zeros((0, 4, 6, 2)), (2, 3)).shape == (0, 2, 2, 12)


@each("order", ORDERS)
def test_transposes_to_its_inverse_and_maps(order):
    x, y = random(2, 3, 4, 12), random(2, 6, 12, 2, seed=1)
    shuffle = lambda x: pixel_shuffle(x, (2, 3), order=order)

    @jax.jit
    def transformed(x, y):
        return jax.vjp(shuffle, x)[1](y)[0], jax.vmap(shuffle, 1, 1)(x.swapaxes(0, 1))

    cotangent, mapped = transformed(x, y)
    np.testing.assert_array_equal(cotangent, pixel_unshuffle(y, (2, 3), order=order))
    np.testing.assert_array_equal(mapped.swapaxes(0, 1), shuffle(x))


def test_exports_with_symbolic_sizes():
    run = jax.jit(lambda x: pixel_unshuffle(pixel_shuffle(x, (2, 1), order="DCR"), (1, 3)))
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, h, 3*w, 4"), np.float64)
    x = random(2, 5, 6, 4)
    np.testing.assert_array_equal(export.export(run)(shape).call(x), run(x))


@each("order", ORDERS)
def test_subpixel_conv_is_conv_then_shuffle(order):
    x, w, pads = random(1, 5, 4, 4), random(3, 2, 2, 12, seed=1), ((2, 1), (0, 3))
    padded = np.pad(x, ((0, 0), *pads, (0, 0)), "reflect")
    want = shuffled(oracles.conv(padded, w, (1, 1), ((0, 0),) * 2, (2, 1), 2), (3, 2), order)
    got = subpixel_conv(
        *(x, w),
        scale=(3, 2),
        order=order,
        padding=pads,
        padding_mode="reflect",
        kernel_dilation=(2, 1),
        feature_group_count=2,
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_subpixel_conv_is_one_transposed_convolution():
    k, r, low = 3, 2, 1
    x, w = random(2, 7, 3), random(k, 3, 2 * r, seed=1)
    painted = np.zeros((r * k, 2, 3))  # the forward kernel: out, in
    for a in range(k):
        for phase in range(r):
            painted[phase + r * (k - 1 - a)] = w[a, :, phase::r].T
    got = subpixel_conv(x, w, scale=r, padding=low)
    pads = ((r * (k - 1 - low), r * low),)
    want = conv_transpose(x, painted, strides=r, padding=pads, transpose_kernel=True)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@each("order", ORDERS)
def test_equal_kernels_in_all_phases_are_conv_then_nearest(order):
    x, w = random(2, 5, 4, 3), random(3, 3, 3, 4, seed=1)
    tied = np.repeat(w, 4, -1) if order == "CRD" else np.tile(w, 4)
    want = resize(conv(x, w), (2, 2))
    np.testing.assert_allclose(subpixel_conv(x, tied, scale=2, order=order), want, atol=1e-12)


def test_subpixel_conv_is_linear_in_both_arguments_and_so_are_its_transformations():
    x, w, y = random(2, 4, 3, 2), random(3, 2, 2, 12, seed=1), random(2, 8, 9, 2, seed=2)
    run = lambda x, w: subpixel_conv(x, w, scale=(2, 3))

    @jax.jit
    def transformed(x, w):
        return run(x, w), jax.vjp(run, x, w)[1](y), jax.vmap(run, (None, 0))(x, w[None])[0]

    out, (to_x, to_w), mapped = transformed(x, w)
    np.testing.assert_allclose(mapped, out, rtol=0, atol=1e-12)
    u, v = random(*x.shape, seed=3), random(*w.shape, seed=4)
    np.testing.assert_allclose(np.vdot(to_x, u), np.vdot(y, run(u, w)), rtol=1e-12)
    np.testing.assert_allclose(np.vdot(to_w, v), np.vdot(y, run(x, v)), rtol=1e-12)


W = random(3, 3, 8, 8, seed=1)
EVERY = {
    "pixel_shuffle, CRD": lambda x: pixel_shuffle(x, (2, 2)),
    "pixel_shuffle, DCR": lambda x: pixel_shuffle(x, (2, 2), order="DCR"),
    "pixel_unshuffle, CRD": lambda x: pixel_unshuffle(x, (2, 3)),
    "pixel_unshuffle, DCR": lambda x: pixel_unshuffle(x, (2, 3), order="DCR"),
    "subpixel_conv": lambda x: subpixel_conv(x, W, scale=2),
    "resize, nearest": lambda x: resize(x, (2, 3)),
    "resize, linear": lambda x: resize(x, (2, 3), method="linear"),
    "blur_pool": lambda x: blur_pool(x, (2, 3)),
    "upfirdn": lambda x: upfirdn(x, W[..., 0, 0], up=2, padding=1),
    "resize, fourier": lambda x: resize(x, (2, 3), method="fourier"),
    "bilinear_additive": lambda x: bilinear_additive(x, (2, 1)),
    "hold": lambda x: hold(x, (2, 3)),
    "max_blur_pool": lambda x: max_blur_pool(x, (2, 3)),
    "max_unpool": lambda x: max_unpool(*max_pool(x, (2, 3)), strides=(2, 3)),
    "carafe": lambda x: carafe(x, random(4, 16, 12, 9), scale=(2, 2), window=3),
    "dysample": lambda x: dysample(x, random(4, 16, 12, 2, 2), scale=(2, 2)),
    "pixel_conv_transpose": lambda x: pixel_conv_transpose(x, (W, W / 16, W / 16)),
}
LIKE_THE_KERNEL = ("subpixel_conv", "pixel_conv_transpose")


PLACES = (P("a", "b", None, None), P(None, ("a", "b"), None, None), P(None, None, None, "b"))


@pytest.mark.slow
@each("where", PLACES)
def test_images_stay_where_they_are_on_a_mesh_of_explicit_axes(where):
    @jax.jit
    def both(x):
        return {k: (f(x), jax.grad(lambda x, f=f: jnp.sum(f(x) ** 2))(x)) for k, f in EVERY.items()}

    x = random(4, 8, 6, 8)
    mesh = jax.make_mesh((2, 2), ("a", "b"))
    assert set(mesh.axis_types) == {AxisType.Explicit}
    with jax.set_mesh(mesh):
        spread = both(jax.device_put(x, where))
    for name, want in both(x).items():
        for got, expected in zip(spread[name], want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10, err_msg=name)
        y, gradient = (got.sharding.spec for got in spread[name])
        assert gradient == where, name
        # The channels of a convolution lie where those of its kernel do.
        assert y == where or name in LIKE_THE_KERNEL, name


@pytest.mark.refuses
@each("function", (pixel_shuffle, pixel_unshuffle))
@pytest.mark.parametrize(
    ("scale", "order", "error", "message"),
    [
        (2, "CRD", TypeError, r"got scale=2. Write \(2, 2\)"),
        ((2, 0), "CRD", ValueError, r"scale must be at least 1; got scale=\(2, 0\)"),
        ((2, 2), "crd", ValueError, "order='crd'. Did you mean 'CRD'?"),
        ((1,) * 3, "DCR", ValueError, r"got shape \(4, 5, 10\) for scale=\(1, 1, 1\)"),
    ],
)
def test_shuffles_refuse(function, scale, order, error, message):
    with pytest.raises(error, match=f"^{function.__name__}: .*{message}"):
        function(np.zeros((4, 5, 10)), scale, order=order)


@pytest.mark.refuses
def test_refuses_what_does_not_divide():
    x = np.zeros((4, 5, 10))
    message = (
        r"prod\(scale\) must divide the channels; got channels=10, scale=\(2, 2\) \(product 4\)."
    )
    with pytest.raises(ValueError, match=f"^pixel_shuffle: {message}$"):
        pixel_shuffle(x, (2, 2))
    with pytest.raises(ValueError, match=r"spatial shape \(4, 5\), scale=\(2, 2\). Crop or pad"):
        pixel_unshuffle(x, (2, 2))


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"scale": 2},
            r"prod\(scale\) must divide .*\(3, 3, 10, 6\), scale=\(2, 2\) \(product 4\)",
        ),
        ({"scale": (1, 2, 3)}, r"scale=\(1, 2, 3\) for 2 spatial axes"),
        ({"order": "CDR"}, "order must be one of 'CRD', 'DCR'"),
        ({"implementation": "fused"}, "implementation must be one of"),
        ({"padding_mode": "wrap"}, "padding_mode must be one of"),
        ({"feature_group_count": 3}, "got 10 channels"),
    ],
)
def test_subpixel_conv_refuses(wrong, message):
    options = {"scale": (2, 3), "order": "DCR"} | wrong
    with pytest.raises(ValueError, match=f"^subpixel_conv: .*{message}"):
        subpixel_conv(np.zeros((4, 5, 10)), np.zeros((3, 3, 10, 6)), **options)


@each("mode", ("zeros", "circular"))
def test_pixel_conv_transpose_computes_pixels_from_their_neighbors(mode):
    x = random(2, 4, 5, 3)
    kernels = random(3, 3, 3, 2), random(3, 5, 2, 2, seed=1), random(5, 3, 2, 2, seed=2)
    pad = {"zeros": "constant", "circular": "wrap"}[mode]

    def correlated(x, kernel):
        k = kernel.shape
        around = np.pad(x, ((0, 0), (k[0] // 2,) * 2, (k[1] // 2,) * 2, (0, 0)), pad)
        y = np.zeros((*x.shape[:3], k[3]))
        for u, v in np.ndindex(*k[:2]):
            y += around[:, u : u + x.shape[1], v : v + x.shape[2]] @ kernel[u, v]
        return y

    want = np.zeros((2, 8, 10, 2))
    want[:, ::2, ::2] = first = correlated(x, kernels[0])
    want[:, 1::2, 1::2] = correlated(first, kernels[1])
    known = want.copy()
    across = np.indices((5, 3)).sum(0) % 2 == 0  # the middle is (2, 1): an odd distance
    added = correlated(known, np.where(across[..., None, None], kernels[2], 0))
    want[:, ::2, 1::2], want[:, 1::2, ::2] = added[:, ::2, 1::2], added[:, 1::2, ::2]
    got = pixel_conv_transpose(x, kernels, padding_mode=mode)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.refuses
def test_pixel_conv_transpose_refuses():
    x, good = np.ones((4, 4, 3)), [np.ones((3, 3, *io)) for io in ((3, 2), (2, 2), (2, 2))]
    for wrong in (good[:2], [good[0], good[0], good[2]], [*good[:2], np.ones((4, 3, 2, 2))]):
        with pytest.raises(ValueError, match=r"^pixel_conv_transpose: kernels must "):
            pixel_conv_transpose(x, wrong)
    with pytest.raises(TypeError, match="sequence of three arrays; got ndarray"):
        pixel_conv_transpose(x, np.ones((3, 3, 3, 2, 2)))
