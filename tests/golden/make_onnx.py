"""Makes onnx.npz: what onnxruntime computes, in integers, and the examples of the ONNX operators themselves.

The examples are the node tests `test_convtranspose*`, `test_conv_with*`, `test_basic_conv*`, `test_depthtospace*` and
`test_spacetodepth*` of the package onnx, Apache-2.0. Their kernels are mostly ones, so random nodes follow.

Made with onnx 1.23.2, onnxruntime 1.32.0, Python 3.11; in tests/: `python -m golden.make_onnx`
"""

import numpy as np
from golden import store

OPERATORS = ("ConvTranspose", "Conv", "DepthToSpace", "SpaceToDepth")


def attributes_of(node):
    from onnx import helper

    read = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {n: v.decode() if isinstance(v, bytes) else v for n, v in read.items()}


def examples():
    from onnx.backend.test.case.node import collect_testcases

    for test in collect_testcases():
        nodes = test.model.graph.node
        if len(nodes) == 1 and nodes[0].op_type in OPERATORS:
            inputs, (y,) = test.data_sets[0]
            if np.any(inputs[0] != np.round(inputs[0])):  # the places are all that matters
                values = np.sort(inputs[0], axis=None)
                inputs, y = [np.searchsorted(values, inputs[0])], np.searchsorted(values, y)
            case = {
                "name": test.name,
                "operator": nodes[0].op_type,
                "attributes": attributes_of(nodes[0]),
            }
            yield {**case, "x": inputs[0], **dict(zip("WB", inputs[1:], strict=False)), "y": y}


def run(random, operator, attributes, spatial, kernel_size, groups=1):
    import onnxruntime
    from onnx import TensorProto, helper

    draw = lambda *shape: random.integers(-4, 5, shape)
    x, weight, bias = (
        draw(2, 2 * groups, *spatial),
        draw(2 * groups, 3, *kernel_size),
        draw(3 * groups),
    )
    if operator == "Conv":
        weight = draw(3 * groups, 2, *kernel_size)
    node = helper.make_node(operator, ["x", "W", "B"], ["y"], group=groups, **attributes)
    arrays = {"W": weight, "B": bias}
    weights = [
        helper.make_tensor(n, TensorProto.FLOAT, a.shape, a.ravel()) for n, a in arrays.items()
    ]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    graph = helper.make_graph([node], "one", info[:1], info[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x.astype(np.float32)})
    case = {"name": "random", "operator": operator, "attributes": attributes_of(node)}
    return {**case, "x": x, **arrays, "y": y}


def random_cases():
    random = np.random.default_rng(20161017)
    for i in range(90):
        rank, groups = 1 + i % 3, int(random.integers(1, 3))
        ints = lambda low, high, rank=rank: [int(n) for n in random.integers(low, high, rank)]
        k, s, d, n = ints(1, 5), ints(1, 4), ints(1, 3), ints(2, 5)
        extent = [b * (a - 1) + 1 for a, b in zip(k, d, strict=True)]
        op = [int(random.integers(0, a)) for a in s]  # onnxruntime refuses more than strides - 1
        full = [a * (m - 1) + e + o for a, m, e, o in zip(s, n, extent, op, strict=True)]
        attributes = {"strides": s, "dilations": d}
        kind = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID", "output_shape", "SAME_LOWER")[
            i // 3 % 6
        ]
        if kind == "NOTSET":
            low, high = ([int(random.integers(0, (m + 1) // 2)) for m in full] for _ in "lh")
            attributes |= {"pads": low + high, "output_padding": op}
        elif kind == "output_shape":
            attributes |= {"output_shape": [max(1, m - int(random.integers(0, 5))) for m in full]}
        else:
            attributes |= {"auto_pad": kind}
            if kind == "VALID":
                attributes |= {"output_padding": op}
            else:  # for larger strides onnxruntime gives fewer pixels than the text of the operator
                attributes |= {"strides": [min(a, e) for a, e in zip(s, extent, strict=True)]}
        yield run(random, "ConvTranspose", attributes, n, k, groups)
    for kind, s in (
        ("SAME_UPPER", 2),
        ("SAME_LOWER", 2),
        ("SAME_LOWER", 1),
        ("VALID", 3),
        ("NOTSET", 2),
    ):
        attributes = {"auto_pad": kind, "strides": [s, 1]}
        if kind == "NOTSET":
            attributes |= {"pads": [2, 0, 1, 3], "dilations": [1, 2]}
        yield run(random, "Conv", attributes, [6, 7], [2, 3], 2)


def main():
    store.save("onnx", [*examples(), *random_cases()])


if __name__ == "__main__":
    main()
