"""Layers of other libraries: their numbers, from files that they made, and their arguments, both ways."""

import subprocess
import sys
from types import SimpleNamespace

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from flax import nnx
from golden import store
from hypothesis import given, settings
from hypothesis import strategies as st

import tconvjax
from tconvjax import interop
from tconvjax import linen as tln
from tconvjax import nnx as tnn
from tconvjax.interop._converted import boundary, crops
from tconvjax.interop._torch import TORCH

DILATED = {"implementation": "dilated"}  # and others compile longer than all the rest takes
FAST = {"xla_backend_optimization_level": 0}  # compiles in half the time


def apply(converted, x):
    """The layer as its function plus bias; channels last."""
    if not converted.parameters:
        return converted.to_nnx()(x)
    names = {"ConvTranspose": "conv_transpose", "Conv": "conv", "ResizeConv": "resize_conv"}
    kernel = converted.parameters["kernel"]
    kernel = kernel * np.asarray(converted.arguments.get("mask", 1), kernel.dtype)
    if converted.layer != "SubpixelConv":
        y = getattr(tconvjax, names[converted.layer])(x, kernel, **converted.options)
        bias = converted.parameters.get("bias", np.zeros(y.shape[-1], np.float32))
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
    options = {n: v for n, v in converted.options.items() if n not in ("scale", "order")}
    y = tconvjax.conv(x, kernel, **options) + converted.parameters["bias"][None, None, None]
    return tconvjax.pixel_shuffle(y, **{n: converted.arguments[n] for n in ("scale", "order")})


def last(x):
    return np.moveaxis(x, 1, -1)


def in_one_compilation(function, *args):
    return jax.jit(function, compiler_options=FAST)(*args)


def instance(name, **attributes):
    """An object of a class of that name, as a peer might have it."""
    return type(name, (SimpleNamespace,), {})(**attributes)


def torch_layer(name, arguments, weights):
    given = {n: arguments.get(n, default) for n, default in TORCH.items()}
    given |= {"transposed": "Transpose" in name, "bias": None}
    return instance(name, **given | weights)


def torch_case(case, name="ConvTranspose2d"):
    return torch_layer(name, case["arguments"], {n: case[n] for n in ("weight", "bias")})


TRANSPOSES = store.load("torch_transpose")


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_transposed_convolutions_and_their_gradients_are_those_of_torch(part):
    cases = TRANSPOSES[part::6]
    implementation = "auto" if part == 0 else "dilated"  # half as long to compile
    layers = [interop.from_torch(torch_case(case)) for case in cases]

    def run(arrays):
        for (x, kernel, cotangent), layer in zip(arrays, layers, strict=True):
            options = layer.options | {"implementation": implementation}
            paint = lambda x, w, o=options: tconvjax.conv_transpose(x, w, **o)
            y, pull = jax.vjp(paint, x, kernel)
            yield y, *pull(cotangent)

    arrays = [
        (last(case["x"]), layer.parameters["kernel"], last(case["cotangent"]))
        for case, layer in zip(cases, layers, strict=True)
    ]
    outputs = in_one_compilation(lambda arrays: list(run(arrays)), arrays)
    for case, layer, (y, x_grad, kernel_grad) in zip(cases, layers, outputs, strict=True):
        np.testing.assert_array_equal(np.asarray(y) + layer.parameters["bias"], last(case["y"]))
        np.testing.assert_array_equal(x_grad, last(case["x_grad"]))
        weight_grad = case["weight_grad"]  # (in, out/g, *k) to (*k, out/g, in)
        np.testing.assert_array_equal(kernel_grad, np.moveaxis(weight_grad, (1, 0), (-2, -1)))


def test_convolutions_are_those_of_torch_with_every_padding_mode():
    cases = store.load("torch_conv")
    layers = [interop.from_torch(torch_case(case, "Conv2d")) for case in cases]
    run = lambda xs: [apply(layer, x) for layer, x in zip(layers, xs, strict=True)]
    outputs = in_one_compilation(run, [last(case["x"]) for case in cases])
    for case, y in zip(cases, outputs, strict=True):
        np.testing.assert_array_equal(y, last(case["y"]), err_msg=str(case["arguments"]))


def test_pixel_shuffles_are_those_of_torch():
    for case in store.load("torch_shuffle"):
        shuffle = interop.from_torch(instance("PixelShuffle", upscale_factor=case["factor"]))
        np.testing.assert_array_equal(shuffle.to_nnx()(last(case["x"])), last(case["y"]))
        back = interop.from_torch(instance("PixelUnshuffle", downscale_factor=case["factor"]))
        np.testing.assert_array_equal(back.to_linen()[0](last(case["y"])), last(case["x"]))
        for layer, name in ((shuffle, "PixelShuffle"), (back, "PixelUnshuffle")):
            foreign = interop.to_torch(layer)
            assert (foreign.name, list(foreign.arguments.values())) == (name, [case["factor"]])


@pytest.mark.slow
def test_layers_are_those_of_keras():
    cases = store.load("keras")
    attributes = [c["attributes"] | {n: c[n] for n in ("kernel", "bias")} for c in cases]
    layers = [
        interop.from_keras(instance(c["layer"], activation=None, **a))
        for c, a in zip(cases, attributes, strict=True)
    ]
    run = lambda xs: [apply(layer, x) for layer, x in zip(layers, xs, strict=True)]
    outputs = in_one_compilation(run, [case["x"] for case in cases])
    for case, y in zip(cases, outputs, strict=True):
        np.testing.assert_array_equal(y, case["y"], err_msg=f"{case['layer']} {case['attributes']}")


def onnx_node(case):
    inputs = ["x", *(n for n in "WB" if n in case)]
    return {"op_type": case["operator"], "attributes": case["attributes"], "inputs": inputs}


def from_onnx(case):
    weights = {n: case[n] for n in "WB" if n in case}
    shape = case["x"].shape[2:] if "output_shape" in case["attributes"] else None
    return interop.from_onnx(onnx_node(case), weights, spatial_shape=shape)


@pytest.mark.slow
def test_nodes_are_those_of_onnx():
    cases = store.load("onnx")
    layers = [from_onnx(case) for case in cases]
    run = lambda xs: [apply(layer, x) for layer, x in zip(layers, xs, strict=True)]
    outputs = in_one_compilation(run, [last(case["x"]) for case in cases])
    for case, y in zip(cases, outputs, strict=True):
        what = f"{case['name']} {case['operator']} {case['attributes']}"
        np.testing.assert_array_equal(y, last(case["y"]), err_msg=what)


def test_messages_of_onnx_are_read_as_mappings_are():
    values = lambda **v: SimpleNamespace(**{"f": 0.0, "i": 0, "s": b"", "ints": ()} | v)
    attributes = [
        values(name="strides", type=7, ints=[2, 1]),
        values(name="group", type=2, i=2),
        values(name="auto_pad", type=3, s=b"SAME_LOWER"),
    ]
    node = SimpleNamespace(op_type="ConvTranspose", input=["x", "w", ""], attribute=attributes)
    weight = np.arange(4 * 3 * 4 * 2, dtype=np.float16).reshape(4, 3, 4, 2)
    tensor = SimpleNamespace(dims=weight.shape, data_type=10, raw_data=weight.tobytes())
    layer = interop.from_onnx(node, {"w": tensor})
    assert layer.arguments == {
        "in_features": 4,
        "out_features": 6,
        "kernel_size": (4, 2),
        "use_bias": False,
        "strides": (2, 1),
        "padding": ((1, 1), (1, 0)),
        "feature_group_count": 2,
        "transpose_kernel": True,
    }
    np.testing.assert_array_equal(layer.parameters["kernel"][1, 0, 2, 3], weight[3, 2, 1, 0])
    assert layer.parameters["kernel"].dtype == np.float16


def test_arguments_and_weights_come_back_from_torch():
    for case in TRANSPOSES:
        rank = len(case["arguments"]["stride"])
        foreign = interop.to_torch(interop.from_torch(torch_case(case)))
        assert foreign.name == f"ConvTranspose{rank}d"
        for name, value in case["arguments"].items():
            assert foreign.arguments[name] == (value if name == "groups" else tuple(value)), name
        assert foreign.arguments["in_channels"] == case["x"].shape[1]
        assert foreign.arguments["out_channels"] == case["y"].shape[1]
        for name in ("weight", "bias"):
            np.testing.assert_array_equal(foreign.state[name], case[name])
    for case in store.load("torch_conv"):
        foreign = interop.to_torch(interop.from_torch(torch_case(case, "Conv2d")))
        again = interop.from_torch(torch_layer("Conv2d", foreign.arguments, foreign.state))
        assert again.layer == "Conv"
        pads = lambda layer: boundary("test", layer)
        original = interop.from_torch(torch_case(case, "Conv2d"))
        assert pads(again) == pads(original)
        np.testing.assert_array_equal(foreign.state["weight"], case["weight"])


small = st.integers(1, 4)


@settings(deadline=None, max_examples=200)
@given(k=small, s=small, d=small, low=st.integers(0, 9), high=st.integers(-3, 9))
def test_crops_survive_onnx_and_torch_or_are_refused(k, s, d, low, high):
    arguments = {"kernel_size": (k,), "strides": (s,), "kernel_dilation": (d,)}
    arguments |= {"padding": ((low, high),), "transpose_kernel": True}
    layer = interop.Converted("ConvTranspose", arguments, {"kernel": np.zeros((k, 2, 3))})
    cropped = lambda layer: crops("test", layer)
    if -high >= max(s, d):
        with pytest.raises(ValueError, match="fewer pixels than max"):
            interop.to_onnx(layer)
    else:
        node = interop.to_onnx(layer)
        mapping = {"op_type": node.name, "attributes": node.arguments, "inputs": ["x", "W"]}
        assert cropped(interop.from_onnx(mapping, node.state)) == ((low, high),)
    if 0 <= low - high < max(s, d):
        foreign = interop.to_torch(layer)
        again = interop.from_torch(torch_layer(foreign.name, foreign.arguments, foreign.state))
        assert cropped(again) == ((low, high),)
    else:
        with pytest.raises(ValueError, match=rf"which crops \(\({low}, {high}\),\)"):
            interop.to_torch(layer)


@pytest.mark.slow
@each("library", (nnx, flax.linen))
@each("transpose_kernel", (False, True))
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", 2, (1, 0), ((1, 2), (0, 3))])
def test_transposed_convolutions_are_those_of_flax(library, transpose_kernel, padding, key):
    x = jax.random.normal(key, (2, 5, 6, 3))
    options = {"padding": padding, "transpose_kernel": transpose_kernel, "kernel_dilation": (1, 2)}
    converted, want = flax_layer(library, "ConvTranspose", options, x)
    np.testing.assert_allclose(converted.to_nnx(**DILATED)(x), want, atol=1e-5)
    module, variables = converted.to_linen(**DILATED)
    np.testing.assert_allclose(module.apply(variables, x), want, atol=1e-5)


@pytest.mark.slow
@each("library", (nnx, flax.linen))
@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR", "REFLECT", 1, ((1, 2), (0, 3))])
def test_convolutions_are_those_of_flax(library, padding, key):
    x = jax.random.normal(key, (2, 7, 6, 4))
    options = {"padding": padding, "feature_group_count": 2, "use_bias": False}
    converted, want = flax_layer(library, "Conv", options, x)
    np.testing.assert_allclose(converted.to_nnx(**DILATED)(x), want, atol=1e-5)


@each("padding", [2, ((1, 2), (0, 3))])
def test_convolutions_of_flax_over_a_dilated_image_are_transposed_ones(padding, key):
    x = jax.random.normal(key, (2, 5, 6, 4))
    options = {"padding": padding, "feature_group_count": 2, "input_dilation": (3, 2)}
    for strides, name in ((1, "ConvTranspose"), ((2, 1), "Conv")):
        converted, want = flax_layer(nnx, "Conv", dict(options), x, strides=strides)
        assert converted.layer == name
        np.testing.assert_allclose(converted.to_nnx()(x), want, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"padding": "SAME"}, {"padding": 1, "padding_mode": "circular"}]
)
def test_other_convolutions_over_a_dilated_image_stay_what_they_are(options, key):
    x = jax.random.normal(key, (2, 5, 4))
    layer = tnn.Conv(4, 3, (3,), input_dilation=2, rngs=nnx.Rngs(0), **options)
    converted = interop.from_flax(layer)
    assert converted.layer == "Conv"
    np.testing.assert_array_equal(converted.to_nnx()(x), layer(x))


def flax_layer(library, name, options, x, strides=(2, 3)):
    """Returns a layer of Flax with a mask, converted, and its output."""
    groups, c = options.get("feature_group_count", 1), x.shape[-1]
    shape = (3, 2, 6, c) if options.get("transpose_kernel") else (3, 2, c // groups, 6)
    options |= {"mask": jax.random.bernoulli(jax.random.key(1), 0.7, shape).astype(jnp.float32)}
    if options.get("use_bias", True):
        options |= {"bias_init": jax.nn.initializers.normal()}
    if library is nnx:
        layer = nnx.__dict__[name](c, 6, (3, 2), strides, rngs=nnx.Rngs(0), **options)
        return interop.from_flax(layer), layer(x)
    module = getattr(flax.linen, name)(6, (3, 2), strides, **options)
    want, variables = module.init_with_output(jax.random.key(0), x)
    return interop.from_flax(module, variables), want


def block(**arguments):
    """Sequential(Conv2d, PixelShuffle)."""
    random = np.random.default_rng(1)
    weight, bias = random.normal(size=(12, 2, 3, 3)), random.normal(size=12)
    case = {"arguments": {"padding": (1, 1)} | arguments, "weight": weight, "bias": bias}
    shuffle = instance("PixelShuffle", upscale_factor=2)
    return type("Sequential", (list,), {})([torch_case(case, "Conv2d"), shuffle])


def test_a_convolution_and_its_shuffle_are_one_layer_both_ways(key):
    layer = interop.from_torch(block())
    sizes = {"in_features": 2, "out_features": 3, "kernel_size": (3, 3)}
    shuffle = {"scale": (2, 2), "order": "CRD", "padding": (1, 1)}
    assert (layer.layer, layer.arguments) == ("SubpixelConv", sizes | shuffle)
    foreign = interop.to_torch(layer)
    assert foreign.name == "Sequential"
    assert [part.name for part in foreign.arguments.values()] == ["Conv2d", "PixelShuffle"]
    assert foreign.arguments["0"].arguments["out_channels"] == 12
    assert foreign.arguments["1"].arguments == {"upscale_factor": 2}
    np.testing.assert_array_equal(foreign.state["0.weight"], block()[0].weight)
    state = {"up.0.weight": block()[0].weight, "up.0.bias": block()[0].bias}
    named = interop.from_torch(state, prefix="up.0.", padding=1, upscale_factor=2)
    x = jax.random.normal(key, (1, 4, 5, 2))
    np.testing.assert_array_equal(apply(named, x), apply(layer, x))
    # The other order of channels is sorted on the way out.
    other = interop.Converted("SubpixelConv", layer.arguments | {"order": "DCR"}, layer.parameters)
    foreign = interop.to_torch(other)
    parts = {n: v.astype(np.float32) for n, v in foreign.state.items()}
    again = interop.from_torch(parts, prefix="0.", padding=1, upscale_factor=2)
    np.testing.assert_allclose(apply(again, x), apply(other, x), atol=1e-5)


def enlarging_block(*between, padding=(0, 0), **upsample):
    """Sequential(Upsample, Conv2d) whose output is `10·a + b` of neighbors a, b along a row of the enlarged image."""
    weight = np.zeros((1, 1, 3, 2), np.float32)
    weight[0, 0, 0] = 10, 1
    case = {"arguments": {"padding": padding}, "weight": weight, "bias": None}
    given = {"scale_factor": 2.0, "mode": "nearest", "align_corners": None} | upsample
    parts = [instance("Upsample", **given), *between, torch_case(case, "Conv2d")]
    return type("Sequential", (list,), {})(parts)


TWO, FOUR = [11, 12, 22], [33, 34, 44]  # of the rows 1 1 2 2 and 3 3 4 4
HALF = {
    "mode": "bilinear",
    "align_corners": False,
}  # the rows begin 1 1.25 1.75 2 and 1.5 1.75 2.25 2.5
PAD = instance("ReflectionPad2d", padding=(0, 1, 2, 0))  # one column right, two rows above


@pytest.mark.parametrize(
    ("block", "want"),
    [
        (enlarging_block(), [TWO, TWO]),
        (enlarging_block(padding=(1, 0)), [[0, 0, 0], TWO, TWO, FOUR]),
        (enlarging_block(PAD), [[*FOUR, 44], [*TWO, 22], [*TWO, 22], [*TWO, 22]]),
        (enlarging_block(**HALF), [[11.25, 14.25, 19.5], [16.75, 19.75, 25]]),
    ],
)
def test_an_enlargement_and_its_convolution_are_one_layer(block, want):
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])[None, ..., None]
    layer = interop.from_torch(block)
    assert layer.layer == "ResizeConv"
    np.testing.assert_array_equal(layer.to_nnx(implementation="plain")(x)[0, ..., 0], want)
    if PAD in block:
        with pytest.raises(ValueError, match="PyTorch pads both ends alike"):
            interop.to_torch(layer)
        return
    foreign = interop.to_torch(layer)
    assert (foreign.name, list(foreign.state)) == ("Sequential", ["1.weight"])
    upsample, conv = foreign.arguments.values()
    assert (upsample.name, conv.name) == ("Upsample", "Conv2d")
    again = interop.from_torch(
        foreign.state,
        prefix="1.",
        padding=conv.arguments["padding"],
        **{n: v for n, v in upsample.arguments.items() if n != "align_corners"},
    )
    np.testing.assert_array_equal(again.to_nnx(implementation="plain")(x)[0, ..., 0], want)


@pytest.mark.slow
def test_layers_of_ours_go_to_torch_with_their_masks_and_flips(key):
    x = jax.random.normal(key, (1, 5, 4, 4))
    mask = jax.random.bernoulli(key, 0.5, (4, 3, 2, 6)).astype(jnp.float32)
    layer = tnn.ConvTranspose(
        4, 6, (4, 3), (2, 1), feature_group_count=2, mask=mask, rngs=nnx.Rngs(0)
    )
    foreign = interop.to_torch(layer)
    assert foreign.arguments["padding"] == (1, 1)  # 'SAME'
    given = {n: foreign.arguments[n] for n in ("stride", "padding", "output_padding", "groups")}
    again = interop.from_torch(foreign.state, **given)
    np.testing.assert_allclose(again.to_nnx(**DILATED)(x), layer(x), atol=1e-5)


@pytest.mark.parametrize(
    ("k", "s", "d", "padding", "p", "op"),
    [
        (4, 2, 1, "SAME", 1, 0),
        (3, 1, 1, "SAME", 1, 0),
        (2, 4, 1, "SAME", 0, 2),  # s > k: the pixels behind are zeros
        (2, 4, 1, "VALID", 0, 2),
        (4, 2, 1, "VALID", 0, 0),
        (3, 2, 1, ((1, 0),), 1, 1),
        (3, 1, 2, ((3, 2),), 3, 1),
        (3, 2, 1, "SAME_LOWER", 1, 1),
    ],
)
def test_paddings_that_torch_has_too(k, s, d, padding, p, op):
    arguments = {"strides": (s,), "kernel_dilation": (d,), "padding": padding}
    layer = interop.Converted("ConvTranspose", arguments, {"kernel": np.zeros((k, 2, 3))})
    foreign = interop.to_torch(layer).arguments
    assert (foreign["padding"], foreign["output_padding"]) == ((p,), (op,))


@pytest.mark.parametrize(
    ("k", "s", "padding", "torch", "onnx"),
    [
        (3, 1, "SAME", ((1,), "zeros"), {"pads": (1, 1)}),
        (4, 1, "SAME", ("same", "zeros"), {"pads": (1, 2)}),
        (4, 1, "SAME_LOWER", None, {"pads": (2, 1)}),
        (4, 2, "SAME", None, {"auto_pad": "SAME_UPPER"}),
        (4, 2, "SAME_LOWER", None, {"auto_pad": "SAME_LOWER"}),
        (4, 2, "VALID", ((0,), "zeros"), {"pads": (0, 0)}),
        (3, 2, "CAUSAL", None, {"pads": (2, 0)}),
        (3, 2, "CIRCULAR", ((1,), "circular"), None),
        (4, 1, "REFLECT", ("same", "reflect"), None),
        (3, 2, ((2, 1),), None, {"pads": (2, 1)}),
    ],
)
def test_paddings_of_plain_convolutions_elsewhere(k, s, padding, torch, onnx):
    layer = ours("Conv", (k,), strides=s, padding=padding)
    if torch is None:
        with pytest.raises(ValueError, match="pads both ends alike"):
            interop.to_torch(layer)
    else:
        foreign = interop.to_torch(layer).arguments
        assert (foreign["padding"], foreign["padding_mode"]) == torch
    if onnx is None:
        with pytest.raises(ValueError, match="ONNX pads with zeros"):
            interop.to_onnx(layer)
    else:
        attributes = interop.to_onnx(layer).arguments
        assert {n: v for n, v in attributes.items() if n in ("pads", "auto_pad")} == onnx


def ours(layer="ConvTranspose", kernel_size=(3, 3), **arguments):
    kernel = np.zeros((*kernel_size, 2, 4), np.float32)
    return interop.Converted(layer, {"padding": 0, **arguments}, {"kernel": kernel})


KERAS = {"kernel": np.zeros((3, 2, 4)), "bias": None, "strides": (2,), "padding": "same"}
KERAS |= {"dilation_rate": (1,), "output_padding": None, "groups": 1}
STATE = {"up.weight": np.zeros((4, 3, 2)), "up.bias": np.zeros(3)}
NODE = {"op_type": "ConvTranspose", "inputs": ["x", "w"], "attributes": {"output_shape": (7,)}}
TENSOR = SimpleNamespace(dims=(1,), data_type=7, raw_data=bytes(8))
SPARSE = {**NODE, "attributes": {"auto_pad": "SAME_UPPER", "strides": (3,)}}


def foreign(module):
    """A layer of another library for JAX, with a class of Flax's name."""
    return type("Conv", (KerasLike,), {"__module__": module})()


WEIGHT = {"weight": np.zeros((4, 3, 3, 3))}
CUBIC = {"scale": (2, 2), "method": "cubic"}
CORNERS = {"mode": "bilinear", "align_corners": True}


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: interop.to_torch(ours(strides=2, padding="SAME")),
            r"crops \(\(0, 1\), \(0, 1\)\)",
        ),
        (lambda: interop.to_torch(ours(padding=((1, 2), (1, 1)))), r"crops \(\(1, 2\), \(1, 1\)\)"),
        (lambda: interop.to_torch(ours(padding=-1)), r"crops \(\(-1, -1\)"),
        (lambda: interop.to_torch(ours(padding_mode="circular")), "padding_mode='circular'"),
        (lambda: interop.to_torch(ours(kernel_size=(2,) * 4)), "1 to 3 axes; got kernel_size"),
        (lambda: interop.to_torch(ours("Conv", strides=2, padding="SAME")), "got padding='SAME'"),
        (lambda: interop.to_torch(ours("Conv", padding=((0, 1), (1, 1)))), "pads both ends alike"),
        (lambda: interop.to_torch(ours("Conv", padding="CAUSAL")), "got padding='CAUSAL'"),
        (
            lambda: interop.to_torch(
                ours("SubpixelConv", scale=(2, 1), order="DCR", feature_group_count=2)
            ),
            "feature_group_count=2",
        ),
        (lambda: interop.to_torch(ours("SubpixelConv", scale=(2, 1))), r"got scale=\(2, 1\)"),
        (lambda: interop.to_torch(ours("ResizeConv", **CUBIC)), "got method='cubic'"),
        (lambda: interop.from_torch(enlarging_block(scale_factor=1.5)), r"got scale_factor=1\.5"),
        (lambda: interop.from_torch(enlarging_block(mode="bicubic")), "got mode='bicubic'"),
        (lambda: interop.from_torch(enlarging_block(**CORNERS)), "align_corners=True"),
        (lambda: interop.from_torch(enlarging_block(PAD, padding=(1, 0))), "Pad once"),
        (
            lambda: interop.to_torch(
                interop.Converted("pixel_shuffle", {"scale": (2, 2), "order": "DCR"}, {})
            ),
            "got order='DCR'",
        ),
        (lambda: interop.to_torch(ours("Conv", input_dilation=(3, 3))), r"input_dilation=\(3, 3\)"),
        (lambda: interop.to_onnx(ours("Conv", padding=-1)), "got padding=-1"),
        (lambda: interop.to_onnx(ours("Conv", padding_mode="reflect")), "padding_mode='reflect'"),
        (lambda: interop.from_torch(block()[0], stride=2), "got {'stride': 2} beside Conv2d"),
        (lambda: interop.from_torch(block(stride=(2, 2))), r"transposed=False, stride=\(2, 2\)"),
        (
            lambda: interop.from_torch(WEIGHT, upscale_factor=2, mode="bilinear"),
            "upscale_factor=2 beside scale_factor=None, mode='bilinear'",
        ),
        (lambda: interop.from_torch(STATE), r"got prefix='', weights \['up.weight'\]"),
        (lambda: interop.from_torch(STATE, prefix="up.", transposed=False), "for 3 input and 4"),
        (
            lambda: interop.from_torch({"weight": STATE["up.weight"]}, groups=3),
            "3 groups and no bias",
        ),
        (lambda: interop.from_torch("model.pth"), "never unpickled; got 'model.pth'"),
        (lambda: interop.from_keras(instance("Conv1D", kernel=None)), "got Conv1D without"),
        (
            lambda: interop.from_keras(instance("Conv1D", activation=jax.nn.relu, **KERAS)),
            "got activation='relu'",
        ),
        (lambda: interop.from_flax(flax.linen.Conv(3, (2,))), "got Conv alone"),
        (lambda: interop.from_onnx({**NODE, "op_type": "Gemm"}), "op_type='Gemm'"),
        (lambda: interop.from_onnx(NODE, {"v": 0}), r"got no \['w'\], only \['v'\]"),
        (lambda: interop.from_onnx(NODE, {"w": np.zeros((2, 3, 4))}), r"output_shape=\(7,\)"),
        (lambda: interop.from_onnx(NODE, {"w": TENSOR}), "data_type=7, 8 bytes"),
        (lambda: interop.from_onnx(SPARSE, {"w": np.zeros((2, 3, 2))}), r"strides=\(3,\)"),
    ],
)
def test_refuses_what_has_no_counterpart(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interop.from_torch(instance("Linear", weight=0)), "got Linear"),
        (lambda: interop.from_torch(type("Sequential", (list,), {})([1, 2, 3])), "got Sequential"),
        (lambda: interop.from_keras(instance("Dense")), "got Dense"),
        (lambda: interop.from_flax(nnx.Embed(2, 3, rngs=nnx.Rngs(0))), "got Embed"),
        (
            lambda: interop.from_flax(foreign("equinox.nn._conv")),
            "Equinox is no part of Flax; got Conv",
        ),
        (
            lambda: interop.from_flax(foreign("haiku._src.conv")),
            "Haiku is no part of Flax; got Conv",
        ),
        (lambda: interop.to_torch(ours("DySample")), "got DySample"),
    ],
)
def test_refuses_layers_of_another_kind(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_safetensors_are_read_and_pickles_never(tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    case = TRANSPOSES[0]
    path = tmp_path / "model.safetensors"
    tensors = {f"up.1.{name}": case[name] for name in ("weight", "bias")}
    save_file({**tensors, "other": np.zeros(2, jnp.bfloat16)}, path)
    for source in (path, str(path)):
        layer = interop.from_torch(source, prefix="up.1.", **case["arguments"])
        np.testing.assert_array_equal(layer.parameters["bias"], case["bias"])
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ValueError, match=r"tconvjax\[export\]"):
        interop.from_torch(path)
    monkeypatch.setattr("pickle.load", lambda *_: pytest.fail("unpickled"))
    for name in ("model.pt", "model.pkl", "model.ckpt", "model.bin"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
        with pytest.raises(ValueError, match=f"never unpickled; got '{name}'"):
            interop.from_torch(tmp_path / name)


def test_weights_are_copied_in_their_dtype():
    weight = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    layer = interop.from_torch({"weight": weight})
    weight[:] = 0
    assert layer.parameters["kernel"].max() == 23
    made = layer.to_nnx(dtype=jnp.float32)
    assert made.kernel[...].dtype == jnp.float16
    assert made(jnp.ones((5, 2), jnp.float16)).dtype == jnp.float32
    assert made.bias is None


def test_import_is_light():
    code = "import sys, tconvjax.interop; print({'flax', 'torch', 'safetensors'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- Weights that are made of others, without PyTorch -----------------------------------------------------------------


def draw(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


V, MASK = draw(4, 6, 3), draw(4, 6, 3) > 0


def normed(g, v, axes):
    return np.float64(g) * v / np.sqrt((np.float64(v) ** 2).sum(axes, keepdims=True))


def spectral(weight, u, v, axis):
    matrix = np.moveaxis(np.float64(weight), axis, 0).reshape(len(u), -1)
    return weight / (u @ matrix @ v)


G, G1 = draw(4, 1, 1), draw(1, 6, 1)
U, W = draw(6), draw(12)  # of the output channels, PyTorch's axis for a transposed convolution
MADE = {  # names in place of `weight`, and the weight
    "weight norm": ({"weight_g": G, "weight_v": V}, normed(G, V, (1, 2))),
    "weight norm, dim=1": ({"weight_g": G1, "weight_v": V}, normed(G1, V, (0, 2))),
    "weight norm, dim=None": (
        {"weight_g": np.float32(3), "weight_v": V},
        normed(3, V, (0, 1, 2)),
    ),
    "weight norm as a parametrization": (
        {"parametrizations.weight.original0": G, "parametrizations.weight.original1": V},
        normed(G, V, (1, 2)),
    ),
    "spectral norm": (
        {"weight_orig": V, "weight_u": U, "weight_v": W},
        spectral(V, U, W, 1),
    ),
    "spectral norm, dim=0": (
        {"weight_orig": V, "weight_u": draw(4), "weight_v": draw(18)},
        spectral(V, draw(4), draw(18), 0),
    ),
    "spectral norm as a parametrization": (
        {
            "parametrizations.weight.original": V,
            "parametrizations.weight.0._u": U,
            "parametrizations.weight.0._v": W,
        },
        spectral(V, U, W, 1),
    ),
    "weight norm, then spectral norm": (
        {
            "parametrizations.weight.original0": G,
            "parametrizations.weight.original1": V,
            "parametrizations.weight.1._u": U,
            "parametrizations.weight.1._v": W,
        },
        spectral(normed(G, V, (1, 2)), U, W, 1),
    ),
    "pruning": ({"weight_orig": V, "weight_mask": MASK}, V * MASK),
    "pruning inside weight norm": (
        {"weight_g": G, "weight_v_orig": V, "weight_v_mask": MASK.astype(np.float32)},
        normed(G, V * MASK, (1, 2)),
    ),
}


@each("name", MADE)
def test_weights_made_of_others_are_the_ones_in_use(name):
    tensors, weight = MADE[name]
    bias, kept = draw(6), np.arange(6) % 2
    state = {f"net.up.{n}": v for n, v in tensors.items()} | {"net.top.weight": V}
    state |= {"net.up.bias_orig": bias, "net.up.bias_mask": kept}
    layer = interop.from_torch(state, prefix="net.up.", stride=2)
    kernel = layer.parameters["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, weight.transpose(2, 1, 0), rtol=1e-5)
    np.testing.assert_array_equal(layer.parameters["bias"], bias * kept)


def test_the_axis_of_spectral_norm_is_told_by_trained_vectors():
    weight = draw(5, 5, 3)
    u, _, vh = np.linalg.svd(weight.reshape(5, 15))  # of axis 0, which is not PyTorch's choice
    state = {"weight_orig": weight, "weight_u": u[:, 0], "weight_v": vh[0]}
    kernel = interop.from_torch(state).parameters["kernel"]
    want = spectral(weight, u[:, 0], vh[0], 0).transpose(2, 1, 0)
    np.testing.assert_allclose(kernel, want, rtol=1e-5)


UNKNOWN = [
    ({"parametrizations.weight.original": V}, "what makes weight of other tensors must be"),
    ({"weight_orig": V}, r"got \['weight_orig'\]. Give the weight in use"),
    ({"weight_g": G}, r"weight_v must be there, too; got \['weight_g'\]"),
    ({"weight_g": draw(4, 2, 1), "weight_v": V}, r"lengths of shape \(4, 2, 1\)"),
    ({"weight_orig": V, "weight_u": draw(5), "weight_v": W}, r"u of shape \(5,\)"),
    ({"weight_orig": V, "weight_mask": MASK[:1]}, r"weight_mask of shape \(1, 6, 3\)"),
    (
        {"weight_orig": draw(4, 6, 3, 3), "weight_u": draw(3), "weight_v": draw(72)},
        "Give the module",
    ),
    (
        {"weight_orig": draw(5, 5, 3), "weight_u": draw(5), "weight_v": draw(15)},
        "spectral norm must be trained where its vectors fit several axes",
    ),
    ({"weight": V, "mask": MASK}, r"got \['mask'\] below prefix=''"),
    ({"weight": V, "weight_g": G}, r"got \['weight_g'\]"),
    (MADE["pruning"][0] | {"weight_scale": G}, r"got \['weight_scale'\]"),
    ({"weight": draw(4)}, r"a kernel of shape \(4,\)"),
    (
        {f"{i}.weight": V for i in range(9)} | {"state": V},
        r"weights \['0.weight', .*'7.weight'\]\.$",
    ),
    ({"state_dict": {"weight": V}, "epoch": 3}, r"weights \['epoch', 'state_dict'\]"),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("state", "message"), UNKNOWN)
def test_refuses_tensors_that_it_does_not_understand(state, message):
    with pytest.raises(ValueError, match=message):
        interop.from_torch(state)


@pytest.mark.refuses
@pytest.mark.parametrize("weight", [V.astype(np.int8), [[[1]]], "x", V.astype(jnp.float8_e4m3fn)])
def test_refuses_weights_that_are_no_numbers_to_multiply_with(weight):
    with pytest.raises(TypeError, match="weight must be an array of floating or complex numbers"):
        interop.from_torch({"weight": weight})


def test_a_missing_weight_is_looked_for_near_its_prefix():
    state = {"a.weight": V, "decoder.up.conv.weight": V, "decoder.down.weight_g": G}
    near = r"weights \['decoder.up.conv.weight', 'decoder.down.weight_g', 'a.weight'\]"
    with pytest.raises(ValueError, match=rf"prefix='decoder.up.', {near}"):
        interop.from_torch(state, prefix="decoder.up.")


@pytest.mark.refuses
@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": "same"},
        {"padding_mode": "circular"},
        {"stride": 2, "output_padding": 2},
        {"transposed": False, "output_padding": 1},
        {"transposed": False, "stride": 2, "padding": "same"},
    ],
)
def test_refuses_arguments_that_torch_does_not_take_either(arguments):
    with pytest.raises(ValueError, match="in PyTorch, a transposed convolution has integers"):
        interop.from_torch({"weight": V}, **arguments)


# --- Layers that can be called ----------------------------------------------------------------------------------------


def test_a_balanced_layer_takes_its_balance_along_everywhere():
    rngs = nnx.Rngs(0)
    layer = tnn.ConvTranspose(3, 2, (3,), 2, padding=1, balanced=True, rngs=rngs)
    module = tln.ConvTranspose(2, (3,), 2, padding=1, balanced=True)
    kernel = layer.kernel[...]
    variables = {"params": {"kernel": kernel, "bias": layer.bias[...]}}
    want = tconvjax.analysis.balance(kernel, 2)
    assert np.abs(want - kernel).max() > 0.1
    for converted in (interop.from_flax(layer), interop.from_flax(module, variables)):
        np.testing.assert_allclose(converted.parameters["kernel"], want, atol=1e-6)
        assert converted.arguments["balanced"]
        assert "balanced" not in converted.options
    back = lambda array: np.flip(np.moveaxis(array, (0, 1), (-1, -2)), 0)  # (in, out, *k)
    torch = interop.to_torch(layer).state["weight"]
    onnx = interop.to_onnx(layer).state["W"]
    for weight in (torch, onnx):
        np.testing.assert_allclose(back(weight).swapaxes(-1, -2), want, atol=1e-6)


@each("value", (0.5, 2))
def test_a_mask_of_other_numbers_than_0_and_1_is_multiplied_once(value):
    mask = jnp.full((3, 2, 4), value)
    layer = interop.from_flax(nnx.Conv(2, 4, (3,), mask=mask, rngs=nnx.Rngs(0)))
    assert "mask" not in layer.arguments
    want = nnx.Conv(2, 4, (3,), rngs=nnx.Rngs(0)).kernel[...] * value
    np.testing.assert_allclose(layer.parameters["kernel"], want, rtol=1e-6)


def test_a_mask_is_sorted_with_the_channels_of_a_shuffle():
    mask = (draw(1, 1, 1, 8) > 0).astype(np.float32)
    arguments = {"scale": (2, 2), "order": "DCR", "mask": mask, "padding": 0}
    layer = interop.Converted("SubpixelConv", arguments, {"kernel": np.ones((1, 1, 1, 8), "f")})
    weight = interop.to_torch(layer).state["0.weight"].ravel()
    np.testing.assert_array_equal(weight, mask.reshape(4, 2).T.ravel())


class Doubled(nnx.Conv):
    def __call__(self, x):
        return 2 * super().__call__(x)


def flax_conv(**options):
    return nnx.Conv(2, 4, (3,), rngs=nnx.Rngs(0), **options)


def doubled(inputs, kernel, *args, **options):
    return 2 * jax.lax.conv_general_dilated(inputs, kernel, *args, **options)


def variables_with(**others):
    variables = {"kernel": jnp.zeros((3, 2, 4)), "bias": jnp.zeros(4)} | others
    return flax.linen.Conv(4, (3,)), variables


OTHERS = [
    (TypeError, "got Doubled of", lambda: (Doubled(2, 4, (3,), rngs=nnx.Rngs(0)),)),
    (TypeError, "got WeightNorm of flax", lambda: (flax.linen.WeightNorm(flax.linen.Conv(4, 3)),)),
    (TypeError, "got Upsample of tconv", lambda: (tnn.Upsample(2, 4, (3,), 2, rngs=nnx.Rngs(0)),)),
    (
        ValueError,
        "conv_general_dilated=doubled",
        lambda: (flax_conv(conv_general_dilated=doubled),),
    ),
    (ValueError, "promote_dtype=.*lambda", lambda: (flax_conv(promote_dtype=lambda x, **_: x),)),
    (ValueError, "'bias', 'kernel', 'scale'", lambda: variables_with(scale=jnp.zeros(4))),
    (ValueError, "which fails on", lambda: variables_with(kernel=jnp.zeros((2, 2, 4)))),
    (ValueError, "beside Conv", lambda: (flax_conv(), {"kernel": 0})),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("kind", "message", "make"), OTHERS)
def test_refuses_layers_of_flax_that_may_compute_something_else(kind, message, make):
    with pytest.raises(kind, match=message):
        interop.from_flax(*make())


@pytest.mark.refuses
def test_both_layers_are_run_and_a_difference_is_refused(monkeypatch):
    layer = flax_conv(bias_init=nnx.initializers.ones)
    call = nnx.Conv.__call__
    monkeypatch.setattr(nnx.Conv, "__call__", lambda self, x: 1.001 * call(self, x))
    with pytest.raises(ValueError, match=r"relative difference of 0.00\d+ from Conv of flax"):
        interop.from_flax(layer)


@pytest.mark.refuses
@each("name", ("dtype", "preferred_element_type"))
def test_refuses_to_write_a_layer_that_computes_in_another_dtype(name):
    layer = ours("Conv", **{name: jnp.bfloat16})
    for write in (interop.to_torch, interop.to_onnx):
        with pytest.raises(ValueError, match=rf"got {name}=bfloat16 with a kernel of float32"):
            write(layer)


@pytest.mark.refuses
def test_what_is_written_is_read_again(monkeypatch):
    from tconvjax.interop import _onnx as onnx
    from tconvjax.interop import _torch as torch

    for module, write in ((torch, interop.to_torch), (onnx, interop.to_onnx)):
        monkeypatch.setattr(
            module, "channels_first", lambda k: 1.5 + np.moveaxis(k, (-1, -2), (0, 1))
        )
        with pytest.raises(ValueError, match="what is written must be what was given"):
            write(ours("Conv"))


def resize_node(*inputs, kind="Resize", **attributes):
    return {"op_type": kind, "attributes": attributes, "inputs": ["x", *inputs]}


SCALES = {"s": np.float32([1, 1, 2]), "half": np.float32([1, 1, 1.5]), "n": np.int64([1, 1, 5])}
CENTERS = "coordinate_transformation_mode"


@pytest.mark.parametrize(
    ("node", "want"),
    [
        (resize_node("", "s"), [1, 1, 5, 5]),
        (resize_node("s"), [1, 1, 5, 5]),  # opset 10
        (resize_node("s", kind="Upsample"), [1, 1, 5, 5]),
        (resize_node("", "s", nearest_mode="ceil", **{CENTERS: "asymmetric"}), [1, 5, 5, 5]),
        (resize_node("", "s", mode="linear"), [1, 2, 4, 5]),
        (resize_node("", "s", mode="linear", **{CENTERS: "align_corners"}), [1, 7 / 3, 11 / 3, 5]),
        (resize_node("", "s", mode="linear", **{CENTERS: "asymmetric"}), [1, 3, 5, 5]),
        (resize_node("", "", "n", mode="linear", **{CENTERS: "align_corners"}), [1, 2, 3, 4, 5]),
        (resize_node("", "half", nearest_mode="ceil", **{CENTERS: "asymmetric"}), [1, 5, 5]),
    ],
)
def test_a_resize_is_a_function(node, want):
    converted = interop.from_onnx(node, SCALES)
    assert converted.layer == "resize"
    y = converted.to_nnx()(jnp.array([1.0, 5.0])[:, None])
    np.testing.assert_allclose(y[:, 0], want, rtol=1e-6)


def test_sizes_that_a_graph_computes_are_given_at_the_call():
    function = interop.from_onnx(resize_node("", "", "computed")).to_nnx()
    x = jnp.array([1.0, 5.0])[:, None]
    np.testing.assert_array_equal(function(x, output_shape=(4,))[:, 0], [1, 1, 5, 5])
    with pytest.raises(TypeError, match="scale or output_shape must be given"):
        function(x)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            resize_node("", "half", mode="linear", **{CENTERS: "align_corners"}),
            r"'scale': \(1\.5,\)",
        ),
        (resize_node("", "?", **{CENTERS: "pytorch_half_pixel"}), "what the graph computes"),
        (resize_node("", "s", **{CENTERS: "tf_crop_and_resize"}), "'tf_crop_and_resize'"),
        (resize_node("", "s", axes=(1, 2)), r"got axes=\(1, 2\)"),
        (resize_node("", "s", axes=(2, 3, 4), antialias=1), "antialias of 'nearest'"),
        (resize_node("", "", "n", keep_aspect_ratio_policy="not_larger"), "not_larger"),
        (resize_node("half"), "opset 10, must repeat pixels"),
        (resize_node("s", kind="Upsample", mode="linear"), "mode='linear'"),
        (resize_node("?", kind="Upsample"), "scales=computed"),
        ([resize_node("", "half"), NODE | {"op_type": "Conv", "attributes": {}}], "one by one"),
        ([NODE | {"attributes": {}}] * 2, "got ConvTranspose and ConvTranspose"),
        ([resize_node("", "s") | {"outputs": ["a"]}, NODE], r"outputs \['a'\], then inputs \['x'"),
    ],
)
def test_refuses_enlargements_of_onnx_that_are_no_layer(node, message):
    with pytest.raises(ValueError, match=message):
        interop.from_onnx(node, SCALES | {"w": np.zeros((2, 3, 4))})


@each("name", ("ResizeConv", "SubpixelConv"))
def test_layers_of_two_operators_of_onnx(name):
    layer = ours(name, scale=2, padding="SAME")
    foreign = interop.to_onnx(layer)
    kinds = {"ResizeConv": ["Resize", "Conv"], "SubpixelConv": ["Conv", "DepthToSpace"]}[name]
    assert [part.name for part in foreign.arguments.values()] == kinds
    place = kinds.index("Conv")
    assert foreign.arguments[str(place)].arguments["pads"] == (1, 1, 1, 1)
    kernel = np.moveaxis(foreign.state[f"{place}.W"], (0, 1), (-1, -2))
    np.testing.assert_array_equal(kernel, layer.parameters["kernel"])


CONV = {"op_type": "Conv", "inputs": ["x", "w"]}


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({**CONV, "domain": "com.microsoft"}, "op_type='Conv' of 'com.microsoft'"),
        ({**CONV, "attributes": {"activation": "Relu"}}, r"got \['activation'\]"),
        ({**CONV, "attributes": {"auto_pad": "SAME"}}, "auto_pad must be one of"),
        ({**CONV, "attributes": {"auto_pad": "VALID", "pads": (1, 1)}}, "go without auto_pad"),
        ({**CONV, "attributes": {"pads": (1,)}}, r"two numbers >= 0 per axis"),
        ({**CONV, "attributes": {"pads": (-1, 1)}}, r"two numbers >= 0 per axis"),
        ({**CONV, "attributes": {"kernel_shape": (5,)}}, r"kernel_shape=\(5,\), weight of \(3,\)"),
        ({**CONV, "inputs": ["x", "w", "", "w"]}, "inputs must be an image, a weight and perhaps"),
        ({"op_type": "DepthToSpace", "attributes": {"blocksize": 2, "mode": "X"}}, "got mode='X'"),
        ({"op_type": "ConvInteger"}, "op_type='ConvInteger'"),
    ],
)
def test_refuses_nodes_that_it_does_not_understand(node, message):
    with pytest.raises(ValueError, match=message):
        interop.from_onnx(node, {"w": V})


@pytest.mark.refuses
@pytest.mark.parametrize("node", ["model.onnx", SimpleNamespace(graph=0), None])
def test_refuses_models_of_onnx(node):
    with pytest.raises(TypeError, match="from_onnx: node must be a NodeProto or a mapping; got"):
        interop.from_onnx(node)


class KerasLike:
    """A layer that can be called, so that it must be Keras's own."""

    def __call__(self, x):
        return x


@pytest.mark.refuses
def test_refuses_layers_of_keras_that_may_compute_something_else():
    for name in ("Conv1D", "SpectralNormalization"):
        layer = type(name, (KerasLike,), {})()
        with pytest.raises(TypeError, match=f"got {name} of"):
            interop.from_keras(layer)
    own = type("Conv1D", (KerasLike,), {"__module__": "keras.src.layers.convolutional.conv1d"})()
    vars(own).update(KERAS | {"activation": None, "data_format": "channels_last"})
    with pytest.raises(ValueError, match="relative difference of inf from Conv1D of keras"):
        interop.from_keras(own)
    own.call = lambda x: x
    with pytest.raises(ValueError, match=r"got Conv1D with \['call'\]"):
        interop.from_keras(own)
