"""Programs that leave: several platforms at once, symbolic sizes, serialized bytes."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LOWERINGS, each

from tconvjax import conv, conv_transpose

KERNEL = np.random.default_rng(20161017).normal(size=(3, 4, 2, 6)).astype("f")
ROW = KERNEL[1]  # a size of one axis is what a pad depends on
# padding, padding_mode, strides: every way in which a pad depends on a size
ROWS = [
    (1, "zeros", 2),
    ("SAME", "zeros", 2),
    ("SAME", "zeros", 5),
    ("SAME_LOWER", "zeros", 2),
    ("VALID", "zeros", 2),
    (1, "circular", 1),
    ("VALID", "circular", 2),
    (1, "reflect", 2),
    ("SAME", "replicate", 1),
]


def images(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("f")


def export(f, constraints=(), platforms=("cpu", "cuda", "tpu"), names="b, h, w"):
    sizes = jax.export.symbolic_shape(names, constraints=constraints)
    x = jax.ShapeDtypeStruct((*sizes, 4), jnp.float32)
    return jax.export.export(jax.jit(f), platforms=platforms)(x)


@pytest.mark.parametrize(
    ("implementation", "padding", "mode", "s"),
    [("auto", *row) for row in ROWS] + [("dilated", *row) for row in ROWS[1:2]],
)
@each("function", (conv, conv_transpose))
def test_symbolic_batch_and_space_with_gradients(function, implementation, padding, mode, s):
    def run(x):
        f = lambda x: function(
            x,
            ROW,
            strides=s,
            padding=padding,
            padding_mode=mode,
            feature_group_count=2,
            implementation=implementation,
        )
        return f(x), jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))(x)

    # A convolution has output where its kernel fits, and one pixel has no mirror: the exporter must be told.
    least = ("w >= 4",) if function is conv or mode == "reflect" else ()
    exported = export(run, least, ("cpu",), "b, w")
    for shape in ((2, 8, 4), (3, 7, 4)):
        x = images(*shape)
        for a, b in zip(exported.call(x), jax.jit(run)(x), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@each("implementation", LOWERINGS)
def test_a_symbolic_encoder_and_decoder_meet(implementation):
    """Sizes go down by a ceiling and come back through `output_shape`."""

    def run(x):
        down = conv(x, KERNEL, strides=2, feature_group_count=2, implementation=implementation)
        return conv_transpose(
            down,
            KERNEL,
            strides=2,
            output_shape=x.shape[1:-1],
            transpose_kernel=True,
            feature_group_count=2,
            implementation=implementation,
        )

    exported = export(run)
    for shape in ((2, 8, 6, 4), (1, 7, 5, 4)):
        x = images(*shape)
        np.testing.assert_allclose(exported.call(x), jax.jit(run)(x), rtol=1e-4, atol=1e-4)


def test_a_serialized_program_comes_back():
    run = lambda x: conv_transpose(x, KERNEL, strides=2, feature_group_count=2)
    x = images(2, 5, 3, 4)
    again = jax.export.deserialize(export(run).serialize())
    assert set(again.platforms) == {"cpu", "cuda", "tpu"}
    np.testing.assert_allclose(again.call(x), run(x), rtol=1e-5, atol=1e-5)


def test_a_border_that_depends_on_a_symbolic_size_is_refused():
    run = lambda x: conv(x, KERNEL, strides=2, padding_mode="reflect", feature_group_count=2)
    with pytest.raises(ValueError, match=r"^conv: padding_mode='reflect' needs a padding that"):
        export(run, ("h >= 3", "w >= 4"))


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("function", "padding", "mode", "message"),
    [
        (conv, 0, "zeros", "symbolic sizes must be known to leave an output"),
        (conv, -1, "replicate", "symbolic sizes must be known to leave an output"),
        (conv, 3, "circular", r"at least 3; got h, padded by \(3, 3\)"),
        (conv, 1, "reflect", r"at least 2; got h, padded by \(1, 1\)"),
        (conv_transpose, 3, "zeros", "symbolic sizes must be known to leave an output"),
        (conv_transpose, ((2, 1), 0), "reflect", r"at least 3; got 2\*h - 2, padded by \(2, 1\)"),
    ],
)
def test_symbolic_sizes_that_may_be_too_small_are_refused(function, padding, mode, message):
    """A program for all of them would be wrong for the smallest."""
    (h,) = jax.export.symbolic_shape("h")
    x, kernel = jax.ShapeDtypeStruct((h, 8, 1), jnp.float32), np.ones((3, 3, 1, 1), "f")
    run = lambda x: function(x, kernel, padding=padding, padding_mode=mode, strides=2)
    if function is conv and padding == 0:
        run = lambda x: conv(x, kernel, padding=0)
    with pytest.raises(ValueError, match=f"^{function.__name__}: .*{message}"):
        jax.eval_shape(run, x)
    (h,) = jax.export.symbolic_shape("h", constraints=["h >= 8"])
    jax.eval_shape(run, jax.ShapeDtypeStruct((h, 8, 1), jnp.float32))
