"""Repair of whole networks on data: the pattern of the output fades, the output stays, and so does everything else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from flax import nnx

import tconvjax.linen
import tconvjax.nnx
from tconvjax import conv, conv_transpose, metrics, pixel_shuffle, repair
from tconvjax._repair.bands import Bands

RNG = np.random.default_rng(0)


def images(count=12, size=16, features=4, seed=0):
    """Noise and a mean: a pattern on a constant reaches the output."""
    rng = np.random.default_rng(seed)
    means = rng.normal(2, 0.5, (count, 1, 1, features))
    return jnp.float32(means + 0.3 * rng.normal(size=(count, size, size, features)))


def planted(*shape, phases=1.15):
    """A smooth kernel k4 s2 with one phase that is too strong."""
    taps = np.array([1.0, 3.0, 3.0, 1.0]) / 4
    kernel = taps[:, None, None, None] * taps[:, None, None] * RNG.normal(1, 0.3, shape)
    kernel[::2, ::2] *= phases
    return jnp.float32(kernel)


def contrast(y):
    return max(float(c) for c in metrics.band_contrast(y[:, 4:-4, 4:-4], 2))


def up(params, x, **options):
    return conv_transpose(x, params["up"]["kernel"], 2, padding=1, **options)


def network(params, x):
    """Two convolutions around the layer that enlarges; the last one makes the image."""
    y = jax.nn.relu(conv(x, params["before"]["kernel"]))
    y = jax.nn.relu(up(params, y))
    return conv(y, params["after"]["kernel"])


def weights():
    return {
        "before": {"kernel": jnp.float32(RNG.normal(0.2, 0.2, (3, 3, 4, 4)))},
        "up": {"kernel": planted(4, 4)},
        "after": {"kernel": jnp.float32(RNG.normal(0.1, 0.1, (3, 3, 4, 2)))},
        "name": "static",
        "scale": 2.0,
        "none": None,
    }


def same(a, b, but=()):
    """Whether all leaves but some are the same objects."""
    pairs = zip(jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b), strict=True)
    return all(x is y for (path, x), (_, y) in pairs if f"params{jax.tree_util.keystr(path)}" not in but)  # fmt: skip


def test_a_planted_pattern_fades_on_other_data_and_nothing_else_changes():
    params = weights()
    found = repair(network, params, images())
    path = "params['up']['kernel']"
    assert list(found.layers) == [path]
    assert found.before - found.after > 5
    assert same(params, found.params, but=[path])
    assert not np.array_equal(params["up"]["kernel"], found.params["up"]["kernel"])
    other = images(seed=1)
    before, after = network(params, other), network(found.params, other)
    assert contrast(before) - contrast(after) > 5
    assert float(jnp.std(after - before) / jnp.std(before)) < 0.1
    assert 0 < found.change < 0.1
    assert 0 < found.layers[path].change < 0.3


def test_strength_zero_changes_nothing():
    params = weights()
    found = repair(network, params, images(), strength=0)
    assert same(params, found.params)
    assert found.layers == {}
    assert found.before == found.after


def test_more_strength_removes_more_and_changes_more():
    found = [
        repair(up, {"up": {"kernel": planted(4, 2)}}, images(), strength=s) for s in (0.003, 3)
    ]
    weak, strong = found
    assert strong.after < weak.after - 1
    assert weak.change < strong.change


def test_a_network_without_pattern_stays():
    params = {"up": {"kernel": planted(4, 2, phases=1)}}
    found = repair(up, params, images())
    assert same(params, found.params)
    assert "takes" in found.skipped["params['up']['kernel']"]


def test_channels_first_is_the_same():
    def first(params, x):
        numbers = jax.lax.conv_dimension_numbers(x.shape, (4, 4, 4, 2), ("NCHW", "HWIO", "NCHW"))
        return jax.lax.conv_general_dilated(
            x, params["up"]["kernel"], (1, 1), [(2, 2)] * 2, (2, 2), dimension_numbers=numbers
        )

    params, x = {"up": {"kernel": planted(4, 2)}}, images()
    last = repair(up, params, x, strength=0.03)
    found = repair(first, params, x.transpose(0, 3, 1, 2), strength=0.03)
    assert found.before == pytest.approx(last.before, abs=0.01)
    # The steps are few, and preconditioned by gradients for other random outputs.
    assert found.after == pytest.approx(last.after, abs=1)
    assert found.before - found.after > 5


def test_the_power_of_a_pattern_is_that_of_its_waves_beyond_noise():
    i = np.arange(64)
    waves = 0.3 * (-1.0) ** (i[:, None] + i) + 0.1 * (-1.0) ** i[:, None]
    y = 5 + waves[..., None] + 0.05 * np.random.default_rng(0).normal(size=(4, 64, 64, 2))
    assert Bands(jnp.float32(y), {1: 2, 2: 2}).pattern == pytest.approx(0.3**2 + 0.1**2, rel=0.02)
    noise = Bands(jnp.float32(y - waves[..., None]), {1: 2, 2: 2})
    assert noise.pattern < 1e-4


def test_a_pixel_shuffle_is_repaired_by_the_convolution_before_it():
    kernel = RNG.normal(0.2, 0.1, (3, 3, 4, 1)) * np.array([1.2, 1, 1, 1])
    params = {"conv": jnp.float32(kernel)}
    fn = lambda params, x: pixel_shuffle(conv(x, params["conv"]), (2, 2))
    found = repair(fn, params, images())
    assert list(found.layers) == ["params['conv']"]
    assert found.before - found.after > 5


@each("options", [{"feature_group_count": 2}, {"kernel_dilation": (3, 1), "padding": (2, 1)}])
def test_grouped_and_dilated_kernels_stay_so(options):
    groups = options.get("feature_group_count", 1)
    params = {"up": planted(4 // groups, 2)}
    fn = lambda params, x: conv_transpose(x, params["up"], 2, **({"padding": 1} | options))
    found = repair(fn, params, images())
    assert found.params["up"].shape == params["up"].shape
    assert found.before - found.after > 3


def test_a_kernel_is_followed_through_casts_and_its_dtype_stays(monkeypatch):
    # Rounding to 8 bits decides over steps, and with them over data: these are the same in any order of tests.
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))
    fn = lambda params, x: conv_transpose(x, params["up"].swapaxes(2, 3).astype(x.dtype), 2)
    params = {"up": planted(4, 2).swapaxes(2, 3).astype(jnp.bfloat16)}
    found = repair(fn, params, images())
    assert found.params["up"].dtype == jnp.bfloat16
    assert found.before - found.after > 3


def test_tied_weights_stay_tied():
    kernel = planted(4, 2)
    fn = lambda params, x: conv_transpose(x, params["a"] / 2 + params["b"] / 2, 2)
    found = repair(fn, {"a": kernel, "b": kernel}, images())
    assert found.params["a"] is found.params["b"]
    again = repair(fn, found.params, images(), strength=0)
    assert again.before == pytest.approx(found.after, abs=0.01)
    assert found.before - found.after > 5


def test_the_layer_that_makes_the_pattern_is_found():
    """Of two layers that enlarge, the flat one stays, bit by bit."""

    def fn(params, x):
        return conv_transpose(conv_transpose(x, params["one"], 2), params["two"], 2)

    params = {"one": planted(4, 4, phases=1), "two": planted(4, 2, phases=1.2)}
    found = repair(fn, params, images(size=8))
    assert "params['two']" in found.layers
    assert found.before - found.after > 3
    only = repair(fn, params, images(size=8), layers=["params['two']"])
    assert list(only.layers) == ["params['two']"]
    assert only.params["one"] is params["one"]
    assert only.skipped == {"params['one']": "not named"}


def test_signals_of_one_axis():
    taps = np.array([1.0, 3.0, 3.0, 1.0])[:, None, None] * RNG.normal(1, 0.2, (4, 3, 2))
    taps[::2] *= 1.2
    x = jnp.float32(RNG.normal(1, 0.2, (8, 64, 3)))
    fn = lambda params, x: conv_transpose(x, params, 2, padding=1)
    found = repair(fn, jnp.float32(taps), x)
    assert list(found.layers) == ["params"]
    assert found.before - found.after > 3


def test_a_kernel_that_is_none_of_the_params_is_named_by_its_line():
    kernel = planted(4, 2)
    found = repair(lambda _, x: conv_transpose(x, kernel, 2), {}, images())
    ((where, why),) = found.skipped.items()
    assert "test_repair.py:" in where
    assert why == "a kernel that is not made of the params"


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(repair, 3, {}), "fn must be callable; got an object of type int"),
        (partial(repair, up, {}, strength=-1), "strength must be >= 0 .*strength=-1"),
        (partial(repair, up, {}, iterations=0), "and iterations >= 1; .*iterations=0"),
        (
            lambda: repair(up, {"up": {"kernel": planted(4, 2)}}, images(), layers=["up"]),
            r"layers must be among \[\"params\['up'\]\['kernel'\]\"\]; got \['up'\]",
        ),
        (
            lambda: repair(up, {"up": {"kernel": planted(4, 2)}}, jnp.ones((1, 3, 3, 4))),
            "at least 4 periods along each axis; got shape .1, 6, 6, 2.",
        ),
    ],
)
def test_refuses_with_the_rule_and_the_values(call, message):
    error = TypeError if "callable" in message else ValueError
    with pytest.raises(error, match=message):
        call()


def test_an_nnx_model_is_repaired_in_place():
    layer = tconvjax.nnx.ConvTranspose(4, 2, (4, 4), 2, padding=1, rngs=nnx.Rngs(0))
    layer.kernel[...] = planted(4, 2)
    bias, x = layer.bias, images()
    before = layer(x)
    found = tconvjax.nnx.repair(layer, x)
    assert found.before - found.after > 5
    assert contrast(before) - contrast(layer(x)) > 5
    assert layer.bias is bias


def test_linen_variables_are_repaired():
    layer = tconvjax.linen.ConvTranspose(2, (4, 4), 2, padding=1)
    variables = {"params": {"kernel": planted(4, 2), "bias": jnp.zeros(2)}}
    found = tconvjax.linen.repair(layer, variables, images())
    assert list(found.layers) == ["params['params']['kernel']"]
    assert found.before - found.after > 5
    assert found.params["params"]["bias"] is variables["params"]["bias"]


@pytest.mark.refuses
@each("peer, other", [("nnx", "linen"), ("linen", "nnx")])
def test_models_of_the_other_kind_are_refused(peer, other):
    with pytest.raises(TypeError, match=rf"got int. For .*: tconvjax\.{other}\.repair"):
        getattr(tconvjax, peer).repair(3, {})
