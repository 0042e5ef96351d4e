"""Repair of trained models, in NNX and Linen: a constant stays constant, or another layer replaces the first."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from flax import linen, nnx
from flax.core import freeze

import tconvjax.linen
import tconvjax.nnx
from tconvjax import analysis, audit
from tconvjax.nnx import artifact_free

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 5, 4)), jnp.float32)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.ours = tconvjax.nnx.ConvTranspose(4, 6, (3, 3), 2, rngs=rngs)
        self.theirs = nnx.List([nnx.ConvTranspose(6, 4, (5, 5), strides=3, rngs=rngs)])
        self.holes = tconvjax.nnx.ConvTranspose(4, 4, (1, 1), 2, rngs=rngs)
        self.same = tconvjax.nnx.ConvTranspose(4, 4, (3, 3), 1, rngs=rngs)
        self.wide = tconvjax.nnx.ConvTranspose(4, 4, (3, 3), 2, kernel_dilation=2, rngs=rngs)
        self.turned = tconvjax.nnx.ConvTranspose(4, 4, (3, 3), 2, transpose_kernel=True, rngs=rngs)

    def __call__(self, x):
        x = self.theirs[0](nnx.relu(self.ours(x)))
        return self.turned(self.wide(self.same(self.holes(x))))


def constant(layer, channels=4):
    """The variation of a layer's output for a constant image, away from the borders."""
    y = np.asarray(layer(jnp.ones((1, 12, 12, channels))))
    return np.ptp(y[:, 9:-9, 9:-9], axis=(1, 2)).max()


@pytest.mark.slow
@pytest.mark.usefixtures("promotion")
def test_an_nnx_model_is_balanced_in_place():
    net = Net(nnx.Rngs(0))
    before = net(X)
    kernels = {n: getattr(net, n).kernel[...] for n in ("holes", "same", "wide")}
    assert constant(net.ours) > 0.1
    report = tconvjax.nnx.balance(net, X)
    assert set(report.layers) == {"ours", "theirs/0", "turned"}
    assert {n: why.split(":")[0] for n, why in report.skipped.items()} == {
        "holes": "kernel_size below strides",
        "same": "stride 1",
        "wide": "kernel_dilation above 1",
    }
    for layer, channels in ((net.ours, 4), (net.theirs[0], 6), (net.turned, 4)):
        assert constant(layer, channels) < 1e-5
    for share in report.layers.values():
        assert share.before > 0.1 > 1e-9 > share.after
        assert 0 < share.change < 1
    for name, kernel in kernels.items():
        np.testing.assert_array_equal(getattr(net, name).kernel[...], kernel)
    change = jnp.linalg.norm(net(X) - before) / jnp.linalg.norm(before)
    assert report.output_change == pytest.approx(float(change))
    again = tconvjax.nnx.balance(net)
    assert again.output_change is None
    assert all(share.change < 1e-6 for share in again.layers.values())
    assert not audit(lambda x: net.ours(x), X)


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = tconvjax.linen.ConvTranspose(6, (3, 3), 2, name="ours")(x)
        x = linen.ConvTranspose(4, (5, 5), strides=(3, 3), name="theirs")(linen.relu(x))
        return tconvjax.linen.ConvTranspose(4, (1, 1), 2, name="holes")(x)


@pytest.mark.usefixtures("promotion")
def test_variables_of_linen_are_balanced():
    net = LinenNet()
    variables = net.init(jax.random.key(0), X)
    kept = jax.tree.map(np.asarray, variables)
    new, report = tconvjax.linen.balance(net, variables, X)
    jax.tree.map(np.testing.assert_array_equal, variables, kept)
    assert (set(report.layers), set(report.skipped)) == ({"ours", "theirs"}, {"holes"})
    params = variables["params"]
    for name, s in (("ours", 2), ("theirs", 3)):
        np.testing.assert_allclose(
            new["params"][name]["kernel"], analysis.balance(params[name]["kernel"], s), atol=1e-6
        )
    difference = net.apply(new, X) - net.apply(variables, X)
    want = jnp.linalg.norm(difference) / jnp.linalg.norm(net.apply(variables, X))
    assert report.output_change == pytest.approx(float(want))
    by_shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    assert tconvjax.linen.balance(net, variables, by_shape)[1].output_change is None


class Generator(linen.Module):
    """With statistics, dropout, a flag and several outputs."""

    @linen.compact
    def __call__(self, x, train, *, labels=None):
        x = tconvjax.linen.ConvTranspose(6, (3, 3), 2, name="up")(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.Dropout(0.5, deterministic=not train)(x)
        if labels is not None:
            x = x + labels
        return {"image": x, "half": x.astype("bfloat16"), "class": x.argmax(-1), "none": None}

    def enlarge(self, x):
        return self(x, False)["image"]


@pytest.mark.usefixtures("promotion")
def test_a_linen_call_has_flags_keywords_and_state():
    net, key = Generator(), jax.random.key(0)
    variables = net.init(key, X, False)
    call = {"rngs": {"dropout": key}, "mutable": ["batch_stats"], "labels": np.float32(1)}
    new, report = tconvjax.linen.balance(net, variables, X, True, **call)
    outputs = [net.apply(v, X, True, **call)[0] for v in (variables, new)]
    old, change = (
        np.concatenate([np.ravel(np.float64(tree[n])) for n in ("image", "half", "class")])
        for tree in (outputs[0], jax.tree.map(lambda a, b: np.float64(b) - np.float64(a), *outputs))
    )
    want = np.linalg.norm(change) / np.linalg.norm(old)
    assert report.output_change == pytest.approx(want, rel=1e-5)
    assert 0.1 < want < 1
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], variables["batch_stats"])
    with jax.checking_leaks():
        _, plain = tconvjax.linen.balance(net, variables, X, train=False)
    _, method = tconvjax.linen.balance(net, variables, X, method="enlarge")
    image, enlarged = plain.output_change, method.output_change
    assert plain.layers == method.layers == report.layers
    assert image != enlarged != report.output_change


class Block(linen.Module):
    def setup(self):
        self.up = linen.ConvTranspose(2, (4, 3), (2, 2), kernel_init=self.boxed())

    def boxed(self):
        return linen.with_logical_partitioning(
            linen.initializers.he_normal(), (None, None, "in", "out")
        )

    def __call__(self, x, _=None):
        return self.up(x)[:, :6, :5], None


class Lifted(linen.Module):
    """One block under a transformation of Flax, called twice."""

    lift: object

    @linen.compact
    def __call__(self, x):
        block = self.lift(Block)(name="block")
        return block(block(x, None)[0], None)[0]


def scanned(length=5, axis=0):
    return lambda block: linen.scan(
        block, variable_axes={"params": axis}, split_rngs={"params": True}, length=length,
        metadata_params={"partition_name": "layers"},
    )  # fmt: skip


JITTED = linen.jit(Block)


@pytest.mark.slow
@pytest.mark.usefixtures("promotion")
@pytest.mark.parametrize(
    ("lift", "stack"),
    [
        (linen.remat, ()),
        (lambda _: JITTED, ()),
        (scanned(), (5,)),
        (partial(linen.scan, variable_broadcast="params", split_rngs={"params": False}, length=5), ()),
        (lambda block: scanned(2)(scanned()(block)), (2, 5)),
    ],
    ids=["remat", "jit", "scan", "scan of one", "scan of scans"],
)  # fmt: skip
def test_lifted_layers_are_found_and_stacks_balanced_one_by_one(lift, stack):
    net, x = Lifted(lift), X[..., :2]
    variables = net.init(jax.random.key(0), x)
    net.apply(variables, x)  # nn.jit does not trace it again
    for _ in range(2):
        new, report = tconvjax.linen.balance(net, variables, x)
        assert list(report.layers) == ["block/up"]
    old, box = (tree["params"]["block"]["up"]["kernel"] for tree in (variables, new))
    assert box.names == old.names
    assert box.value.shape == (*stack, 4, 3, 2, 2)
    kernels = [np.asarray(t.value).reshape(-1, 4, 3, 2, 2) for t in (old, box)]
    for kernel, balanced in zip(*kernels, strict=True):
        np.testing.assert_allclose(balanced, analysis.balance(kernel, 2), atol=1e-7)
    (layer,) = report.layers.values()
    worst = max(float(analysis.harmonic_share(kernel, 2)) for kernel in kernels[0])
    assert layer.before == pytest.approx(worst)
    assert layer.after < 1e-9
    assert layer.change == pytest.approx(
        np.linalg.norm(kernels[1] - kernels[0]) / np.linalg.norm(kernels[0]), rel=1e-5
    )
    assert report.output_change > 0


@pytest.mark.usefixtures("promotion")
def test_stacks_along_other_axes_are_skipped():
    net = Lifted(scanned(axis=1))
    variables = net.init(jax.random.key(0), X[..., :2])
    new, report = tconvjax.linen.balance(net, variables, X[..., :2])
    assert report.skipped == {
        "block/up": "kernels of (4, 3, 2, 2) that are not stacked along leading axes: (4, 5, 3, 2, 2)"
    }
    assert (report.layers, report.output_change) == ({}, 0)
    jax.tree.map(np.testing.assert_array_equal, new, variables)


@pytest.mark.usefixtures("promotion")
@each("container", (dict, freeze, lambda tree: dict(tree, params=freeze(tree["params"]))))
def test_the_containers_of_variables_are_kept(container):
    net = LinenNet()
    variables = container(net.init(jax.random.key(0), X) | {"batch_stats": {}, "scale": {"s": 2.0}})
    new, report = tconvjax.linen.balance(net, variables, X)
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    assert new["scale"]["s"] is variables["scale"]["s"]
    assert report.layers


@pytest.mark.usefixtures("promotion")
def test_shapes_alone_show_what_would_be_skipped():
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    variables = jax.eval_shape(LinenNet().init, jax.random.key(0), shape)
    new, linen_report = tconvjax.linen.balance(LinenNet(), variables, X)
    nnx_report = tconvjax.nnx.balance(nnx.eval_shape(lambda: Net(nnx.Rngs(0))), X)
    assert new == variables
    for report in (linen_report, nnx_report):
        assert (report.layers, report.output_change) == ({}, None)
        assert report.skipped["ours"] == "a kernel without numbers, only a shape"
    assert tconvjax.nnx.balance(Net(nnx.Rngs(0)), shape).output_change is None


class Noisy(nnx.Module):
    """State of every kind that a call may change, in shared and in stacked layers."""

    def __init__(self, rngs):
        self.up = tconvjax.nnx.ConvTranspose(4, 4, (3, 3), 2, rngs=rngs)
        self.again = nnx.Sequential(self.up, nnx.relu)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.calls = nnx.Variable(jnp.array(0))
        make = nnx.vmap(lambda r: nnx.ConvTranspose(4, 4, (4, 3), 2, rngs=r))
        self.stack = make(rngs.split(3))

    def __call__(self, x, train, *, rngs):
        self.calls[...] += 1
        x = self.drop(self.norm(self.again(self.up(x)), use_running_average=not train), rngs=rngs)
        return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.stack, x), None


@pytest.mark.slow
@pytest.mark.usefixtures("promotion")
def test_measuring_leaves_the_state_of_a_model():
    net, rngs = Noisy(nnx.Rngs(0)), nnx.Rngs(dropout=1)
    twin, kept = nnx.clone(net), jax.tree.map(np.asarray, nnx.state(net, nnx.Not(nnx.RngKey)))
    report = tconvjax.nnx.balance(net, X, True, rngs=rngs)
    assert list(report.layers) == ["again/layers/0", "stack"]
    state = nnx.state(net, nnx.Not(nnx.RngKey))
    assert jax.tree.structure(state) == jax.tree.structure(kept)
    for tree in (state, kept):
        for layer in (tree["again"]["layers"][0], tree["stack"]):
            del layer["kernel"]
    jax.tree.map(np.testing.assert_array_equal, state, kept)
    assert rngs.dropout.count[...] == 0
    for kernel, balanced in zip(twin.stack.kernel[...], net.stack.kernel[...], strict=True):
        np.testing.assert_allclose(balanced, analysis.balance(kernel, 2), atol=1e-6)
    before, after = (m(X, True, rngs=nnx.Rngs(dropout=1))[0] for m in (twin, net))
    want = jnp.linalg.norm(after - before) / jnp.linalg.norm(before)
    assert report.output_change == pytest.approx(float(want))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_kernels_keep_their_dtype_and_are_balanced_in_float32(dtype):
    layer = tconvjax.nnx.ConvTranspose(4, 6, (3, 3), 2, rngs=nnx.Rngs(0))
    kernel = np.random.default_rng(1).normal(size=(3, 3, 4, 6)) * 6e3  # its norm is no float16
    layer.kernel = nnx.Param(jnp.asarray(kernel, dtype))
    want = analysis.balance(layer.kernel[...].astype(np.promote_types(dtype, np.float32)), 2)
    report = tconvjax.nnx.balance(layer)
    assert layer.kernel.dtype == dtype
    np.testing.assert_array_equal(layer.kernel[...], want.astype(dtype))
    assert report.layers[""].after < 1e-4
    assert 0.1 < report.layers[""].change < 1


def test_a_kernel_of_zeros_has_nothing_to_change():
    layer = tconvjax.nnx.ConvTranspose(4, 6, (3, 3), 2, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.zeros((3, 3, 4, 6))
    report = tconvjax.nnx.balance(layer, X)
    assert (report.layers[""], report.output_change) == ((0, 0, 0), 0)


def test_kernels_stay_on_their_devices():
    mesh = jax.make_mesh((2, 2), ("in", "out"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    layer = tconvjax.nnx.ConvTranspose(4, 6, (3, 3), 2, rngs=nnx.Rngs(0))
    placed = jax.NamedSharding(mesh, jax.P(None, None, "in", "out"))
    layer.kernel[...] = jax.device_put(layer.kernel[...], placed)
    tconvjax.nnx.balance(layer)
    assert layer.kernel[...].sharding.is_equivalent_to(placed, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("k", "s", "options"),
    [
        ((4, 4), 2, {"padding": 1}),
        ((3, 3), 2, {"padding": 1, "output_padding": 1}),
        ((5, 3), (3, 2), {"padding": "SAME"}),
        ((4, 6), 2, {"padding": ((1, 2), (0, 3)), "feature_group_count": 2}),
        ((3, 3), 2, {"padding": "VALID", "transpose_kernel": True, "feature_group_count": 2}),
        ((2, 2), 2, {"use_bias": False}),
    ],
)
def test_a_resize_convolution_takes_the_place(k, s, options):
    """Equal size, center and receptive field, and equal numbers for kernels that a resize-convolution can have."""
    layer = tconvjax.nnx.ConvTranspose(4, 6, k, s, rngs=nnx.Rngs(0), **options)
    if layer.bias is not None:
        layer.bias[...] = jnp.arange(6.0)
    new = artifact_free(layer)
    assert new(X).shape == layer(X).shape
    assert constant(new) < 1e-5
    small = np.random.default_rng(1).normal(size=(*new.kernel.shape,))
    painted = small
    for axis, (n, t) in enumerate(zip(k, layer.strides, strict=True)):
        rows = np.arange(n)[:, None] - np.arange(n - t + 1)
        hold = ((rows >= 0) & (rows < t)).astype(float)
        painted = np.moveaxis(np.tensordot(hold, painted, (1, axis)), 0, axis)
    if layer.transpose_kernel:
        g = layer.feature_group_count
        split = painted[::-1, ::-1].reshape(*k, 4 // g, g, 6 // g)
        painted = split.transpose(0, 1, 4, 3, 2).reshape(*k, 6 // g, 4)
    layer.kernel[...] = jnp.asarray(painted, jnp.float32)
    same = artifact_free(layer)
    np.testing.assert_allclose(same.kernel[...], small, atol=1e-5)
    np.testing.assert_allclose(same(X), layer(X), atol=1e-4)
    twin, variables = in_linen(layer, k, s, **options)
    resized, resized_variables = tconvjax.linen.artifact_free(twin, variables)
    np.testing.assert_allclose(resized.apply(resized_variables, X), same(X), atol=1e-5)
    assert twin.name == resized.name == "up"


def in_linen(layer, k, s, **options):
    """The same layer with the same numbers."""
    params = {"kernel": layer.kernel[...]}
    if layer.bias is not None:
        params["bias"] = layer.bias[...]
    return tconvjax.linen.ConvTranspose(6, k, s, name="up", **options), {"params": params}


def test_a_twin_in_linen_keeps_boxes_and_other_collections():
    layer = tconvjax.linen.ConvTranspose(6, (4, 4), 2, padding=1, dtype=jnp.bfloat16)
    kernel = jnp.ones((4, 4, 4, 6))
    boxed = linen.Partitioned(kernel, (None, None, "in", "out"))
    given = {"params": {"kernel": boxed, "bias": jnp.zeros(6)}, "seen": {"count": jnp.ones(())}}
    new, variables = tconvjax.linen.artifact_free(layer, given)
    assert new.dtype == jnp.bfloat16
    assert variables["params"]["kernel"].names == boxed.names
    assert variables["params"]["kernel"].value.shape == (3, 3, 4, 6)
    assert variables["seen"] == given["seen"]
    assert given["params"]["kernel"].value is kernel
    with pytest.raises(ValueError, match=r"^artifact_free: variables must be those of the layer"):
        tconvjax.linen.artifact_free(layer, {"params": {"up": given["params"]}})


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"kernel_size": (1, 1)}, "a kernel at least as large as its strides; got kernel_size=(1, 1)"),
        ({"kernel_dilation": 2}, "kernel_dilation=1"),
        ({"padding_mode": "replicate", "padding": 1}, "padding_mode='zeros'"),
        ({"mask": jnp.ones((3, 3, 4, 6))}, "no mask"),
    ],
)  # fmt: skip
def test_other_layers_have_no_resize_convolution(layer, message):
    given = {"kernel_size": (3, 3), "strides": 2, "rngs": nnx.Rngs(0)} | layer
    with pytest.raises(ValueError, match=r"^artifact_free: the layer must have .*\.") as caught:
        artifact_free(tconvjax.nnx.ConvTranspose(4, 6, **given))
    assert message in str(caught.value)
    given.pop("rngs")
    kernel = jnp.ones((*given["kernel_size"], 4, 6))
    with pytest.raises(ValueError, match=r"^artifact_free: the layer must have .*\.") as caught:
        tconvjax.linen.artifact_free(
            tconvjax.linen.ConvTranspose(6, **given), {"params": {"kernel": kernel}}
        )
    assert message in str(caught.value)


@pytest.mark.refuses
@each("flax", (tconvjax.nnx, tconvjax.linen))
def test_only_models_are_balanced(flax):
    with pytest.raises(TypeError, match=r"^balance: module must be .* got dict\. For "):
        flax.balance({}, {})


@pytest.mark.refuses
def test_only_our_layers_have_a_resize_convolution():
    with pytest.raises(TypeError, match=r"^artifact_free: layer must be .*; got Conv\."):
        artifact_free(nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match=r"^artifact_free: layer must be .*; got Conv\."):
        tconvjax.linen.artifact_free(linen.Conv(4, (3, 3)), {})
