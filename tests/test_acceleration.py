"""`accelerate`: the same numbers by the library's faces, whatever the program around a convolution."""

import gc
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each, together
from flax import linen, nnx
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import tconvjax
from tconvjax import _acceleration as acceleration
from tconvjax import accelerate

NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
AS_JAX = ("CHWN", "HWOI", "HWNC")  # the kernel gradient


@dataclass(frozen=True, eq=False)
class Convolution:
    """One call of `lax.conv_general_dilated`, and its face."""

    why: str
    face: str
    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    padding: Any
    layout: tuple[str, str, str]
    options: dict[str, Any]

    def __call__(self, lhs, rhs):
        strides = self.options.get("window_strides", (1,) * (lhs.ndim - 2))
        options = {k: v for k, v in self.options.items() if k != "window_strides"}
        return lax.conv_general_dilated(
            lhs, rhs, strides, self.padding, dimension_numbers=self.layout, **options
        )


def row(why, face, lhs, rhs, padding, layout=NHWC, **options):
    return Convolution(why, face, lhs, rhs, padding, layout, options)


D, S, T = "rhs_dilation", "window_strides", "lhs_dilation"
CONVOLUTIONS = [
    row("plain", "gather", (2, 5, 7, 2), (3, 2, 2, 3), "SAME"),
    row("strided", "gather", (2, 7, 8, 2), (3, 4, 2, 3), "SAME", **{S: (2, 3)}),
    row("NCHW", "gather", (2, 3, 7, 6), (4, 3, 3, 2), ((1, 2), (0, 1)), NCHW, **{S: (2, 1)}),
    row(
        "every axis elsewhere",
        "gather",
        (7, 2, 3, 6),
        (3, 4, 3, 2),
        "SAME",
        ("HNCW", "HOIW", "WCHN"),
    ),
    row("one axis, NCW", "gather", (2, 3, 11), (4, 3, 5), "SAME", ("NCW", "OIW", "NCW"), **{S: (3,)}),
    row(
        "three axes",
        "gather",
        (1, 4, 5, 3, 2),
        (2, 3, 2, 2, 3),
        "SAME",
        ("NDHWC", "DHWIO", "NDHWC"),
        **{S: (2, 1, 2)},
    ),
    row("dilated", "gather", (2, 9, 8, 2), (3, 2, 2, 3), "SAME", **{D: (2, 3)}),
    row("strided and dilated", "gather", (1, 9, 8, 2), (3, 2, 2, 3), "SAME", **{D: (2, 3), S: (3, 2)}),
    row("patches", "gather", (2, 8, 8, 3), (4, 4, 3, 5), "VALID", **{S: (4, 4)}),
    row("lopsided and negative pads", "gather", (2, 9, 8, 2), (3, 3, 2, 3), ((-1, 3), (4, -2))),
    row("pads beyond the kernel", "paint", (2, 4, 5, 2), (2, 3, 2, 3), ((3, 2), (4, 1))),
    row("groups", "gather", (2, 6, 7, 4), (3, 3, 2, 6), "SAME", feature_group_count=2, **{S: (2, 1)}),
    row("depthwise", "gather", (2, 3, 6, 5), (6, 1, 3, 2), "SAME", NCHW, feature_group_count=3),
    row("zeros inserted", "paint", (2, 4, 5, 2), (3, 4, 2, 3), ((1, 2), (2, 3)), **{T: (2, 3)}),
    row("zeros inserted, NCHW", "paint", (2, 3, 4, 5), (4, 3, 3, 2), ((2, 1), (1, 2)), NCHW, **{T: (2, 1)}),
    row(
        "zeros inserted into both",
        "paint",
        (1, 5, 4, 2),
        (3, 2, 2, 3),
        ((3, 1), (2, 2)),
        **{T: (2, 3), D: (2, 1)},
    ),
    row(
        "zeros inserted, groups",
        "paint",
        (2, 4, 5, 4),
        (3, 4, 2, 6),
        ((1, 2), (2, 3)),
        feature_group_count=2,
        **{T: (2, 2)},
    ),
    row("zeros inserted, cropped", "paint", (2, 7, 2), (3, 2, 4), ((-1, 2),), ("NWC", "WIO", "NWC"), **{T: (3,)}),
    row("kernel gradient", "correlate", (2, 7, 8, 2), (4, 5, 3, 2), ((1, 2), (2, 0)), AS_JAX, **{D: (2, 1)}),
    row(
        "kernel gradient of a transpose",
        "correlate",
        (2, 4, 5, 2),
        (7, 9, 2, 3),
        ((1, 2), (2, 1)),
        **{T: (2, 2)},
    ),
    row(
        "kernel gradient of a transpose, dilated",
        "correlate",
        (2, 4, 5, 2),
        (7, 9, 2, 3),
        ((2, 5), (4, 3)),
        **{T: (2, 2), S: (2, 1)},
    ),
    row(
        "kernel gradient, groups",
        "correlate",
        (4, 7, 8, 2),
        (4, 5, 2, 6),
        ((1, 2), (2, 1)),
        batch_group_count=2,
        **{D: (2, 1)},
    ),
    row(
        "kernel gradient of a transpose, groups",
        "correlate",
        (4, 4, 5, 2),
        (7, 9, 2, 6),
        ((1, 2), (2, 1)),
        batch_group_count=2,
        **{T: (2, 2)},
    ),
    row("batch groups", "correlate", (4, 5, 6, 2), (3, 2, 2, 6), "SAME", batch_group_count=2),
    row("kernel in front", "paint", (2, 3, 2, 2), (6, 7, 2, 3), ((7, 6), (7, 8))),
    row("kernel in front, read from the end", "gather", (2, 3, 2, 2), (9, 8, 2, 3), ((6, 5), (5, 6)), **{T: (2, 1)}),
]  # fmt: skip


def normal(*shape, seed=20161017):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def names(fn, *args):
    """Returns the names of all operations of a program, inside of others too."""
    found = []

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            found.append(eqn.primitive.name)
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                visit(getattr(inner, "jaxpr", inner))

    visit(jax.make_jaxpr(fn)(*args).jaxpr)
    return found


def assert_close(actual, expected, terms=1e3):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape, jnp.asarray(a).weak_type) == (
            b.dtype,
            b.shape,
            jnp.asarray(b).weak_type,
        )
        scale = np.abs(b).max(initial=1)
        np.testing.assert_allclose(a, b, rtol=0, atol=terms * jnp.finfo(b.dtype).eps * scale)


@pytest.mark.usefixtures("x64")
@each("convolution", CONVOLUTIONS)
def test_a_convolution_becomes_its_face(convolution):
    lhs, rhs = normal(*convolution.lhs), normal(*convolution.rhs, seed=1)
    fast = accelerate(convolution)
    assert_close(*together(fast, convolution)(lhs, rhs))
    found = names(fast, lhs, rhs)
    assert f"tconv_{convolution.face}" in found
    assert "conv_general_dilated" not in found


@pytest.mark.usefixtures("x64")
@each("convolution", CONVOLUTIONS)
def test_gradients_and_gradients_written_by_jax(convolution):
    lhs, rhs = normal(*convolution.lhs), normal(*convolution.rhs, seed=1)
    weight = normal(*jax.eval_shape(convolution, lhs, rhs).shape, seed=2)

    def gradient(fn):
        return jax.grad(lambda lhs, rhs: jnp.sum(weight * jnp.sin(fn(lhs, rhs))), (0, 1))

    around, within = gradient(accelerate(convolution)), accelerate(gradient(convolution))
    expected, *both = together(gradient(convolution), around, within)(lhs, rhs)
    assert_close(both, [expected, expected])
    faces = sorted(name for name in names(around, lhs, rhs) if name.startswith("tconv"))
    assert "conv_general_dilated" not in names(within, lhs, rhs)
    assert faces == ["tconv_correlate", "tconv_gather", "tconv_paint"]


def random_convolution(seed):
    """Returns a grouped convolution of which at most two arrays are spread, and its operands."""
    draw = np.random.default_rng(seed)
    pair = lambda low, high: tuple(map(int, draw.integers(low, high, 2)))
    kind, groups = ("feature_group_count", "batch_group_count")[seed % 2], int(draw.integers(2, 4))
    spread = {name: pair(1, 4) for name in (S, D, T)}
    spread[(S, D, T)[seed // 2 % 3]] = (1, 1)
    i, o = (int(n) for n in draw.integers(1, 3, 2))
    n, c = (groups, 1) if kind == "batch_group_count" else (1, groups)
    layout = tuple("".join(draw.permutation([*letters])) for letters in ("NCHW", "OIHW", "NCHW"))
    lhs = {"N": 2 * n, "C": c * i, "H": 6, "W": 5}
    rhs = {"O": groups * o, "I": i, "H": 3, "W": 2}
    padding = (pair(1, 5), pair(-1, 4))
    shapes = (
        [sizes[a] for a in letters] for sizes, letters in zip((lhs, rhs), layout[:2], strict=True)
    )
    return row(f"{seed}", "", *shapes, padding, layout, **spread, **{kind: groups})


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(24))
def test_groups_of_any_steps(seed):
    convolution = random_convolution(seed)
    lhs, rhs = normal(*convolution.lhs), normal(*convolution.rhs, seed=1)
    value = lambda fn: jax.value_and_grad(lambda lhs, rhs: jnp.sum(jnp.sin(fn(lhs, rhs))), (0, 1))
    around, within = value(accelerate(convolution)), accelerate(value(convolution))
    expected, *both = together(value(convolution), around, within)(lhs, rhs)
    assert_close(both, [expected, expected])
    assert "conv_general_dilated" not in names(within, lhs, rhs)


SINGLE_PIXELS = {
    "of the image": ((2, 1, 7, 3), (3, 3, 3, 4), {T: (2, 1), S: (1, 2), D: (1, 2)}),
    "of the kernel": ((2, 6, 7, 3), (1, 3, 3, 4), {T: (1, 2), S: (1, 2), D: (2, 1)}),
    "of the result": ((2, 3, 7, 3), (3, 3, 3, 4), {T: (1, 2), S: (9, 1), D: (1, 2)}),
}


@pytest.mark.usefixtures("x64")
@each("where", SINGLE_PIXELS)
def test_single_pixels_are_not_spread(where):
    lhs, rhs, options = SINGLE_PIXELS[where]
    convolution = row(where, "", lhs, rhs, ((1, 1), (2, 2)), **options)
    lhs, rhs = normal(*lhs), normal(*rhs, seed=1)
    assert_close(accelerate(convolution)(lhs, rhs), convolution(lhs, rhs))
    assert "conv_general_dilated" not in names(accelerate(convolution), lhs, rhs)


STRIDED = row("strided", "gather", (2, 7, 6, 3), (3, 3, 3, 3), "SAME", **{S: (2, 2)})
INSERTED = row(
    "zeros inserted", "paint", (2, 7, 6, 3), (3, 3, 3, 3), ((1, 2), (2, 1)), **{T: (2, 2)}
)
SAME = row("same", "gather", (2, 7, 6, 3), (3, 3, 3, 3), "SAME")


@jax.custom_jvp
def negated(x, w):
    return SAME(x, w)


negated.defjvp(lambda primals, tangents: (negated(*primals), -SAME(tangents[0], primals[1])))


@jax.custom_vjp
def tripled(x, w):
    return SAME(x, w)


tripled.defvjp(
    lambda x, w: (SAME(x, w), (x, w)), lambda kept, ct: tuple(3 * sum(ct.ravel()) * a for a in kept)
)

STRIDED_GRAD = jax.grad(lambda x, w: jnp.sum(jnp.sin(STRIDED(x, w))), 1)
PROGRAMS = {
    "jit": lambda x, w: jax.jit(STRIDED)(x, w),
    "jit in jit": lambda x, w: jax.jit(lambda x: jax.jit(SAME)(jnp.sin(x), w))(x),
    "scan": lambda x, w: lax.scan(lambda c, k: (jnp.tanh(SAME(c, k)), jnp.sum(c)), x, jnp.stack([w, -w])),
    "fori_loop": lambda x, w: lax.fori_loop(0, 3, lambda _, c: jnp.tanh(SAME(c, w)), x),
    "cond": lambda x, w: lax.cond(jnp.sum(x) > 0, lambda: SAME(x, w), lambda: jnp.cos(x)),
    "switch": lambda x, w: lax.switch(1, [lambda x: x, lambda x: SAME(x, w), jnp.sin], x),
    "remat": lambda x, w: jax.checkpoint(lambda x: jnp.sin(SAME(jnp.sin(SAME(x, w)), w)))(x),
    "relu": lambda x, w: jax.nn.relu(STRIDED(x, w)),
    "custom_jvp": negated,
    "custom_vjp": tripled,
    "named scope": lambda x, w: jax.named_scope("here")(SAME)(x, w),
    "vmap": lambda x, w: jax.vmap(SAME, (None, 0))(x, jnp.stack([w, 2 * w])),
    "closed over": lambda x, w: accelerate(lambda y: SAME(y, w))(x),
    "jvp": lambda x, w: jax.jvp(SAME, (x, w), (jnp.cos(x), jnp.sin(w))),
    "second order": lambda x, w: jax.grad(lambda x: jnp.sum(STRIDED_GRAD(x, w) ** 2))(x),
}  # fmt: skip


@pytest.mark.usefixtures("x64")
@each("name", PROGRAMS)
def test_programs_keep_their_structure(name):
    x, w, program = normal(*SAME.lhs), normal(*SAME.rhs, seed=1) / 4, PROGRAMS[name]
    fast = accelerate(program)
    assert_close(fast(x, w), jax.jit(program)(x, w))
    found, original = names(fast, x, w), names(program, x, w)
    assert "conv_general_dilated" not in found
    kept = acceleration.HOLDERS
    assert [n for n in found if n in kept] == [n for n in original if n in kept]


@pytest.mark.usefixtures("x64")
@each("name", sorted({*PROGRAMS} - {"second order"}))
def test_derivatives_and_vmap_of_programs(name):
    x, w, program = normal(*SAME.lhs), normal(*SAME.rhs, seed=1) / 4, PROGRAMS[name]

    def derivatives(fn):
        def loss(x, w):
            return sum(jnp.sum(jnp.cos(y) ** 2) for y in jax.tree.leaves(fn(x, w)))

        def all_of_them(x, w):
            both = (0, 1) if name != "custom_jvp" else 0  # its rule covers the image alone
            forward = (
                jax.jvp(loss, (x, w), (jnp.sin(x), jnp.cos(w))) if name != "custom_vjp" else 0.0
            )
            mapped = jax.vmap(loss, (0, None))(jnp.stack([x, x[::-1]]), w)
            return jax.grad(loss, both)(x, w), forward, mapped

        return jax.jit(all_of_them)

    assert_close(derivatives(accelerate(program))(x, w), derivatives(program)(x, w))


def test_a_gradient_holds_no_convolution_of_jax():
    x, w = normal(*SAME.lhs), normal(*SAME.rhs, seed=1)
    for name in ("jit", "scan", "cond", "remat", "relu", "vmap"):
        fast = accelerate(PROGRAMS[name])
        total = lambda x, w, fast=fast: sum(jnp.sum(y) for y in jax.tree.leaves(fast(x, w)))
        found = names(jax.grad(total, (0, 1)), x, w)
        assert "conv_general_dilated" not in found
        assert {"tconv_paint", "tconv_correlate"} <= {*found}, name


def test_jits_keep_their_names_and_what_was_compiled():
    x, w = normal(*SAME.lhs), normal(*SAME.rhs, seed=1)

    @jax.jit
    def distinctly(x, w):
        return SAME(x, w)

    inner = [jax.make_jaxpr(accelerate(distinctly))(x, w).eqns[0].params for _ in range(2)]
    assert inner[0]["name"] == "distinctly"
    assert inner[0]["jaxpr"] is inner[1]["jaxpr"]  # JAX finds compiled code by this object


def test_programs_are_forgotten():
    x, w = normal(*SAME.lhs), normal(*SAME.rhs, seed=1)
    accelerate(SAME)(x, w)
    gc.collect()
    before = len(acceleration._REWRITTEN)
    for _ in range(5):
        accelerate(lambda x, w: SAME(x, w))(x, w)
    gc.collect()
    assert len(acceleration._REWRITTEN) <= before


def test_a_checkpoint_policy_still_sees_convolutions():
    x, w = normal(*SAME.lhs), normal(*SAME.rhs, seed=1)

    def gathers(policy):
        twice = lambda x, w: jnp.sum(jnp.sin(SAME(jnp.sin(SAME(x, w)), w)))
        remat = accelerate(jax.checkpoint(twice, policy=policy))
        return names(jax.jit(jax.grad(remat)), x, w).count("tconv_gather")

    assert gathers(jax.checkpoint_policies.nothing_saveable) == 4
    assert gathers(jax.checkpoint_policies.dots_saveable) == 2


def test_twice_is_once():
    x, w = normal(*SAME.lhs), normal(*SAME.rhs, seed=1)
    assert names(accelerate(accelerate(STRIDED)), x, w) == names(accelerate(STRIDED), x, w)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64"])
def test_dtypes(dtype):
    x, w = normal(*SAME.lhs).astype(dtype), normal(*SAME.rhs, seed=1).astype(dtype)
    assert_close(accelerate(STRIDED)(x, w), STRIDED(x, w), terms=10)
    assert "conv_general_dilated" not in names(accelerate(STRIDED), x, w)


def test_preferred_dtype_and_precision_are_kept():
    x, w = normal(*SAME.lhs).astype(jnp.bfloat16), normal(*SAME.rhs, seed=1).astype(jnp.bfloat16)
    wide = partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=NHWC,
        preferred_element_type=jnp.float32,
        precision=("high", "highest"),
    )
    assert accelerate(wide)(x, w).dtype == jnp.float32
    (eqn,) = (e for e in jax.make_jaxpr(accelerate(wide))(x, w).eqns if "tconv" in e.primitive.name)
    assert eqn.params["call"].precision == (lax.Precision.HIGH, lax.Precision.HIGHEST)


def image(dtype=float):
    return jnp.arange(60).reshape(2, 5, 3, 2).astype(dtype)


LEFT_ALONE = {
    "integers": (lambda x: SAME_2(x, jnp.ones((3, 3, 2, 4), int)), image(int)),
    "all three spread": (
        lambda x: lax.conv_general_dilated(
            x, jnp.ones((3, 3, 2, 4)), (2, 1), ((3, 3), (3, 3)), (2, 2), (1, 3), NHWC
        ),
        image(),
    ),
    "no spatial axis": (
        lambda x: lax.conv_general_dilated(x, jnp.ones((7, 5)), (), (), (), (), ("NC", "OI", "NC")),
        image().reshape(12, 5),
    ),
    "empty": (lambda x: SAME_2(x[:0], jnp.ones((3, 3, 2, 4))), image()),
    "an algorithm": (
        lambda x: SAME_2(x, jnp.ones((3, 3, 2, 4)), precision="F32_F32_F32"),
        image(),
    ),
}


def SAME_2(lhs, rhs, **options):
    return lax.conv_general_dilated(lhs, rhs, (1, 1), "SAME", dimension_numbers=NHWC, **options)


@each("why", LEFT_ALONE)
def test_left_alone(why):
    fn, x = LEFT_ALONE[why]
    found = names(accelerate(fn), x)
    assert "conv_general_dilated" in found
    assert not any(name.startswith("tconv") for name in found)
    assert_close(jnp.float32(accelerate(fn)(x)), jnp.float32(fn(x)))


@each("name", ["alone", "in a loop", "in a scan"])
def test_weakly_typed_arrays_stay_so(name):
    x, w = jnp.full((1, 5, 6, 2), 0.5), jnp.full((3, 3, 2, 2), 0.25)
    program = {
        "alone": SAME_2,
        "in a loop": lambda x, w: lax.fori_loop(0, 2, lambda _, c: (SAME_2(*c), c[1]), (x, w)),
        "in a scan": lambda x, w: lax.scan(lambda c, _: (SAME_2(c, w), c), x, length=2),
    }[name]
    assert x.weak_type
    assert w.weak_type
    assert_close(accelerate(program)(x, w), program(x, w))
    assert "conv_general_dilated" not in names(accelerate(program), x, w)
    loss = lambda fn: lambda w: sum(jnp.sum(y**2) for y in jax.tree.leaves(fn(x, w)))
    derivatives = lambda fn: (jax.jvp(loss(fn), (w,), (w,)), jax.grad(loss(fn))(w))
    assert_close(derivatives(accelerate(program)), derivatives(program))


def test_one_weakly_typed_array_is_as_the_other():
    x, w = jnp.full((1, 5, 6, 2), 0.5), normal(3, 3, 2, 2).astype(jnp.float32)
    assert_close(accelerate(SAME_2)(x, w), SAME_2(x, w))


def test_static_arguments_and_other_leaves_pass_as_they_are():
    seen = []

    def fn(x, kernel, activation, *, train, options=None, scale=2.0):
        seen.append((train, options, scale, type(kernel)))
        y = getattr(jax.nn, activation)(SAME(x, kernel))
        y = y * scale if train else y
        return {"y": y, "train": train, "note": "text", "none": None, "kernel": kernel}

    x, kernel = normal(*SAME.lhs), np.asarray(normal(*SAME.rhs, seed=1))
    options = {"callable": len, "n": 3}
    actual = accelerate(fn)(x, kernel, "relu", train=True, options=options)
    expected = fn(x, kernel, "relu", train=True, options=options)
    assert seen[0] == seen[1] == (True, options, 2.0, np.ndarray)
    assert actual["train"] is True
    assert (actual["note"], actual["kernel"] is kernel) == ("text", True)
    assert_close(actual["y"], expected["y"])
    assert fn.__name__ == accelerate(fn).__name__


def test_effects_are_kept():
    seen = []

    def fn(x, w):
        jax.debug.callback(lambda total: seen.append(float(total)), jnp.sum(x), ordered=True)
        return SAME(x, w)

    accelerate(fn)(normal(*SAME.lhs), normal(*SAME.rhs, seed=1))
    jax.effects_barrier()
    assert len(seen) == 1


def test_under_shard_map():
    x, w = normal(4, 7, 6, 3), normal(*SAME.rhs, seed=1)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))

    def total(inner):
        specs = {"in_specs": (PartitionSpec("d"), PartitionSpec()), "out_specs": PartitionSpec()}
        body = lambda x, w: lax.psum(jnp.sum(jax.nn.relu(inner(x, w))), "d")
        return jax.shard_map(body, mesh=mesh, **specs)

    def inner(x, w):
        x = lax.scan(lambda x, _: (jax.checkpoint(SAME)(x, w), None), x, length=2)[0]
        return INSERTED(STRIDED(x, w), w)

    expected = jax.jit(jax.grad(total(inner), (0, 1)))(x, w)
    for fast in (accelerate(total(inner)), total(accelerate(inner))):
        with jax.enable_checks(True):  # of types, and over which axes they vary
            assert_close(jax.jit(jax.grad(fast, (0, 1)))(x, w), expected)
        assert "conv_general_dilated" not in names(jax.grad(fast, (0, 1)), x, w)


def test_explicit_axes_are_left_alone():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(normal(4, 7, 6, 3), jax.NamedSharding(mesh, PartitionSpec("d")))
        w = normal(*SAME.rhs, seed=1)
        assert_close(accelerate(SAME)(x, w), SAME(x, w))
        assert "conv_general_dilated" in names(accelerate(SAME), x, w)


def test_export_with_a_symbolic_size():
    n, h = jax.export.symbolic_shape("n, 2*h", constraints=["h >= 2"])
    args = jax.ShapeDtypeStruct((n, h, h, 3), jnp.float32), jnp.float32(normal(3, 3, 3, 3, seed=1))
    exported = jax.export.export(jax.jit(accelerate(STRIDED)))(*args)
    x = jnp.float32(normal(2, 8, 8, 3))
    assert_close(exported.call(x, args[1]), STRIDED(x, args[1]))
    found = names(accelerate(STRIDED), *args)
    assert "tconv_gather" in found


@pytest.mark.refuses
@pytest.mark.parametrize("wrong", [3, None, jnp.ones(2)])
def test_refuses_what_cannot_be_called(wrong):
    with pytest.raises(
        TypeError, match=r"^accelerate: fn must be callable; got an object of type \w+\.$"
    ):
        accelerate(wrong)


@pytest.mark.refuses
def test_refuses_to_lose_a_change_of_an_argument():
    def fn(x, state, *, more):
        state["mean"] = jnp.mean(x)
        more.append(x)
        return x

    x, state = normal(3), {"mean": jnp.zeros(())}
    with pytest.raises(
        ValueError, match=r"of its arguments; got a new structure of the arguments, which"
    ):
        accelerate(fn)(x, state, more=[])
    with pytest.raises(ValueError, match=r"got a new value of args\[1\]\['mean'\], which would be"):
        accelerate(lambda x, state: fn(x, state, more=[]))(x, state)
    with pytest.raises(ValueError, match=r"got a new value of kwargs\['state'\]\['mean'\]"):
        accelerate(lambda x, state: fn(x, state, more=[]))(x, state=state)


class UNet(nnx.Module):
    """One step down, one step up, as a user of Flax writes it."""

    def __init__(self, rngs):
        self.inner = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.down = nnx.Conv(4, 6, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.up = nnx.ConvTranspose(6, 4, (4, 4), strides=2, rngs=rngs)
        self.outer = nnx.Conv(8, 2, (3, 3), feature_group_count=2, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        wide = nnx.relu(self.inner(x))
        deep = nnx.relu(self.norm(self.down(wide)))
        return self.outer(jnp.concatenate([wide, self.up(deep)], axis=-1))


@nnx.jit
def make_unet():
    return UNet(nnx.Rngs(0))


@pytest.fixture
def unet():
    return make_unet(), jnp.float32(normal(2, 6, 8, 2))


def squares(model, x):
    return jnp.mean((model(x) - x) ** 2)


def test_nnx_with_statistics_split_and_merged(unet):
    model, x = unet
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, x):
        model = nnx.merge(graphdef, params, rest, copy=True)
        return squares(model, x), nnx.state(model, nnx.BatchStat)

    actual, expected = (
        jax.jit(jax.value_and_grad(f, has_aux=True))(params, rest, x)
        for f in (accelerate(loss), loss)
    )
    assert_close(actual, expected, terms=100)
    program = names(jax.grad(lambda *a: accelerate(loss)(*a)[0]), params, rest, x)
    assert "conv_general_dilated" not in program
    assert program.count("tconv_correlate") == 4


def test_nnx_with_statistics_returned(unet):
    model, x = unet

    def loss(model, x):
        return squares(model, x), nnx.state(model, nnx.BatchStat)

    step = lambda f: nnx.jit(nnx.value_and_grad(f, has_aux=True))
    (_, state), grads = step(accelerate(loss))(model, x)
    assert not jnp.allclose(state.norm.mean[...], model.norm.mean[...])
    nnx.update(model, state)
    other = make_unet()
    _, expected = step(loss)(other, x)
    assert_close(nnx.to_pure_dict(grads), nnx.to_pure_dict(expected), terms=100)
    assert_close(model.norm.mean[...], other.norm.mean[...], terms=100)


def test_an_nnx_module_is_an_argument_or_closed_over(unet):
    model, x = unet
    model.eval()
    assert_close(
        nnx.to_pure_dict(nnx.jit(nnx.grad(accelerate(squares)))(model, x)),
        nnx.to_pure_dict(nnx.jit(nnx.grad(squares))(model, x)),
        terms=100,
    )
    for fast in (accelerate(lambda x: model(x)), accelerate(model), accelerate(nnx.jit(model))):
        assert_close(fast(x), model(x), terms=100)


@pytest.mark.refuses
def test_an_nnx_module_does_not_lose_its_statistics(unet):
    model, x = unet
    with pytest.raises(
        ValueError, match=r"got a new value of args\[0\]\.norm\.mean.*nnx\.update the module"
    ):
        nnx.grad(accelerate(squares))(model, x)
    with pytest.raises(ValueError, match=r"got a new value of args\[0\]\.drop\.rngs"):
        accelerate(lambda model, x: model.drop(x))(model, x)
    with pytest.raises(flax.errors.TraceContextError, match="trace level"):
        accelerate(lambda x: model(x))(x)


def test_linen():
    class Generator(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            x = linen.ConvTranspose(4, (4, 4), (2, 2))(linen.Dense(6)(x))
            x = linen.relu(linen.BatchNorm(use_running_average=not train)(x))
            return linen.ConvTranspose(1, (3, 3), (2, 2), transpose_kernel=True)(x)

    model, x = Generator(), jnp.float32(normal(2, 3, 4, 5))
    variables = model.init(jax.random.key(0), x, train=False)

    def loss(params, x, apply):
        rest = {"batch_stats": variables["batch_stats"]}
        y, state = apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])
        return jnp.mean(y**2), state

    actual, expected = (
        jax.jit(jax.grad(partial(loss, apply=apply), has_aux=True))(variables["params"], x)
        for apply in (accelerate(model.apply), model.apply)
    )
    assert_close(actual, expected, terms=100)
    assert (
        names(partial(accelerate(model.apply), train=False), variables, x).count("tconv_paint") == 2
    )


def test_equinox():
    eqx = pytest.importorskip("equinox", reason="a peer that CI does not install")
    model = eqx.nn.Sequential([
        eqx.nn.Conv2d(2, 4, 3, stride=2, key=jax.random.key(0)),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.ConvTranspose2d(4, 2, 4, stride=2, groups=2, key=jax.random.key(1)),
    ])  # fmt: skip
    x = jnp.float32(normal(3, 2, 7, 8))
    loss = lambda model, x: jnp.mean(jax.vmap(model)(x) ** 2)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        actual, expected = (
            eqx.filter_jit(eqx.filter_grad(f))(model, x) for f in (accelerate(loss), loss)
        )
        program = (
            names(lambda x: eqx.filter_grad(accelerate(loss))(model, x), x)
            if 0
            else names(lambda x: accelerate(loss)(model, x), x)
        )
    assert_close(eqx.filter(actual, eqx.is_array), eqx.filter(expected, eqx.is_array), terms=100)
    assert "conv_general_dilated" not in program


def test_haiku():
    hk = pytest.importorskip("haiku", reason="a peer that CI does not install")

    def net(x):
        x = jax.nn.relu(hk.Conv2D(4, 3, stride=2)(x))
        return hk.Conv2DTranspose(2, 4, stride=2)(x)

    x = jnp.float32(normal(2, 6, 8, 2))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = hk.without_apply_rng(hk.transform(net))
        params = model.init(jax.random.key(0), x)
        loss = lambda params, x: jnp.mean(model.apply(params, x) ** 2)
        actual, expected = (jax.jit(jax.grad(f))(params, x) for f in (accelerate(loss), loss))
        program = names(jax.grad(accelerate(loss)), params, x)
    assert_close(actual, expected, terms=100)
    assert "conv_general_dilated" not in program


def test_keras():
    keras = pytest.importorskip("keras", reason="a peer that CI does not install")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras runs on another backend")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = keras.Sequential([
            keras.layers.Conv2D(4, 3, strides=2, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2DTranspose(2, 4, strides=2, padding="same"),
        ])  # fmt: skip
        x = jnp.float32(normal(2, 6, 8, 2))
        model.build(x.shape)
        trained, others = (
            [v.value for v in vs]
            for vs in (model.trainable_variables, model.non_trainable_variables)
        )

        def loss(trained, others, x):
            y, others = model.stateless_call(trained, others, x, training=True)
            return jnp.mean(y**2), others

        actual, expected = (
            jax.jit(jax.grad(f, has_aux=True))(trained, others, x) for f in (accelerate(loss), loss)
        )
        program = names(jax.grad(accelerate(loss), has_aux=True), trained, others, x)
    assert_close(actual, expected, terms=100)
    assert "conv_general_dilated" not in program


def test_its_place():
    assert tconvjax.accelerate is accelerate
