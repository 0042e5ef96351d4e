"""Causal convolutions in chunks: state in, state out, bitwise what the whole gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tconvjax import causal_conv, causal_conv_transpose, conv, conv_transpose, linen
from tconvjax import nnx as tnn

CASES = [  # function, in, out, kernel, strides, dilation, options
    (causal_conv_transpose, 16, 8, 16, 8, 1, {}),
    (causal_conv_transpose, 4, 6, 5, 3, 2, {"feature_group_count": 2}),
    (causal_conv_transpose, 3, 1, 2, 4, 1, {}),  # a kernel without a state
    (causal_conv, 16, 8, 16, 8, 1, {}),
    (causal_conv, 4, 6, 3, 1, 4, {"feature_group_count": 2, "implementation": "phase"}),
]
FRAMES = 12


def draw(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def chunked(run, x, sizes):
    """Returns the outputs for chunks of these sizes together."""
    state, outputs, start = None, [], 0
    for size in sizes:
        y, state = run(x[:, start : start + size], state)
        outputs.append(y)
        start += size
    assert start == x.shape[1]
    return jnp.concatenate(outputs, 1)


@pytest.mark.parametrize(("function", "i", "o", "k", "s", "d", "options"), CASES)
def test_chunks_give_bitwise_the_whole_and_that_the_operator(function, i, o, k, s, d, options):
    pixels = s if function is causal_conv else 1
    x = draw(2, FRAMES * pixels, i)
    kernel = draw(k, i // options.get("feature_group_count", 1), o)
    run = jax.jit(
        lambda x, state: function(x, kernel, s, state=state, kernel_dilation=d, **options)
    )
    whole, state = run(x, None)
    for sizes in ((1,) * FRAMES, (2, 3, 1, 6), (FRAMES,)):
        np.testing.assert_array_equal(chunked(run, x, [n * pixels for n in sizes]), whole)
    extent = d * (k - 1) + 1
    plain, pads = (
        (conv, (extent - 1, 0)) if function is causal_conv else (conv_transpose, (0, extent - s))
    )
    want = plain(x, kernel, s, padding=(pads,), kernel_dilation=d, **options)
    np.testing.assert_allclose(whole, want, atol=1e-4)
    np.testing.assert_array_equal(state, x[:, x.shape[1] - state.shape[1] :])


@pytest.mark.parametrize("name", ["Conv", "ConvTranspose"])
def test_layers_stream_with_bias_and_mask_in_their_dtype(name):
    options = {"padding": "CAUSAL", "dtype": jnp.bfloat16, "mask": jnp.sign(draw(4, 3, 5))}
    one = getattr(tnn, name)(3, 5, 4, 2, rngs=nnx.Rngs(0), **options)
    one.bias[...] = draw(5)
    x = draw(1, 8, 3)
    run = lambda x, state: tnn.stream(one, x, state)
    whole, _ = run(x, None)
    assert whole.dtype == jnp.bfloat16
    np.testing.assert_array_equal(chunked(run, x, (2, 4, 2)), whole)
    np.testing.assert_allclose(np.float32(whole), np.float32(one(x)), rtol=0.02, atol=0.02)
    two = getattr(linen, name)(5, 4, 2, **options)
    variables = {"params": {"kernel": one.kernel[...], "bias": one.bias[...]}}
    np.testing.assert_array_equal(linen.stream(two, variables, x)[0], whole)


def test_no_output_of_a_causal_layer_depends_on_a_later_input():
    layer = tnn.ConvTranspose(2, 3, 7, 2, padding="CAUSAL", rngs=nnx.Rngs(0))
    depends = jax.jacobian(lambda x: layer(x)[0, :, 0])(draw(1, 6, 2))[:, 0, :, 0]
    outputs, inputs = np.nonzero(depends)
    assert len(outputs) > 0
    assert (outputs >= 2 * inputs).all()
    assert depends.shape == (12, 6)


X, KERNEL = draw(1, 6, 2), draw(4, 2, 3)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: causal_conv(X[:, :5], KERNEL, 2), ValueError, "causal_conv: a chunk must have a multiple of strides"),
        (lambda: causal_conv(X, KERNEL, state=X), ValueError, r"causal_conv: state must .* float32\[1, 3, 2\]; got"),
        (lambda: causal_conv(X, KERNEL[None]), ValueError, r"causal_conv: kernel must have shape \(k, in, out\)"),
        (lambda: tnn.stream(tnn.Conv(2, 3, 4, rngs=nnx.Rngs(0)), X), ValueError, "Make it with padding='CAUSAL'"),
        (lambda: tnn.stream(tnn.Conv(2, 3, 4, padding="CAUSAL", conv_general_dilated=print, rngs=nnx.Rngs(0)), X),
         ValueError, "stream: the layer must compute by itself"),
        (lambda: linen.stream(linen.Conv(3, 4, padding="CAUSAL", conv_general_dilated_cls=print), {}, X),
         ValueError, "the hook conv_general_dilated_cls"),
        (lambda: tnn.stream(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), X), TypeError, "stream: layer must be a Conv"),
        (lambda: linen.stream(None, {}, X), TypeError, "of tconvjax.linen; got NoneType"),
    ],
)  # fmt: skip
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
