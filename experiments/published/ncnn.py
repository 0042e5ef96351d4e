"""Reads networks of ncnn, a `.param` file of layers and a `.bin` file of weights, as functions of JAX.

A `.param` file has one layer per line: kind, name, numbers of inputs and outputs, their names, and options `id=value`;
the id of a list is −23300 − id. A `.bin` file has the weights of all layers in their order, as float32 or as float16
behind a tag. What this reader does not know, a layer or an option, it refuses by name.

References:
  The pages "param and model file structure" and "operators" of the wiki of Tencent/ncnn.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import tconvjax

MAGIC = "7767517"
FLOAT16 = 0x01306B47  # tag of weights in half precision
Params = dict[str, dict[str, jax.Array]]
Options = dict[int, Any]


class NcnnError(ValueError):
    """Raised for files that are no network of ncnn, or one with what this reader does not know."""


class Layer(NamedTuple):
    """One line of a `.param` file.

    Attributes:
      kind: name of the operator.
      name: of the layer; the key of its weights.
      inputs: names of the images that it reads.
      outputs: names of those that it makes.
      options: values by id.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: Options


class Kind(NamedTuple):
    """An operator of ncnn.

    Attributes:
      options: the ids that it may have, with their defaults; None: a value that another option gives.
      apply: `(options, weights, *inputs) -> output`.
      load: `(options, reader) -> weights`, for a layer with weights.
    """

    options: Options
    apply: Callable[..., Any]
    load: Callable[[Options, "Reader"], dict[str, np.ndarray]] | None = None


class Reader:
    """Reads the weights of one layer after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def tagged(self, count: int) -> np.ndarray:
        """Returns numbers behind a tag, which says how they are stored."""
        (tag,) = self._take("<u4", 1)
        if tag == FLOAT16:
            numbers = self._take("<f2", count)
            self.place += -self.place % 4
            return numbers.astype(np.float32)
        if tag:
            raise NcnnError(f"weights: the tag must be 0 or {FLOAT16:#010x}, got {tag:#010x}")
        return self._take("<f4", count)

    def plain(self, count: int) -> np.ndarray:
        """Returns numbers without a tag."""
        return self._take("<f4", count)

    def _take(self, dtype: str, count: int) -> np.ndarray:
        end = self.place + count * np.dtype(dtype).itemsize
        if end > len(self.data):
            raise NcnnError(f"weights: end after {len(self.data)} bytes, {end} are needed")
        numbers = np.frombuffer(self.data, dtype, count, self.place)
        self.place = end
        return numbers


def read(param: str, weights: bytes) -> tuple[Callable[[Params, Any], jax.Array], Params]:
    """Reads a network from the contents of its two files.

    Args:
      param: text of the `.param` file.
      weights: content of the `.bin` file.

    Returns:
      `fn(params, images)`, which maps images `(batch, height, width, channels)` to images, and the params: by the name
      of a layer `kernel`, `(*kernel_size, in, out)` or of a transposed convolution `(*kernel_size, out, in)`, painted
      as it is, `bias` and `slope`.

    Raises:
      NcnnError: for other content, or a layer or an option that this reader does not know.
    """
    layers, reader = _layers(param), Reader(weights)
    params: Params = {}
    for layer in layers:
        load = KINDS[layer.kind].load
        if load is not None:
            found = load(layer.options, reader)
            params[layer.name] = {name: jnp.asarray(w) for name, w in found.items()}
    if reader.place != len(weights):
        raise NcnnError(f"weights: {len(weights)} bytes, of which the layers read {reader.place}")
    read_by = {name for layer in layers for name in layer.inputs}
    ends = [name for layer in layers for name in layer.outputs if name not in read_by]
    starts = [name for layer in layers if layer.kind == "Input" for name in layer.outputs]
    if len(starts) != 1 or len(ends) != 1:
        raise NcnnError(f"a network must have one input and one output, got {starts} and {ends}")

    def fn(params: Params, images: Any) -> jax.Array:
        blobs: dict[str, Any] = {starts[0]: images}
        for layer in layers:
            if layer.kind == "Input":
                continue
            inputs = (blobs[name] for name in layer.inputs)
            y = KINDS[layer.kind].apply(layer.options, params.get(layer.name), *inputs)
            blobs |= dict.fromkeys(layer.outputs, y)  # of a Split all are the same
        out: jax.Array = blobs[ends[0]]
        return out

    return fn, params


def _layers(param: str) -> list[Layer]:
    magic, _, *lines = param.strip().splitlines() or ["", ""]
    if magic.strip() != MAGIC:
        raise NcnnError(f"a .param file begins with {MAGIC}, got {magic[:20]!r}")
    return [_layer(line) for line in lines if line.strip()]


def _layer(line: str) -> Layer:
    kind, name, inputs, outputs, *words = line.split()
    if kind not in KINDS:
        raise NcnnError(f"layer {name}: must be one of {', '.join(KINDS)}, got {kind}")
    i, o = int(inputs), int(outputs)
    options = dict(KINDS[kind].options)
    for word in words[i + o :]:
        key, _, value = word.partition("=")
        number = int(key)
        numbers = [float(v) if set(v) & set(".e") else int(v) for v in value.split(",")]
        found: Any = numbers[0]
        if number <= -23300:  # a list, behind its length
            number, found = -23300 - number, tuple(numbers[1:])
        if number not in options:
            raise NcnnError(f"layer {name}: unknown option {word} of {kind}")
        options[number] = found
    return Layer(kind, name, tuple(words[:i]), tuple(words[i : i + o]), options)


# Convolutions.

# 0 outputs, 1 and 11 size, 2 and 12 dilation, 3 and 13 stride, 4, 15, 14, 16 padding, 5 bias, 6 numbers, 9 activation
CONVOLUTION: Options = {
    0: 0, 1: 0, 11: None, 2: 1, 12: None, 3: 1, 13: None, 4: 0, 15: None, 14: None, 16: None, 5: 0, 6: 0, 9: 0, 10: ()
}  # fmt: skip


def _pair(options: Options, width: int) -> tuple[int, int]:
    """Returns (height, width) of an option whose height is optional and has an id higher by 10."""
    w, h = options[width], options[width + 10]
    return (w if h is None else h), w


def _pads(options: Options) -> tuple[tuple[int, int], tuple[int, int]]:
    left = options[4]
    right, top = (left if options[i] is None else options[i] for i in (15, 14))
    bottom = top if options[16] is None else options[16]
    if min(left, right, top, bottom) < 0:
        raise NcnnError(f"convolution: padding must be given in pixels, got {left}")
    return (top, bottom), (left, right)


def _load_convolution(options: Options, reader: Reader) -> dict[str, np.ndarray]:
    out, (h, w) = options[0], _pair(options, 1)
    kernel = reader.tagged(options[6]).reshape(
        out, -1, h, w
    )  # of both kinds: out, in, height, width
    return {"kernel": kernel.transpose(2, 3, 1, 0)} | _bias(options[5], out, reader)


def _load_deconvolution(options: Options, reader: Reader) -> dict[str, np.ndarray]:
    weights = _load_convolution(options, reader)
    return weights | {"kernel": weights["kernel"].swapaxes(2, 3)}


def _bias(present: int, count: int, reader: Reader) -> dict[str, np.ndarray]:
    return {"bias": reader.plain(count)} if present else {}


def _convolution(options: Options, weights: Mapping[str, Any], x: Any) -> Any:
    y = tconvjax.conv(
        x,
        weights["kernel"],
        _pair(options, 3),
        padding=_pads(options),
        kernel_dilation=_pair(options, 2),
    )
    return _activated(options, _biased(weights, y))


def _deconvolution(options: Options, weights: Mapping[str, Any], x: Any) -> Any:
    y = tconvjax.conv_transpose(
        x,
        weights["kernel"],
        _pair(options, 3),
        padding=_pads(options),
        kernel_dilation=_pair(options, 2),
        transpose_kernel=True,
    )
    return _activated(options, _biased(weights, y))


def _load_dense(options: Options, reader: Reader) -> dict[str, np.ndarray]:
    out = options[0]
    return {"kernel": reader.tagged(options[2]).reshape(out, -1).T} | _bias(options[1], out, reader)


def _dense(options: Options, weights: Mapping[str, Any], x: Any) -> Any:
    return _activated(options, _biased(weights, x @ weights["kernel"]))


def _biased(weights: Mapping[str, Any], y: Any) -> Any:
    return y + _last(weights["bias"], y) if "bias" in weights else y


def _last(vector: Any, y: Any) -> Any:
    """Returns a vector along the last axis of an array."""
    return vector.reshape((1,) * (y.ndim - 1) + vector.shape)


def _activated(options: Options, x: Any) -> Any:
    match options[9], options[10]:
        case 0, _:
            return x
        case 1, _:
            return jax.nn.relu(x)
        case 2, (slope,):
            return jnp.where(x < 0, slope * x, x)
        case 4, _:
            return jax.nn.sigmoid(x)
        case kind, _:
            raise NcnnError(f"unknown activation 9={kind}")


# Other layers.


def _prelu(options: Options, weights: Mapping[str, Any], x: Any) -> Any:  # noqa: ARG001
    return jnp.where(x < 0, _last(weights["slope"], x) * x, x)


def _pooling(options: Options, _: None, x: Any) -> Any:
    if (options[0], options[4]) != (1, 1):
        raise NcnnError(f"Pooling: only the mean of an image (0=1 4=1) is known, got {options}")
    return x.mean((1, 2))


def _scale(options: Options, _: None, x: Any, factors: Any) -> Any:
    if options[0] != -233:
        raise NcnnError(f"Scale: only factors from a layer (0=-233) are known, got 0={options[0]}")
    return x * factors[:, None, None]


def _crop(options: Options, _: None, x: Any, like: Any) -> Any:
    corner = (options[1], options[0], options[2])
    if any(a + n > m for a, n, m in zip(corner, like.shape[1:], x.shape[1:], strict=True)):
        raise NcnnError(f"Crop: {like.shape[1:]} pixels at {corner} are not in {x.shape[1:]}")
    window = tuple(slice(a, a + n) for a, n in zip(corner, like.shape[1:], strict=True))
    return x[:, *window]


def _eltwise(options: Options, _: None, *inputs: Any) -> Any:
    if options[0] != 1:
        raise NcnnError(f"Eltwise: only sums (0=1) are known, got 0={options[0]}")
    factors = options[1] or (1.0,) * len(inputs)
    return sum(x if f == 1 else f * x for f, x in zip(factors, inputs, strict=True))


def _binary(options: Options, _: None, a: Any, b: Any) -> Any:
    if options[0] not in (0, 2):
        raise NcnnError(f"BinaryOp: only sum and product (0=0, 0=2) are known, got 0={options[0]}")
    return a + b if options[0] == 0 else a * b


def _concat(options: Options, _: None, *inputs: Any) -> Any:
    if options[0] != 0:
        raise NcnnError(f"Concat: only channels (0=0) are known, got 0={options[0]}")
    return jnp.concatenate(inputs, -1)


def _shuffle(options: Options, _: None, x: Any) -> Any:
    return tconvjax.pixel_shuffle(x, (options[0], options[0]), order="DCR" if options[1] else "CRD")


def _interp(options: Options, _: None, x: Any) -> Any:
    kind, *scale = (options[i] for i in (0, 1, 2))
    if kind != 1 or any(s != int(s) or s < 1 for s in scale):
        raise NcnnError(f"Interp: only repeated pixels (0=1, whole 1= and 2=) are known, got {options}")  # fmt: skip
    return tconvjax.resize(x, tuple(map(int, scale)), method="nearest")


KINDS = {
    "Input": Kind({0: 0, 1: 0, 2: 0}, lambda _, __, x: x),
    "Split": Kind({}, lambda _, __, x: x),
    "Convolution": Kind(CONVOLUTION, _convolution, _load_convolution),
    "Deconvolution": Kind(CONVOLUTION, _deconvolution, _load_deconvolution),
    "InnerProduct": Kind({0: 0, 1: 0, 2: 0, 9: 0, 10: ()}, _dense, _load_dense),
    "PReLU": Kind({0: 0}, _prelu, lambda options, reader: {"slope": reader.plain(options[0])}),
    "Pooling": Kind({0: 0, 4: 0}, _pooling),
    "Scale": Kind({0: 0}, _scale),
    "Crop": Kind({0: 0, 1: 0, 2: 0}, _crop),
    "Eltwise": Kind({0: 0, 1: ()}, _eltwise),
    "BinaryOp": Kind({0: 0}, _binary),
    "Concat": Kind({0: 0}, _concat),
    "PixelShuffle": Kind({0: 1, 1: 0}, _shuffle),
    "Interp": Kind({0: 0, 1: 1.0, 2: 1.0}, _interp),
}
