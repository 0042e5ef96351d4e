"""The family of upsamplers under one call, and what experiments measure of it before any training."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from flax import nnx

from experiments.fields import power_law
from experiments.tasks import (
    blur_ladder,
    equivariance,
    initialization,
    inverse,
    superposition,
    superresolution,
    tones,
)
from experiments.training import Length, make_train
from experiments.upsamplers import Downsampler, Upsampler, downsampler, upsampler, wrong
from tconvjax import max_pool
from tconvjax.analysis import phase_gains

pytestmark = pytest.mark.usefixtures("promotion")
FAMILY = get_args(Upsampler)


@each("name", FAMILY)
def test_all_double_and_flat_ones_keep_constants_flat(name):
    k = (4, 4) if name.startswith("conv_transpose") else (3, 3)
    module = upsampler(name, 8, 3, k, (2, 2), padding_mode="circular", rngs=nnx.Rngs(0))
    y = jax.jit(lambda x: module(x))(jnp.broadcast_to(jnp.arange(1.0, 9), (2, 6, 6, 8)))
    assert y.shape == (2, 12, 12, 3)
    flat = float((y.std((1, 2)) / jnp.abs(y).max()).max()) < 1e-5
    assert flat == (name in initialization.FLAT or name == "conv_transpose_icnr")


@each("name", get_args(Downsampler))
def test_downsamplers_halve_and_keep_constants_flat(name):
    module = downsampler(name, 4, (3, 3), (2, 2), nnx.Rngs(0))
    y = module(jnp.ones((2, 12, 12, 4)))
    assert y.shape == (2, 6, 6, 4)
    assert float(y[:, 2:-2, 2:-2].std((1, 2)).max()) < 1e-6


def test_unpooling_goes_where_the_pooling_was():
    image = jax.random.normal(jax.random.key(0), (1, 8, 8, 2))
    values, indices = max_pool(image, (2, 2))
    module = upsampler("unpool_conv", 2, 2, (1, 1), (2, 2), rngs=nnx.Rngs(0))
    module.conv.kernel[...] = jnp.eye(2)[None, None]
    y = module(values, indices)
    np.testing.assert_array_equal(y[y != 0], image[y != 0])
    assert (y != 0).sum() == values.size


@pytest.mark.refuses
def test_what_an_entry_cannot_have_is_refused():
    for name, features, k, scale, rank, said in (
        (
            "pixel_conv_transpose",
            8,
            3,
            3,
            2,
            "doubles images and nothing else; got scale 3, rank 2",
        ),
        ("pixel_conv_transpose", 8, 4, 2, 2, "an odd kernel size; got 4"),
        ("bilinear_additive_conv", 6, 3, 2, 2, "a multiple of 4 features to add; got 6"),
        ("conv_transpose_balanced", 8, 2, 3, 1, "a tap in every phase; got kernel size 2, scale 3"),
    ):
        assert said in wrong(name, features, k, scale, rank)
    options = {"upsampler": "bilinear_additive_conv", "kernel_size": 3, "features": 6}
    for task in (initialization, equivariance, superresolution):
        (error,) = task.Options(**options).errors()
        assert error.startswith("upsampler: 'bilinear_additive_conv' needs a multiple of 4")


@pytest.mark.usefixtures("x64")
@each("kernel_size", (3, 4, 5))
def test_predicted_shares_are_those_of_many_kernels(kernel_size):
    """In expectation; of ICNR beside independent weights. Gains as the weights have them, no layer at work."""
    for name, scale in (
        ("conv_transpose", 2),
        ("conv_transpose_icnr", 2),
        ("conv_transpose_icnr", 3),
    ):
        options = initialization.Options(name, kernel_size)
        module = upsampler(name, 100, 100, (kernel_size,) * 2, (scale,) * 2, rngs=nnx.Rngs(0))
        gains = phase_gains(module.kernel[...], scale)  # (s, s, in, out)
        gains = np.asarray(gains).reshape(scale**2, -1)
        share = gains.var(0).sum() / (gains**2).mean(0).sum()
        assert abs(share - initialization.predicted_share(options, 2, scale)) < 0.01
    cropped = initialization.Options("conv_transpose_icnr", 3)
    assert initialization.predicted_share(cropped, 2, 2) == pytest.approx(11 / 36)


@pytest.mark.usefixtures("x64")
@each("name", ("conv_transpose", "subpixel_conv", "resize_conv_linear", "conv_transpose_hold_1"))
def test_measured_shares_follow_the_law(name, monkeypatch):
    # What is constant and wrapped around is so at any size.
    monkeypatch.setitem(initialization.SMALL, 2, 4)
    options = initialization.Options(name, 4 if "transpose" in name else 3)
    module = upsampler(
        name, 64, 64, (options.kernel_size,) * 2, (2, 2), padding_mode="circular", rngs=nnx.Rngs(0)
    )
    share = initialization.share_on_constants(module, jax.random.key(0), 64, 2, 2)
    tolerance = 0.02 if name in ("conv_transpose", "subpixel_conv") else 1e-12
    assert abs(share - initialization.predicted_share(options, 2, 2)) < tolerance


def test_fields_have_the_spectrum_they_are_named_after():
    x = power_law(jax.random.key(0), (64, 64, 64, 1))
    np.testing.assert_allclose(x.var(), 1, rtol=0.05)
    np.testing.assert_allclose(x.mean((1, 2)), 0, atol=1e-5)
    power = (jnp.abs(jnp.fft.fft2(x, axes=(1, 2))) ** 2).mean((0, 3))
    np.testing.assert_allclose(power[0, 4] / power[0, 16], 16, rtol=0.5)


def measured(module, options):
    found = jax.jit(lambda key: module.measure(options, key)[0])(jax.random.key(0))
    return {n: float(v) for n, v in found.items()}


@pytest.mark.slow
@pytest.mark.optimized  # a difference of decibels that agrees to 1e-9, else to 1e-8
@pytest.mark.usefixtures("x64")
@each(
    ("name", "decibel"),
    [("conv_transpose", -3.5), ("resize_conv", 7.6), ("resize_conv_linear", 19.7)],
)
def test_shifts_by_half_a_pixel_fail_by_the_energy_of_the_copies(name, decibel):
    options = equivariance.Options(name, 4 if name == "conv_transpose" else 1, features=4)
    found = measured(equivariance, options)
    assert found["shift_error_1"] < 1e-12
    assert found["deviation_from_identity_db"] < 1e-9
    assert abs(found["fractional_shift_db"] - decibel) < 1.5


@pytest.mark.usefixtures("x64")
def test_levels_keep_shifts_by_their_strides_alone():
    options = equivariance.Options("resize_conv", 3, "max_pool", levels=2, features=4)
    found = measured(equivariance, options)
    assert found["shift_error_4"] < 1e-12
    assert found["shift_error_8"] < 1e-12
    assert min(found["shift_error_1"], found["shift_error_2"]) > 0.1


@each(("holds", "scale"), [(0, 2), (1, 2), (2, 3), (3, 4)])
def test_copies_fade_with_one_power_of_the_wavelength_per_hold(holds, scale):
    found = measured(blur_ladder, blur_ladder.Options(holds, scale, features=16))
    assert abs(found["order"] - holds) < 0.05


@pytest.mark.usefixtures("x64")
@each(
    ("adjoint", "eigenvalue"),
    [("matched", 0.339), ("flipped", -0.321), ("shifted_1", 0.0), ("shifted_2", -0.339)],
)
def test_iterations_converge_with_the_adjoint_alone(adjoint, eigenvalue):
    found = {}
    for method in ("landweber", "conjugate_gradients"):
        task = inverse.make_task(inverse.Options(method, adjoint), None, 50)
        train = make_train(task, Length(50, 50))
        state, _ = jax.jit(train.__call__)(jax.random.key(0))
        found[method] = task.evaluate(state, jax.random.key(0))[0]
    assert abs(found["landweber"]["smallest_eigenvalue"] - eigenvalue) < 1e-3
    residuals = [float(at["relative_residual"]) for at in found.values()]
    if adjoint == "matched":
        assert residuals[0] < 1e-10
        assert residuals[1] < 1e-12
    else:
        assert residuals[0] > (0.01 if adjoint == "shifted_1" else 1e3)
        assert residuals[1] > 0.08


@pytest.mark.usefixtures("x64")
def test_fields_of_point_sources_are_as_exact_as_the_kernel_is_long():
    errors = {
        radius: measured(superposition, superposition.Options(radius))["relative_error"]
        for radius in (8, 16)
    }
    rate = np.arccosh(1 + superposition.DECAY**2 / 2)  # of a line of sources
    assert errors[8] < 0.02
    np.testing.assert_allclose(np.log(errors[8] / errors[16]) / 8, rate, rtol=0.1)
    assert measured(superposition, superposition.Options(16, off_by=1))["relative_error"] > 0.5


def test_greens_function_solves_the_equation_of_one_source():
    g = superposition.greens_function(20)
    applied = (4 + superposition.DECAY**2) * g
    for shift, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
        applied = applied - np.roll(g, shift, axis)
    source = np.zeros_like(g)
    source[20, 20] = 1
    np.testing.assert_allclose(applied[1:-1, 1:-1], source[1:-1, 1:-1], atol=1e-12)


@pytest.mark.slow
def test_tones_come_from_layers_with_unequal_phases_and_from_biases():
    found = {
        name: measured(tones, tones.Options(**options, features=8))
        for name, options in {
            "painted": {"upsampler": "conv_transpose"},
            "silent": {"upsampler": "conv_transpose", "biases": False},
            "linear": {"upsampler": "conv_transpose", "biases": False, "relus": "neither"},
            "nearest": {"upsampler": "resize_conv", "kernel_size": 3},
        }.items()
    }
    assert found["painted"]["tones_in_silence"] == pytest.approx(1, abs=1e-4)
    assert found["silent"]["tones_in_silence"] == found["nearest"]["tones_in_silence"] == 0
    assert found["painted"]["tones_in_noise_2"] > 20 * found["nearest"]["tones_in_noise_2"]
    assert found["painted"]["tone_db_2"] > 10 > 3 > found["linear"]["tone_db_2"]
    assert found["nearest"]["tone_db_2"] < -10


def test_the_level_of_a_tone_is_that_of_its_bin_over_its_neighbors():
    noise = jax.random.normal(jax.random.key(0), (64, 1024, 1))
    power = tones.spectrum(noise)
    assert abs(tones.tone(power, 4)) < 1.5
    tone = 4 * jnp.cos(jnp.pi / 2 * jnp.arange(1024))[None, :, None]
    # A Hann window lets noise into a bin and a half: 16 / 2 / 2 n over 1.5.
    expected = 10 * np.log10(16 / 4 * 1024 / 1.5)
    assert abs(tones.tone(tones.spectrum(noise + tone), 4) - expected) < 1.5
    assert abs(tones.tone(tones.spectrum(noise + tone), 2)) < 1.5
