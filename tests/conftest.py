"""Strict JAX for all tests, and what the tables of cases need."""

import os
import shutil
import tempfile
from collections import Counter

import jax
import pytest

# Thousands of small programs run once each: they compile in 40 % of the time without LLVM's optimizer. `make test-all`
# sets XLA_FLAGS, which then holds, so that optimized numbers are tested, too.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    if jax.__version_info__ < (0, 11):  # XLA aborts on a flag that it does not know, or no longer
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)  # for meshes; everything else runs on the first
jax.config.update("jax_enable_compilation_cache", False)  # that of the commands, below
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """Lets the commands that tests run share what they compile, all of one session and no longer."""
    if not hasattr(config, "workerinput") and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="tconvjax-tests-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # XLA doubts that the machine is the same
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, so that no worker has one alone at the end."""
    length = Counter(item.path for item in items)
    length.update(item.path for item in items if item.get_closest_marker("slow") for _ in range(20))
    items.sort(key=lambda item: -length[item.path])


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
