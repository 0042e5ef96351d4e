"""Makes torch_transpose.npz, torch_conv.npz and torch_shuffle.npz: what PyTorch computes, with gradients, in integers.

Random geometries of transposed convolutions over 1 to 3 axes (groups, dilation, output padding), convolutions with
every padding mode, and pixel shuffles. All values are small integers: float32 is exact, and tests can ask for equality.

Made with torch 2.13.0, numpy 2.4.6, Python 3.11; in tests/: `python -m golden.make_torch`
"""

import numpy as np
from golden import store


def draw(random, shape):
    return random.integers(-4, 5, shape)


def geometry(random, rank):
    """Arguments of a random transposed convolution, in PyTorch's names, and the spatial shape that it reads."""
    ints = lambda low, high: [int(n) for n in random.integers(low, high, rank)]
    largest = (8, 5, 3)[rank - 1]
    while True:
        groups = int(random.choice([1, 1, 2, 3]))
        channels = [groups * int(n) for n in random.integers(1, 4, 2)]
        k, s, d, n = (
            ints(1, 6 - rank + 1),
            ints(1, 4),
            ints(1, 4 if rank < 3 else 3),
            ints(1, largest),
        )
        extent = [b * (a - 1) + 1 for a, b in zip(k, d, strict=True)]
        p = [int(random.integers(0, e + 1)) for e in extent]
        op = [int(random.integers(0, max(a, b))) for a, b in zip(s, d, strict=True)]
        big = [
            a * (m - 1) + e - 2 * q + o for a, m, e, q, o in zip(s, n, extent, p, op, strict=True)
        ]
        if all(1 <= m <= 16 for m in big) and np.prod(big) <= 400:
            arguments = {
                "stride": s,
                "padding": p,
                "output_padding": op,
                "groups": groups,
                "dilation": d,
            }
            return arguments, n, k, channels


def transpose_case(random, rank):
    import torch

    arguments, n, k, (inner, outer) = geometry(random, rank)
    x = draw(random, (int(random.integers(1, 3)), inner, *n))
    weight = draw(random, (inner, outer // arguments["groups"], *k))
    bias = draw(random, (outer,))
    tensors = [torch.tensor(a, dtype=torch.float32, requires_grad=True) for a in (x, weight, bias)]
    function = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[rank - 1]
    y = function(*tensors, **arguments)
    cotangent = draw(random, y.shape)
    y.backward(torch.tensor(cotangent, dtype=torch.float32))
    case = {"arguments": arguments, "x": x, "weight": weight, "bias": bias, "cotangent": cotangent}
    x_grad, weight_grad = (t.grad.numpy() for t in tensors[:2])
    return {**case, "y": y.detach().numpy(), "x_grad": x_grad, "weight_grad": weight_grad}


def conv_case(random, mode, padding, rank):
    import torch

    plain = isinstance(padding, str)
    groups, k = int(random.integers(1, 3)), [int(n) for n in random.integers(2, 5, rank)]
    arguments = {
        "stride": [1] * rank if plain else [int(n) for n in random.integers(1, 4, rank)],
        "padding": padding if plain else [int(random.integers(0, n)) for n in k],
        "groups": groups,
        "dilation": [int(n) for n in random.integers(1, 3, rank)],
        "padding_mode": mode,
    }
    inner, outer, n = 2 * groups, 3 * groups, [int(m) for m in random.integers(7, 10, rank)]
    cls = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[rank - 1]
    layer = cls(inner, outer, k, **arguments)
    x, weight, bias = (
        draw(random, (1, inner, *n)),
        draw(random, layer.weight.shape),
        draw(random, outer),
    )
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
        y = layer(torch.tensor(x, dtype=torch.float32)).numpy()
    return {"arguments": arguments, "x": x, "weight": weight, "bias": bias, "y": y}


def main():
    import torch

    random = np.random.default_rng(20161017)
    store.save("torch_transpose", [transpose_case(random, 1 + i % 3) for i in range(240)])
    modes = ("zeros", "circular", "reflect", "replicate")
    kinds = [(m, p, r) for m in modes for p in ("ints", "same", "valid") for r in (1, 2)]
    cases = [conv_case(random, m, p if p != "ints" else None, r) for m, p, r in kinds]
    store.save("torch_conv", cases)
    shuffles = []
    for r, shape in ((2, (2, 12, 2, 3)), (3, (1, 18, 3, 2))):
        x = random.permutation(np.prod(shape)).reshape(shape)
        y = torch.nn.PixelShuffle(r)(torch.tensor(x)).numpy()
        shuffles.append({"factor": r, "x": x, "y": y})
    store.save("torch_shuffle", shuffles)


if __name__ == "__main__":
    main()
