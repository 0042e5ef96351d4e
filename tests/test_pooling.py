"""max_pool and max_unpool."""

import jax
import numpy as np
import pytest
from flax import linen

from tconvjax import max_pool, max_unpool

pytestmark = pytest.mark.usefixtures("x64")
STRIDES = (2, 3)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.5, 1, shape)


def test_values_are_those_of_flax_and_phases_say_where_they_were():
    x = random(2, 4, 6, 5)
    values, phases = jax.jit(lambda x: max_pool(x, STRIDES))(x)
    np.testing.assert_array_equal(values, linen.max_pool(x, STRIDES, STRIDES))
    for b, i, j, c in np.ndindex(values.shape):
        row, column = divmod(int(phases[b, i, j, c]), STRIDES[1])
        assert x[b, 2 * i + row, 3 * j + column, c] == values[b, i, j, c]


def test_unpool_puts_the_largest_back_and_zeros_elsewhere():
    x = random(2, 4, 6, 5)
    values, phases = max_pool(x, STRIDES)
    back = np.asarray(max_unpool(values, phases, strides=STRIDES))
    np.testing.assert_array_equal(back[back != 0], x[back != 0])
    assert (back != 0).sum() == values.size
    again = max_pool(np.where(back == 0, -np.inf, back), STRIDES)
    np.testing.assert_array_equal(again.values, values)
    np.testing.assert_array_equal(again.phases, phases)


def test_of_equal_pixels_the_first_counts_in_any_rank():
    x = np.zeros((4, 2, 6, 1))
    assert not np.any(max_pool(x, (2, 1, 3)).phases)
    assert max_pool(x.astype(np.int8), (2, 1, 3)).values.dtype == np.int8
    assert (
        max_unpool(np.ones((3, 1), np.float16), np.zeros((3, 1), int), strides=(2,)).dtype
        == np.float16
    )


def test_an_empty_batch_stays_empty():
    x = np.zeros((0, 4, 6, 5))
    assert max_unpool(*max_pool(x, STRIDES), strides=STRIDES).shape == x.shape


def test_the_adjoint_takes_pixels_from_where_they_were_put():
    x, y = random(2, 3, 5), random(4, 9, 5, seed=1)
    phases = np.random.default_rng(2).integers(0, 6, x.shape)
    run = lambda x: max_unpool(x, phases, strides=STRIDES)
    back = jax.vjp(run, x)[1](y)[0]
    np.testing.assert_allclose(np.vdot(back, x), np.vdot(y, run(x)), rtol=1e-12)
    np.testing.assert_array_equal(jax.vmap(run, -1, -1)(x[..., None])[..., 0], run(x))


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x, _: max_pool(x * 1j, (2,)),
            TypeError,
            r"max_pool: the largest pixel needs a real",
        ),
        (
            lambda x, _: max_pool(x, (3,)),
            ValueError,
            "max_pool: strides must divide the spatial shape",
        ),
        (
            lambda x, p: max_unpool(x, p[:2], strides=(2,)),
            ValueError,
            r"phases must .* got \(2, 1\)",
        ),
        (lambda x, _: max_unpool(x, x, strides=(2,)), TypeError, "max_unpool: phases must be int"),
        (lambda x, p: max_unpool(x, p, strides=2), TypeError, "max_unpool: strides must be a seq"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((4, 1)), np.zeros((4, 1), int))
