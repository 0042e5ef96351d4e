"""conv, conv_transpose and conv_matrix: oracles, laws, transformations, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import CASES, FEW, LOWERINGS, arrays, each, together
from jax import lax

import tconvjax
from tconvjax import analysis, conv, conv_matrix, conv_transpose

pytestmark = pytest.mark.usefixtures("x64")


def pads(case):
    n = zip(case.big, case.kernel_size, case.strides, case.kernel_dilation, strict=True)
    if isinstance(case.padding, int):
        return [(case.padding,) * 2] * len(case.big)
    if isinstance(case.padding, str):
        return [oracles.conv_pads(*axis, case.padding) for axis in n]
    return [(p, p) if isinstance(p, int) else p for p in case.padding]


def close(got, want, taps=1):
    """Within rounding: each result sums about `taps` products of unit size."""
    eps = jnp.finfo(got.dtype).eps
    np.testing.assert_allclose(got, want, rtol=0, atol=50 * eps * np.sqrt(taps) + 1e-300)


@functools.cache
def loops(case):
    """The oracles of a case: both images, another kernel and the form at it, Σ x[s·o + d·a − p] · w[a] · y[o]."""
    x, kernel, y = (np.asarray(a) for a in arrays(case))
    options = case.strides, pads(case), case.kernel_dilation, case.feature_group_count
    other = np.random.default_rng(3).normal(size=kernel.shape)
    return (
        oracles.conv(x, kernel, *options, case.padding_mode),
        oracles.paint(y, kernel, *options, case.big, case.padding_mode),
        other,
        np.sum(oracles.conv(x, other, *options, case.padding_mode) * y),
    )


def forms(case, implementation):
    """The one number T(x, w, y) as `conv` and as `conv_transpose` make it, each with its image."""
    options = case.options | {"implementation": implementation}

    def gathered(x, w, y):
        image = conv(x, w, **options)
        return jnp.sum(image * y), image

    def painted(x, w, y):
        image = conv_transpose(y, w, transpose_kernel=True, output_shape=case.big, **options)
        return jnp.sum(x * image), image

    return gathered, painted


@each("case", CASES)
@each("implementation", LOWERINGS)
def test_all_faces_equal_the_loops(case, implementation):
    x, kernel, y = arrays(case)
    gathered, painted = forms(case, implementation)

    @jax.jit
    def faces(*arrays):
        (_, small), gradient = jax.value_and_grad(gathered, 1, has_aux=True)(*arrays)
        return small, painted(*arrays)[1], gradient

    small, big, gradient = faces(x, kernel, y)
    want_small, want_big, other, number = loops(case)
    close(small, want_small, kernel.size)
    close(big, want_big, kernel.size)
    # The kernel gradient is the form with the kernel left open.
    norms = [np.linalg.norm(a) for a in (x, other, y)]
    assert abs(np.sum(np.asarray(gradient) * other) - number) < 1e-12 * np.prod(norms)


@pytest.mark.slow
@pytest.mark.optimized
@each("case", FEW)
@each("implementation", LOWERINGS)
def test_all_faces_equal_the_loops_in_optimized_programs(case, implementation):
    test_all_faces_equal_the_loops(case, implementation)


# Which face is the gradient of which knows no geometry but its border.
RULES = [(case, "auto") for case in CASES if case in FEW or case.padding_mode != "zeros"]
RULES += [(case, name) for case in FEW[:2] for name in LOWERINGS if name != "auto"]


@pytest.mark.parametrize(("case", "implementation"), RULES, ids=[f"{c.why}-{n}" for c, n in RULES])
def test_gradients_are_the_other_faces_and_adjoint_to_1e_12(case, implementation):
    """T(x, w, y) is one number, whichever face computes it; its gradients are the other faces."""
    x, kernel, y = arrays(case)

    @jax.jit
    def both(*arrays):
        by = (0, 1, 2)
        found = forms(case, implementation)
        return [jax.value_and_grad(f, by, has_aux=True)(*arrays) for f in found]

    ((one, _), grads), ((two, _), grads_too) = jax.tree.map(np.asarray, both(x, kernel, y))
    scale = np.linalg.norm(x) * np.linalg.norm(kernel) * np.linalg.norm(y)
    assert abs(one - two) < 1e-12 * scale
    for a, b in zip(grads, grads_too, strict=True):
        close(a, b, x.size)
    # Trilinear: each gradient against its argument gives the form back (Euler).
    for argument, gradient in zip((x, kernel, y), grads, strict=True):
        assert abs(np.sum(np.asarray(argument) * gradient) - one) < 1e-12 * scale


@each("case", CASES)
def test_matrix_is_the_convolution_and_its_transpose(case):
    x, kernel, y = (np.asarray(a) for a in arrays(case))
    small, big, *_ = loops(case)
    shape = *case.big, case.in_features
    matrix = np.asarray(jax.jit(lambda w: conv_matrix(shape, w, **case.options))(kernel))
    np.testing.assert_allclose((x.reshape(2, -1) @ matrix.T).reshape(y.shape), small, atol=1e-12)
    np.testing.assert_allclose((y.reshape(2, -1) @ matrix).reshape(x.shape), big, atol=1e-12)


@each("case", FEW)
@each("implementation", ("matmul", "dilated"))
def test_transpose_kernel_only_renames_the_kernel(case, implementation, key):
    shape = (*case.kernel_size, case.out_features // case.feature_group_count, case.in_features)
    kernel = jax.random.normal(key, shape, jnp.float64)  # paints out_features -> in_features
    y = arrays(case)[2]
    forward = oracles.forward_kernel(np.asarray(kernel), case.feature_group_count)
    options = case.options | {"output_shape": case.big, "implementation": implementation}
    close(
        conv_transpose(y, kernel, **options),
        conv_transpose(y, forward, transpose_kernel=True, **options),
        kernel.size,
    )


PADDINGS = ("SAME", "VALID", ((1, 2),), ((0, 0),), ((4, 3),))
LAX = [(3, 2, 1), (4, 2, 1), (2, 3, 1), (5, 3, 1), (3, 1, 2), (3, 4, 2)]


@each("transpose_kernel", (False, True))
@pytest.mark.parametrize(("k", "s", "d"), LAX)
def test_equals_lax_where_lax_has_an_answer(k, s, d, transpose_kernel, key):
    x = jax.random.normal(key, (2, 6, 3), jnp.float64)
    shape = (k, 4, 3) if transpose_kernel else (k, 3, 4)
    kernel = jax.random.normal(key, shape, jnp.float64)
    options = {"padding_convention": "dilated", "transpose_kernel": transpose_kernel}
    theirs = lambda x, w, p: lax.conv_transpose(
        x, w, (s,), p, (d,), transpose_kernel=transpose_kernel
    )
    ours = lambda x, w, p: conv_transpose(x, w, strides=s, padding=p, kernel_dilation=d, **options)
    run = together(*(functools.partial(f, p=p) for p in PADDINGS for f in (ours, theirs)))
    results = run(x, kernel)
    for got, want in zip(results[::2], results[1::2], strict=True):
        close(got, want, 3 * k)


def test_arrays_of_integers_serve_as_sequences():
    x, kernel = jnp.ones((8, 9, 2)), jnp.ones((3, 2, 2, 2))
    y = conv(x, kernel, strides=np.array([2, 1]), padding=np.array([[0, 1], [2, 0]]))
    np.testing.assert_array_equal(y, conv(x, kernel, strides=(2, 1), padding=((0, 1), (2, 0))))


@each("mode", ("circular", "reflect", "replicate"))
def test_folding_a_border_adds_in_float32(mode, key):
    """Many taps fall on few pixels: rounding before they are added would show."""
    x = jax.random.normal(key, (64, 3, 16)).astype(jnp.bfloat16)
    kernel = jax.random.normal(key, (9, 16, 16)).astype(jnp.bfloat16)
    options = {"strides": 2, "padding": 4, "padding_mode": mode}
    want = conv_transpose(x, kernel, preferred_element_type=jnp.float32, **options)
    got = conv_transpose(x, kernel, **options)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


def test_one_pixel_can_be_replicated_to_one_side():
    kernel = jnp.array([2.0, 3.0]).reshape(2, 1, 1)
    y = conv(jnp.full((1, 1), 5.0), kernel, padding_mode="replicate")  # SAME pads (0, 1)
    np.testing.assert_array_equal(y, [[25.0]])


def test_padding_means_the_forward_convolution(key):
    x = jax.random.normal(key, (5, 4, 2))
    kernel = jax.random.normal(key, (3, 3, 2, 3))
    full = conv_transpose(x, kernel, strides=2, padding=0)
    close(conv_transpose(x, kernel, strides=2, padding=1), full[1:-1, 1:-1], 18)
    close(
        conv_transpose(x, kernel, strides=2, padding=1, output_padding=(1, 0)), full[1:, 1:-1], 18
    )
    pairs = conv_transpose(x, kernel, strides=2, padding=[(1, 1), [1, 0]])
    close(pairs, full[1:-1, 1:], 18)


@each("implementation", LOWERINGS)
def test_a_shift_of_the_input_is_a_strided_shift_of_the_output(implementation, key):
    """T_x by t -> output by s·t, away from the border."""
    small = jax.random.normal(key, (4, 3, 2), jnp.float64)
    kernel = jax.random.normal(key, (3, 5, 2, 3), jnp.float64)
    images = [
        jnp.pad(small, ((3 + a, 3 - a), (3 + b, 3 - b), (0, 0))) for a, b in ((0, 0), (2, -1))
    ]
    one, two = (
        conv_transpose(i, kernel, strides=(2, 3), padding=1, implementation=implementation)
        for i in images
    )
    close(two, jnp.roll(one, (2 * 2, -3), (0, 1)), 30)


def test_padding_one_moves_the_center_by_exactly_one_pixel():
    delta = jnp.zeros((9, 1)).at[4, 0].set(1.0)
    kernel = jnp.array([1.0, 2.0, 1.0]).reshape(3, 1, 1)

    def center(padding):
        y = conv_transpose(delta, kernel, strides=2, padding=padding)[:, 0]
        return jnp.sum(y * jnp.arange(float(y.size))) / y.sum()

    assert center(0) - center(1) == 1
    for padding in (0, 1):
        where = analysis.center_map(3, 2, padding)
        assert center(padding) == where.scale[0] * 4 + where.offset[0]


@each("shape", ((6, 5, 2), (1, 6, 5, 2), (2, 3, 6, 5, 2), (0, 6, 5, 2)))
def test_any_number_of_batch_axes(shape, key):
    x = jax.random.normal(key, shape)
    kernel = jax.random.normal(key, (3, 2, 2, 4))
    y = conv_transpose(x, kernel, strides=2)
    assert y.shape == (*shape[:-3], 12, 10, 4)
    flat = conv_transpose(x.reshape(-1, 6, 5, 2), kernel, strides=2, implementation="dilated")
    close(y.reshape(flat.shape), flat, 12)


@each("dtype", (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64, jnp.complex64))
@each("implementation", LOWERINGS)
def test_dtype_is_kept_and_half_precision_accumulates_in_float32(dtype, implementation):
    half = jnp.finfo(dtype).bits == 16
    # Terms per output, enough for a half-precision accumulator to go wrong; one loop of all compiles for long.
    n = 512 if implementation != "elementwise" else 160 if half else 32
    draw = np.random.default_rng(20161017).normal
    x, kernel = (jnp.asarray(draw(size=shape), dtype) for shape in ((1, 4, n), (3, n, 2)))

    @jax.jit
    def run(x, w):
        f = lambda w: conv_transpose(x, w, strides=2, implementation=implementation)
        return f(w), jax.grad(lambda w: jnp.abs(f(w)).sum().astype(jnp.float32))(w)

    y, grad = run(x, kernel)
    assert y.dtype == grad.dtype == dtype
    wide = np.clongdouble if dtype == jnp.complex64 else np.longdouble
    x, kernel = np.asarray(x).astype(wide), np.asarray(kernel).astype(wide)
    forward = oracles.forward_kernel(kernel, 1)
    want = oracles.paint(x, forward, (2,), [(0, 1)], (1,), 1, (8,))  # 'SAME'
    error = np.abs(np.asarray(y).astype(wide) - want).max() / np.abs(want).max()
    # Of half precision only the result is rounded; others round every sum.
    assert error < (4 if half else np.sqrt(2 * n)) * float(jnp.finfo(dtype).eps)


@each("implementation", LOWERINGS)
def test_preferred_element_type_is_the_result(implementation, key):
    x = jax.random.normal(key, (1, 4, 8), jnp.bfloat16)
    kernel = jax.random.normal(key, (3, 8, 2), jnp.bfloat16)
    run = lambda x, w: conv_transpose(
        x, w, strides=2, preferred_element_type=jnp.float32, implementation=implementation
    )
    gradient = jax.grad(lambda *a: run(*a).sum(), argnums=(0, 1))
    y, grads = together(run, gradient)(x, kernel)
    assert y.dtype == jnp.float32
    assert [g.dtype for g in grads] == [jnp.bfloat16] * 2


@pytest.mark.slow
def test_lowering_of_half_precision_does_not_change_the_numbers_of_its_gradient(key):
    x = jax.random.normal(key, (2, 5, 5, 8), jnp.bfloat16)
    kernel = jax.random.normal(key, (3, 3, 8, 4), jnp.bfloat16)
    grads = [
        jax.grad(
            lambda w, i=i: conv_transpose(
                x, w, strides=2, preferred_element_type=jnp.float32, implementation=i
            ).sum()
        )(kernel).astype(jnp.float32)
        for i in ("matmul", "dilated")
    ]
    np.testing.assert_allclose(*grads, rtol=2**-6, atol=2**-6)


@each("operand", ("image", "kernel"))
def test_vmap_over_nothing(operand, key):
    x, kernel = jax.random.normal(key, (4, 4, 2)), jax.random.normal(key, (3, 3, 2, 5))
    if operand == "image":
        y = jax.vmap(lambda x: conv(x, kernel))(x[None][:0])
    else:
        y = jax.vmap(lambda w: conv(x, w))(kernel[None][:0])
    assert y.shape == (0, 4, 4, 5)


@each("configured", ("highest", "tensorfloat32", "F32_F32_F32"))
def test_configured_precision_is_heeded_and_algorithms_do_no_harm(configured, key):
    x, kernel = jax.random.normal(key, (4, 2)), jax.random.normal(key, (3, 2, 2))
    with jax.default_matmul_precision(configured):
        text = str(jax.make_jaxpr(lambda x: conv(x, kernel))(x))
    assert ("HIGHEST" in text) == (configured == "highest")


def test_references_stay_in_plain_jax():
    x, kernel = jnp.ones((4, 2)), jnp.ones((3, 2, 2))
    names = {
        i: str(
            jax.make_jaxpr(lambda x, i=i: conv_transpose(x, kernel, strides=2, implementation=i))(x)
        )
        for i in LOWERINGS
    }
    assert "tconv_paint" in names["auto"]
    assert "tconv_paint" in names["matmul"]
    assert "tconv_" not in names["dilated"]
    assert "tconv_" not in names["linear_transpose"]


def test_the_reference_pads_only_where_it_must():
    """Exporters meet no negative padding, which ONNX lacks, unless the user crops."""
    x, kernel = jnp.ones((8, 9, 2)), jnp.ones((3, 2, 2, 2))
    for options in ({"padding": "VALID"}, {"padding": 1, "padding_mode": "reflect"}):
        run = lambda x, o=options: conv(x, kernel, strides=2, implementation="dilated", **o)
        (eqn,) = (e for e in jax.make_jaxpr(run)(x).eqns if "conv" in str(e.primitive))
        assert min(p for pair in eqn.params["padding"] for p in pair) >= 0


def test_jax_is_not_the_release_that_miscompiles():
    """jax-ml/jax#39103: jit of a vmapped product and reduction was wrong on CPU in 0.10.2."""
    n = 32_769
    rows = jnp.zeros((n, 3), jnp.float32).at[:, 0].set(jnp.arange(n, dtype=jnp.float32))
    eye = jnp.eye(3, dtype=jnp.float32)
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((eye @ row) ** 2)))(rows)
    assert squares[-1] == (n - 1) ** 2


X, K = jnp.zeros((8, 8, 4)), jnp.zeros((3, 3, 4, 6))
WRONG = [
    ({"x": X[0, 0]}, "one spatial axis per kernel axis; got shape (4,)"),
    ({"kernel": K[0, 0]}, "at least one spatial axis; got kernel shape (4, 6)"),
    ({"x": X[..., :3]}, "got 3 channels for kernel shape (3, 3, 4, 6)"),
    ({"feature_group_count": 4, "x": jnp.zeros((8, 8, 16))}, "must divide the last axis"),
    (
        {"feature_group_count": 0},
        "feature_group_count must be at least 1; got feature_group_count=0",
    ),
    ({"strides": 0}, "strides must be at least 1; got strides=(0, 0)"),
    ({"strides": (2, 2, 2)}, "strides must be an int or one int per spatial axis"),
    ({"padding": "SAMEE"}, "Did you mean 'SAME'?"),
    ({"padding": "same_low"}, "Did you mean 'SAME_LOWER'?"),
    ({"padding_mode": "circlar"}, "Did you mean 'circular'?"),
    ({"padding": (1, 2, 3)}, "got padding=(1, 2, 3) for 2 spatial axes"),
    ({"padding": ((1, 2, 3), 1)}, "an int or a (low, high) pair; got (1, 2, 3)"),
    ({"kernel_dilation": -1}, "kernel_dilation must be at least 1"),
    ({"implementation": "matmull"}, "Did you mean 'matmul'?"),
    ({"precision": "hihg"}, "precision must be None, a jax.lax.Precision"),
    ({"precision": (1, 2, 3)}, "precision must be None, a jax.lax.Precision"),
]
WRONG_TRANSPOSE = [
    ({"output_shape": (18, 16), "padding": 1}, "valid sizes are {15..16} x {15..16}"),
    ({"output_shape": (16,), "padding": 1}, "one int for each"),
    ({"output_padding": 2, "padding": 1}, "smaller than the larger of strides"),
    ({"output_padding": 1}, "Choose the size with output_shape alone"),
    ({"output_padding": 1, "padding": 1, "output_shape": (16, 16)}, "without output_shape"),
    ({"padding": 20}, "must keep at least one pixel"),
    ({"padding_convention": "forwards"}, "Did you mean 'forward'?"),
    ({"transpose_kernel": True}, "got 4 channels for kernel shape (3, 3, 4, 6)"),
]
WRONG_TYPE = [
    ({"strides": 2.0}, "strides must be an integer; got 2.0 of type float"),
    ({"strides": True}, "strides must be an integer; got the boolean True"),
    ({"padding": 1.5}, "padding must be an integer"),
    ({"preferred_element_type": jnp.int32}, "preferred_element_type must be floating"),
    ({"preferred_element_type": "foo"}, "got 'foo' for operands of float32"),
    ({"preferred_element_type": jnp.complex64}, "preferred_element_type must be floating"),
    ({"kernel": "abc"}, "kernel must be an array; got kernel of type str"),
    ({"x": None}, "x must be an array; got x of type NoneType"),
    ({"x": [2**70]}, "x must be an array; got x of type list"),
    ({"x": jax.random.key(0)}, "x must be an array"),
    (
        {"x": X.astype(jnp.float8_e4m3fn)},
        "must have 16 bits or more, to calculate with; got dtype float8_e4m3fn",
    ),
    ({"preferred_element_type": jnp.float8_e4m3fn}, "of 16 bits or more"),
    ({"strides": b"ab"}, "strides must be an integer; got b'ab'"),
    ({"x": jnp.zeros((8, 8, 4), int), "kernel": jnp.zeros((3, 3, 4, 6), int)}, "got x of int"),
]


def refused(function, changed, message, error):
    arguments = {"x": X, "kernel": K, "strides": 2} | changed
    with pytest.raises(error) as caught:
        function(arguments.pop("x"), arguments.pop("kernel"), **arguments)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{function.__name__}: ")


@pytest.mark.refuses
@pytest.mark.parametrize(("changed", "message"), WRONG)
@each("function", (conv, conv_transpose))
def test_refuses_with_the_rule_and_the_values(function, changed, message):
    refused(function, changed, message, ValueError)


@pytest.mark.refuses
@pytest.mark.parametrize(("changed", "message"), WRONG_TRANSPOSE)
def test_transpose_refuses_impossible_sizes(changed, message):
    refused(conv_transpose, changed, message, ValueError)


@pytest.mark.refuses
@pytest.mark.parametrize(("changed", "message"), WRONG_TYPE)
@each("function", (conv, conv_transpose))
def test_refuses_other_kinds(function, changed, message):
    refused(function, changed, message, TypeError)


@pytest.mark.refuses
def test_conv_refuses_a_kernel_beyond_the_image():
    refused(conv, {"x": X[:2], "padding": "VALID"}, "must hold the dilated kernel", ValueError)
    few = {"x": X[:1], "padding": 1, "padding_mode": "reflect"}
    refused(conv, few, "needs at least 2 pixels along every padded axis; got", ValueError)
    with pytest.raises(ValueError, match="without batch axes"):
        tconvjax.conv_matrix((2, 8, 8, 4), K)
