"""Operators on meshes of four and eight devices: shard_map, Explicit axes, Auto axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LOWERINGS, each
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tconvjax import conv, conv_transpose
from tconvjax import nnx as tnn

P = PartitionSpec
AUTO = (AxisType.Auto,) * 2
PRIMITIVES = ("auto", "matmul")
MODES = ("zeros", "reflect")


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


@each("mode", MODES)
@each("implementation", LOWERINGS)
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
@each("implementation", PRIMITIVES)
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
    from tconvjax.geometry import conv_geometry
    from tconvjax.ops import lowerings

    x, w = arrays()
    geometry = conv_geometry("test", (8, 6), (3, 3), strides=2, feature_group_count=2)
    y = np.asarray(operator("conv")(x, w))
    options = {"geometry": geometry, "dtype": jnp.float32, "precision": None}
    run = jax.jit(
        lambda x, y: lowerings.compute("correlate", x[None], y[None], None, "dilated", **options)
    )
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
