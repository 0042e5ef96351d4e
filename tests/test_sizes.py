"""`output_shape`: decoders that must make 89 pixels of 44, with every kind of layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import tconvjax
from tconvjax import linen
from tconvjax import nnx as tnn
from tconvjax._layers import UPSAMPLE_METHODS

SMALL, WHOLE = (5, 6), (10, 12)
SIZES = ((9, 12), (10, 13), (11, 11))
CONTINUED = {  # name, arguments without the channels of the input, options: other pixels stay as they are
    "SubpixelConv": ((3, (3, 3), 2), {}),
    "SubpixelConv DCR": ((3, (3, 3), 2), {"order": "DCR", "padding_mode": "reflect"}),
    "Upsample": ((3, (3, 3), 2), {"method": "subpixel_conv"}),
    "Carafe": (((2, 2),), {"window": 3}),
    "DySample": (((2, 2),), {"dynamic_scope": True}),
}
OTHERS = {
    "PixelConvTranspose": ((3, (3, 3)), {}),
    "LargeContextConvTranspose": ((3, (7, 7), 2), {}),
    "Upsample": ((3, (3, 3), 2), {"method": "conv_transpose"}),
}


def draw(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def pair(name, arguments, options):
    """Returns a layer of both sets with the same numbers."""
    name = name.split()[0]
    one = getattr(tnn, name)(4, *arguments, **options, rngs=nnx.Rngs(0))
    params = jax.tree.map(lambda p: draw(*p.shape), nnx.to_pure_dict(nnx.state(one, nnx.Param)))
    nnx.update(one, params)
    two = getattr(linen, name)(*arguments, **options)
    return one, lambda x, **at_call: two.apply({"params": params}, x, **at_call)


@each("name", CONTINUED)
def test_the_pixels_that_exist_without_a_size_keep_their_values(name):
    x = draw(1, *SMALL, 4)
    one, two = pair(name, *CONTINUED[name])
    whole = one(x)
    for size in SIZES:
        y = one(x, output_shape=size)
        assert y.shape == (1, *size, whole.shape[-1])
        rows, columns = map(min, size, WHOLE)
        np.testing.assert_allclose(y[:, :rows, :columns], whole[:, :rows, :columns], atol=1e-5)
        assert float(jnp.abs(y[:, -1]).max()) > 0
    np.testing.assert_array_equal(two(x, output_shape=size), y)


@each("name", OTHERS)
def test_every_layer_takes_a_size(name):
    x = draw(1, *SMALL, 4)
    one, two = pair(name, *OTHERS[name])
    np.testing.assert_array_equal(one(x, output_shape=WHOLE), one(x))
    for size in SIZES:
        y = one(x, output_shape=size)
        assert y.shape == (1, *size, 3)
    np.testing.assert_array_equal(two(x, output_shape=size), y)


@each("name", ("Carafe", "DySample"))
def test_a_size_is_met_on_a_mesh_of_explicit_axes(name):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    x, (one, _) = draw(1, 4, 6, 4), pair(name, *CONTINUED[name])
    want = one(x, output_shape=(9, 13))
    with jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "a", "b")))
        got = jax.jit(lambda x: one(x, output_shape=(9, 13)))(split)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_hold_is_continued_over_its_border():
    x = draw(1, 10, 12, 3)
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)), "edge")
    y = tnn.Hold((2, 2), order=1)(x, output_shape=(11, 11))
    np.testing.assert_allclose(y, tconvjax.hold(padded, (2, 2), order=1)[:, :, :11], atol=1e-6)
    np.testing.assert_array_equal(linen.Hold((2, 2), 1).apply({}, x, output_shape=(11, 11)), y)


def test_what_resizes_is_stretched_to_the_size():
    x = draw(1, *SMALL, 4)
    size = (11, 13)
    added = tconvjax.resize(x.sum(-1, keepdims=True), output_shape=size, method="linear")
    for layer in (tnn.BilinearAdditive((2, 2)), linen.BilinearAdditive((2, 2)).bind({})):
        np.testing.assert_allclose(layer(x, output_shape=size), added, atol=1e-5)
    for method in ("nearest", "cubic"):
        one, two = pair("Upsample", (3, (3, 3), 2), {"method": method})
        y = one(x, output_shape=size)
        want = tconvjax.conv(
            tconvjax.resize(x, output_shape=size, method=method), one.layer.kernel[...]
        )
        np.testing.assert_allclose(y, want + one.layer.bias[...].reshape(1, 1, 1, 3), atol=1e-4)
        np.testing.assert_array_equal(two(x, output_shape=size), y)


def test_pooled_pixels_go_back_to_an_odd_size():
    x = draw(1, 7, 9, 3)
    values, indices = tconvjax.max_pool(x, (2, 2), window_shape=3, padding=1)
    options = {"window_shape": 3, "padding": 1}
    want = tconvjax.max_unpool(values, indices, (2, 2), **options, output_shape=(7, 9))
    for layer in (tnn.MaxUnpool((2, 2), **options), linen.MaxUnpool((2, 2), **options)):
        np.testing.assert_array_equal(layer(values, indices, output_shape=(7, 9)), want)


class UNet(nnx.Module):
    """The smallest with all that a size has to pass: two poolings that drop a pixel, and two skip connections."""

    def __init__(self, method):
        rngs = nnx.Rngs(0)
        conv = lambda i: tnn.Conv(i, 4, (3, 3), rngs=rngs)
        up = lambda: tnn.Upsample(4, 4, (3, 3), 2, method=method, rngs=rngs)
        self.encode, self.decode = nnx.List([conv(1), conv(4)]), nnx.List([conv(8), conv(8)])
        self.up = nnx.List([up(), up()])

    def __call__(self, x):
        seen = []
        for encode in self.encode:
            x = nnx.relu(encode(x))
            seen.append(x)
            x = tconvjax.max_pool(x, (2, 2)).values
        for up, decode in zip(self.up, self.decode, strict=True):
            beside = seen.pop()
            x = nnx.relu(up(x, output_shape=beside.shape[1:-1]))
            x = decode(jnp.concatenate([x, beside], -1))
        return x


@pytest.mark.slow
@each("method", UPSAMPLE_METHODS)
def test_a_unet_trains_on_odd_sizes_with_every_method(method):
    if method == "binomial":
        with pytest.raises(ValueError, match="'binomial' needs whole factors"):
            UNet(method)(draw(1, 23, 14, 1))
        return
    model, x = UNet(method), draw(1, 23, 14, 1)

    @nnx.jit
    def loss_and_gradients(model):
        return nnx.value_and_grad(lambda model: jnp.mean((model(x) - x) ** 2))(model)

    before, gradients = loss_and_gradients(model)
    nnx.update(
        model, jax.tree.map(lambda p, g: p - 0.05 * g, nnx.state(model, nnx.Param), gradients)
    )
    assert float(loss_and_gradients(model)[0]) < float(before)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradients))


@each("kernel_size", (1, 2, 3, 4, 5))
@each("padding", ("SAME", "SAME_LOWER"))
def test_a_transposed_convolution_beyond_its_whole_size_is_the_adjoint_at_that_padding(
    kernel_size, padding
):
    """Pixels of the whole size stay, and the adjoint of some convolution over the larger image it is."""
    x, kernel, s = draw(4, 2), draw(kernel_size, 3, 2), 3
    run = lambda m: tconvjax.conv_transpose(
        x, kernel, s, padding=padding, output_shape=(m,), transpose_kernel=True
    )
    for m in range(12, 12 + min(kernel_size, s)):
        y = run(m)
        np.testing.assert_allclose(y[:12], run(12), atol=1e-5)
        total = max(kernel_size - s, 0)
        low = (total + (padding == "SAME_LOWER")) // 2
        forward = lambda y, low=low, total=total: tconvjax.conv(
            y, kernel, s, padding=((low, total - low),)
        )
        assert forward(y).shape == x.shape
        np.testing.assert_allclose(y, jax.linear_transpose(forward, y)(x)[0], atol=1e-5)
    with pytest.raises(
        ValueError, match=r"conv_transpose: output_shape must be .*, valid sizes are"
    ):
        run(12 + min(kernel_size, s))


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: tnn.SubpixelConv(4, 3, (3, 3), 2, rngs=nnx.Rngs(0))(x, output_shape=(8, 12)),
         r"subpixel_conv: output_shape must be less than scale pixels from \(10, 12\), here \{9..11\} x \{11..13\}"),
        (lambda x: tnn.Carafe(4, (2, 2), rngs=nnx.Rngs(0))(x, output_shape=(12, 12)), "Carafe: output_shape must be"),
        (lambda x: tconvjax.hold(x, (2, 2), output_shape=(5, 8)), r"hold: output_shape must .*\(5, 6\), here \{4..6\}"),
        (lambda x: tconvjax.subpixel_conv(x, jnp.ones((1, 1, 4, 4)), 2, output_shape=(10,)),
         "subpixel_conv: output_shape has spatial axes alone"),
        (lambda x: tconvjax.conv_transpose(x, jnp.ones((4, 4, 4, 1)), 2, output_shape=(12, 14)),
         r"valid sizes are \{9..11\} x \{11..13\}. This size needs padding=\(\(0, 0\), \(0, 0\)\) of the forward"),
    ],
)  # fmt: skip
def test_refuses_other_sizes(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((1, *SMALL, 4)))
