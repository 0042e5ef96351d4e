"""Zeros inserted by other means than `lhs_dilation`: `accelerate` and `audit` read the small image between them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each, together
from jax import lax

from tconvjax import accelerate, audit

B, H, W, C = 2, 4, 5, 3
NHWC = ("NHWC", "HWIO", "NHWC")


def normal(*shape, seed=20161017):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def conv(x, w, padding="SAME", layout=NHWC, strides=None, **options):
    strides = strides or (1,) * (x.ndim - 2)
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=layout, **options)


def pad(x, *config):
    return lax.pad(x, jnp.zeros((), x.dtype), config)


NONE, TWICE = (0, 0, 0), (0, 1, 1)


def spread(x):
    return pad(x, NONE, TWICE, TWICE, NONE)


def interior(x, w):
    return conv(spread(x), w)


def unequal(x, w):
    return conv(pad(x, NONE, (2, 1, 2), (1, 3, 0), NONE), w, ((-1, 2), (1, 0)))


def beside_a_stride(x, w):
    return conv(pad(x, NONE, TWICE, NONE, NONE), w, strides=(1, 2))


def one_image(x, w):
    """As in Equinox: the image is padded before it gets its batch axis."""
    return conv(pad(x, TWICE, TWICE, NONE)[None], w)[0]


def one_image_reshaped(x, w):
    y = conv(pad(x, TWICE, TWICE, NONE).reshape(1, 2 * H, 2 * W, C), w)
    return lax.squeeze(y, (0,))


def dropped_axis(x, w):
    return conv(pad(x[:, None], NONE, NONE, TWICE, TWICE, NONE)[:, 0], w)


def mapped(x, w):
    return jax.vmap(one_image, (0, None))(x, w)


def mapped_twice(x, w):
    return jax.vmap(jax.vmap(one_image, (0, None)), (None, 0))(x, jnp.stack([w, 2 * w]))


def padded_again(x, w):
    return conv(jnp.pad(spread(x), ((0, 0), (1, 2), (0, 3), (0, 0))), w, "VALID")


def cropped(x, w):
    return conv(pad(spread(x), NONE, (-1, 0, 0), (1, -2, 0), NONE), w, "VALID")


def cropped_and_padded(x, w):
    """Pixels that are cropped away stay away."""
    return conv(pad(spread(x), NONE, (-1, -2, 0), (-3, 1, 0), NONE), w, ((2, 2), (3, 1)))


def spread_twice(x, w):
    return conv(pad(spread(x), NONE, (1, 0, 2), (-1, 2, 1), NONE), w)


def sliced(x, w):
    return conv(spread(x)[:, 1:-2, :5], w, ((3, 3), (2, 2)))


def transposed(x, w):
    return conv(spread(x).transpose(0, 3, 2, 1), w, "SAME", ("NCWH", "HWIO", "NHWC"))


def cast(x, w):
    return conv(spread(x.astype(jnp.float32)).astype(x.dtype), w)


def cast_to_fewer_bits(x, w):
    return conv(spread(x).astype(jnp.float32), w.astype(jnp.float32))


def pad_and_reshape(x, w):
    x = jnp.pad(x.reshape(B, H, 1, W, 1, C), ((0, 0), (0, 0), (0, 1), (0, 0), (2, 0), (0, 0)))
    return conv(x.reshape(B, 2 * H, 3 * W, C), w)


def stack_and_reshape(x, w):
    for axis in (1, 2):
        x = jnp.stack([jnp.zeros_like(x), x, jnp.zeros_like(x)], axis + 1)
        x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return conv(x, w)


def scatter(x, w):
    return conv(jnp.zeros((B, 2 * H, 2 * W, C), x.dtype).at[:, ::2, ::2].set(x), w)


def scatter_add(x, w):
    return conv(jnp.zeros((B, 3 * H, 2 * W, C), x.dtype).at[:, 2::3, 1::2].add(x), w)


def scatter_one_axis(x, w):
    return conv(jnp.zeros((B, H, 3 * W, C), x.dtype).at[..., 1::3, :].set(x), w)


def scatter_mapped(x, w):
    return jax.vmap(
        lambda x: conv(jnp.zeros((2 * H, 2 * W, C), x.dtype).at[::2, ::2].set(x)[None], w)[0]
    )(x)


def used_elsewhere(x, w):
    large = spread(x)
    return conv(large, w)[..., :1] * jnp.sum(large**2)


def one_channel_each(x, w):
    return conv(spread(x), w[:, :, :1], feature_group_count=C)


def dilated_too(x, w):
    return conv(spread(x), w, ((3, 2), (2, 3)), lhs_dilation=(2, 1), rhs_dilation=(1, 2))


def spread_kernel(x, w):
    """A kernel with holes is one with `rhs_dilation`."""
    return conv(x, pad(w, (1, 0, 1), (0, 2, 2), NONE, NONE), ((3, 3), (4, 4)))


def inside_of_jit(x, w):
    return jax.jit(interior)(x, w)


def inside_of_scan(x, w):
    step = lambda x, w: (jnp.tanh(interior(x, w))[:, :H, :W], None)
    return lax.scan(step, x, jnp.stack([w, -w]))[0]


def one_axis(x, w):
    return conv(pad(x[:, 0], NONE, TWICE, NONE), w[0], "SAME", ("NWC", "WIO", "NWC"))


def three_axes(x, w):
    x = pad(x[:, None], NONE, TWICE, TWICE, (0, 2, 2), NONE)
    return conv(x, w[None], "SAME", ("NDHWC", "DHWIO", "NDHWC"))


KINDS = {
    f.__name__: f
    for f in (
        interior, unequal, beside_a_stride, dropped_axis, mapped, mapped_twice, padded_again, cropped,
        cropped_and_padded, spread_twice, sliced, transposed, cast, cast_to_fewer_bits, pad_and_reshape,
        stack_and_reshape, scatter, scatter_add, scatter_one_axis, scatter_mapped, one_channel_each,
        dilated_too, spread_kernel, inside_of_jit, inside_of_scan, one_axis, three_axes,
    )
} | {
    f.__name__: lambda x, w, f=f: f(x[0], w) for f in (one_image, one_image_reshaped)
}  # fmt: skip


def equations(fn, *args):
    """Returns all equations of a program, those of inner ones included."""
    found = []

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            found.append(eqn)
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                visit(getattr(inner, "jaxpr", inner))

    visit(jax.make_jaxpr(fn)(*args).jaxpr)
    return found


def insertions(fn, *args):
    """Returns the equations that insert zeros between pixels, and the convolutions of XLA."""
    names = {"scatter", "scatter-add", "conv_general_dilated"}
    return [
        eqn
        for eqn in equations(fn, *args)
        if eqn.primitive.name in names
        or (eqn.primitive.name == "pad" and any(n for _, _, n in eqn.params["padding_config"]))
    ]


def assert_close(actual, expected, dtype):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e3 * jnp.finfo(dtype).eps * np.abs(b).max())


def dtype(kind):
    return "float32" if "cast" in kind else "float64"


X, KERNEL = (B, H, W, C), (3, 3, C, C)


@pytest.mark.usefixtures("x64")
@each("kind", KINDS)
def test_inserted_zeros_are_left_out(kind):
    x, w = normal(*X), normal(*KERNEL, seed=1)
    fn = KINDS[kind]
    assert_close(*together(accelerate(fn), fn)(x, w), dtype(kind))
    assert insertions(fn, x, w)
    assert insertions(accelerate(fn), x, w) == []


# The image with zeros goes from one inner program to another, which is not read.
ACROSS = {"inside_of_jit", "inside_of_scan"}


@pytest.mark.usefixtures("x64")
@each("kind", KINDS)
def test_gradients_around_and_within(kind):
    x, w = normal(*X), normal(*KERNEL, seed=1)
    shape = jax.eval_shape(KINDS[kind], x, w)
    weight = normal(*shape.shape, seed=2).astype(shape.dtype)

    def gradient(fn):
        return jax.grad(lambda x, w: jnp.sum(weight * jnp.sin(fn(x, w))), (0, 1))

    around, within = gradient(accelerate(KINDS[kind])), accelerate(gradient(KINDS[kind]))
    expected, *both = together(gradient(KINDS[kind]), around, within)(x, w)
    assert_close(both, [expected, expected], dtype(kind))
    assert insertions(around, x, w) == []
    assert kind in ACROSS or insertions(within, x, w) == []


@each(
    "kind",
    [
        "interior",
        "one_image",
        "mapped",
        "unequal",
        "cropped_and_padded",
        "padded_again",
        "spread_kernel",
    ],
)
def test_gradients_within_compute_no_pixel_that_is_left_out(kind):
    x, w = normal(*X), normal(*KERNEL, seed=1)
    gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(KINDS[kind](x, w))), (0, 1))

    def strided(fn):
        slices = [e for e in equations(fn, x, w) if e.primitive.name == "slice"]
        return [e for e in slices if {*(e.params["strides"] or ())} - {1}]

    assert strided(gradient)
    assert strided(accelerate(gradient)) == []


@each("kind", sorted({*KINDS} - {"beside_a_stride", "spread_kernel", "dilated_too"}))
def test_audit_reads_the_same(kind):
    x, w = jnp.float32(normal(*X)), jnp.float32(normal(*KERNEL, seed=1))
    assert "transposed_convolution" in [f.kind for f in audit(lambda x: KINDS[kind](x, w), x)]


def random_program(seed):
    """Returns a program that spreads an image somewhere among random pads, crops and turns, and then convolves it."""
    draw = np.random.default_rng(seed)
    pair = lambda low, high: tuple(map(int, draw.integers(low, high, 2)))
    layout, steps = "NHWC", []
    kinds = list(draw.choice(["pad", "crop", "transpose", "rev", "axis", "cast"], 4))
    kinds[draw.integers(4)] = "spread"
    for kind in kinds:
        if kind == "transpose":
            order = tuple(map(int, draw.permutation(4)))
            layout = "".join(layout[i] for i in order)
            steps.append(partial(lax.transpose, permutation=order))
        elif kind == "rev":
            steps.append(partial(lax.rev, dimensions=(int(draw.integers(4)),)))
        elif kind == "axis":
            steps.append(partial(jnp.expand_dims, axis=int(draw.integers(5))))
            steps.append(lambda x: x.reshape([n for n in x.shape if n != 1]))
        elif kind == "cast":
            steps.append(partial(lax.reduce_precision, exponent_bits=8, mantissa_bits=20))
        elif kind == "crop":
            steps.append(
                partial(lax.slice_in_dim, start_index=1, limit_index=-1, axis=layout.index("H"))
            )
        else:
            inner = pair(0, 3) if kind == "spread" else (0, 0)
            sides = {axis: (*pair(-1, 4), n) for axis, n in zip("HW", inner, strict=True)}
            config = [sides.get(axis, NONE) for axis in layout]
            steps.append(lambda x, config=config: pad(x, *config))
    options = {
        name: pair(1, 3) if draw.random() < 0.3 else (1, 1)
        for name in ("strides", "lhs_dilation", "rhs_dilation")
    }
    padding = (pair(-1, 5), pair(-1, 5))

    def fn(x, w):
        for step in steps:
            x = step(x)
        return conv(x, w, padding, (layout, "HWIO", "NHWC"), **options)

    return fn


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(24))
def test_random_programs(seed):
    fn, x, w = random_program(seed), normal(B, 5, 6, C), normal(3, 2, C, 4, seed=1)
    value = lambda fn: jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(fn(x, w))), (0, 1))
    around, within = value(accelerate(fn)), accelerate(value(fn))
    expected, *both = together(value(fn), around, within)(x, w)
    assert_close(both, [expected, expected], "float64")
    left = [
        e.params
        for e in equations(accelerate(fn), x, w)
        if e.primitive.name == "conv_general_dilated"
    ]
    assert all(max(p["rhs_dilation"]) > 1 < max(p["window_strides"]) for p in left)


def count(name, fn, *args):
    return [eqn.primitive.name for eqn in equations(fn, *args)].count(name)


def test_an_image_that_others_read_is_kept():
    def fn(x, w):
        large = spread(x)
        return conv(large, w)[..., :1] * jnp.sum(large**2)

    x, w = normal(*X), normal(*KERNEL, seed=1)
    assert_close(accelerate(fn)(x, w), fn(x, w), "float32")
    assert count("pad", accelerate(fn), x, w) == count("tconv_paint", accelerate(fn), x, w) == 1


def test_a_result_that_others_read_is_computed_once():
    def fn(x, w):
        y = conv(x, w)
        return y, y[:, ::2, 1::2]

    x, w = normal(*X), normal(*KERNEL, seed=1)
    assert_close(accelerate(fn)(x, w), fn(x, w), "float32")
    assert count("tconv_gather", accelerate(fn), x, w) == 1


def test_a_result_of_which_pixels_are_left_out():
    def fn(x, w):
        return conv(x, w).transpose(0, 3, 1, 2)[:, :, 1::2, :4:3].astype(jnp.float16)

    x, w = normal(*X), normal(*KERNEL, seed=1)
    assert_close(accelerate(fn)(x, w), fn(x, w), "float16")
    (face,) = (e for e in equations(accelerate(fn), x, w) if "tconv" in e.primitive.name)
    assert face.params["call"].geometry.strides == (2, 3)
    assert face.outvars[0].aval.shape == (1, B, H // 2, 2, C)


def many_indices(x, w, *, rows):
    return conv(jnp.zeros((B, 2 * H, W, C), x.dtype).at[:, jnp.array(rows)].set(x), w)


OTHERS = {
    "ones between": lambda x, w: conv(lax.pad(x, jnp.ones((), x.dtype), (NONE, TWICE, TWICE, NONE)), w),
    "an unknown number between": lambda x, w: conv(lax.pad(x, x[0, 0, 0, 0], (NONE, TWICE, TWICE, NONE)), w),
    "a number that is never negative": lambda x, w: conv(
        lax.pad(x, jax.nn.relu(-(x[0, 0, 0, 0] ** 2)), (NONE, TWICE, NONE, NONE)), w
    ),
    "between channels": lambda x, w: conv(pad(x[..., :2], NONE, NONE, NONE, TWICE), w[:, :, :1].repeat(4, 2)),
    "between images": lambda x, w: conv(pad(x, TWICE, NONE, NONE, NONE), w),
    "cropped away": lambda x, w: conv(pad(spread(x), NONE, (-2 * H + 1, 0, 0), NONE, NONE), w),
    "unequal steps": partial(many_indices, rows=[0, 1, 3, 6]),
    "one place": partial(many_indices, rows=[5, 5, 5, 5]),
    "backwards": partial(many_indices, rows=[6, 4, 2, 0]),
    "out of bounds": partial(many_indices, rows=[1, 4, 7, 10]),
    "added to an image": lambda x, w: conv(jnp.repeat(x, 2, 1).at[:, ::2].add(x), w),
    "joined to space by a transpose": lambda x, w: conv(
        pad(x[:, :, None], NONE, NONE, (0, 1, 0), NONE, NONE).swapaxes(1, 2).reshape(B, 2 * H, W, C), w
    ),
    "stacked with an image": lambda x, w: conv(jnp.stack([x, x**2], 2).reshape(B, 2 * H, W, C), w),
}  # fmt: skip


@each("why", OTHERS)
def test_other_programs_stay_right(why):
    x, w = normal(*X), normal(*KERNEL, seed=1)
    assert_close(*together(accelerate(OTHERS[why]), OTHERS[why])(x, w), "float32")
    assert count("tconv_gather", accelerate(OTHERS[why]), x, w) == 1


def test_transformed_programs():
    x, w = normal(3, *X), normal(*KERNEL, seed=1)
    expected = jax.vmap(interior, (0, None))(x, w)
    assert_close(jax.vmap(accelerate(interior), (0, None))(x, w), expected, "float32")
    with jax.disable_jit():
        assert_close(accelerate(interior)(x[0], w), expected[0], "float32")
    zero = jnp.zeros(())
    closed = jax.jit(
        lambda x, w, zero: accelerate(
            lambda x: conv(lax.pad(x, zero, (NONE, TWICE, TWICE, NONE)), w)
        )(x)
    )
    assert_close(closed(x[0], w, zero), expected[0], "float32")
    inside = jax.jit(lambda x, w: accelerate(scatter)(x, w))
    assert_close(inside(x[0], w), scatter(x[0], w), "float32")
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    mapped = jax.shard_map(
        scatter_mapped, mesh=mesh, in_specs=(spec("d"), spec()), out_specs=spec("d")
    )
    assert_close(jax.jit(accelerate(mapped))(x[0], w), scatter(x[0], w), "float32")
    assert insertions(accelerate(mapped), x[0], w) == []


def test_export_with_a_symbolic_size():
    (n, h) = jax.export.symbolic_shape("n, h", constraints=["h >= 2"])
    w = jnp.float32(normal(*KERNEL, seed=1))
    image = jax.ShapeDtypeStruct((n, h, h, C), jnp.float32)
    exported = jax.export.export(jax.jit(accelerate(interior)))(image, w)
    x = jnp.float32(normal(2, 6, 6, C))
    assert_close(exported.call(x, w), interior(x, w), "float32")
    assert insertions(accelerate(interior), image, w) == []
