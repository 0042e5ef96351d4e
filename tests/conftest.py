"""Strict JAX for all tests, and what the tables of cases need."""

import gc
import os
import shutil
import tempfile
from collections import Counter

import jax
import pytest

# Tests and the commands that they run share what they compile: all of one session, or what the folder of the caller
# holds from another.
OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="tconvjax-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # XLA doubts that the machine is the same
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# Thousands of small programs run once each: they compile in 40 % of the time without LLVM's optimizer, and in less
# where LLVM has one module for each, not 32. `make test-all` sets XLA_FLAGS for the tests marked `optimized`, and then
# these hold.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = (
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        " --xla_cpu_parallel_codegen_split_count=1"
    )
    if jax.__version_info__ < (0, 11):  # XLA aborts on a flag that it does not know, or no longer
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)  # for meshes; everything else runs on the first
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


collect_ignore = ["peers"]  # models that need their framework


def pytest_configure(config: pytest.Config) -> None:
    """Removes what no later session shall find."""
    if OWN_CACHE:
        folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


# Seconds that few tests take beyond a third of one each, or, marked slow, beyond seven.
LONG = {
    "test_experiment.py": 170, "test_sweep.py": 100, "test_tasks.py": 150, "test_cluster.py": 80,
    "test_results.py": 60, "test_transforms.py": 50, "test_metrics.py": 35, "layers.md": 30,
    "test_meshes.py": 15, "test_upsamplers.py": 15, "README.md": 15, "audit_and_repair.md": 12,
    "repair.md": 12,
}  # fmt: skip


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, so that no worker has one alone at the end."""
    length = Counter(item.path for item in items)
    length.update(item.path for item in items if item.get_closest_marker("slow") for _ in range(20))
    length.update({path: 3 * LONG.get(path.name, 0) for path in length})
    items.sort(key=lambda item: -length[item.path])


@pytest.fixture(scope="module", autouse=True)
def settled():
    """Keeps what JAX remembers of a file out of every later search for garbage, which took a tenth of the time."""
    yield
    gc.collect()
    gc.freeze()


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
