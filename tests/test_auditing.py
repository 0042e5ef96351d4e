"""`audit` finds planted faults, with the user's own lines, and nothing in clean models."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from flax import linen, nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import tconvjax
import tconvjax.nnx
from tconvjax import audit

NHWC = ("NHWC", "HWIO", "NHWC")
IMAGE = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def transposed(x, w, s=2):
    return lax.conv_transpose(x, w, (s, s), "SAME", dimension_numbers=NHWC)


def strided(x, w, s=2):
    return lax.conv_general_dilated(x, w, (s, s), "SAME", dimension_numbers=NHWC)


def shuffle(x, r=2, order="CRD"):
    return tconvjax.pixel_shuffle(x, (r, r), order=order)


def here(function, text):
    """The number of the line of `function` that holds `text`."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def one(fn, *args, **options):
    (finding,) = audit(fn, *args, **options)
    return finding


# Findings.


def test_a_transposed_convolution_is_described():
    w = drawn(3, 3, 4, 5)
    layer = lambda x: transposed(x, w)
    found = one(layer, IMAGE)
    assert (found.kind, found.severity) == ("transposed_convolution", "high")
    assert (found.kernel_size, found.strides, found.period) == ((3, 3), (2, 2), (2, 2))
    assert (found.input_shape, found.output_shape) == ((2, 8, 8, 4), (2, 16, 16, 5))
    assert (found.overlap_ratio, found.primitive) == (4, "conv_general_dilated")
    assert found.weights == "given"
    share = tconvjax.analysis.harmonic_share(w, 2)
    assert found.harmonic_share == pytest.approx(float(share), rel=1e-5)
    powers = [(w[::-1, ::-1][i::2, j::2] ** 2).sum() for i in range(2) for j in range(2)]
    assert found.variance_ratio == pytest.approx(max(powers) / min(powers), rel=1e-5)
    shift = tconvjax.analysis.center_map(3, 2, "SAME").shift[0]
    assert found.center_shift == (shift, shift)
    assert found.cost == (2 * 2 * 64 * 9 * 20, 180, (2, 2))
    assert found.remedy_cost == (2 * 2 * 64 * 9 * 20, 80, (2, 2))  # 2 + 2 − 1 taps when fused
    assert found.message.startswith(
        "transposed convolution, kernel 3x3, stride 2x2, 4 -> 5 channels: "
        f"output pixels receive unequal numbers of taps (max/min 4), and these weights put {share:.1%}"
    )
    assert found.file == __file__
    assert found.line == here(transposed, "lax.conv_transpose")


@each("order", ("CRD", "DCR"))
def test_a_pixel_shuffle_is_described(order):
    w = drawn(3, 3, 4, 12)
    bias = drawn(12)

    def layer(x):
        y = strided(x, w, 1) + bias.reshape(1, 1, 1, -1)
        return shuffle(jax.nn.relu(y), order=order)

    found = one(layer, IMAGE)
    assert (found.kind, found.severity, found.strides) == ("pixel_shuffle", "medium", (2, 2))
    assert (found.kernel_size, found.weights, found.primitive) == ((3, 3), "given", "reshape")
    gains = w.sum((0, 1)).reshape((4, 3, 4) if order == "CRD" else (4, 4, 3))
    mean = gains.mean(2 if order == "CRD" else 1, keepdims=True)
    want = ((gains - mean) ** 2).sum() / (gains**2).sum()
    assert found.harmonic_share == pytest.approx(want, rel=1e-5)
    assert found.line == here(test_a_pixel_shuffle_is_described, "return shuffle(") or (
        found.line == here(shuffle, "tconvjax.pixel_shuffle")
    )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_images_may_be_smaller_than_their_kernels(size):
    image = jax.ShapeDtypeStruct((1, size, size, 4), jnp.float32)
    w = drawn(4, 4, 4, 6)
    found = audit(lambda x: transposed(x, w), image)
    assert [f.kernel_size for f in found] == [(4, 4)] * (size > 1)  # a single pixel has no period
    strides = lambda x: strided(x, drawn(7, 7, 4, 6))
    found = audit(strides, image, gradients=True)
    assert [f.kernel_size for f in found] == [(7, 7)] * (size > 2)


@pytest.mark.parametrize(
    ("k", "s", "overlap", "severity"),
    [(3, 2, 4, "low"), (1, 2, np.inf, "medium"), (5, 3, 4, "low"), (4, 2, 1, "none")],
)
def test_a_strided_convolution_is_described(k, s, overlap, severity):
    layer = lambda x: strided(x, drawn(k, k, 4, 5), s)
    assert not audit(layer, IMAGE, everything=True)
    found = one(layer, IMAGE, everything=True, gradients=True)
    assert (found.kind, found.severity) == ("strided_convolution", severity)
    assert (found.overlap_ratio, found.kernel_size, found.strides) == (overlap, (k, k), (s, s))


@pytest.mark.usefixtures("promotion")
def test_sums_over_windows_are_found_and_maxima_are_not():
    average = partial(nnx.avg_pool, window_shape=(3, 3), strides=(2, 2))
    assert not audit(average, IMAGE)
    found = one(average, IMAGE, gradients=True)
    assert (found.kind, found.overlap_ratio, found.kernel_size) == ("strided_pool", 4, (3, 3))
    ignored = partial(average, padding="SAME", count_include_pad=False)
    found = one(ignored, IMAGE, gradients=True)
    assert found.output_shape == IMAGE.shape  # not the windows of ones that it counts
    for pool, size in ((nnx.avg_pool, (2, 2)), (nnx.max_pool, (3, 3))):
        assert not audit(partial(pool, window_shape=size, strides=(2, 2)), IMAGE, gradients=True)


def test_a_resize_is_listed_on_request():
    resize = lambda x: jax.image.resize(x, (2, 16, 24, 4), "bilinear")
    repeat = lambda x: jnp.repeat(jnp.repeat(x, 2, 1), 3, 2)
    for f, scales in ((resize, [(2, 3)]), (repeat, [(2,), (3,)])):
        assert not audit(f, IMAGE)
        found = audit(f, IMAGE, everything=True)
        assert [(f.kind, f.severity, f.strides) for f in found] == [
            ("resize", "none", scale) for scale in scales
        ]


def test_gradients_of_strided_convolutions_paint():
    w = drawn(3, 3, 4, 5)
    layer = lambda x: strided(x, w).sum()
    for function in (layer, jax.grad(layer)):
        assert not audit(function, IMAGE)
        found = one(function, IMAGE, gradients=True)
        assert (found.kind, found.severity, found.strides) == ("strided_convolution", "low", (2, 2))


@pytest.mark.slow
@pytest.mark.usefixtures("promotion")
def test_train_steps_of_clean_models_are_clean():
    class Classifier(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Conv(4, 8, (4, 4), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.b = nnx.Conv(8, 8, (2, 2), strides=2, rngs=rngs)
            self.c = tconvjax.nnx.ResizeConv(8, 8, (3, 3), scale=2, rngs=rngs)

        def __call__(self, x):
            x = nnx.avg_pool(self.norm(self.a(x)), (2, 2), (2, 2))
            return self.c(self.b(nnx.relu(x)))

    loss = lambda model, x: (model(x) ** 2).mean()
    for step in (nnx.grad(loss), nnx.jit(nnx.value_and_grad(nnx.remat(loss)))):
        assert not audit(step, Classifier(nnx.Rngs(0)), IMAGE)
    upsampler = lambda w, x: (transposed(x, w) ** 2).sum()
    for loss in (upsampler, jax.checkpoint(upsampler)):
        assert one(jax.grad(loss, (0, 1)), drawn(3, 3, 4, 4), IMAGE).severity == "high"  # once
    downsampler = lambda x: (tconvjax.pixel_unshuffle(x, (2, 2)) ** 2).sum()
    assert not audit(jax.grad(downsampler), IMAGE)  # although its gradient is a shuffle


def test_zeros_between_pixels_are_a_dilation():
    w = drawn(3, 3, 4, 5)

    def padded(x, filled=0.0):
        x = lax.pad(x, filled, ((0, 0, 0), (1, 2, 1), (1, 2, 1), (0, 0, 0)))
        return strided(x, w, 1)

    found = one(padded, IMAGE)
    assert (found.kind, found.strides, found.input_shape) == (
        "transposed_convolution", (2, 2), IMAGE.shape,
    )  # fmt: skip
    dilated = lambda x: lax.conv_general_dilated(
        x, w, (1, 1), ((2, 3), (2, 3)), lhs_dilation=(2, 2), dimension_numbers=NHWC
    )
    want = one(dilated, IMAGE)
    assert found.output_shape == want.output_shape
    assert found.harmonic_share == pytest.approx(want.harmonic_share, rel=1e-5)
    assert (found.cost, found.center_shift) == (want.cost, want.center_shift)
    assert not audit(partial(padded, filled=1.0), IMAGE)


def test_slices_that_keep_all_pixels_are_left_in_peace():
    def merged(x):  # patches, as of a Swin transformer
        y = x @ drawn(4, 8)
        return jnp.concatenate([y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)

    scanned = lambda x: lax.associative_scan(jnp.add, strided(x, drawn(3, 3, 4, 4), 1), axis=1)
    for function in (merged, scanned):
        assert not audit(function, IMAGE, everything=True)


# Weights.


@each("where", ("first", "second"))
def test_all_that_is_added_before_a_shuffle_counts(where):
    flat = np.repeat(drawn(1, 1, 4, 3), 4, -1)
    given = [flat, drawn(1, 1, 4, 12)] if where == "second" else [drawn(1, 1, 4, 12), flat]
    skipped = lambda x: shuffle(strided(x, given[0], 1) + jnp.tanh(strided(x, given[1], 1)))
    want = one(lambda x: shuffle(strided(x, drawn(1, 1, 4, 12), 1)), IMAGE).harmonic_share
    assert one(skipped, IMAGE).harmonic_share == pytest.approx(want, rel=1e-5)
    assert not audit(lambda x: shuffle(strided(x, flat, 1) * strided(x, -flat, 1)), IMAGE)


@each("at", (0, 1, 5))
def test_one_of_stacked_layers_is_enough(at):
    """Two loops, one inside of the other."""
    hat = np.outer([0.5, 1, 0.5], [0.5, 1, 0.5])
    stack = np.float32(np.tile(hat[..., None, None], (2, 3, 1, 1, 4, 4)))
    inner = lambda c, w: (c, transposed(c, 2 * w))
    outer = lambda c, w: (c, lax.scan(inner, c, w)[1])
    assert not audit(lambda x, w: lax.scan(outer, x, w)[1], IMAGE, stack)
    stack.reshape(6, 3, 3, 4, 4)[at] = 1
    found = one(lambda x, w: lax.scan(outer, x, w)[1], IMAGE, stack)
    assert found.harmonic_share == pytest.approx(0.19, abs=1e-3)


def test_one_of_vmapped_layers_is_enough():
    hat = np.outer([0.5, 1, 0.5], [0.5, 1, 0.5])
    kernels = np.float32(np.tile(hat[..., None, None], (2, 1, 1, 4, 4)))
    members = jax.vmap(lambda x, w: tconvjax.conv_transpose(x, w, strides=2))
    images = jax.ShapeDtypeStruct((2, *IMAGE.shape), jnp.float32)
    assert not audit(members, images, kernels)
    kernels[1] = 1
    assert one(members, images, kernels).harmonic_share == pytest.approx(0.19, abs=1e-3)


def test_weights_of_a_program_on_many_devices():
    def sharded(weights, function=tconvjax.conv_transpose):
        specs = P("data"), weights
        layer = partial(function, strides=2)
        return jax.shard_map(layer, mesh=mesh, in_specs=specs, out_specs=P("data"))

    def gathered(x, w, strides):
        return tconvjax.conv_transpose(
            x, lax.all_gather(w, "data", axis=3, tiled=True), strides=strides
        )

    kernel, images = np.ones((3, 3, 4, 4), np.float32), jnp.zeros(IMAGE.shape)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
        placed = jax.device_put(images, NamedSharding(mesh, P("data")))
        found = one(sharded(P()), placed, kernel)
        assert (found.severity, found.weights) == ("high", "given")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    assert one(sharded(P(None, None, None, "data"), gathered), IMAGE, kernel).weights == "none"


def test_weights_of_very_many_operations_are_not_known():
    def repeated(x, w):
        for _ in range(2000):
            w = w * 0.999
        return tconvjax.conv_transpose(x, w, strides=2)

    assert one(repeated, IMAGE, np.ones((3, 3, 4, 4), np.float32)).weights == "none"


def test_numbers_that_are_gone_or_too_many_count_as_random(monkeypatch):
    w = jnp.asarray(drawn(3, 3, 4, 4))
    w.delete()
    assert one(transposed, IMAGE, w).weights == "drawn"
    monkeypatch.setattr("tconvjax._program.program.MOST_ELEMENTS", 500)
    stack = np.stack([drawn(3, 3, 4, 4)] * 4)  # 576 numbers, 144 in each layer
    layers = lambda x, w: lax.scan(lambda c, w: (c, transposed(c, w)), x, w)[1]
    assert one(layers, IMAGE, stack).weights == "given"
    assert one(layers, IMAGE, np.tile(stack, (1, 1, 1, 1, 4))).weights == "none"


def sums_to_one(w):
    return w / w.sum((0, 1), keepdims=True)


WEIGHTS = {
    "given": lambda w: lambda x: transposed(x, w),
    "cast": lambda w: lambda x: transposed(x, jnp.asarray(w, jnp.bfloat16).astype(jnp.float32)),
    "masked": lambda w: lambda x: transposed(x, w * jnp.ones_like(w)),
    "normalized": lambda w: lambda x: transposed(x, sums_to_one(jnp.asarray(w))),
    "inside jit": lambda w: lambda x: jax.jit(transposed, static_argnums=2)(x, jnp.asarray(w), 2),
    "inside remat": lambda w: lambda x: jax.checkpoint(transposed)(x, jnp.asarray(w)),
    "read by scan": lambda w: (
        lambda x: lax.scan(lambda c, w: (c, transposed(c, w)), x, jnp.stack([w, w]))[1]
    ),
    "ours": lambda w: lambda x: tconvjax.conv_transpose(x, w, strides=2),
}


@each("how", WEIGHTS)
def test_weights_are_known_through_what_is_done_to_them(how):
    """[1, 2, 1]/2 keeps a constant although its taps are uneven; other kernels do not."""
    hat = np.array([0.5, 1, 0.5])[:, None] * np.array([0.5, 1, 0.5])
    flat = np.float32(hat[..., None, None] * np.ones((4, 4)))
    assert not audit(WEIGHTS[how](flat), IMAGE)
    found = one(WEIGHTS[how](np.ones((3, 3, 4, 4), np.float32)), IMAGE)
    assert found.harmonic_share == pytest.approx(0.19, abs=1e-3)
    assert found.weights == "given"


def test_weights_known_by_shape_are_random():
    kernel = jax.ShapeDtypeStruct((4, 4, 4, 4), jnp.float32)
    even, uneven = (
        one(transposed, IMAGE, jax.ShapeDtypeStruct((k, k, 4, 64), jnp.float32)) for k in (4, 3)
    )
    assert (even.severity, uneven.severity) == ("medium", "high")
    assert even.weights == uneven.weights == "drawn"
    assert even.harmonic_share == pytest.approx(0.75, abs=0.1)  # 1 − 1/S
    resized = lambda x, w: tconvjax.resize_conv(x, w, scale=2, method="nearest")
    assert not audit(resized, IMAGE, kernel)  # one transposed convolution, whose taps are tied
    finding = one(resized, IMAGE, kernel, everything=True)
    assert (finding.kind, finding.weights) == ("transposed_convolution", "drawn")


def test_weights_that_take_more_than_cheap_operations_are_unknown():
    found = one(lambda x, w: transposed(x, strided(w, w, 1)), IMAGE, drawn(4, 4, 4, 4))
    assert (found.harmonic_share, found.weights, found.severity) == (None, "none", "medium")
    assert "weights put" not in found.message


# Programs.


def looped(x, w):
    return lax.fori_loop(0, 3, lambda _, c: lax.stop_gradient(transposed(c, w))[:, :8, :8], x)


def branched(x, w):
    repeated = lambda x: jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    return lax.cond(x.sum() > 0, lambda x: transposed(x, w), repeated, x)


@jax.custom_vjp
def with_own_gradient(x, w):
    return transposed(x, w)


with_own_gradient.defvjp(lambda x, w: (with_own_gradient(x, w), None), lambda _, g: (g, g))
PROGRAMS = {
    "jit": jax.jit(transposed),
    "nested": jax.jit(jax.checkpoint(jax.jit(transposed))),
    "while": looped,
    "cond": branched,
    "custom_vjp": with_own_gradient,
    "vmap": lambda x, w: jax.vmap(transposed, (0, None))(x[None], w),
    "own face in vmap": lambda x, w: jax.vmap(
        lambda w: tconvjax.conv_transpose(x, w, strides=2)
    )(w[None]),
    "linear_transpose": lambda x, w: tconvjax.conv_transpose(
        x, w, strides=2, implementation="linear_transpose"
    ),
}  # fmt: skip


@each("how", PROGRAMS)
def test_every_program_is_looked_through(how):
    found = audit(PROGRAMS[how], IMAGE, drawn(3, 3, 4, 4))
    assert [f.kind for f in found] == ["transposed_convolution"]
    assert found[0].kernel_size == (3, 3)
    assert found[0].file == __file__


def test_periods_are_those_of_the_whole_program():
    w = drawn(3, 3, 4, 4)

    def two(x):
        x = transposed(x, w)
        return transposed(tconvjax.conv_transpose(x, drawn(6, 6, 4, 4), strides=3), w)

    assert [f.period for f in audit(two, IMAGE)] == [(12, 12), (6, 6), (2, 2)]
    loss = lambda x: two(x).sum()
    assert [f.period for f in audit(loss, IMAGE)] == [(2, 2), (3, 3), (2, 2)]  # of the layers


def test_sizes_may_be_symbolic():
    b, h = jax.export.symbolic_shape("b, h")
    w = drawn(3, 3, 4, 12)

    def layer(x):
        return shuffle(transposed(x, w))

    first, second = audit(layer, jax.ShapeDtypeStruct((b, h, h, 4), jnp.float32))
    assert (first.kind, first.period, first.cost) == ("transposed_convolution", (2, 2), None)
    assert (second.kind, second.strides) == ("pixel_shuffle", (2, 2))


def test_what_is_drawn_inside_of_the_program_is_known():
    kernel = lambda key: jax.random.normal(key, (4, 4, 4, 4))
    found = one(lambda key, x: transposed(x, kernel(key)), jax.random.key(0), IMAGE)
    want = tconvjax.analysis.harmonic_share(kernel(jax.random.key(0)), 2)
    assert found.harmonic_share == pytest.approx(float(want), rel=1e-4)


def test_updated_weights_are_no_images():
    loss = lambda w, x: transposed(x, w).sum()
    step = lambda w, x: w - 0.1 * jax.grad(loss)(w, x)
    assert one(step, drawn(3, 3, 4, 4), IMAGE).period == (2, 2)


def test_no_reordering_of_other_axes_is_a_pixel_shuffle():
    def unshuffled(x):
        return tconvjax.pixel_unshuffle(x, (2, 2))

    def heads(x):
        x = x.reshape(2, 64, 2, 2).transpose(0, 2, 1, 3)
        return x.transpose(0, 2, 1, 3).reshape(2, 64, 4)

    def heads_in_batch(x):
        x = x.reshape(2, 64, 2, 2).transpose(0, 2, 1, 3).reshape(4, 64, 2)
        return x * 2

    def heads_of_batch(x):  # and their way back
        x = x.reshape(1, 2, 64, 4).transpose(0, 2, 1, 3).reshape(1, 64, 8)
        return x * 2

    def blocks(x):  # of a dilated convolution, as TensorFlow emulates it
        x = x.reshape(2, 4, 2, 4, 2, 4).transpose(2, 4, 0, 1, 3, 5).reshape(8, 4, 4, 4)
        x = jnp.tanh(x).reshape(2, 2, 2, 4, 4, 4).transpose(2, 3, 0, 4, 1, 5)
        return x.reshape(2, 8, 8, 4)

    def windows(x):
        x = x.reshape(2, 2, 4, 2, 4, 4).transpose(0, 1, 3, 2, 4, 5).reshape(8, 4, 4, 4)
        return x.reshape(2, 2, 2, 4, 4, 4).transpose(0, 1, 3, 2, 4, 5).reshape(2, 8, 8, 4)

    def channels(x):
        return x.reshape(2, 8, 8, 2, 2).transpose(0, 1, 2, 4, 3).reshape(2, 8, 8, 4)

    def windows_of_one(x):  # without an axis of images
        x = x[0].reshape(2, 4, 2, 4, 4).transpose(0, 2, 1, 3, 4).reshape(4, 16, 4)
        return jnp.tanh(x).reshape(2, 2, 4, 4, 4).transpose(0, 2, 1, 3, 4).reshape(8, 8, 4)

    def groups(x):  # of queries that share a key, in rows
        y = x.reshape(2, 64, 4) @ drawn(4, 16)
        y = y.reshape(2, 64, 2, 2, 4).transpose(0, 2, 1, 3, 4).reshape(2, 2, 128, 4)
        return y + (x.reshape(2, 64, 4) @ drawn(4, 8)).reshape(2, 64, 2, 4).reshape(2, 1, 128, 4)

    def unshuffled_signal(x):
        return x.reshape(2, 32, 2, 4).transpose(0, 1, 3, 2).reshape(2, 32, 8)

    def queries(x):  # of many heads, in rows
        return (x.reshape(2, 64, 4) @ drawn(4, 12)).reshape(2, 64 * 3, 4)

    def rows(x):  # without any of the channels
        x = strided(x, drawn(3, 3, 4, 4), 1).transpose(0, 2, 1, 3)
        return x.reshape(2, 64, 4)

    def scores(x):  # of the anchors of a detector
        return strided(x, drawn(3, 3, 4, 12), 1).reshape(2, 8 * 8 * 3, 4)

    functions = (
        unshuffled, unshuffled_signal, heads, heads_in_batch, heads_of_batch, queries, groups, rows,
        blocks, windows, windows_of_one, channels, scores,
    )  # fmt: skip
    for function in functions:
        assert not audit(function, IMAGE, everything=True), function


def test_a_pixel_shuffle_of_channels_first_and_of_tokens():
    def first(x):  # as torch.nn.PixelShuffle
        numbers = ("NCHW", "OIHW", "NCHW")
        w = drawn(12, 4, 3, 3)
        y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)
        return y.reshape(2, 3, 2, 2, 8, 8).transpose(0, 1, 4, 2, 5, 3).reshape(2, 3, 16, 16)

    def tokens(x, w=None):  # the last layer of a vision transformer
        y = x.reshape(2, 64, 4) @ (drawn(4, 12) if w is None else w)
        return y.reshape(2, 8, 8, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 16, 3)

    found = one(first, jax.ShapeDtypeStruct((2, 4, 8, 8), jnp.float32))
    assert (found.kind, found.strides, found.weights) == ("pixel_shuffle", (2, 2), "given")
    found = one(tokens, IMAGE)
    assert (found.kind, found.strides, found.kernel_size) == ("pixel_shuffle", (2, 2), (1,))
    gains = drawn(4, 12).reshape(4, 4, 3)
    want = 1 - 4 * (gains.mean(1) ** 2).sum() / (gains**2).sum()
    assert found.harmonic_share == pytest.approx(want, rel=1e-5)
    assert not audit(partial(tokens, w=jnp.ones((4, 12))), IMAGE)


def test_a_pixel_shuffle_whose_channels_nothing_names():
    """The axis of the channels is the one that is split and joined to the others."""

    def first(x):  # channels first, without a convolution before
        return x.reshape(2, 3, 2, 2, 8, 8).transpose(0, 1, 4, 2, 5, 3).reshape(2, 3, 16, 16)

    def axis_by_axis(x):
        x = x.reshape(2, 8, 8, 2, 8).transpose(0, 1, 3, 2, 4).reshape(2, 16, 8, 2, 4)
        return x.reshape(2, 16, 16, 4)

    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    single = jax.vmap(first)  # of an unbatched model, whose axis of images is a layer's own
    assert one(first, shape(2, 12, 8, 8)).strides == (2, 2)
    assert one(single, shape(5, 2, 12, 8, 8)).strides == (2, 2)
    unbatched = lambda x: x.reshape(3, 2, 2, 8, 8).transpose(0, 3, 1, 4, 2).reshape(3, 16, 16)
    assert one(unbatched, shape(12, 8, 8)).strides == (2, 2)
    last = lambda x: x.reshape(8, 8, 2, 2, 3).transpose(0, 2, 1, 3, 4).reshape(16, 16, 3)
    assert one(last, shape(8, 8, 12)).strides == (2, 2)
    windows = lambda x: shuffle(x).reshape(2, 4, 4, 4, 4, 1).transpose(0, 1, 3, 2, 4, 5)
    assert one(lambda x: windows(x).reshape(32, 4, 4, 1), IMAGE).strides == (2, 2)  # once
    convolved = lambda x: axis_by_axis(strided(x, drawn(3, 3, 4, 16), 1))
    found = audit(convolved, IMAGE)
    assert [(f.strides, f.output_shape) for f in found] == [
        ((2,), (2, 16, 8, 2, 4)), ((2,), (2, 16, 16, 4)),
    ]  # fmt: skip


def test_a_reshape_alone_shuffles_along_one_axis():
    numbers = ("NWC", "WIO", "NWC")
    w = drawn(3, 4, 12)

    def phases(x, r=2):
        y = lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=numbers)
        return jax.nn.relu(y).reshape(2, 8 * r, 12 // r)

    x = jax.ShapeDtypeStruct((2, 8, 4), jnp.float32)
    found = one(phases, x)
    assert (found.kind, found.strides, found.period) == ("pixel_shuffle", (2,), (2,))
    gains = w.sum(0).reshape(4, 2, 6)
    want = 1 - 2 * (gains.mean(1) ** 2).sum() / (gains**2).sum()
    assert found.harmonic_share == pytest.approx(want, rel=1e-5)
    assert one(partial(phases, r=12), x).strides == (12,)  # a single channel is left
    assert not audit(lambda x: x.reshape(2, 16, 2), x)
    flat = lambda x: lax.conv_general_dilated(
        x, w, (1,), "SAME", dimension_numbers=numbers
    ).reshape(2, -1)
    assert not audit(flat, x)


def test_a_model_of_any_size_is_audited_by_shapes():
    layers = [jax.ShapeDtypeStruct((3, 3, 4096, 4096), jnp.bfloat16)] * 8  # 1.2 billion

    def deep(x, layers):
        for w in layers:
            x = jax.nn.relu(strided(x, w, 1))
        return transposed(x, layers[0])

    x = jax.ShapeDtypeStruct((64, 256, 256, 4096), jnp.bfloat16)
    found = one(deep, x, layers)  # in seconds, as no array of that size is made
    assert (found.weights, found.severity) == ("none", "high")


# Models of others.


class Planted(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.ConvTranspose(4, 8, (3, 3), strides=2, rngs=rngs)
        self.mix = nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.down = nnx.Conv(4, 4, (1, 1), strides=2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.up(x))
        x = self.mix(x)
        x = x.reshape(2, 16, 16, 4, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(2, 32, 32, 4)
        return self.down(nnx.relu(x))


KINDS = ["transposed_convolution", "pixel_shuffle", "strided_convolution"]
LINES = ["self.up(x)", ".reshape(", "self.down("]


@pytest.mark.slow
def test_flax_nnx():
    model = Planted(nnx.Rngs(0))
    by_closure = audit(lambda x: model(x), IMAGE, gradients=True)
    by_argument = audit(lambda m, x: m(x), model, IMAGE, gradients=True)
    for found in (by_closure, by_argument):
        assert [f.kind for f in found] == KINDS
        assert {f.file for f in found} == {__file__}
        assert [f.line for f in found] == [here(Planted.__call__, text) for text in LINES]
        assert found[0].weights == found[1].weights == "given"
    graph, state = nnx.split(model)
    shapes = jax.eval_shape(lambda: state)
    found = audit(lambda state, x: nnx.merge(graph, state)(x), shapes, IMAGE, gradients=True)
    assert [f.kind for f in found] == KINDS
    assert found[0].weights == "drawn"


class PlantedLinen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.ConvTranspose(8, (3, 3), strides=(2, 2))(x))
        x = linen.Conv(16, (3, 3))(x)
        x = x.reshape(2, 16, 16, 4, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(2, 32, 32, 4)
        return linen.remat(linen.Conv)(4, (1, 1), strides=2)(linen.relu(x))


def test_flax_linen():
    model = PlantedLinen()
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGE)
    variables = model.init(jax.random.key(0), jnp.zeros(IMAGE.shape))
    for given in (shapes, variables):
        found = audit(model.apply, given, IMAGE, gradients=True)
        assert [f.kind for f in found] == KINDS
        assert {f.file for f in found} == {__file__}


@pytest.mark.usefixtures("promotion")
def test_equinox():
    eqx = pytest.importorskip("equinox", reason="a peer that CI does not install")
    model = eqx.nn.Sequential([
        eqx.nn.ConvTranspose2d(4, 8, 3, stride=2, key=jax.random.key(0)),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Conv2d(8, 4, 1, stride=2, key=jax.random.key(1)),
    ])  # fmt: skip
    found = audit(lambda m, x: m(x), model, jax.ShapeDtypeStruct((4, 8, 8), jnp.float32))
    assert [f.kind for f in found] == [KINDS[0], KINDS[2]]
    assert {f.file for f in found} == {__file__}


@pytest.mark.usefixtures("promotion")
def test_haiku():
    hk = pytest.importorskip("haiku", reason="a peer that CI does not install")
    net = lambda x: hk.Conv2D(4, 1, stride=2)(jax.nn.relu(hk.Conv2DTranspose(8, 3, stride=2)(x)))  # fmt: skip
    model = hk.without_apply_rng(hk.transform(net))
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGE)
    found = audit(model.apply, params, IMAGE)
    assert [f.kind for f in found] == [KINDS[0], KINDS[2]]
    assert {f.file for f in found} == {__file__}


@pytest.mark.usefixtures("promotion")
def test_keras():
    keras = pytest.importorskip("keras", reason="a peer that CI does not install")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras runs on another backend")
    model = keras.Sequential([
        keras.layers.Conv2DTranspose(8, 3, strides=2, padding="same"),
        keras.layers.ReLU(),
        keras.layers.UpSampling2D(2),
        keras.layers.Conv2D(4, 1, strides=2, padding="same"),
    ])  # fmt: skip
    model.build(IMAGE.shape)
    found = audit(lambda x: model(x), IMAGE)
    assert [f.kind for f in found] == [KINDS[0], KINDS[2]]
    assert {f.file for f in found} == {__file__}
    assert found[0].weights == "given"


class Clean(nnx.Module):
    def __init__(self, rngs):
        self.a = tconvjax.nnx.ResizeConv(4, 8, (3, 3), scale=2, rngs=rngs)
        self.b = tconvjax.nnx.ResizeConv(8, 8, (3, 3), scale=2, method="linear", rngs=rngs)
        self.c = tconvjax.nnx.BlurPool((2, 2))
        self.d = nnx.Conv(8, 8, (4, 4), strides=2, rngs=rngs)
        self.e = nnx.ConvTranspose(8, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.b(nnx.relu(self.a(x))))
        x = self.d(self.c(x))
        x = jax.image.resize(x, (2, 16, 16, 8), "cubic")
        return self.e(nnx.avg_pool(x, (2, 2), (2, 2)))


class Unbatched(nnx.Module):
    """A model for single images, as in Equinox: its layers add an axis for a batch of one."""

    def __init__(self, rngs):
        self.up = nnx.ConvTranspose(4, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def decode(self, x):
        return self.norm(self.up(self.up(x[None]))).squeeze(0)

    def __call__(self, x):
        return self.decode(x)


def test_a_model_is_audited_as_it_is():
    """Its statistics change only in the traced copy."""
    model = Unbatched(nnx.Rngs(0))
    for function in (model, model.decode):
        found = audit(function, jax.ShapeDtypeStruct((8, 8, 4), jnp.float32))
        assert [(f.period, f.weights) for f in found] == [((4, 4), "given"), ((2, 2), "given")]
    np.testing.assert_array_equal(model.norm.mean[...], np.zeros(4))


@pytest.mark.slow
@pytest.mark.usefixtures("promotion")
def test_clean_models_are_left_in_peace():
    model = Clean(nnx.Rngs(0))
    assert not audit(lambda x: model(x), IMAGE)
    graph, state = nnx.split(model)
    shapes = jax.eval_shape(lambda: state)
    assert not audit(lambda s, x: nnx.merge(graph, s)(x), shapes, IMAGE)
    assert not audit(lambda x: x + 1, IMAGE)


# Theory meets measurement.


def measured(layer, channels, rank=2, size=12, margin=4):
    """Share of the output energy on the harmonics of period 2, for a constant in every input channel, one at a time."""
    energy = deviation = 0.0
    for c in range(channels):
        x = jnp.zeros((1, *(size,) * rank, channels)).at[..., c].set(1.0)
        inner = (slice(2 * margin, -2 * margin),) * rank
        y = np.asarray(layer(x), np.float64)[0][inner]
        y = y.reshape(*(size - 2 * margin, 2) * rank, -1)
        phases = np.moveaxis(y, range(0, 2 * rank, 2), range(rank)).reshape(
            -1, 2**rank, y.shape[-1]
        )
        means = phases.mean(0)
        np.testing.assert_allclose(phases, np.broadcast_to(means, phases.shape), atol=1e-5)
        deviation += ((means - means.mean(0)) ** 2).sum()
        energy += (means**2).sum()
    return deviation / energy


UPSAMPLERS = {
    **{
        f"ConvTranspose k{k}": partial(
            tconvjax.nnx.ConvTranspose, 4, 6, (k, k), 2, padding="VALID" if k < 2 else "SAME"
        )
        for k in (1, 2, 3, 4, 5)
    },
    "SubpixelConv": partial(tconvjax.nnx.SubpixelConv, 4, 6, (3, 3), scale=2),
    "nearest": partial(tconvjax.nnx.ResizeConv, 4, 6, (3, 3), scale=2),
    "linear": partial(tconvjax.nnx.ResizeConv, 4, 6, (3, 3), scale=2, method="linear"),
    "Flax": partial(nnx.ConvTranspose, 4, 6, (3, 3), strides=2),
    "groups": partial(tconvjax.nnx.ConvTranspose, 4, 6, (3, 3), 2, feature_group_count=2),
    "groups, transposed": partial(
        tconvjax.nnx.ConvTranspose, 4, 6, (4, 4), 2, feature_group_count=2, transpose_kernel=True
    ),
    "SubpixelConv, groups": partial(
        tconvjax.nnx.SubpixelConv, 4, 6, (3, 3), scale=2, feature_group_count=2
    ),
    "one axis": partial(tconvjax.nnx.ConvTranspose, 4, 6, (5,), 2),
    "SubpixelConv, one axis": partial(tconvjax.nnx.SubpixelConv, 4, 6, (3,), scale=2),
    "three axes": partial(tconvjax.nnx.ConvTranspose, 4, 6, (3, 3, 3), 2),
    "dilated": partial(tconvjax.nnx.ConvTranspose, 4, 6, (2, 2), 2, kernel_dilation=3),
}


@each("name", UPSAMPLERS)
def test_the_predicted_share_is_the_measured_one(name):
    layer = UPSAMPLERS[name](rngs=nnx.Rngs(0))
    rank = len(layer.kernel_size)
    shape = jax.ShapeDtypeStruct((1, *(12,) * rank, 4), jnp.float32)
    shares = [f.harmonic_share for f in audit(lambda x: layer(x), shape, everything=True)]
    assert max(shares, default=0.0) == pytest.approx(measured(layer, 4, rank), rel=1e-4, abs=1e-9)


@pytest.mark.refuses
def test_only_functions_are_audited():
    with pytest.raises(
        TypeError, match=r"^audit: fn must be callable; got an object of type int\.$"
    ):
        audit(3)


# Wholes: what is linear between two nonlinear operations.

FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 16


def filtered(x, taps=FIR, padding="SAME"):
    """Convolves every channel with a filter."""
    c = x.shape[-1]
    kernel = jnp.asarray(np.tile(taps[:, :, None, None], (1, 1, 1, c)), x.dtype)
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=NHWC, feature_group_count=c
    )


def inserted(x):
    return lax.pad(x, 0.0, ((0, 0, 0), (0, 1, 1), (0, 1, 1), (0, 0, 0)))


def response(fn, x=IMAGE):
    """The share of a random constant's energy, in each channel, that fn puts on period 2, away from the borders."""
    rng = np.random.default_rng(3)
    flat = jnp.float32(rng.normal(size=(1, 1, 1, x.shape[-1])))
    y = np.asarray(fn(jnp.broadcast_to(flat, (1, 16, 16, x.shape[-1]))), np.float32)
    y = y[0, 4:-4, 4:-4]
    phases = np.stack([y[i::2, j::2].mean((0, 1)) for i in range(2) for j in range(2)])
    return ((phases - phases.mean(0)) ** 2).sum() / (phases**2).sum()


def down(x):
    return strided(x, drawn(1, 1, 4, 4))


CHAINS = {
    "transposed, filter": lambda x: filtered(transposed(x, drawn(3, 3, 4, 4))),
    "scaled on the way": lambda x: filtered(transposed(x, drawn(3, 3, 4, 4)) * drawn(1, 1, 1, 4)),
    "in bfloat16": lambda x: filtered(transposed(x, drawn(3, 3, 4, 4)).astype(jnp.bfloat16)),
    "zeros, filter": lambda x: filtered(inserted(x)),
    "even taps, box": lambda x: filtered(transposed(x, drawn(4, 4, 4, 4)), np.ones((2, 2), "f")),
    "two branches": lambda x: filtered(transposed(x, drawn(3, 3, 4, 4)) + inserted(x)),
    "back to the grid": lambda x: down(transposed(x, drawn(3, 3, 4, 4))),
    "shuffle, blur": lambda x: filtered(shuffle(strided(x, drawn(3, 3, 4, 16), 1)), np.ones((2, 2), "f")),
    "too short a filter": lambda x: filtered(transposed(x, drawn(3, 3, 4, 4)), np.array([[1, 2], [1, 2]], "f")),
    "a nonlinear operation between": lambda x: filtered(jnp.tanh(transposed(x, drawn(3, 3, 4, 4)))),
    "two images": lambda x: transposed(x, drawn(3, 3, 4, 4)) + inserted(x),
}  # fmt: skip


@each("how", CHAINS)
def test_a_chain_is_clean_if_a_constant_stays_constant(how):
    found = audit(CHAINS[how], IMAGE)
    linear = how != "a nonlinear operation between"
    share = response(CHAINS[how]) if linear else 1.0
    assert bool(found) == (share > 1e-3), share
    if found and linear:
        assert found[0].harmonic_share == pytest.approx(share, rel=0.5)


def test_the_filter_behind_a_statistic_counts():
    """A BatchNorm in training reads the pattern, and keeps it from no picture."""

    def normalized(x):
        y = transposed(x, drawn(3, 3, 4, 4))
        mean, variance = (f(y, (0, 1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
        y = (y - mean) * lax.rsqrt(variance + 1e-5)
        return jax.nn.relu(filtered(y))

    assert not audit(normalized, IMAGE)
    assert one(lambda x: normalized(x) + transposed(x, drawn(3, 3, 4, 4)), IMAGE)


def doubled(x, mask):
    return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2) * mask


MASK = np.zeros((1, 16, 16, 1), np.float32)
MASK[:, ::2, ::2] = 1
BY_HAND = {
    "pad": inserted,
    "mask": lambda x: doubled(x, MASK),
    "where": lambda x: jnp.where(MASK > 0, doubled(x, 1), 0),
    "scatter": lambda x: jnp.zeros((2, 16, 16, 4)).at[:, ::2, ::2].set(x),
    "scatter-add": lambda x: jnp.zeros((2, 16, 16, 4)).at[:, ::2, ::2].add(x),
    "kron": lambda x: jax.vmap(jax.vmap(lambda a: jnp.kron(a, MASK[0, :2, :2, 0]), -1, -1))(x),
    "stack": lambda x: jnp.stack(
        [jnp.stack([x, 0 * x], 3).reshape(2, 8, 16, 4), jnp.zeros((2, 8, 16, 4))], 2
    ).reshape(2, 16, 16, 4),
    "matrix": lambda x: jnp.einsum("nhwc,hi,wj->nijc", x, np.eye(16, dtype="f")[::2], np.eye(16, dtype="f")[::2]),
    "insert": lambda x: jnp.insert(jnp.insert(x, np.arange(1, 9), 0, 1), np.arange(1, 9), 0, 2),
    "reshape": lambda x: jnp.pad(
        x.reshape(2, 8, 1, 8, 1, 4), ((0, 0), (0, 0), (0, 1), (0, 0), (0, 1), (0, 0))
    ).reshape(2, 16, 16, 4),
    "relu": lambda x: jax.nn.relu(inserted(x)),
    "one axis after the other": lambda x: lax.pad(
        lax.pad(x, 0.0, ((0, 0, 0), (0, 1, 1), (0, 0, 0), (0, 0, 0))),
        0.0, ((0, 0, 0), (0, 0, 0), (0, 1, 1), (0, 0, 0)),
    ),
}  # fmt: skip


@each("how", BY_HAND)
def test_zeros_inserted_by_hand_are_found(how):
    w = drawn(3, 3, 4, 5)
    found = one(lambda x: strided(BY_HAND[how](x), w, 1), IMAGE)
    assert (found.kind, found.severity) == ("transposed_convolution", "high")
    assert (found.strides, found.kernel_size) == ((2, 2), (3, 3))
    want = one(lambda x: strided(inserted(x), w, 1), IMAGE).harmonic_share
    assert found.harmonic_share == pytest.approx(want, rel=1e-5)
    if how != "relu":
        bare = one(BY_HAND[how], IMAGE)
        assert (bare.kind, bare.severity, bare.strides) == ("resize", "high", (2, 2))


def test_images_are_interleaved():
    """Four convolutions, one for each phase: a transposed convolution of five taps has nine, six, six and four."""
    kernels = [drawn(a, b, 4, 4, seed=a * b) for a in (3, 2) for b in (3, 2)]

    def fill(x):
        y = jnp.zeros((2, 16, 16, 4))
        for i, w in enumerate(kernels):
            y = y.at[:, i // 2 :: 2, i % 2 :: 2].set(strided(x, w, 1))
        return y

    def stacked(x):
        a, b, c, d = (strided(x, w, 1) for w in kernels)
        rows = [jnp.stack([a, b], 3), jnp.stack([c, d], 3)]
        return jnp.stack(rows, 2).reshape(2, 16, 16, 4)

    rows, columns = np.indices((16, 16))

    def gathered(x):
        y = jnp.stack([strided(x, w, 1) for w in kernels])
        return y[2 * (rows % 2) + columns % 2, :, rows // 2, columns // 2].transpose(2, 0, 1, 3)

    sums = np.stack([w.sum((0, 1)) for w in kernels])
    want = 1 - 4 * (sums.mean(0) ** 2).sum() / (sums**2).sum()
    for function in (fill, stacked, gathered):
        found = one(function, IMAGE)
        assert (found.kind, found.severity, found.strides) == ("pixel_shuffle", "high", (2, 2))
        assert found.harmonic_share == pytest.approx(want, rel=1e-5)
    kernels[:] = [kernels[0]] * 4
    for function in (fill, stacked, gathered):
        assert not audit(function, IMAGE)


def test_sums_of_parts_of_the_channels_are_interleaved():
    """The inverse of Haar's transform: each phase is another sum of four parts of one convolution's channels."""
    w = drawn(3, 3, 4, 16)
    signs = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], np.float32)

    def haar(x, w):
        parts = jnp.split(strided(x, w, 1), 4, -1)
        y = jnp.zeros((2, 16, 16, 4))
        for i, row in enumerate(signs):
            y = y.at[:, i // 2 :: 2, i % 2 :: 2].set(sum(map(jnp.multiply, row, parts)))
        return y

    found = one(lambda x: haar(x, w), IMAGE)
    assert (found.kind, found.severity, found.strides) == ("pixel_shuffle", "medium", (2, 2))
    sums = np.einsum("pk,ckd->pcd", signs, w.sum((0, 1)).reshape(4, 4, 4))
    want = 1 - 4 * (sums.mean(0) ** 2).sum() / (sums**2).sum()
    assert found.harmonic_share == pytest.approx(want, rel=1e-5)
    w[..., 4:] = 0  # the parts that differ between phases
    assert not audit(lambda x: haar(x, w), IMAGE)


def test_patches_of_a_product():
    w = drawn(4, 2, 2, 3)
    patches = lambda x: jnp.einsum("nhwc,cijd->nhiwjd", x, w).reshape(2, 16, 16, 3)
    found = one(patches, IMAGE)
    assert (found.kind, found.severity, found.strides) == ("pixel_shuffle", "medium", (2, 2))
    want = 1 - 4 * (w.mean((1, 2)) ** 2).sum() / (w**2).sum()
    assert found.harmonic_share == pytest.approx(want, rel=1e-5)


@each("k", (2, 3, 4, 5))
def test_severity_is_that_of_the_layer(k):
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    found = [one(transposed, shape(1, 8, 8, 32), w) for w in (shape(k, k, 32, 32), drawn(k, k, 32, 32))]  # fmt: skip
    assert [f.severity for f in found] == ["high" if k % 2 else "medium"] * 2


def test_periods_are_products_of_strides():
    w = drawn(3, 3, 4, 4)
    valid = lambda x: lax.conv_transpose(x, w, (2, 2), "VALID", dimension_numbers=NHWC)
    assert [f.period for f in audit(lambda x: valid(valid(valid(x))), IMAGE)] == [(8, 8), (4, 4), (2, 2)]  # fmt: skip
    cropped = lambda x: jnp.tanh(transposed(x, w))[:, 1:-1, 3:9].transpose(0, 3, 2, 1)
    assert one(cropped, IMAGE).period == (2, 2)
    pooled = lambda x: nnx.max_pool(jax.nn.relu(transposed(x, w, 4)), (2, 2), (2, 2))
    assert one(pooled, IMAGE).period == (2, 2)
    start = lambda z: lax.conv_transpose(
        (z @ drawn(6, 4)).reshape(1, 1, 1, 4),
        drawn(4, 4, 4, 4),
        (1, 1),
        "VALID",
        dimension_numbers=NHWC,
    )
    generator = lambda z: jnp.tanh(transposed(jax.nn.relu(transposed(start(z), w)), w))
    periods = [f.period for f in audit(generator, jax.ShapeDtypeStruct((1, 6), jnp.float32))]
    assert periods == [(4, 4), (2, 2)]


@each("mode", ("edge", "reflect", "wrap", "symmetric", "constant"))
def test_borders_are_no_resamplers(mode):
    def padded(x, w):
        x = jnp.pad(x, ((0, 0), (2, 1), (0, 3), (0, 0)), mode)
        y = jnp.pad(transposed(x, w), ((0, 0), (2, 2), (3, 3), (0, 0)), mode)
        return filtered(y, padding="VALID")

    w = drawn(3, 3, 4, 4)
    assert one(padded, IMAGE, w, everything=True).severity == "none"
    bordered = lambda x: jnp.pad(transposed(x, w), ((0, 0), (2, 2), (3, 3), (0, 0)), mode)
    assert one(bordered, IMAGE).severity == "high"


def test_a_single_pixel_has_no_pattern():
    pixel = jax.ShapeDtypeStruct((2, 1, 1, 4), jnp.float32)
    assert not audit(lambda x: transposed(x, drawn(3, 3, 4, 4)), pixel)
    line = jax.ShapeDtypeStruct((2, 1, 8, 4), jnp.float32)
    assert one(lambda x: transposed(x, drawn(3, 3, 4, 4)), line).strides == (1, 2)


# Names.


def test_layers_have_names():
    model = Planted(nnx.Rngs(0))
    up, _ = audit(model, IMAGE)
    assert up.layer == "up.kernel"
    assert audit(lambda x: model(x), IMAGE)[0].layer == "model.up.kernel"
    linen_model = PlantedLinen()
    shapes = jax.eval_shape(linen_model.init, jax.random.key(0), IMAGE)
    assert audit(linen_model.apply, shapes, IMAGE)[0].layer == "PlantedLinen/ConvTranspose_0"
    params = {"up": {"kernel": drawn(3, 3, 4, 4)}}
    assert one(lambda params, x: transposed(x, params["up"]["kernel"]), params, IMAGE).layer == (
        "params['up']['kernel']"
    )
    state = {"m.6.weight": drawn(3, 3, 4, 4)}
    normed = lambda state, x: transposed(x, sums_to_one(state["m.6.weight"]))
    assert one(normed, state, IMAGE).layer == "m.6.weight"


def test_a_layer_that_is_called_again_is_counted():
    w = drawn(3, 3, 4, 4)

    def twice(x):
        for _ in range(3):
            x = jax.nn.relu(transposed(x, w))[:, :8, :8]
        return x

    assert one(twice, IMAGE).count == 3


# Gradients.


def test_gradients_are_judged_by_the_sum_of_branches():
    half = lambda x, k: strided(x, drawn(k, k, 4, 4))
    holes = lambda x: half(x, 1)
    block = lambda x: jax.nn.relu(half(x, 1) + strided(jax.nn.relu(half(x, 3)), drawn(3, 3, 4, 4), 1))  # fmt: skip
    blurred = lambda x: half(filtered(x, FIR / 4), 1)
    assert one(holes, IMAGE, gradients=True).severity == "medium"
    assert {f.severity for f in audit(block, IMAGE, gradients=True)} == {"low"}
    assert not audit(blurred, IMAGE, gradients=True)
    merged = lambda x: jnp.concatenate([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
    assert not audit(lambda x: merged(x) @ drawn(16, 8), IMAGE, gradients=True)


# What hides.


def test_what_hides_is_said():
    def called(x):
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((2, 16, 16, 4), "float32"), x)

    def painted(x):
        def body(i, y):
            patch = lax.dynamic_slice(y, (2 * i, 0), (3, 4)) + x[i]
            return lax.dynamic_update_slice(y, patch, (2 * i, 0))

        return lax.fori_loop(0, 8, body, jnp.zeros((17, 4)))

    (found,) = audit(painted, jax.ShapeDtypeStruct((8, 3, 4), jnp.float32))
    assert (found.kind, found.primitive) == ("not_understood", "dynamic_update_slice")
    found = one(called, IMAGE)
    assert (found.kind, found.severity, found.primitive) == ("not_understood", "low", "pure_callback")  # fmt: skip
    assert found.line == here(test_what_hides_is_said, "jax.pure_callback(")


# On data.


def test_a_resampler_is_measured_on_data():
    """Twice the pattern has twice the rms; a filter in front of a layer takes nothing from it."""
    i, j = np.mgrid[:32, :32] / 32
    x = np.float32(np.broadcast_to(1 + np.sin(2 * np.pi * (i + j))[..., None] / 4, (2, 32, 32, 4)))
    even = np.tile(FIR[..., None, None] / 4, (1, 1, 4, 4))
    ripple = np.zeros((4, 4, 4, 4), np.float32)
    ripple[::2, ::2] = 0.02

    def found(scale):
        return one(lambda x: transposed(x, even + scale * ripple), x, run=True)

    weak, strong = found(1), found(2)
    assert strong.measured.rms == pytest.approx(2 * weak.measured.rms, rel=0.1)
    assert strong.measured.share > 2 * weak.measured.share > 0
    assert strong.measured.contrast > weak.measured.contrast > 3
    clean = audit(lambda x: transposed(x, even), x, run=True, everything=True)[0]
    assert clean.severity == "none"
    assert clean.measured.rms < weak.measured.rms / 4


def test_what_the_network_cancels_is_not_severe():
    """The layer behind filters the pattern away, behind a nonlinear operation that bends it little."""
    w = drawn(3, 3, 4, 4) / 50
    x = 3 + np.float32(np.random.default_rng(0).normal(size=(1, 32, 32, 4)))
    cancelled = lambda x: filtered(jnp.tanh(transposed(x, w) / 10))
    by_weights, by_effect = one(cancelled, x), one(cancelled, x, run=True)
    assert by_weights.severity == "high"
    assert by_effect.measured.share > 0.1
    assert by_effect.severity in {"low", "medium"}


def test_two_resamplers_in_one_sum_are_measured():
    x = np.float32(1 + np.zeros((1, 16, 16, 4)))
    a, b = drawn(3, 3, 4, 4), drawn(4, 4, 4, 4, seed=1)
    found = audit(lambda x: transposed(x, a) + transposed(x, b), x, run=True)
    assert [f.kernel_size for f in found] == [(3, 3), (4, 4)]
    first, second = (f.measured for f in found)
    assert first == pytest.approx(second, rel=1e-4)  # the sum has one pattern
    half = one(lambda x: transposed(x, jnp.bfloat16(a)), jnp.bfloat16(x), run=True)
    assert half.measured.share > 0.1
    assert not audit(jnp.tanh, x, run=True)


@pytest.mark.refuses
def test_only_numbers_are_measured():
    with pytest.raises(ValueError, match=r"^audit: args must be arrays with numbers for run=True"):
        audit(transposed, IMAGE, drawn(3, 3, 4, 4), run=True)
