"""Operators on meshes of four and eight devices: shard_map, Explicit axes, Auto axes."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LOWERINGS, each
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tconvjax import _faces as faces
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
    resize_conv,
    subpixel_conv,
    upfirdn,
)
from tconvjax import nnx as tnn
from tconvjax._arguments import Call
from tconvjax._geometry import conv_geometry

P = PartitionSpec
AUTO = (AxisType.Auto,) * 2
PRIMITIVES = ("auto", "matmul")
MODES = ("zeros", "reflect")
UPSTREAM = Path(__file__).parent.parent / "docs" / "upstream"


@pytest.fixture
def meshes():
    """Explicit and Auto axes over the same devices."""
    return jax.make_mesh((2, 2), ("data", "model")), jax.make_mesh((2, 2), ("data", "model"), AUTO)


def operator(name, implementation="auto", mode="zeros"):
    options = {"strides": 2, "feature_group_count": 2, "padding_mode": mode}
    function = {"conv": conv, "conv_transpose": conv_transpose}[name]
    return lambda x, w: function(x, w, implementation=implementation, **options)


def arrays():
    draw = np.random.default_rng(20161017).normal
    return draw(size=(4, 8, 6, 4)).astype("f"), draw(size=(3, 3, 2, 6)).astype("f")


def loss(f):
    return lambda x, w: jnp.sum(jnp.sin(f(x, w)))


def agree(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    ("implementation", "mode"), [*((i, "zeros") for i in LOWERINGS), ("auto", "reflect")]
)
@each("name", ("conv", "conv_transpose"))
def test_shard_map_splits_batches_and_sums_kernel_gradients(name, implementation, mode, meshes):
    x, w = arrays()
    f = operator(name, implementation, mode)
    over = {"mesh": meshes[1], "in_specs": (P("data"), P()), "out_specs": P("data")}
    split = jax.shard_map(f, **over)
    run = lambda f: jax.jit(lambda *a: (f(*a), jax.grad(loss(f), (0, 1))(*a)))(x, w)
    agree(run(split), run(f))


@each("name", ("conv", "conv_transpose"))
@each("implementation", LOWERINGS)
def test_shard_map_over_kernels_with_one_image(name, implementation, meshes):
    x, w = arrays()
    f = operator(name, implementation)
    over = {"mesh": meshes[1], "in_specs": (P(), P("data")), "out_specs": P("data")}
    split = jax.shard_map(lambda x, ws: f(x, ws[0])[None], **over)
    loop = lambda x, ws: jnp.stack([f(x, ws[0]), f(x, ws[1])])
    run = lambda f: jax.jit(jax.grad(loss(f), (0, 1)))(x, jnp.stack([w, 2 * w]))
    agree(run(split), run(loop))


@each("mode", MODES)
@each("name", ("conv", "conv_transpose"))
@each("implementation", ("auto",))
def test_explicit_axes_stay_where_they_are(name, implementation, mode, meshes):
    x, w = arrays()
    f = operator(name, implementation, mode)
    run = jax.jit(lambda x, w: (f(x, w), jax.grad(loss(f), (0, 1))(x, w)))
    want = run(x, w)
    with jax.set_mesh(meshes[0]):
        spread = jax.device_put(x, P("data")), jax.device_put(w, P(None, None, None, "model"))
        out, (dx, dw) = run(*spread)
        assert jax.typeof(out).sharding.spec == P("data", None, None, "model")
        assert jax.typeof(dx).sharding.spec == jax.typeof(spread[0]).sharding.spec
        assert jax.typeof(dw).sharding.spec == jax.typeof(spread[1]).sharding.spec
        agree((out, (dx, dw)), want)
        agree(f(*spread), want[0])  # eagerly too


def test_explicit_axes_that_do_not_fit_are_given_up(meshes):
    x, w = arrays()
    with jax.set_mesh(meshes[0]):
        spread = jax.device_put(x, P("data", "model"))  # 8 rows in two shards
        assert jax.typeof(conv(spread, w[:, :, :, :2], feature_group_count=2)).sharding.spec == P(
            "data", "model", None, None
        )
        odd = conv_transpose(spread, jax.device_put(w, P(None, None, None, "model")), padding=1,
                             strides=2, feature_group_count=2)  # fmt: skip
        assert odd.shape[1] == 15
        assert jax.typeof(odd).sharding.spec == P("data", None, None, "model")


@pytest.mark.slow
def test_input_dilation_and_resizing_on_explicit_axes(meshes):
    x, _ = arrays()
    rngs = nnx.Rngs(0)
    made = [
        tnn.Conv(4, 8, (3, 3), input_dilation=2, rngs=rngs),
        tnn.ResizeConv(4, 8, (3, 3), 2, method="linear", padding_mode="reflect", rngs=rngs),
        tnn.SubpixelConv(4, 8, (3, 3), 2, order="DCR", rngs=rngs),
        tnn.BlurPool((2, 2)),
    ]
    for layer in made:
        want = layer(x)
        with jax.set_mesh(meshes[0]):
            spread = jax.device_put(x, P("data", "model"))
            got = layer(spread)
            assert jax.typeof(got).sharding.spec[0] == "data"
            agree(got, want)
            agree(jax.jit(jax.grad(lambda x, f=layer: jnp.sum(jnp.sin(f(x)))))(spread),
                  jax.grad(lambda x, f=layer: jnp.sum(jnp.sin(f(x))))(x))  # fmt: skip


def test_explicit_arrays_without_a_mesh_in_scope_and_under_vmap(meshes):
    x, w = arrays()
    f = operator("conv_transpose")
    spread = jax.device_put(x, NamedSharding(meshes[0], P("data")))
    out = f(spread, w)
    assert jax.typeof(out).sharding.spec == P("data", None, None, None)
    agree(out, f(x, w))
    with jax.set_mesh(meshes[0]):
        agree(jax.jit(jax.vmap(f, (0, None)))(jax.device_put(x, P("data")), w), f(x, w))


@each("name", ("conv", "conv_transpose"))
@each("where", (P("data"), P(None, None, None, "data"), P("data", "model")))
def test_auto_axes_give_the_same_numbers_and_gradients(where, name, meshes):
    """Where XLA's own gradient of a grouped convolution is wrong; see `lowerings`."""
    x, w = arrays()
    for implementation in PRIMITIVES:
        f = operator(name, implementation)
        run = jax.jit(lambda x, w, f=f: (f(x, w), jax.grad(loss(f), (0, 1))(x, w)))
        agree(run(jax.device_put(x, NamedSharding(meshes[1], where)), w), run(x, w))


def test_kernel_gradient_of_a_grouped_native_convolution_with_a_sharded_batch(meshes):
    """The lowering that `auto` takes off CPU, by its parts."""
    x, w = arrays()
    geometry = conv_geometry("test", (8, 6), (3, 3), strides=2, feature_group_count=2)
    y = np.asarray(operator("conv")(x, w))
    call = Call(geometry, jnp.dtype(jnp.float32), implementation="dilated")
    run = jax.jit(lambda x, y: faces.compute("correlate", x[None], y[None], call))
    put = lambda a: jax.device_put(a, NamedSharding(meshes[1], P("data")))
    agree(run(put(x), put(y)), run(x, y))


@each("where", (P("data"), P("data", "model")))
@each("name", ("conv", "conv_transpose"))
@each("groups", (1, 2))
def test_sharded_activations_are_never_gathered(groups, name, where):
    """Batch shards stay at home, space shards exchange their borders, kernel gradients are summed."""
    x, w = arrays()
    mesh = jax.make_mesh((4, 2), ("data", "model"), AUTO)
    w = w[:, :, : 4 // groups] if groups == 2 else np.concatenate([w, w], 2)
    function = {"conv": conv, "conv_transpose": conv_transpose}[name]
    f = lambda x, w: function(x, w, strides=2, feature_group_count=groups)
    run = jax.jit(lambda x, w: (f(x, w), jax.grad(loss(f), (0, 1))(x, w)))
    x = jax.device_put(x, NamedSharding(mesh, where))
    text = run.lower(x, jax.device_put(w, NamedSharding(mesh, P()))).compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text
    assert ("collective-permute" in text) == (where != P("data"))


@pytest.mark.parametrize(
    "name", ["conv_transpose", "nearest", pytest.param("linear", marks=pytest.mark.slow)]
)
def test_enlarged_activations_are_never_gathered(name):
    x, _ = arrays()
    mesh = jax.make_mesh((2,), ("rows",), AUTO[:1])
    w = np.ones((4, 4, 4, 6) if name == "conv_transpose" else (3, 3, 4, 6), "f")
    resized = lambda x, w: resize_conv(x, w, scale=2, method=name)
    painted = lambda x, w: conv_transpose(x, w, strides=2, padding=1)
    f = painted if name == "conv_transpose" else resized
    run = jax.jit(lambda x, w: (f(x, w), jax.grad(loss(f), (0, 1))(x, w)))
    text = run.lower(jax.device_put(x, NamedSharding(mesh, P(None, "rows"))), w).compile().as_text()
    assert "all-gather" not in text
    assert "collective-permute" in text


# Places of the image and of the kernel, (4, 8, 8, 8) and (3, 3, 8, 8), on a mesh of 4 x 2.
PLACES = (
    (P(None, "b"), P(None, None, None, "a")),  # the products of four devices were added up
    (P(None, "a", "b"), P(None, None, "b", "a")),
)
OPERATORS = (
    conv,
    lambda x, w: conv_transpose(x, w, strides=2, padding=1),
    lambda x, w: subpixel_conv(x, w, scale=2),
    lambda x, w: conv(x, w, implementation="dilated"),
)
MORE = (
    lambda x, w: conv(x, w, strides=2, padding=1),
    lambda x, w: resize_conv(x, w, scale=2),
    lambda x, w: conv(x, w, implementation="phase"),
    lambda x, w: conv(x, w, implementation="planes"),
    lambda x, w: conv(x, w, implementation="elementwise"),
    lambda x, w: conv(x, w, implementation="linear_transpose"),
)
FILTERS = (
    lambda x, _: resize(x, (2, 2), method="cubic"),
    lambda x, w: upfirdn(x, w.mean((2, 3)), up=2, padding=1),
    lambda x, _: blur_pool(x, (2, 2)),
    lambda x, _: max_blur_pool(x, (2, 2)),
    lambda x, _: pixel_unshuffle(pixel_shuffle(x, (2, 2)), (2, 2)),
    lambda x, _: max_unpool(*max_pool(x, (2, 2)), strides=(2, 2)),
    lambda x, _: hold(x, (2, 2)),
    lambda x, _: bilinear_additive(x, (2, 2)),
    lambda x, w: pixel_conv_transpose(x, (w / 9,) * 3),
    lambda x, _: dysample(x, jnp.sin(pixel_shuffle(x, (2, 2)))[..., None, :], scale=(2, 2)),
    lambda x, _: carafe(x, jnp.tile(resize(x, (2, 2)), 2)[..., :9], scale=(2, 2), window=3),
)


def everything(operators):
    """All operators and their gradients as one program, so that one compilation checks them all."""

    def run(x, w):
        pulled = [jax.vjp(f, x, w) for f in operators]
        return [(y, *back(jnp.cos(y))) for y, back in pulled]

    return jax.jit(run)


@pytest.fixture(scope="module")
def drawn():
    draw = np.random.default_rng(20161017).normal
    return draw(size=(4, 8, 8, 8)).astype("f"), draw(size=(3, 3, 8, 8)).astype("f")


@pytest.mark.parametrize(
    "operators",
    [
        pytest.param(OPERATORS, id="convolutions"),
        pytest.param(MORE, id="names", marks=pytest.mark.slow),
        pytest.param(FILTERS, id="others", marks=pytest.mark.slow),
    ],
)
@each("kind", (AxisType.Auto, AxisType.Explicit))
def test_places_on_a_mesh_of_two_axes_change_no_number(operators, kind, drawn):
    want = everything(operators)(*drawn)
    mesh = jax.make_mesh((4, 2), ("a", "b"), (kind,) * 2)
    for places in PLACES:
        run = everything(operators)
        spread = [
            jax.device_put(v, NamedSharding(mesh, p)) for v, p in zip(drawn, places, strict=True)
        ]
        agree(run(*spread), want)


def test_places_that_no_type_knows_change_no_number(drawn):
    """`in_shardings` of plain arrays: the lowering knows how many devices there are, and no mesh."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), AUTO)
    placed = [NamedSharding(mesh, p) for p in PLACES[0]]
    for platform in ("cpu", None):
        geometry = conv_geometry("test", (8, 8), (3, 3))
        call = Call(geometry, drawn[0].dtype, platform=platform, spread=True)
        f = lambda x, w, call=call: faces.compute("gather", x[None], w[None], call)
        agree(jax.jit(f, in_shardings=placed)(*drawn)[0], conv(*drawn))


@each("face", ("gather", "paint", "correlate"))
def test_convolutions_of_accelerators_see_whole_images(face, drawn):
    x, w = drawn
    mesh = jax.make_mesh((4, 2), ("a", "b"), AUTO)
    geometry = conv_geometry("test", (8, 8), (3, 3))
    operands = (x, x) if face == "correlate" else (x, w)
    run = lambda spread: jax.jit(
        lambda *a: faces.compute(
            face, *(v[None] for v in a), Call(geometry, x.dtype, spread=spread)
        )
    )
    put = [
        jax.device_put(v, NamedSharding(mesh, p)) for v, p in zip(operands, PLACES[0], strict=True)
    ]
    agree(run(True)(*put), run(False)(*operands))


@each(
    "name",
    ("convolution_space_and_features", "batch_group_count_gradient", "reduce_window_gradient"),
)
def test_the_fault_upstream_is_still_there(name):
    """Where this fails, XLA is mended: see docs/upstream/README.md for what may go."""
    program = runpy.run_path(str(UPSTREAM / f"{name}.py"))
    assert program["relative_error"]() > 0.1
