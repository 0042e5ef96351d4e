"""Against the reference runtime of ONNX where it is installed: enlargements and the layers made of two nodes."""

import jax
import numpy as np
import pytest
from cases import each
from flax import nnx

from tconvjax import interop
from tconvjax import nnx as tnn

onnx = pytest.importorskip("onnx", reason="a peer that CI does not install")
pytest.importorskip("onnx.reference")


def run(nodes, weights, x):
    """The output 'y' of nodes on an image, channels last."""
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.array(v), n) for n, v in weights.items()],
    )
    opset = [onnx.helper.make_opsetid("", 19)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    first = np.moveaxis(np.asarray(x), -1, 1)
    (y,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": first})
    return np.moveaxis(y, 1, -1)


def image(*shape):
    return jax.random.normal(jax.random.key(0), shape)


LAYERS = {
    "nearest": lambda r: tnn.ResizeConv(2, 3, (3, 2), (2, 3), rngs=r),
    "linear": lambda r: tnn.ResizeConv(2, 3, (3, 3), 2, method="linear", padding=1, rngs=r),
    "area, groups": lambda r: tnn.ResizeConv(
        2, 4, (3, 3), 2, method="area", feature_group_count=2, padding="VALID", rngs=r
    ),
    "subpixel": lambda r: tnn.SubpixelConv(2, 3, (3, 3), 2, rngs=r),
    "subpixel, depth first": lambda r: tnn.SubpixelConv(2, 3, (3, 3), 2, order="DCR", rngs=r),
}


@each("name", LAYERS)
def test_layers_of_two_nodes_go_to_onnx_and_come_back(name):
    layer, x = LAYERS[name](nnx.Rngs(0)), image(2, 3, 4, 2)
    foreign = interop.to_onnx(layer)
    nodes, source = [], "x"
    for i, part in foreign.arguments.items():
        between = [""] if part.name == "Resize" else []
        inputs = [source, *between, *(f"{i}.{n}" for n in part.state)]
        source = "y" if i == "1" else "between"
        nodes.append(onnx.helper.make_node(part.name, inputs, [source], **part.arguments))
    want = layer(x)
    np.testing.assert_allclose(run(nodes, foreign.state, x), want, atol=1e-5)
    again = interop.from_onnx(nodes, foreign.state)
    assert again.layer == type(layer).__name__
    np.testing.assert_allclose(again.to_nnx()(x), want, atol=1e-5)


def scaled(*scales, **attributes):
    return attributes, np.float32([1, 1, *scales]), None


def sized(*sizes, **attributes):
    return attributes, np.float32([]), np.int64([1, 2, *sizes])


MODE = "coordinate_transformation_mode"
RESIZES = {
    "default": scaled(2, 3),
    "nearest, asymmetric": scaled(2, 3, **{MODE: "asymmetric"}, nearest_mode="floor"),
    "nearest, asymmetric, ceil": scaled(2, 3, **{MODE: "asymmetric"}, nearest_mode="ceil"),
    "nearest, fractional": scaled(1.5, 0.6, nearest_mode="round_prefer_ceil"),
    "nearest, to a size": sized(5, 3),
    "linear": scaled(2, 3, mode="linear"),
    "linear of PyTorch": scaled(2, 3, mode="linear", **{MODE: "pytorch_half_pixel"}),
    "linear, symmetric, to a size": sized(6, 3, mode="linear", **{MODE: "half_pixel_symmetric"}),
    "linear, corners": scaled(2, 3, mode="linear", **{MODE: "align_corners"}),
    "linear, asymmetric": scaled(2, 3, mode="linear", **{MODE: "asymmetric"}),
    "linear, antialias": scaled(0.5, 0.6, mode="linear", antialias=1),
    "linear, down": scaled(0.5, 0.6, mode="linear"),
    "cubic": scaled(2, 1.5, mode="cubic"),
    "cubic, excluding": scaled(2, 3, mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
}


@each("name", RESIZES)
def test_a_resize_is_that_of_onnx(name):
    attributes, scales, sizes = RESIZES[name]
    weights = {"scales": scales} | ({} if sizes is None else {"sizes": sizes})
    inputs = ["x", "", "scales", "sizes"][: 2 + len(weights)]
    inputs = inputs if sizes is None else ["x", "", "", "sizes"]
    node = onnx.helper.make_node("Resize", inputs, ["y"], **attributes)
    x = image(1, 4, 5, 2)
    tensors = {n: onnx.numpy_helper.from_array(v, n) for n, v in weights.items()}
    converted = interop.from_onnx(node, tensors)
    assert converted.layer == "resize"
    np.testing.assert_allclose(converted.to_nnx()(x), run([node], weights, x), atol=1e-5)


def test_weights_come_from_constants():
    weight = np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3)
    tensor = onnx.numpy_helper.from_array(weight, "w")
    constant = onnx.helper.make_node("Constant", [], ["w"], value=tensor)
    node = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    layer = interop.from_onnx(node, {"w": constant}).to_nnx(implementation="dilated")
    x = image(1, 3, 4, 2)
    np.testing.assert_allclose(layer(x), run([constant, node], {}, x), rtol=1e-5, atol=1e-4)
    ints = onnx.helper.make_node("Constant", [], ["w"], value_ints=[1, 2])
    with pytest.raises(
        ValueError, match=r"from_onnx: a Constant must hold a tensor .*'value_ints'"
    ):
        interop.from_onnx(node, {"w": ints})


@pytest.mark.refuses
def test_refuses_models_and_says_how_to_give_nodes():
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    for given in (model, model.graph, "model.onnx", [node]):
        with pytest.raises(
            TypeError, match=r"^from_onnx: node must be .* one by one, with the init"
        ):
            interop.from_onnx(given)
