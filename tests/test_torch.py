"""Against PyTorch where it is installed: random geometries with their gradients, and real modules both ways."""

import pickle
import re
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from golden.make_torch import geometry

import tconvjax
from tconvjax import interop
from tconvjax import nnx as tnn
from tconvjax.interop._torch import TORCH

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

FAST = {"xla_backend_optimization_level": 0}  # compiles in half the time
TOLERANCE = 1e-5  # of the norm; float32 has 1.2e-7, a kernel gradient sums up to 800 products


def last(x):
    return np.moveaxis(np.asarray(x), 1, -1)


def draw(random, *shape):
    return random.standard_normal(shape).astype(np.float32)


def distance(got, want):
    got, want = np.float64(got), np.float64(want)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-3)


def in_torch(arguments, x, weight, cotangent):
    """The transposed convolution and its two gradients, channels last; the kernel gradient in our layout."""
    rank = x.ndim - 2
    function = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[rank - 1]
    x, weight = (torch.tensor(a, requires_grad=True) for a in (x, weight))
    y = function(x, weight, **arguments)
    y.backward(torch.tensor(cotangent(y.shape)))
    kernel_grad = np.moveaxis(weight.grad.numpy(), (1, 0), (-2, -1))
    return last(y.detach()), last(x.grad), kernel_grad


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_random_transposed_convolutions_and_their_gradients(seed):
    random = np.random.default_rng(seed)
    inputs, layers, wanted = [], [], []
    for i in range(54):
        arguments, n, k, (inner, outer) = geometry(random, 1 + i % 3)
        x = draw(random, 2, inner, *n)
        weight = draw(random, inner, outer // arguments["groups"], *k)
        seen = []
        cotangent = lambda shape, seen=seen: seen.append(draw(random, *shape)) or seen[0]
        wanted.append(in_torch(arguments, x, weight, cotangent))
        layers.append(interop.from_torch({"weight": weight}, **arguments))
        inputs.append((last(x), layers[-1].parameters["kernel"], last(seen[0])))

    def run(inputs):
        outputs = []
        for (x, kernel, cotangent), layer in zip(inputs, layers, strict=True):
            paint = lambda x, w, o=layer.options: tconvjax.conv_transpose(x, w, **o)
            y, pull = jax.vjp(paint, x, kernel)
            outputs.append((y, *pull(cotangent)))
        return outputs

    outputs = jax.jit(run, compiler_options=FAST)(inputs)
    for layer, got, want in zip(layers, outputs, wanted, strict=True):
        for face, a, b in zip(("output", "input", "kernel"), got, want, strict=True):
            assert distance(a, b) < TOLERANCE, (face, layer.arguments)


MODULES = {
    "1d": lambda: torch.nn.ConvTranspose1d(4, 6, 5, stride=3, padding=2, output_padding=1),
    "2d": lambda: torch.nn.ConvTranspose2d(
        4, 6, (3, 4), stride=(2, 1), padding=(1, 2), output_padding=(1, 0), groups=2
    ),
    "2d, dilation": lambda: torch.nn.ConvTranspose2d(
        4, 2, 3, stride=2, dilation=(3, 1), output_padding=(2, 1), bias=False
    ),
    "3d": lambda: torch.nn.ConvTranspose3d(4, 4, 2, stride=2, groups=4),
    "conv 1d": lambda: torch.nn.Conv1d(4, 6, 4, padding="same", padding_mode="circular"),
    "conv 2d": lambda: torch.nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2), groups=2, dilation=2),
    "reflect": lambda: torch.nn.Conv2d(4, 6, 3, stride=2, padding=2, padding_mode="reflect"),
    "conv 3d": lambda: torch.nn.Conv3d(4, 2, 2, padding="valid", bias=False),
    "subpixel": lambda: torch.nn.Sequential(
        torch.nn.Conv2d(4, 18, 3, padding=1, groups=2), torch.nn.PixelShuffle(3)
    ),
    "resize 1d": lambda: torch.nn.Sequential(
        torch.nn.Upsample(scale_factor=3, mode="linear"), torch.nn.Conv1d(4, 6, 4, padding="same")
    ),
    "resize 2d": lambda: torch.nn.Sequential(
        torch.nn.Upsample(scale_factor=(2, 3)), torch.nn.Conv2d(4, 6, 3, padding=(1, 2), groups=2)
    ),
    "resize 3d": lambda: torch.nn.Sequential(
        torch.nn.Upsample(scale_factor=2, mode="trilinear"),
        torch.nn.Conv3d(4, 2, (2, 3, 1), dilation=2, bias=False),
    ),
    "resize, a pad": lambda: torch.nn.Sequential(
        torch.nn.UpsamplingNearest2d(scale_factor=2),
        torch.nn.ReflectionPad2d((1, 1, 2, 2)),  # the last axis comes first
        torch.nn.Conv2d(4, 6, (5, 3)),
    ),
    "resize, bilinear": lambda: torch.nn.Sequential(
        torch.nn.Upsample(scale_factor=2, mode="bilinear"),
        torch.nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"),
    ),
    "shuffle": lambda: torch.nn.PixelShuffle(2),
    "unshuffle": lambda: torch.nn.PixelUnshuffle(2),
}


def built(foreign):
    """The module of torch that `to_torch` describes."""
    if foreign.name == "Sequential":
        children = OrderedDict((n, built(part)) for n, part in foreign.arguments.items())
        return torch.nn.Sequential(children)
    module = getattr(torch.nn, foreign.name)(**foreign.arguments)
    module.load_state_dict({n: torch.from_numpy(np.array(v)) for n, v in foreign.state.items()})
    return module


@each("name", MODULES)
def test_modules_there_and_back(name):
    torch.manual_seed(0)
    module = MODULES[name]()
    rank = next((p.ndim for p in module.parameters()), 4) - 2
    x = draw(np.random.default_rng(0), 2, 4, *(6, 8, 4)[:rank])
    want = module(torch.tensor(x)).detach()
    converted = interop.from_torch(module)
    assert distance(converted.to_nnx()(last(x)), last(want)) < TOLERANCE
    again = built(interop.to_torch(converted))
    assert distance(again(torch.tensor(x)).detach(), want) < TOLERANCE
    for ours, theirs in zip(again.parameters(), module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("k", "s", "padding"), [(4, 2, "SAME"), (2, 5, "SAME"), (2, 5, "VALID"), (5, 3, ((2, 1),) * 2)]
)
def test_our_layers_in_torch(k, s, padding, key):
    layer = tnn.ConvTranspose(4, 6, (k, k), s, padding=padding, rngs=tnn_rngs())
    x = np.array(jax.random.normal(key, (2, 5, 4, 4)))
    module = built(interop.to_torch(layer))
    got = module(torch.tensor(np.moveaxis(x, -1, 1))).detach()
    assert distance(last(got), layer(x)) < TOLERANCE


def tnn_rngs():
    from flax import nnx

    return nnx.Rngs(0)


def test_bfloat16_keeps_its_bits():
    module = torch.nn.ConvTranspose1d(2, 3, 4).to(torch.bfloat16)
    layer = interop.from_torch(module)
    assert layer.parameters["kernel"].dtype == jnp.bfloat16
    weight = module.weight.detach().float().numpy()
    kernel = layer.parameters["kernel"].astype(np.float32)
    np.testing.assert_array_equal(kernel, np.moveaxis(weight, (1, 0), (-2, -1)))


def test_files_are_read_as_safetensors_and_never_unpickled(tmp_path, monkeypatch):
    save_file = pytest.importorskip("safetensors.torch").save_file
    module = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ConvTranspose2d(4, 3, 4, 2, 1))
    for dtype in (torch.float32, torch.bfloat16):
        save_file(module.to(dtype).state_dict(), tmp_path / "model.safetensors")
        layer = interop.from_torch(tmp_path / "model.safetensors", prefix="1.", stride=2, padding=1)
        direct = interop.from_torch(module[1])
        np.testing.assert_array_equal(layer.parameters["kernel"], direct.parameters["kernel"])
    torch.save(module.state_dict(), tmp_path / "model.pt")
    for reader in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, reader, lambda *_, **__: pytest.fail("unpickled"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(ValueError, match=r"never unpickled; got 'model.pt'"):
        interop.from_torch(tmp_path / "model.pt", prefix="1.")


def trained(module):
    """The module after two steps, so that spectral norm has found its vectors and gradients hang on weights."""
    optimizer = torch.optim.SGD(module.parameters(), 0.02)
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.randn(1, 4, 7)).square().sum().backward()
        optimizer.step()
    return module


def reloaded(norm, layer):
    """A fresh module with the state of a trained one: its attribute `weight` is the old one until it is called."""
    source, fresh = norm(layer()), norm(layer())
    fresh.load_state_dict(trained(source).state_dict())
    return fresh


def pruned(module):
    from torch.nn.utils import prune

    prune.ln_structured(module, "weight", 0.5, n=2, dim=1)
    prune.random_unstructured(module, "weight", 0.3)
    prune.random_unstructured(module, "bias", 0.5)
    return trained(module)


def both_norms(module):
    norms = torch.nn.utils.parametrizations
    return trained(norms.spectral_norm(norms.weight_norm(module)))


def pruned_inside(module):
    from torch.nn.utils import prune

    normed = trained(torch.nn.utils.weight_norm(module))
    return prune.random_unstructured(normed, "weight_v", 0.3)


def up():
    return torch.nn.ConvTranspose1d(4, 6, 4, 2, 1)


def plain():
    return torch.nn.Conv1d(4, 6, 4)


utils = torch.nn.utils
WRAPPED = {
    "old weight norm": lambda: reloaded(utils.weight_norm, up),
    "old weight norm of one axis": lambda: reloaded(lambda m: utils.weight_norm(m, dim=2), up),
    "old weight norm of all": lambda: reloaded(lambda m: utils.weight_norm(m, dim=None), plain),
    "weight norm": lambda: reloaded(utils.parametrizations.weight_norm, up),
    "old spectral norm": lambda: reloaded(utils.spectral_norm, up),
    "old spectral norm of a convolution": lambda: reloaded(utils.spectral_norm, plain),
    "spectral norm": lambda: reloaded(utils.parametrizations.spectral_norm, up),
    "spectral norm of one axis": lambda: reloaded(
        lambda m: utils.parametrizations.spectral_norm(m, dim=2), up
    ),
    "both norms": lambda: both_norms(up()),
    "pruned": lambda: pruned(plain()),
    "pruned inside weight norm": lambda: pruned_inside(up()),
}


def snapshot(module):
    """What a conversion must leave alone."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    held = [{n: id(v) for n, v in vars(part).items()} for part in module.modules()]
    return [(n, id(t), t._version) for n, t in tensors], held, torch.get_rng_state().tolist()


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@each("name", WRAPPED)
def test_what_wraps_a_weight_is_carried_out_and_left_as_it_is(name):
    torch.manual_seed(0)
    module = WRAPPED[name]()
    before = snapshot(module)
    converted = interop.from_torch(module)  # in training, where reading a weight may change it
    assert snapshot(module) == before
    x = draw(np.random.default_rng(0), 2, 4, 9)
    with torch.no_grad():
        want = module.eval()(torch.tensor(x))
    layer = converted.to_nnx(implementation="dilated")
    assert distance(layer(last(x)), last(want)) < TOLERANCE
    arguments = {n: getattr(module, n) for n in TORCH}
    state = {f"net.up.{n}": v for n, v in module.state_dict().items()}
    again = interop.from_torch(state, prefix="net.up.", **arguments)
    for parameter, value in converted.parameters.items():
        np.testing.assert_array_equal(again.parameters[parameter], value)


class Standardized(torch.nn.Conv1d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Conv1d(torch.nn.Conv1d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def changed(module, change):
    change(module)
    return module


def sequential(change):
    return changed(torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.PixelShuffle(2)), change)


def resized(factor, **options):
    upsample = torch.nn.Upsample(scale_factor=factor, **options)
    return torch.nn.Sequential(upsample, torch.nn.Conv2d(4, 6, 3))


def doubles(_, inputs, output=None):
    return 2 * (inputs[0] if output is None else output)


CHANGED = {
    "hook": lambda: changed(plain(), lambda m: m.register_forward_hook(doubles)),
    "pre-hook": lambda: changed(up(), lambda m: m.register_forward_pre_hook(doubles)),
    "hook of a shuffle": lambda: sequential(lambda m: m[1].register_forward_hook(doubles)),
    "hook of a sequence": lambda: sequential(lambda m: m.register_forward_hook(doubles)),
    "subclass": lambda: Standardized(4, 6, 4),
    "namesake": lambda: Conv1d(4, 6, 4),
    "wrapped subclass": lambda: utils.parametrizations.weight_norm(Standardized(4, 6, 4)),
    "parametrization": lambda: changed(
        up(), lambda m: utils.parametrize.register_parametrization(m, "weight", Doubled())
    ),
    "orthogonal": lambda: utils.parametrizations.orthogonal(plain()),
    "patched": lambda: changed(plain(), lambda m: setattr(m, "forward", lambda x: 2 * x)),
    "shadowed": lambda: changed(plain(), lambda m: vars(m).update(weight=2 * m.weight)),
    "module inside": lambda: changed(plain(), lambda m: setattr(m, "lora", torch.nn.ReLU())),
    "lazy": lambda: torch.nn.LazyConvTranspose1d(6, 4),
    "meta": lambda: torch.nn.Conv1d(4, 6, 4, device="meta"),
    "sparse": lambda: changed(
        plain(), lambda m: setattr(m, "weight", torch.nn.Parameter(m.weight.detach().to_sparse()))
    ),
    "quantized": lambda: torch.ao.nn.quantized.Conv1d(4, 6, 4),
    "parallel": lambda: torch.nn.DataParallel(plain()),
    "activation": lambda: torch.nn.Sequential(plain(), torch.nn.ReLU()),
    "empty": torch.nn.Sequential,
    "resize alone": lambda: torch.nn.Upsample(scale_factor=2),
    "hook of an upsample": lambda: changed(
        resized(2), lambda m: m[0].register_forward_hook(doubles)
    ),
    "resize to a size": lambda: resized(None, size=(8, 8)),
    "fractional": lambda: resized(1.5),
    "corners": lambda: resized(2, mode="bilinear", align_corners=True),
    "corners by name": lambda: torch.nn.Sequential(
        torch.nn.UpsamplingBilinear2d(scale_factor=2), torch.nn.Conv2d(4, 6, 3)
    ),
    "bicubic": lambda: resized(2, mode="bicubic"),
    "resize before a transpose": lambda: torch.nn.Sequential(
        torch.nn.Upsample(scale_factor=2), torch.nn.ConvTranspose2d(4, 6, 3)
    ),
    "resize before strides": lambda: torch.nn.Sequential(
        torch.nn.Upsample(scale_factor=2), torch.nn.Conv2d(4, 6, 3, stride=2)
    ),
    "two pads": lambda: torch.nn.Sequential(
        torch.nn.Upsample(scale_factor=2),
        torch.nn.ZeroPad2d(1),
        torch.nn.Conv2d(4, 6, 3, padding=1),
    ),
}


@pytest.mark.refuses
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@each("name", CHANGED)
def test_refuses_what_may_compute_something_else(name):
    torch.manual_seed(0)
    module = CHANGED[name]()
    with pytest.raises((TypeError, ValueError), match=r"^from_torch: .*; got .*\.$"):
        interop.from_torch(module)


def test_the_recipe_of_the_pages_repairs_a_network_of_torch():
    """Through torchax, whose functions audit and repair read; the state dict goes back into the module."""
    pytest.importorskip("torchax", reason="a peer that CI does not install")
    page = Path(__file__).parents[1].joinpath("docs/interop.md").read_text()
    (recipe,) = re.findall(r"^```python\n(import [^`]*torchax[^`]*)```", page, re.MULTILINE)
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        OrderedDict(
            body=torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.LeakyReLU()),
            up=torch.nn.ConvTranspose2d(8, 3, 4, 2, padding=1),
            norm=torch.nn.BatchNorm2d(3),
        )
    )
    before = {name: value.clone() for name, value in module.state_dict().items()}
    pictures = np.random.default_rng(0).random((16, 3, 24, 24), np.float32)
    names = {"module": module, "pictures": pictures}
    exec(recipe, names)
    (finding,) = names["findings"]
    assert (finding.layer, finding.period, finding.severity) == ("up.weight", (2, 2), "medium")
    found = names["repaired"]
    assert list(found.layers) == ["params['up.weight']"]
    assert found.after < found.before - 1
    changed = {n for n, v in module.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"up.weight"}
    want = names["fn"](found.params, jnp.asarray(pictures))
    assert distance(module(torch.tensor(pictures)).detach(), want) < TOLERANCE


def test_pooling_its_indices_and_its_gradient_are_those_of_torch():
    """Of equal pixels, and of those that are not numbers, too."""
    x = np.random.default_rng(0).integers(0, 3, (2, 3, 6, 8)).astype(np.float32)
    x[0, 0, 1, 1] = x[1, 2, 4, 5] = np.nan
    given = torch.tensor(x, requires_grad=True)
    want, places = torch.nn.functional.max_pool2d(given, (2, 4), return_indices=True)
    weights = draw(np.random.default_rng(1), *want.shape)
    (want * torch.tensor(weights)).sum().backward()
    found, back = jax.vjp(lambda x: tconvjax.max_pool(x, (2, 4)).values, jnp.asarray(last(x)))
    np.testing.assert_array_equal(found, last(want.detach()))
    np.testing.assert_array_equal(back(jnp.asarray(last(weights)))[0], last(given.grad))
    np.testing.assert_array_equal(
        tconvjax.max_pool(jnp.asarray(last(x)), (2, 4)).indices, last(places)
    )


@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [((3, 3), (2, 2), (1, 1)), ((3, 2), (2, 1), (1, 0)), ((2, 3), (2, 3), (0, 0)), ((2, 2), (3, 3), (0, 0))],
)  # fmt: skip
def test_windows_that_overlap_and_sizes_that_leave_pixels_are_those_of_torch(
    window, strides, padding
):
    x = np.random.default_rng(0).integers(0, 4, (2, 3, 7, 9)).astype(np.float32)
    want, places = torch.nn.functional.max_pool2d(
        torch.tensor(x), window, strides, padding, return_indices=True
    )
    options = {"window_shape": window, "padding": padding}
    values, indices = tconvjax.max_pool(jnp.asarray(last(x)), strides, **options)
    np.testing.assert_array_equal(values, last(want))
    np.testing.assert_array_equal(indices, last(places))
    back = torch.nn.functional.max_unpool2d(want, places, window, strides, padding, x.shape[2:])
    ours = tconvjax.max_unpool(values, indices, strides, **options, output_shape=x.shape[2:])
    np.testing.assert_array_equal(ours, last(back))
