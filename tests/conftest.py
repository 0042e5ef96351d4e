"""Strict JAX for all tests, and what the tables of cases need."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)  # for meshes; everything else runs on the first
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(20161017)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def promotion():
    """What Flax, optax and the layers of others need."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
