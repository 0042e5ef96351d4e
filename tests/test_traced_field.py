"""Fields of traced networks against what a change of every input pixel changes, and against inference on tiles."""

from fractions import Fraction
from math import inf

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from flax import linen, nnx
from jax import lax

import tconvjax
from tconvjax import analysis
from tconvjax import nnx as tnn
from tconvjax._program.fields import _flat, _run_of
from tconvjax._program.following import Follower, Track
from tconvjax._program.program import Context, traced
from tconvjax._program.sights import first_sight
from tconvjax.analysis import traced_field

pytestmark = pytest.mark.usefixtures("x64", "promotion")
IMAGE = jax.ShapeDtypeStruct((1, 48, 40, 2), "float64")


def weights(*shape):
    """Positive, so that nothing cancels."""
    return jnp.asarray(np.random.default_rng(sum(shape)).uniform(0.5, 1.5, shape))


def conv(x, k=3, s=1, padding="SAME", d=1, up=1, features=2, groups=1):
    """A convolution of an image with channels last, of any rank."""
    rank = x.ndim - 2
    letters = "HWD"[:rank]
    spec = ("N" + letters + "C", letters + "IO", "N" + letters + "C")
    if isinstance(padding, int):
        padding = [(padding, padding)] * rank
    return lax.conv_general_dilated(
        x, weights(*(k,) * rank, x.shape[-1] // groups, features), (s,) * rank, padding, (up,) * rank, (d,) * rank,
        dimension_numbers=spec, feature_group_count=groups,
    )  # fmt: skip


def up(x, k, s, padding, output_padding=None):
    w = weights(k, k, x.shape[-1], 2)
    return tconvjax.conv_transpose(x, w, s, padding=padding, output_padding=output_padding)


def pool(x, k=2, s=2, padding="VALID"):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, k, k, 1), (1, s, s, 1), padding)


def resized(x, scale, method):
    shape = (x.shape[0], *(int(n * scale) for n in x.shape[1:-1]), x.shape[-1])
    return jax.image.resize(x, shape, method)


def cropped(x, y):
    """Cuts x to the size of y, about its center."""
    starts = [(a - b) // 2 for a, b in zip(x.shape, y.shape, strict=True)]
    return lax.slice(x, [max(s, 0) for s in starts[:-1]] + [0], [
        max(s, 0) + n for s, n in zip(starts[:-1], y.shape[:-1], strict=True)
    ] + [x.shape[-1]])  # fmt: skip


def unet(x, levels=2):
    if not levels:
        return conv(x)
    y = unet(conv(pool(conv(x))), levels - 1)
    y = up(y, 2, 2, 0)[:, : x.shape[1], : x.shape[2]]
    y = jnp.pad(
        y, [(0, 0), *((0, n - m) for n, m in zip(x.shape[1:3], y.shape[1:3], strict=True)), (0, 0)]
    )
    return jax.nn.relu(conv(jnp.concatenate([x, y], -1)))


def valid_unet(x):
    inside = conv(x, 3, padding="VALID")
    deep = up(conv(pool(inside), 3, padding="VALID"), 2, 2, 0)
    return conv(jnp.concatenate([cropped(inside, deep), deep], -1), 3, padding="VALID")


def shuffled(x):
    return tconvjax.pixel_shuffle(conv(x, 3, features=8), (2, 2))


def shuffled_first_channels(x):  # PyTorch's order, on NCHW
    y = jnp.moveaxis(conv(x, 3, features=8), -1, 1)
    n, c, h, w = y.shape
    y = y.reshape(n, c // 4, 2, 2, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // 4, 2 * h, 2 * w)


def interleaved(x):
    """Four convolutions, stacked and reshaped."""
    a, b = conv(x, 3), conv(x, 5)
    rows = jnp.stack([a, b], 2).reshape(x.shape[0], -1, x.shape[2], 2)
    return jnp.stack([rows, conv(rows, 1)], 3).reshape(x.shape[0], rows.shape[1], -1, 2)


def in_windows(x, size=4):
    """Attention within windows."""
    n, h, w, c = x.shape
    parts = x.reshape(n, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    tokens = parts.reshape(-1, size * size, c)
    mixed = jax.nn.softmax(tokens @ tokens.mT / 100) @ tokens
    mixed = mixed.reshape(n, h // size, w // size, size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return mixed.reshape(x.shape)


def scanned(x):
    kernels = weights(3, 3, 3, 2, 2)
    body = lambda y, w: (tconvjax.conv(y, w, padding="SAME"), None)
    return lax.scan(jax.checkpoint(body), x, kernels)[0]


def inside(border):
    return ((0, 0), (border, border), (border, border), (0, 0))


def moving(x, axis):
    """Takes from one line to the next what the line before held."""
    rows = jnp.moveaxis(x, axis, 0)
    return jnp.moveaxis(
        lax.scan(lambda s, row: (row, s + row), jnp.zeros(rows.shape[1:]), rows)[1], 0, axis
    )


@jax.custom_vjp
def custom(x):
    return jnp.tanh(x / 1e3)


custom.defvjp(lambda x: (custom(x), None), lambda _, g: (g,))


NETWORKS = {
    "one convolution": conv,
    "chain": lambda x: conv(conv(conv(x, 5), 3, 2), 4, 1),
    "dilations": lambda x: conv(conv(x, 3, d=2), 3, d=4, padding=3),
    "even kernel, explicit padding": lambda x: conv(conv(x, 4, 2, padding=1), 2, padding=1),
    "no padding": lambda x: conv(conv(x, 3, 2, "VALID"), 3, 1, "VALID"),
    "negative padding": lambda x: conv(x, 3, padding=-2),
    "groups": lambda x: conv(conv(x, 5, groups=2, features=4), 3, groups=4, features=4),
    "different channels": lambda x: conv(jnp.concatenate([conv(x, 7), x], -1), 3, groups=2),
    "dilated image": lambda x: conv(x, 3, up=2, padding=2),
    "transposed 4 2 1": lambda x: up(x, 4, 2, 1),
    "transposed 3 2 1": lambda x: up(conv(x), 3, 2, 1, 1),
    "transposed 5 3 0": lambda x: up(x, 5, 3, 0),
    "transposed 2 3": lambda x: up(x, 2, 3, 0),
    "transposed SAME": lambda x: conv(up(conv(x, 3, 2), 5, 2, "SAME")),
    "of lax": lambda x: lax.conv_transpose(x, weights(3, 3, 2, 2), (2, 2), "SAME"),
    "nearest": lambda x: conv(resized(x, 2, "nearest")),
    "linear": lambda x: conv(resized(x, 2, "linear")),
    "cubic": lambda x: resized(x, 2, "cubic"),
    "lanczos": lambda x: resized(x, 2, "lanczos3"),
    "linear by 3": lambda x: resized(x, 3, "linear"),
    "linear by 5/4": lambda x: resized(x, 1.25, "linear"),
    "linear down": lambda x: conv(resized(x, 0.5, "linear")),
    "cubic down": lambda x: resized(x, 0.25, "cubic"),
    "nearest down": lambda x: resized(conv(x), 0.5, "nearest"),
    "resize of this library": lambda x: tconvjax.resize(x, (2, 2), method="cubic"),
    "resize-convolution": lambda x: tconvjax.resize_conv(x, weights(3, 3, 2, 2), 2),
    "blur pool": lambda x: tconvjax.blur_pool(conv(x), (2, 2)),
    "pixel shuffle": shuffled,
    "pixel shuffle, channels first": shuffled_first_channels,
    "pixel unshuffle": lambda x: conv(tconvjax.pixel_unshuffle(conv(x), (2, 2))),
    "interleaved": interleaved,
    "repeated": lambda x: conv(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)),
    "maximum pool": lambda x: pool(conv(x), 3, 2, "SAME"),
    "mean pool": lambda x: linen.avg_pool(conv(x), (3, 3), (1, 1), "SAME"),
    "pool by reshape": lambda x: conv(x).reshape(1, 12, 4, 10, 4, 2).mean((2, 4)),
    "strided slice": lambda x: conv(conv(x)[:, 1::2, ::2]),
    "zeros by pad": lambda x: conv(lax.pad(x, 0.0, ((0, 0, 0), (1, 2, 1), (0, -1, 2), (0, 0, 0)))),
    "zeros by scatter": lambda x: conv(jnp.zeros((1, 96, 40, 2)).at[:, ::2].set(x)),
    "gather": lambda x: jnp.take(conv(x), np.arange(1, 47, 3), axis=1),
    "reflected border": lambda x: conv(jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect"), 5, padding="VALID"),
    "residual": lambda x: jax.nn.relu(x + conv(conv(x))),
    "strided residual": lambda x: conv(x, 1, 2) + conv(conv(x, 3, 2, padding=1)),
    "wide skip over pairs": lambda x: conv(x, 9) + up(conv(x, 2, 2), 2, 2, 0),
    "U-Net": unet,
    "U-Net without padding": valid_unet,
    "identity at the border": lambda x: x + jnp.pad(conv(conv(x, 5, 1, "VALID"), 7, 1, "VALID"), inside(5)),
    "cut and filled up": lambda x: conv(x, 5) + jnp.pad(x[:, 7:-6, 2:-3], ((0, 0), (7, 6), (2, 3), (0, 0))),
    "running window": lambda x: moving(moving(x, 1), 2),
    "windows of attention": lambda x: in_windows(conv(x)),
    "normalized channels": lambda x: jax.nn.standardize(conv(x), axis=-1, epsilon=1.0),
    "scan": scanned,
    "scan over rows": lambda x: lax.map(lambda row: row * 2, jnp.moveaxis(conv(x), 1, 0)),
    "while": lambda x: lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 2), (0, conv(x)))[1],
    "cond": lambda x: lax.cond(jnp.arange(3).sum() > 2, conv, lambda x: conv(x, 5), x),
    "vmap": lambda x: jax.vmap(lambda image: conv(image[None], 3)[0])(x),
    "vmap over kernels": lambda x: jax.vmap(lambda w: tconvjax.conv(x, w))(weights(2, 3, 3, 2, 2)).sum(0),
    "custom rules": lambda x: jax.nn.relu(custom(jax.jit(conv)(x))),
    "gradient of a convolution": lambda x: jax.vjp(lambda y: conv(y, 3, 2), jnp.zeros((1, 96, 80, 2)))[1](x)[0],
}  # fmt: skip
SHAPES = {"U-Net": (1, 75, 61, 2), "U-Net without padding": (1, 46, 37, 2)}  # odd sizes
ONLY_BOUNDED = {"cond"}  # the branch that does not run may see more


def reaches(fn, x):
    """Returns for both axes whether output n of the row along it changes with the line of input pixels m: `[n, m]`.

    A network is compiled once, in a loop over no change and all lines.
    """
    lines = [np.zeros((1, *x.shape))]
    for axis in (1, 2):
        shape = (-1, *(n if i == axis else 1 for i, n in enumerate(x.shape)))
        line = np.eye(x.shape[axis]).reshape(shape)
        lines.append(np.broadcast_to(line, (len(line), *x.shape)))
    run = jax.jit(lambda x, lines: lax.map(lambda line: fn(x + 10 * line), lines))
    before, *after = np.asarray(run(x, np.concatenate(lines)))
    change = abs(np.stack(after) - before)
    tall, wide = np.split(change, [x.shape[1]])
    return tall > 1e-11 * tall.max(), wide > 1e-11 * wide.max()


def followed(fn, x, axis):
    """Returns what the result sees along an axis, and which of its axes runs along it."""
    program, values = traced(fn, (x,))
    (result,) = Follower().run(
        program, [Track(values[0], (first_sight(x.shape, axis),))], Context()
    )
    (sight,) = result.seen
    assert not isinstance(sight, str), sight
    run = _run_of(sight)
    return _flat(sight, [i for i in range(sight.ndim - 1) if i != run]), run


@each("name", NETWORKS)
def test_sees_the_pixels_whose_change_is_seen(name):
    fn, x = NETWORKS[name], weights(*SHAPES.get(name, IMAGE.shape))
    fields = traced_field(fn, x)
    for axis, change, field in zip((1, 2), reaches(fn, x), fields, strict=True):
        check_axis(*followed(fn, x, axis), change, field, only_bounded=name in ONLY_BOUNDED)


def check_axis(seen, run, change, field, *, only_bounded):
    """Compares what a result sees along an axis, which is its axis `run`, with what changes it."""
    low, high, _ = seen
    change = change.any(tuple(i for i in range(1, change.ndim) if i != run + 1)).T
    first = np.where(change.any(1), change.argmax(1), 1)
    last = np.where(change.any(1), change.shape[1] - 1 - change[:, ::-1].argmax(1), 0)
    blind = low > high
    assert (blind <= ~change.any(1)).all()
    if only_bounded:
        assert (low <= first).all()
        assert (last <= high).all()
        return
    np.testing.assert_array_equal(np.where(blind, 1, low), first)
    np.testing.assert_array_equal(np.where(blind, 0, high), last)
    # Away from the borders the size is that of the widest output, and centers lie where the law says, on average.
    middle = np.arange(len(first) * 3 // 8, len(first) * 5 // 8)
    assert field.size == (last - first)[middle].max() + 1
    seeing = middle[~blind[middle]]
    centers = (first + last)[seeing] / 2 - np.float64(field.stride) * seeing
    assert (abs(centers - np.float64(field.offset)) <= max(field.period, field.size) / 2).all()
    repeats = int(field.period / field.stride)
    np.testing.assert_array_equal(
        low[middle + repeats] - low[middle], np.where(blind[middle], 0, field.period)
    )


def on_tiles(fn, x, field, overlap, size):
    """Runs a network on tiles along the first spatial axis, and puts them together."""
    n, parts = x.shape[1], []
    for a in range(0, n, size):
        b = min(a + size, n)
        first, last = max(a - overlap, 0), min(b + overlap, n)
        start, stop = (int((end - first) / field.stride) for end in (a, b))
        parts.append(fn(x[:, first:last])[:, start : stop if b < n else None])
    return np.concatenate(parts, 1)


TILED = (  # one of each kind
    "chain", "dilations", "even kernel, explicit padding", "no padding", "transposed 4 2 1", "transposed 3 2 1",
    "transposed 5 3 0", "nearest", "cubic", "linear by 5/4", "linear down", "pixel shuffle", "pixel unshuffle",
    "interleaved", "maximum pool", "strided slice", "zeros by pad", "reflected border", "identity at the border",
    "cut and filled up", "running window", "wide skip over pairs", "U-Net", "windows of attention", "scan",
)  # fmt: skip


@each("name", TILED)
def test_tiles_with_the_overlap_are_the_whole_and_with_less_are_not(name):
    fn, x = NETWORKS[name], weights(1, 96, 12, 2)
    (field,) = traced_field(fn, x, spatial_axes=[1])
    assert not field.reason
    size = field.period * -(-20 // field.period)
    run = jax.jit(fn)  # most tiles have the shape of another
    whole = np.asarray(run(x))
    tiles = on_tiles(run, x, field, field.overlap, size)
    np.testing.assert_allclose(tiles, whole, rtol=1e-11)
    if field.overlap:
        less = on_tiles(run, x, field, field.overlap - field.period, size)
        assert less.shape != whole.shape or abs(less - whole).max() > 1e-6


# Figures of the literature.


def chain(*layers):
    """A network of rank 1 from layers (kernel, stride, padding)."""

    def network(x):
        for k, s, p in layers:
            x = conv(x, k, s, p, features=1)
        return x

    return network


def resnet18(x):
    block = lambda x, s: conv(x, 1, s, 0) + conv(conv(x, 3, s, 1), 3, 1, 1)
    x = conv(conv(x, 7, 2, 3), 3, 2, 1)  # the pool as a convolution of its window
    for stride in (1, 1, 2, 1, 2, 1, 2, 1):
        x = block(x, stride)
    return x


C3, POOL = (3, 1, 1), (2, 2, 0)
KNOWN = {  # size and stride, up to the last pool; AlexNet and VGG in the table of Araujo, Norris & Sim 2019
    "AlexNet": (chain((11, 4, 0), (3, 2, 0), (5, 1, 2), (3, 2, 0), C3, C3, C3, (3, 2, 0)), 195, 32),
    "VGG16": (chain(C3, C3, POOL, C3, C3, POOL, *(C3, C3, C3, POOL) * 3), 212, 32),
    "ResNet-18": (resnet18, 435, 32),
}


@each("name", KNOWN)
def test_has_the_size_that_the_literature_computed(name):
    network, size, stride = KNOWN[name]
    (field,) = traced_field(network, jax.ShapeDtypeStruct((1, 1024, 1), "float64"))
    assert (field.size, field.stride, field.period) == (size, stride, stride)
    assert field.overlap % stride == 0
    assert field.overlap >= (size - stride) / 2


def test_agrees_with_the_field_of_layers():
    layers = [
        analysis.Layer(4, 2, 1, transpose=False),
        analysis.Layer(3, 1, 2, kernel_dilation=2, transpose=False),
        analysis.Layer(5, 3, 1),
    ]

    def network(x):
        x = tconvjax.conv(x, weights(4, 1, 1), 2, padding=1)
        x = tconvjax.conv(x, weights(3, 1, 1), padding=2, kernel_dilation=2)
        return tconvjax.conv_transpose(x, weights(5, 1, 1), 3, padding=1)

    (want,) = analysis.receptive_field((64,), layers)
    (low, high, _), _ = followed(network, weights(1, 64, 1), 1)
    np.testing.assert_array_equal(np.stack([low, high + 1], 1), want)
    (field,) = traced_field(network, weights(1, 64, 1))
    assert field.stride == Fraction(2, 3)
    scale, offset = 1.0, 0.0
    for layer in layers:
        where = analysis.center_map(
            layer.kernel_size, layer.strides, layer.padding, kernel_dilation=layer.kernel_dilation,
            transpose=layer.transpose,
        )  # fmt: skip
        scale, offset = scale * where.scale[0], offset * where.scale[0] + where.offset[0]
    # Phases of 1 and 2 taps are centered within a pixel of the kernel's center.
    assert abs(float(field.offset) + offset / scale) <= 1


# Layouts, ranks and models.


def test_ranks_and_layouts():
    for rank in (1, 2, 3):
        fields = traced_field(lambda x: conv(conv(x, 3, 2), 5), jnp.ones((2, *(32,) * rank, 3)))
        assert [(f.size, f.stride) for f in fields] == [(11, 2)] * rank
    channels_first = lambda x: lax.conv(x, weights(4, 3, 5, 3), (2, 1), "SAME")
    tall, wide = traced_field(channels_first, jax.ShapeDtypeStruct((2, 3, 30, 20), "float64"))
    assert (tall.size, tall.stride, wide.size, wide.stride) == (5, 2, 3, 1)
    by_number = traced_field(lambda x: x[:, ::2], jnp.ones((16, 12)), spatial_axes=(-1, 0))
    assert [(f.size, f.stride) for f in by_number] == [(1, 2), (1, 1)]
    (plain, _) = traced_field(
        lambda x: x[:, 1::2], jnp.ones((1, 16, 12, 3))
    )  # without convolutions
    assert (plain.stride, plain.offset, plain.overlap) == (2, 1, 0)


class Generator(nnx.Module):
    def __init__(self, rngs):
        self.down = nnx.Conv(3, 4, (3, 3), 2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.up = tnn.ConvTranspose(4, 3, (4, 4), 2, padding=1, rngs=rngs)

    def __call__(self, x):
        return self.up(jax.nn.gelu(self.norm(self.down(x))))


class Twin(linen.Module):
    normalize: bool = False

    @linen.compact
    def __call__(self, x):
        y = linen.Conv(4, (3, 3), 2)(x)
        y = linen.GroupNorm(2)(y) if self.normalize else linen.LayerNorm()(y)
        return linen.ConvTranspose(3, (4, 4), (2, 2))(jax.nn.swish(y)) + linen.Dense(3)(x)


def test_models_of_flax():
    image = jax.ShapeDtypeStruct((2, 32, 24, 3), "float32")
    model = Generator(nnx.Rngs(0))
    model.eval()
    for field in traced_field(model, image):
        assert (field.size, field.stride, field.period) == (5, 1, 2)
    assert traced_field(model.__call__, image) == traced_field(model, image)
    twin = Twin()
    variables = jax.eval_shape(twin.init, jax.random.key(0), image)
    fields = traced_field(twin.apply, variables, image)
    assert [f.size for f in fields] == [5, 5]
    first = lambda images, variables: twin.apply(variables, images["image"])
    assert traced_field(first, {"image": image}, variables, argnum=0) == fields
    # In training, batch statistics are sums over space.
    model.train()
    assert [f.size for f in traced_field(model, image)] == [inf, inf]
    assert "reduce_" in traced_field(model, image)[0].reason


def test_works_while_another_function_is_traced():
    inner = lambda x: conv(resized(x, 2, "linear")[:, jnp.arange(90)])
    want = traced_field(inner, IMAGE)

    @jax.jit
    def outer(x):
        assert traced_field(inner, IMAGE) == want
        return x

    outer(weights(*IMAGE.shape))


# What sees everything.


def flat_attention(x):
    y = conv(x)[:, ::4, ::4]
    tokens = y.reshape(y.shape[0], -1, 2)
    return (jax.nn.softmax(tokens @ tokens.mT) @ tokens).reshape(y.shape)


def drift(x):
    places = jnp.clip(jnp.arange(48) + x[0, :, 0, 0].astype(int), 0, 47)
    return x[:, places]


def totals(x, axis):
    """Running sums, line by line."""
    rows = jnp.moveaxis(x, axis, 0)
    return jnp.moveaxis(
        lax.scan(lambda s, row: (s + row,) * 2, jnp.zeros(rows.shape[1:]), rows)[1], 0, axis
    )


GLOBAL = {
    "reduce_sum": lambda x: conv(x) - conv(x).mean((1, 2), keepdims=True),
    "reduce_max": lambda x: x / x.max((1, 2), keepdims=True),
    "cumsum": lambda x: x.cumsum(1).cumsum(2),
    "sort": lambda x: jnp.sort(jnp.sort(x, 1), 2),
    "fft": lambda x: jnp.fft.ifft2(jnp.fft.fft2(conv(x), axes=(1, 2)), axes=(1, 2)).real,
    "dot_general": lambda x: jnp.einsum("nhwc,hk,wl->nklc", x, weights(48, 48), weights(40, 40)),
    "reduce_window_sum": lambda x: x + linen.avg_pool(x, x.shape[1:3]),
    "attention": flat_attention,
    "scan": lambda x: totals(totals(x, 1), 2),
    "while": lambda x: lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, conv(s[1])), (0, x))[1],
    "cholesky": lambda x: jnp.linalg.cholesky(jnp.moveaxis(x[:, :40], -1, 1)),
    "pure_callback": lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
}  # fmt: skip


@each("name", GLOBAL)
def test_names_what_sees_everything(name):
    fn = GLOBAL[name]
    for field in traced_field(fn, IMAGE, spatial_axes=(1, 2)):
        assert (field.size, field.overlap) == (inf, inf)
        assert (field.stride, field.offset, field.period) == (None, None, None)
        assert "attention" in name or name in field.reason
        assert "test_traced_field.py:" in field.reason


def test_places_that_depend_on_the_image_see_everything():
    field = traced_field(drift, IMAGE, spatial_axes=[1])[0]
    assert field.size == inf
    assert "gather" in field.reason
    assert "depend on the image" in field.reason
    turn = jnp.asarray(3)
    roll = lambda turn, x: lax.dynamic_slice_in_dim(x, turn, 16, 1)
    assert traced_field(roll, turn, IMAGE, spatial_axes=[1])[0].size == 1  # a number that is given
    unknown = jax.ShapeDtypeStruct((), "int64")
    field = traced_field(roll, unknown, IMAGE, spatial_axes=[1])[0]
    assert "dynamic_slice" in field.reason
    assert "not known" in field.reason


def test_a_wide_field_is_not_everything():
    """Sums over parts of an axis are local, however they are written."""
    parts = lambda x: x.reshape(1, 6, 8, 40, 2).mean(2)
    assert traced_field(parts, IMAGE)[0].size == 8
    assert traced_field(lambda x: in_windows(x, 8), IMAGE)[1].size == 8
    sharp = lambda x: jnp.einsum("nhwc,hk->nkwc", x, jnp.eye(48, k=2) + jnp.eye(48, k=-1))
    field = traced_field(sharp, IMAGE)[0]
    assert (field.size, field.stride, field.overlap) == (4, 1, 2)


# What no tile can do.


def test_a_border_that_is_the_other_end_has_no_overlap():
    round_ = lambda x: tconvjax.conv(x, weights(3, 3, 2, 2), padding_mode="circular")
    field = traced_field(round_, IMAGE)[0]
    assert (field.size, field.stride, field.overlap) == (3, 1, inf)
    assert field.reason == "outputs at one end of axis 1 see the other end of the image"


def test_a_mirrored_image_has_no_overlap():
    field = traced_field(lambda x: conv(x)[:, ::-1], IMAGE)[0]
    assert (field.size, field.stride, field.offset, field.overlap) == (3, -1, 47, inf)
    assert "backwards" in field.reason


def test_results_without_the_axis():
    row = traced_field(lambda x: conv(x)[:, 20], IMAGE)
    assert (row[0].size, row[0].stride, row[0].overlap) == (3, None, inf)
    assert row[0].reason == "no axis of the result runs along axis 1 of the image"
    assert (row[1].size, row[1].overlap) == (3, 1)
    for field in traced_field(lambda x: conv(x).reshape(1, -1, 2), IMAGE):
        assert (field.size, field.stride, field.overlap) == (3, None, inf)
        assert "axis 1, as others do, of the result" in field.reason


# Refusals.


@pytest.mark.refuses
def test_refuses_with_the_rule_and_the_values():
    wrong = {
        "fn must be callable; got an object of type int": lambda: traced_field(3, IMAGE),
        "got argnum=2 and 1 arguments": lambda: traced_field(conv, IMAGE, argnum=2),
        "argnum must be an integer; got 'x'": lambda: traced_field(conv, IMAGE, argnum="x"),
        "must hold an array; got one of type int as argument 1": lambda: traced_field(
            lambda x, k: conv(x, k), IMAGE, 3
        ),
        r"spatial_axes must be different axes of the image; got \(1, 5\)": lambda: traced_field(
            conv, IMAGE, spatial_axes=(1, 5)
        ),
        r"got \[1, -3\] for shape": lambda: traced_field(conv, IMAGE, spatial_axes=[1, -3]),
        "one array that depends on the image; got 2": lambda: traced_field(lambda x: (x, conv(x)), IMAGE),
        "one array that depends on the image; got 0": lambda: traced_field(jnp.zeros_like, IMAGE),
        r"must have spatial axes; got shape \(9, 9\)": lambda: traced_field(jnp.sin, jnp.ones((9, 9))),
        "axis 1 with 8 pixels and 8 outputs does not. Give a larger image": lambda: traced_field(
            lambda x: conv(x, 9), jnp.ones((1, 8, 8, 2))
        ),
        "axis 1 with 48 pixels and 48 outputs": lambda: traced_field(
            lambda x: lax.associative_scan(jnp.add, x, axis=1), IMAGE
        ),
        "got argnum=-1 and 0 arguments": lambda: traced_field(conv),
        "axis 1 with 63 pixels and 64 outputs": lambda: traced_field(
            lambda x: jax.image.resize(x, (1, 64, 64, 1), "nearest"), jnp.ones((1, 63, 63, 1))
        ),
        "axis 1 with 37 pixels and 50 outputs": lambda: traced_field(
            lambda x: jax.image.resize(x, (1, 50, 50, 1), "linear"), jnp.ones((1, 37, 37, 1))
        ),
    }  # fmt: skip
    for message, call in wrong.items():
        with pytest.raises((TypeError, ValueError), match="^traced_field: .*" + message):
            call()
