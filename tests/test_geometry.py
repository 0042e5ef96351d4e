"""Sizes, paddings and phases in plain integers, for all small values and then for thousands of random ones."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from tconvjax import _geometry as geometry
from tconvjax import conv_transpose_shape

SIZES = st.integers(1, 12)
AXIS = st.tuples(
    SIZES,  # n
    st.integers(1, 6),  # k
    st.integers(1, 5),  # s
    st.integers(1, 4),  # d
    st.tuples(st.integers(-2, 6), st.integers(-2, 6)),
)


def forward_size(n, k, s, d, low, high):
    return (n + low + high - d * (k - 1) - 1) // s + 1


def test_size_law_for_all_small_integers():
    """n_out = s(n - 1) + d(k - 1) + 1 - 2p + op, and the forward convolution maps it back if op < s."""
    count = 0
    for n in range(1, 6):
        for k in range(1, 6):
            for s in range(1, 5):
                for d in range(1, 4):
                    for p in range(4):
                        for op in range(max(s, d)):
                            want = s * (n - 1) + d * (k - 1) + 1 - 2 * p + op
                            if want < 1:
                                continue
                            got = conv_transpose_shape(
                                (n,), k, strides=s, padding=p, output_padding=op, kernel_dilation=d
                            )
                            assert got == (want,)
                            if op < s:
                                assert forward_size(want, k, s, d, p, p) == n
                            count += 1
    assert count > 3000


@pytest.mark.slow
@given(AXIS)
@settings(max_examples=2000, deadline=None)
def test_output_shape_takes_exactly_the_sizes_that_map_back(axis):
    n, k, s, d, (low, high) = axis
    back = [m for m in range(1, 200) if forward_size(m, k, s, d, low, high) == n]
    for m in range(1, 80):
        call = lambda m=m: conv_transpose_shape(
            (n,), k, strides=s, padding=[(low, high)], kernel_dilation=d, output_shape=(m,)
        )
        if m in back:
            assert call() == (m,)
        else:
            with pytest.raises(ValueError, match=r"output_shape|at least one pixel"):
                call()


@given(
    SIZES,
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from(["SAME", "SAME_LOWER", "VALID"]),
)
@settings(max_examples=300, deadline=None)
def test_strings_are_the_adjoint_of_the_forward_string_on_every_size(n, k, s, d, padding):
    for m in range(1, 80):
        try:
            forward = geometry.conv_geometry(
                "conv", (m,), (k,), strides=s, padding=padding, kernel_dilation=d
            )
        except ValueError:
            continue
        if forward.small == (n,):
            transposed = geometry.conv_transpose_geometry(
                "conv_transpose",
                (n,),
                (k,),
                strides=s,
                padding=padding,
                kernel_dilation=d,
                output_shape=(m,),
            )
            assert transposed == forward


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_default_sizes_are_those_of_lax(padding):
    for n in (1, 2, 5):
        for k in range(1, 6):
            for s in range(1, 5):
                for d in (1, 2):
                    x, kernel = jnp.zeros((1, n, 1)), jnp.zeros((k, 1, 1))
                    want = jax.eval_shape(
                        lambda x, w, s=s, d=d: lax.conv_transpose(x, w, (s,), padding, (d,)),
                        x,
                        kernel,
                    ).shape[1]
                    got = conv_transpose_shape(
                        (n,), k, strides=s, padding=padding, kernel_dilation=d
                    )
                    assert got == (want,)


@given(SIZES, st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
@settings(max_examples=1000, deadline=None)
def test_same_lower_is_same_in_the_mirror(m, k, s, d):
    upper, lower = (
        geometry.conv_geometry("conv", (m,), (k,), strides=s, padding=p, kernel_dilation=d)
        for p in ("SAME", "SAME_LOWER")
    )
    assert lower.small == upper.small
    total = max(s * (upper.small[0] - 1) + d * (k - 1) + 1 - m, 0)
    assert upper.offset == (total // 2,)
    assert lower.offset == (total - total // 2,)


@given(st.lists(AXIS, min_size=1, max_size=3))
@settings(max_examples=500, deadline=None)
def test_resolving_twice_changes_nothing_and_axes_are_independent(axes):
    n, k, s, d, pads = zip(*axes, strict=True)
    try:
        once = geometry.conv_geometry("conv", n, k, strides=s, padding=pads, kernel_dilation=d)
    except ValueError as error:
        assert "must hold the dilated kernel" in str(error)  # noqa: PT017
        return
    options = {"strides": once.strides, "kernel_dilation": once.kernel_dilation}
    again = geometry.conv_geometry(
        "conv", once.big, once.kernel_size, padding=once.padding, **options
    )
    assert again == once
    for i in range(len(axes)):
        alone = geometry.conv_geometry(
            "conv",
            n[i : i + 1],
            k[i : i + 1],
            strides=s[i],
            padding=[pads[i]],
            kernel_dilation=d[i],
        )
        assert (alone.small, alone.offset) == (once.small[i : i + 1], once.offset[i : i + 1])


def test_tap_counts_of_one_axis():
    for k in range(1, 10):
        for s in range(1, 6):
            counts = geometry.phase_tap_counts(k, s)
            assert counts == tuple(len(range(p, k, s)) for p in range(s))
            assert sum(counts) == k


@pytest.mark.refuses
def test_names_the_valid_sizes():
    with pytest.raises(ValueError, match=r"got output_shape=\(15,\), valid sizes are \{8\.\.10\}"):
        conv_transpose_shape((3,), 4, strides=3, padding=1, output_shape=(15,))
    with pytest.raises(TypeError, match="must be a sequence of integers"):
        conv_transpose_shape(3, 4)
