"""JAX's global switches: what people debug and compare with must not change a number, nor end a call."""

import contextlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from flax import nnx
from jax import lax

import tconvjax
from tconvjax import analysis, linen, metrics
from tconvjax import nnx as tnn

DRAW = np.random.default_rng(20161017).normal
X, KERNEL, WIDE = (
    DRAW(size=shape).astype(np.float32) for shape in ((1, 4, 5, 2), (3, 3, 2, 2), (3, 3, 2, 8))
)
painted = lambda w: jnp.sum(jnp.sin(tconvjax.conv_transpose(X, w, strides=2)))
layer_of_lax = lambda w: lax.conv_general_dilated(
    X, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
)
layer = lambda: tnn.ConvTranspose(2, 3, (3, 3), 2, rngs=nnx.Rngs(0))
CALLS = {
    "conv": lambda: tconvjax.conv(X, KERNEL, strides=2),
    "conv_transpose": lambda: tconvjax.conv_transpose(X, KERNEL, strides=2),
    "reflect": lambda: tconvjax.conv_transpose(
        X, KERNEL, strides=2, padding=1, padding_mode="reflect"
    ),
    "nearest": lambda: tconvjax.resize_conv(X, KERNEL, scale=2),
    "linear": lambda: tconvjax.resize_conv(X, KERNEL, scale=2, method="linear"),
    "subpixel_conv": lambda: tconvjax.subpixel_conv(X, WIDE, scale=2),
    "upfirdn": lambda: tconvjax.upfirdn(X, jnp.ones((3, 3)), up=2),
    "resize": lambda: tconvjax.resize(X, (2, 2), method="cubic"),
    "pixel_shuffle": lambda: tconvjax.pixel_shuffle(WIDE, (2, 2)),
    "conv_matrix": lambda: tconvjax.conv_matrix((3, 4, 2), KERNEL),
    "grad": lambda: jax.grad(painted)(KERNEL),
    "hessian": lambda: jax.hessian(lambda a: painted(a * KERNEL))(0.5),
    "vmap": lambda: jax.vmap(jax.grad(painted))(np.stack([KERNEL, 2 * KERNEL])),
    "checkpoint": lambda: jax.grad(jax.checkpoint(painted))(KERNEL),
    "scan": lambda: lax.scan(lambda s, w: (s + painted(w), s), 0.0, np.stack([KERNEL, -KERNEL])),
    "jit": lambda: jax.jit(painted)(KERNEL),
    "nnx": lambda: layer()(X),
    "linen": lambda: linen.ConvTranspose(3, (3, 3), 2).init_with_output(jax.random.key(0), X)[0],
    "accelerate": lambda: tconvjax.accelerate(layer_of_lax)(KERNEL),
    "gradient of accelerate": lambda: jax.grad(
        tconvjax.accelerate(lambda w: layer_of_lax(w).sum())
    )(KERNEL),
    "audit": lambda: [f.harmonic_share for f in tconvjax.audit(layer(), X)],
    "harmonic_share": lambda: analysis.harmonic_share(KERNEL, (2, 2)),
    "phase_mean_fraction": lambda: metrics.phase_mean_fraction(X[:, :4, :4], 2),
}
STATES = {
    "disable_jit": jax.disable_jit,
    "debug_nans": lambda: jax.debug_nans(True),
    "x64": lambda: jax.enable_x64(True),
}


@each("function", (tconvjax.conv, tconvjax.conv_transpose, tconvjax.resize_conv))
@each("options", ({}, {"padding": 1, "padding_mode": "reflect"}))
def test_outside_of_transformations_an_operator_is_one_program(options, function, caplog):
    """Each of the eight to thirty operations inside would be compiled and dispatched by itself."""
    arrays = jax.device_put((X, KERNEL))
    jax.clear_caches()
    with jax.log_compiles():
        function(*arrays, 2, **options)
    programs = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]
    assert len(programs) == 1, programs


def test_an_eager_gradient_is_two_programs(caplog):
    """Forward and backward, beside the operations of the user's own loss."""
    arrays = jax.device_put((X, KERNEL))
    loss = lambda x, w: tconvjax.resize_conv(x, w, 2, method="linear").sum()
    jax.clear_caches()
    with jax.log_compiles():
        jax.grad(loss, (0, 1))(*arrays)
    programs = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]
    assert sum("_paint_framed" in program for program in programs) == 2, programs
    assert len(programs) <= 12, programs  # it was a hundred


def test_each_of_two_equal_calls_in_a_program_has_its_own_source_line():
    """Whatever is cached of the first call must not keep its line with it."""
    spec = jax.ShapeDtypeStruct(X.shape, X.dtype)

    def program(x):
        first = tconvjax.conv_transpose(x, KERNEL, 2)
        second = tconvjax.conv_transpose(x + 1, KERNEL, 2)
        return first, second

    lines = [finding.line for finding in tconvjax.audit(program, spec)]
    assert len(lines) == 2
    assert lines[1] == lines[0] + 1


@pytest.mark.slow  # a minute: operations without jit compile one by one
@each("call", CALLS)
@pytest.mark.usefixtures("promotion")
def test_no_switch_changes_a_number(call):
    want = CALLS[call]()
    for name, state in STATES.items():
        with state():
            got = CALLS[call]()
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_nan_is_named_once_and_found_in_the_face(wrap):
    """The search for it takes operations apart; a face is one, and has no parts."""
    infinite = np.full_like(X, np.inf)
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match=r"nan.* in tconv_gather"):
        wrap(tconvjax.conv)(infinite, 0 * KERNEL)


def test_threads_have_switches_of_their_own():
    found = {}

    def wide():
        with jax.enable_x64(True):
            found["dtype"] = tconvjax.conv(X.astype(float), KERNEL.astype(float)).dtype

    thread = threading.Thread(target=wide)
    thread.start()
    narrow = tconvjax.conv(X, KERNEL)
    thread.join()
    assert (narrow.dtype, found["dtype"]) == (np.float32, np.float64)


def test_both_switches_at_once():
    with contextlib.ExitStack() as stack:
        for state in (STATES["disable_jit"], STATES["debug_nans"]):
            stack.enter_context(state())
        got = jax.grad(painted)(KERNEL)
    np.testing.assert_allclose(got, jax.grad(painted)(KERNEL), rtol=1e-4, atol=1e-5)
