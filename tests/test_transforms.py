"""The case table crossed with JAX's transformations: each does to a face what it does to the explicit form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, LOWERINGS, arrays, each

from tconvjax import conv, conv_matrix, conv_transpose

pytestmark = pytest.mark.usefixtures("x64")


def transformed(f, x, w):
    """Every transformation of the bilinear `f(x, w)`, by name."""
    loss = lambda x, w: jnp.sum(jnp.sin(f(x, w)))
    gradient = jax.grad(loss, (0, 1))
    dot = lambda a, b: sum(jnp.vdot(u, v) for u, v in zip(a, b, strict=True))
    at, along = (x, w), (x[::-1], jnp.flip(w, (0, -2)))
    c = jnp.cos(f(x, w))
    pulled = lambda x, w: jax.vjp(f, x, w)[1](c)
    two = lambda a: jnp.stack([a, -2 * jnp.flip(a, -2)])
    step = lambda s: loss(x + s[0] * along[0], w + s[1] * along[1])
    return {
        "jvp": jax.jvp(f, at, along),
        "vjp": pulled(x, w),
        "linearize": jax.linearize(f, x, w)[1](*along),
        "linear_transpose": (
            jax.linear_transpose(lambda x: f(x, w), x)(c),
            jax.linear_transpose(lambda w: f(x, w), w)(c),
        ),
        "forward over reverse": jax.jvp(gradient, at, along)[1],
        "reverse over reverse": jax.grad(lambda *a: dot(gradient(*a), along), (0, 1))(*at),
        "reverse over forward": jax.grad(lambda *a: jax.jvp(loss, a, along)[1], (0, 1))(*at),
        "hessian": jax.hessian(step)(jnp.array([0.1, -0.2])),
        "third order": jax.grad(lambda s: jax.hessian(step)(s).sum())(jnp.array([0.1, -0.2])),
        "vmap over images": jax.vmap(pulled, (0, None))(two(x), w),
        "vmap over kernels": jax.vmap(pulled, (None, 0))(x, two(w)),
        "vmap over both": jax.vmap(pulled)(two(x), two(w)),
        "vmap of vmap": jax.vmap(jax.vmap(f, (0, None)), (None, 0))(two(x), two(w)),
        "vmap of a hessian": jax.vmap(lambda w: jax.jvp(gradient, (x, w), along)[1])(two(w)),
        "vmap to the last axis": jax.vmap(f, (0, None), -1)(two(x), w),
        "checkpoint": jax.grad(jax.checkpoint(loss), (0, 1))(x, w),
        "scan": jax.grad(lambda w: jax.lax.scan(lambda s, x: (s + loss(x, w), s), 0.0, two(x))[0])(
            w
        ),
    }


# A rule knows the rank, the groups and the border of a geometry and none of its other integers, which
# `tests/test_convolution.py` takes through every case and lowering.
RULES = {"axes differ", "one axis, groups and dilation", "depthwise with multiplier", "reflect"}
# A border is one more linear map, of the image before a face or behind it.
BORDER = ("jvp", "linear_transpose", "hessian", "vmap over both")
STACKED = ("vjp", "vmap over images", "vmap over kernels", "vmap over both", "vmap of vmap")


def results(f, names, *operands):
    """Returns the transformations of `names`, or all of them, of a bilinear function as one program."""

    def run(*operands):
        found = transformed(f, *operands)
        return {name: found[name] for name in names or found}  # the compiler drops the others

    return jax.jit(run)(*operands)


@functools.cache
def explicit(case, names=None):
    """Returns what the explicit form of a case, T(x, w, y) as (w, y, x), makes of both faces."""
    x, kernel, y = arrays(case)
    matrix = lambda w: conv_matrix((*case.big, case.in_features), w, **case.options)
    basis = jnp.eye(kernel.size).reshape(-1, *kernel.shape)
    form = jax.jit(jax.vmap(matrix))(basis)
    gather = lambda x, w: jnp.einsum("bx,w,wyx->by", x.reshape(2, -1), w.ravel(), form)
    paint = lambda y, w: jnp.einsum("by,w,wyx->bx", y.reshape(2, -1), w.ravel(), form)
    return (
        results(lambda x, w: gather(x, w).reshape(y.shape), names, x, kernel),
        results(lambda y, w: paint(y, w).reshape(x.shape), names, y, kernel),
    )


def check(case, implementation, names=None):
    """Compares the transformations of `names`, or all of them, with those of the explicit form."""
    x, kernel, y = arrays(case)
    options = case.options | {"implementation": implementation}
    paint = {"transpose_kernel": True, "output_shape": case.big}
    faces = (
        results(lambda x, w: conv(x, w, **options), names, x, kernel),
        results(lambda y, w: conv_transpose(y, w, **paint, **options), names, y, kernel),
    )
    for got, want in zip(faces, explicit(case, names), strict=True):
        for name in want:
            for a, b in zip(jax.tree.leaves(got[name]), jax.tree.leaves(want[name]), strict=True):
                scale = 1 + np.abs(b).max()
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * scale, err_msg=name)


@each("case", [case for case in CASES if case.why in RULES])
def test_every_transformation(case):
    check(case, "auto", BORDER if case.padding_mode == "reflect" else None)


@each("implementation", [name for name in LOWERINGS if name != "auto"])
def test_stacks_in_every_lowering(implementation):
    """What `vmap` makes of a face reaches a lowering as more images, more channels or a longer stack."""
    check(next(case for case in CASES if case.why == "groups"), implementation, STACKED)
