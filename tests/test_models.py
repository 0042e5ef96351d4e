"""Whole models of PyTorch in NNX: their weights by name, their outputs equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tconvjax import interop, max_pool
from tconvjax import nnx as tnn

R = nnx.Rngs(0)


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


class DCGAN(nnx.Module):
    def __init__(self):
        self.project = nnx.Linear(10, 256, rngs=R)
        norm = lambda c: nnx.BatchNorm(c, rngs=R)
        paint = lambda i, o: tnn.ConvTranspose(i, o, (4, 4), 2, padding=1, use_bias=False, rngs=R)
        layers = norm(16), jax.nn.relu, paint(16, 8), norm(8), jax.nn.relu, paint(8, 3), jnp.tanh
        self.main = nnx.Sequential(*layers)

    def __call__(self, z):
        return self.main(self.project(z).reshape(-1, 4, 4, 16))


class Block(nnx.Module):
    def __init__(self, i, o):
        self.conv = tnn.Conv(i, o, (3, 3), padding=1, use_bias=False, rngs=R)
        self.norm = nnx.BatchNorm(o, rngs=R)

    def __call__(self, x):
        return jax.nn.relu(self.norm(self.conv(x)))


class UNet(nnx.Module):
    def __init__(self):
        self.enc = nnx.List([Block(3, 8), Block(8, 16)])
        self.mid = Block(16, 16)
        up = lambda i, o: tnn.ConvTranspose(i, o, (2, 2), 2, padding=0, rngs=R)
        self.up = nnx.List([up(16, 16), up(16, 8)])
        self.dec = nnx.List([Block(32, 16), Block(16, 8)])
        self.out = nnx.Conv(8, 2, (1, 1), padding=0, rngs=R)

    def __call__(self, x):
        seen = []
        for encode in self.enc:
            x = encode(x)
            seen.append(x)
            x = max_pool(x, (2, 2)).values
        x = self.mid(x)
        for up, decode in zip(self.up, self.dec, strict=True):
            beside = seen.pop()
            x = decode(jnp.concatenate([up(x, output_shape=beside.shape[1:-1]), beside], -1))
        return self.out(x)


class ESPCN(nnx.Module):
    def __init__(self):
        conv = lambda i, o, k: nnx.Conv(i, o, (k, k), padding=k // 2, rngs=R)
        self.body = nnx.Sequential(conv(3, 16, 5), nnx.PReLU(), conv(16, 8, 3), nnx.PReLU())
        self.up = tnn.SubpixelConv(8, 3, (3, 3), 3, padding=1, order="DCR", rngs=R)

    def __call__(self, x):
        return self.up(self.body(x))


class HiFiGAN(nnx.Module):
    def __init__(self):
        conv = lambda i, o, k, d=1: tnn.Conv(
            i, o, k, padding=d * (k // 2), kernel_dilation=d, rngs=R
        )
        up = lambda i, o, k, s: tnn.ConvTranspose(i, o, k, s, padding=(k - s) // 2, rngs=R)
        self.conv_pre, self.conv_post = conv(10, 16, 7), conv(4, 1, 7)
        self.ups = nnx.List([up(16, 8, 16, 8), up(8, 4, 4, 2)])
        self.resblocks = nnx.List([conv(c, c, 3, 3) for c in (8, 4)])

    def __call__(self, x):
        act = lambda x: jax.nn.leaky_relu(x, 0.1)
        x = self.conv_pre(x)
        for up, block in zip(self.ups, self.resblocks, strict=True):
            x = up(act(x))
            x = x + block(act(x))
        return jnp.tanh(self.conv_post(act(x)))


class Decoder(nnx.Module):
    def __init__(self):
        conv = lambda i, o: tnn.Conv(i, o, (3, 3), padding=1, rngs=R)
        self.conv_in, self.conv_out = conv(4, 16), conv(16, 3)
        self.norms = nnx.List([nnx.GroupNorm(16, 4, epsilon=1e-6, rngs=R) for _ in range(2)])
        self.upsamplers = nnx.List(
            [tnn.ResizeConv(16, 16, (3, 3), 2, padding=1, rngs=R) for _ in range(2)]
        )

    def __call__(self, z):
        x = self.conv_in(z)
        for norm, up in zip(self.norms, self.upsamplers, strict=True):
            x = up(jax.nn.silu(norm(x)))
        return self.conv_out(x)


def in_blocks(name):
    """PyTorch's `enc.0.1` is the norm of a block, and `enc.0.0` its convolution."""
    start, _, last = name.rpartition(".")
    blocks = start.split(".")[0] in {"enc", "mid", "dec"}
    return f"{start}.{'conv' if last == '0' else 'norm'}" if blocks else name


MODELS = [
    (DCGAN, draw(2, 10), {"rename": {"main": "main.layers"}, "flattened": {"project": (16, 4, 4)}}),
    (UNet, draw(1, 21, 18, 3), {"rename": in_blocks}),
    (ESPCN, draw(1, 9, 7, 3), {"rename": {"body": "body.layers", "up.0": "up"}}),
    (HiFiGAN, draw(1, 12, 10), {}),
    (Decoder, draw(1, 6, 5, 4), {}),
]


@pytest.mark.parametrize(("model", "x", "options"), MODELS)
def test_published_models_give_the_numbers_of_torch(model, x, options):
    torch = pytest.importorskip("torch")
    from peers import torch_models

    torch.manual_seed(0)
    source = getattr(torch_models, model.__name__)()
    for module in source.modules():  # statistics that a run has left
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    ours = model()
    report = interop.load_torch(ours, source, **options)
    ours.eval()
    assert (report.missing, report.unused) == ([], [])
    assert interop.verify(ours, source, x) < 1e-5
    again = model()
    interop.load_torch(again, source.state_dict(), **options)
    again.eval()
    np.testing.assert_array_equal(again(x), ours(x))


# Without PyTorch: what its layers compute, by hand.


def test_every_layer_takes_its_weights_from_a_state_dict():
    conv, dense = draw(4, 3, 2, 2), draw(5, 4 * 3 * 2)
    model = nnx.Dict(
        conv=tnn.Conv(3, 4, (2, 2), padding=0, rngs=R),
        norm=nnx.BatchNorm(4, rngs=R),
        act=nnx.PReLU(),
        fc=nnx.Linear(24, 5, rngs=R),
        table=nnx.Embed(7, 2, rngs=R),
        other=nnx.Linear(2, 2, rngs=R),
        norms=nnx.List([nnx.RMSNorm(3, rngs=R)]),  # of a kind that is not loaded
        scale=nnx.Param(jnp.ones(3)),
    )
    state = {
        "conv.weight_v": conv, "conv.weight_g": np.full((4, 1, 1, 1), 2.0, np.float32),
        "conv.bias": draw(4), "norm.weight": draw(4), "norm.bias": draw(4) + 1,
        "norm.running_mean": draw(4) + 2, "norm.running_var": draw(4) ** 2,
        "norm.num_batches_tracked": np.array(3), "act.weight": np.array([0.3], np.float32),
        "fc.weight": dense, "fc.bias": draw(5), "table.weight": draw(7, 2), "rest.weight": draw(3),
    }  # fmt: skip
    report = interop.load_torch(model, state, flattened={"fc": (4, 3, 2)})
    assert (report.missing, report.unused) == (["", "norms.0", "other"], ["rest.weight"])
    norms = np.sqrt((conv**2).sum((1, 2, 3), keepdims=True))
    want = (2 * conv / norms).transpose(2, 3, 1, 0)
    np.testing.assert_allclose(model["conv"].kernel[...], want, rtol=1e-6)
    image = draw(3, 2, 4)  # channels last
    np.testing.assert_allclose(
        model["fc"](image.ravel()[None])[0],
        dense @ image.transpose(2, 0, 1).ravel() + state["fc.bias"],
        rtol=1e-4,
        atol=1e-4,
    )
    x = draw(2, 4)
    mean, var = state["norm.running_mean"], state["norm.running_var"]
    want = (x - mean) / np.sqrt(var + 1e-5) * state["norm.weight"] + state["norm.bias"]
    np.testing.assert_allclose(model["norm"](x, use_running_average=True), want, rtol=1e-4)
    assert float(model["act"](jnp.float32(-1))) == pytest.approx(-0.3)
    np.testing.assert_array_equal(model["table"].embedding[...], state["table.weight"])


def test_a_transposed_convolution_is_painted_as_it_is_in_either_layout():
    weight = draw(4, 3, 3, 3)  # in, out / groups
    for options in ({}, {"transpose_kernel": True}):
        layer = tnn.ConvTranspose(
            4, 6, (3, 3), 2, padding=1, feature_group_count=2, use_bias=False, rngs=R, **options
        )
        interop.load_torch(layer, {"weight": weight})
        one = jnp.zeros((1, 3, 3, 4)).at[0, 1, 1, 3].set(1)  # the last channel, of the second group
        y = layer(one)[0, 1:4, 1:4]
        np.testing.assert_allclose(y[..., 3:], weight[3].transpose(1, 2, 0), atol=1e-6)
        assert not y[..., :3].any()


DENSE = {"weight": np.ones((3, 2)), "bias": np.ones(3)}


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("model", "state", "options", "error", "message"),
    [
        (lambda: nnx.Linear(2, 3, rngs=R), {"a.weight": 1}, {}, ValueError, r"no name of a layer is a path .* \['a'\]"),
        (lambda: nnx.Linear(2, 4, rngs=R), DENSE, {}, ValueError, r"kernel must have .* \(2, 4\), there \(2, 3\)"),
        (lambda: nnx.Linear(2, 3, use_bias=False, rngs=R), DENSE, {}, ValueError, "bias must have .* got none"),
        (lambda: nnx.Linear(2, 3, rngs=R), {"weight": np.ones((3, 2))}, {}, ValueError, r"got none for \['bias'\]"),
        (lambda: nnx.Linear(2, 3, rngs=R), DENSE, {"flattened": {"a": (2,)}}, ValueError, "flattened must name Linear"),
        (lambda: nnx.Linear(2, 3, rngs=R), DENSE, {"flattened": {"": (5,)}}, ValueError, "prod of flattened must be"),
        (lambda: nnx.Linear(2, 3, rngs=R), {"a.b": 1, "c.d": 1}, {"rename": lambda _: "x"}, ValueError,
         "a path of its own"),
        (lambda: print, DENSE, {}, TypeError, "model must be an nnx.Module"),
        (lambda: nnx.Linear(2, 3, rngs=R), 3, {}, TypeError, "source must be a module of PyTorch"),
        (lambda: tnn.ConvTranspose(2, 2, (3,), use_bias=False, balanced=True, rngs=R),
         {"weight": np.ones((2, 2, 3))}, {}, ValueError,
         "balanced=True computes with another kernel"),
    ],
)  # fmt: skip
def test_refuses_and_leaves_the_model_as_it_was(model, state, options, error, message):
    model = model()
    before = nnx.state(model) if isinstance(model, nnx.Module) else None
    with pytest.raises(error, match=f"^load_torch: .*{message}"):
        interop.load_torch(model, state, **options)
    if before is not None:
        jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


def test_a_module_whose_arguments_differ_is_refused():
    torch = pytest.importorskip("torch")
    ours = tnn.Conv(3, 4, (3, 3), 2, rngs=R)  # 'SAME' pads even sizes by (0, 1)
    with pytest.raises(ValueError, match="must have the same sizes, groups and padding"):
        interop.load_torch(ours, torch.nn.Conv2d(3, 4, 3, 2, padding=1))
    norm, theirs = nnx.GroupNorm(4, 2, rngs=R), torch.nn.GroupNorm(2, 4)
    with pytest.raises(ValueError, match="epsilon must be that of PyTorch; got 1e-06, there 1e-05"):
        interop.load_torch(norm, theirs)
    assert interop.load_torch(norm, theirs.state_dict()).unchecked == [""]
