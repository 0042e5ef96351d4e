"""The NNX layers against their functions and against Flax."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from flax import nnx

from tconvjax import conv, conv_transpose, resize_conv
from tconvjax import nnx as tnn


def layer(cls, *args, **kwargs):
    made = cls(*args, rngs=nnx.Rngs(0), **kwargs)
    if made.bias is not None:
        made.bias[...] = jnp.arange(float(made.bias.size))
    return made


@each("transpose_kernel", (False, True))
@each(
    "options",
    (
        {"padding": "SAME"},
        {"padding": "VALID"},
        {"padding": ((1, 2), (0, 3)), "kernel_dilation": 2},
    ),
)
def test_conv_transpose_equals_flax_with_its_parameters(options, transpose_kernel, key):
    x = jax.random.normal(key, (2, 5, 6, 3))
    args = (3, 4, (3, 2), (2, 3))
    ours = layer(
        tnn.ConvTranspose,
        *args,
        transpose_kernel=transpose_kernel,
        padding_convention="dilated",
        **options,
    )
    theirs = nnx.ConvTranspose(
        *args, transpose_kernel=transpose_kernel, rngs=nnx.Rngs(1), **options
    )
    assert ours.kernel.shape == theirs.kernel.shape
    theirs.kernel[...], theirs.bias[...] = ours.kernel[...], ours.bias[...]
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)


@each("groups", (1, 3))
def test_conv_equals_flax_with_its_parameters(groups, key):
    x = jax.random.normal(key, (5, 6, 3))
    args, options = (3, 6, (3, 2), 2), {"feature_group_count": groups, "padding": (1, 2)}
    ours, theirs = layer(tnn.Conv, *args, **options), nnx.Conv(*args, rngs=nnx.Rngs(1), **options)
    theirs.kernel[...], theirs.bias[...] = ours.kernel[...], ours.bias[...]
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)


def test_layers_are_their_functions_plus_bias(key):
    x = jax.random.normal(key, (5, 6, 4))
    paint = layer(
        tnn.ConvTranspose,
        4,
        6,
        (3, 3),
        2,
        padding=1,
        feature_group_count=2,
        implementation="matmul",
    )
    want = conv_transpose(
        x, paint.kernel[...], strides=2, padding=1, feature_group_count=2, output_shape=(10, 11)
    )
    bias = jnp.arange(6.0)[None, None]
    np.testing.assert_allclose(paint(x, output_shape=(10, 11)), want + bias, atol=1e-5)
    gather = layer(tnn.Conv, 4, 6, (3, 3), (1, 2), kernel_dilation=2, use_bias=False)
    want = conv(x, gather.kernel[...], strides=(1, 2), kernel_dilation=2)
    np.testing.assert_allclose(gather(x), want, atol=1e-6)
    enlarge = layer(tnn.ResizeConv, 4, 6, (3, 3), (2, 3), method="linear")
    want = resize_conv(x, enlarge.kernel[...], scale=(2, 3), method="linear")
    np.testing.assert_allclose(enlarge(x), want + bias, atol=1e-5)


@each("name", ("Conv", "ConvTranspose"))
def test_arguments_are_those_of_flax_in_their_order(name):
    ours, theirs = (
        list(inspect.signature(getattr(m, name).__init__).parameters.values()) for m in (tnn, nnx)
    )
    # Zero-insertion is what ConvTranspose is for, and `implementation` is our hook for another convolution.
    skipped = {"input_dilation", "conv_general_dilated"}
    theirs = [p for p in theirs if p.name not in skipped]
    assert [p.name for p in ours][: len(theirs)] == [p.name for p in theirs]
    for a, b in zip(ours, theirs, strict=False):
        assert a.kind == b.kind
        same = {"kernel_init", "bias_init"}  # other objects, or another initializer on purpose
        assert a.default == b.default or a.name in same, a.name
    assert all(p.kind == p.KEYWORD_ONLY for p in ours[len(theirs) :])


def test_default_initializer_keeps_the_variance_and_flax_loses_it(key):
    x = jax.random.normal(key, (4, 16, 16, 64))
    ours = tnn.ConvTranspose(64, 64, (4, 4), 2, rngs=nnx.Rngs(0))
    theirs = nnx.ConvTranspose(64, 64, (4, 4), 2, rngs=nnx.Rngs(0))
    inner = (slice(None), slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(ours(x)[inner].var(), 1, rtol=0.1)
    np.testing.assert_allclose(theirs(x)[inner].var(), 1 / 4, rtol=0.1)


@each("cls", (tnn.Conv, tnn.ConvTranspose, tnn.ResizeConv))
def test_dtype_mask_and_gradients(cls, key):
    made = layer(cls, 2, 3, (3,), 2, dtype=jnp.bfloat16, mask=jnp.zeros((3, 2, 3)))
    y = made(jax.random.normal(key, (7, 2)))
    assert y.dtype == jnp.bfloat16
    assert made.kernel[...].dtype == jnp.float32
    np.testing.assert_array_equal(y[0], jnp.arange(3.0))  # all taps masked: the bias is left
    graph, params, rest = nnx.split(layer(cls, 2, 3, (3,), 2), nnx.Param, ...)
    grads = jax.jit(jax.grad(lambda p: nnx.merge(graph, p, rest)(jnp.ones((7, 2))).sum()))(params)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@each("cls", (tnn.Conv, tnn.ConvTranspose, tnn.ResizeConv))
def test_graph_definitions_are_hashable_and_equal(cls):
    one, two = (nnx.graphdef(cls(2, 3, (3,), 2, rngs=nnx.Rngs(i))) for i in (0, 1))
    assert hash(one) == hash(two)
    assert one == two


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("cls", "args", "options", "message"),
    [
        (
            tnn.ConvTranspose,
            (4, 6, (3, 3), 2),
            {"feature_group_count": 4},
            "in_features=4, out_features=6",
        ),
        (tnn.ConvTranspose, (4, 6, (3, 3), 0), {}, "ConvTranspose: strides must be at least 1"),
        (
            tnn.ConvTranspose,
            (4, 6, (3, 3), 2),
            {"output_padding": 1},
            "output_padding goes with integer padding",
        ),
        (
            tnn.ConvTranspose,
            (4, 6, (3, 3), 2),
            {"padding_convention": "forwards"},
            "Did you mean 'forward'?",
        ),
        (
            tnn.ConvTranspose,
            (4, 6, (3, 3), 2),
            {"implementation": "foo"},
            "implementation must be one of",
        ),
        (tnn.Conv, (4, 6, (3, 3), 2), {"precision": "hihg"}, "precision must be None"),
        (tnn.Conv, (4, 6, (3, 3)), {"padding": "CIRCULAR"}, "Conv: padding must be one of"),
        (
            tnn.Conv,
            (4, 6, (3, 3)),
            {"mask": jnp.ones((3, 3))},
            "mask must have the shape of the kernel",
        ),
        (tnn.ResizeConv, (4, 6, (3, 3), 2), {"method": "neares"}, "Did you mean 'nearest'?"),
        (tnn.ResizeConv, (4, 6, (3, 3), (2, 2, 2)), {}, "scale must be an int or one int per"),
    ],
)
def test_refuses_at_construction(cls, args, options, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        cls(*args, rngs=nnx.Rngs(0), **options)
