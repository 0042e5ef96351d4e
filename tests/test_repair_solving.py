"""Parts of the solver of `repair`: what it takes for separate images, its approximate inverse and its line search."""

import jax.numpy as jnp
import numpy as np
import pytest
from cases import each

from tconvjax._repair import _images, solving
from tconvjax._repair.bands import Bands

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("fn", "count"),
    [
        (lambda w, x: w * x, 4),
        (lambda w, x: w * x * jnp.mean(x), 0),  # as batch statistics
        (lambda w, x: w * jnp.reshape(x, (4, 8, 2)), 0),  # a number of images that is fixed
        (lambda w, x: w * x[:1], 0),
    ],
    ids=["alone", "statistics", "fixed", "first"],
)
def test_images_are_separate_if_each_gives_the_same_alone(fn, count):
    leaves, x = [jnp.float32(2)], jnp.float32(RNG.normal(1, 1, (4, 8, 2)))
    y = fn(leaves[0], x)
    problem = solving.problem_of(
        lambda leaves, args: fn(leaves[0], *args), leaves, (x,), [], len(y)
    )
    assert _images(problem, y) == count


def gradients(*shape, free=None):
    """Gradients that correlate along all axes but one."""
    g = RNG.normal(size=(600, *shape))
    for axis in range(len(shape)):
        if axis != free:
            g = g + 2 * g.mean(axis + 1, keepdims=True) * shape[axis] ** 0.5
    return np.float32(g)


@each("free", [0, 1, 2, None])
def test_the_axis_without_correlations_is_found(free):
    g = gradients(3, 4, 5, free=free)
    assert solving._independent(g, [0, 1, 2]) == free


def test_the_inverse_is_that_of_the_mean_square_with_the_ridge():
    g = gradients(3, 4)
    matrix = np.einsum("ni,nj->ij", g.reshape(600, -1), g.reshape(600, -1)) / 600
    x = np.float32(RNG.normal(size=(3, 4)))
    few = (12 / 600) ** 4 * np.trace(matrix) / 12 * 1e-2
    want = np.linalg.solve(matrix + (0.5 + few) * np.eye(12), x.ravel()).reshape(3, 4)
    np.testing.assert_allclose(solving._inverse(g, 0.5)(x), want, rtol=1e-3, atol=1e-5)


def test_a_matrix_that_is_too_large_falls_back_to_one_for_the_entries_of_an_axis(monkeypatch):
    g = gradients(3, 4)
    monkeypatch.setattr(solving, "LARGEST", 4)
    rows = g.reshape(-1, 4)
    matrix = rows.T @ rows / len(rows)
    x = np.float32(RNG.normal(size=(3, 4)))
    want = np.linalg.solve(matrix + 0.5 * np.eye(4), x.T).T
    np.testing.assert_allclose(solving._inverse(g, 0.5)(x), want, rtol=1e-3, atol=1e-5)
    monkeypatch.setattr(solving, "LARGEST", 3)
    assert solving._inverse(gradients(1, 4), 0.5)(x) is x


def test_behind_a_nonlinearity_the_step_is_shortened_and_the_objective_falls():
    """Output noise + wave · sin(k): from k = 1.2 the tangent leads to -1.4, the wave of the other sign."""
    i = np.arange(32)
    noise = jnp.float32(RNG.normal(size=(2, 32, 32, 1)))
    wave = jnp.float32((-1.0) ** (i[:, None] + i))[..., None]

    def output(leaves, args):
        return args[0] + wave[None] * jnp.sin(leaves[0][0])

    leaves = [jnp.float32([1.2])]
    y = output(leaves, (noise,))
    problem = solving.problem_of(output, leaves, (noise,), [0], 2)
    bands = Bands(y, {1: 2, 2: 2})
    kernels, new = solving.solved(problem, bands, y, 10.0, 4)
    assert bands.contrast(new) < bands.contrast(y) - 10
    assert abs(float(kernels[0][0])) < 0.3
    np.testing.assert_allclose(new, output(kernels, (noise,)), atol=1e-5)
