"""What every public function does with nonsense: one sentence that names the function and the argument.

Bad values are tried one at a time in a call that is valid without them.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each

import tconvjax
from tconvjax import analysis, initializers, metrics

pytestmark = pytest.mark.refuses
KEY = jax.random.key(0)
X, KERNEL = np.ones((4, 6, 4), "f"), np.ones((3, 3, 4, 4), "f")
IMAGES, FEATURES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)), np.ones((4, 2))
NO_ARRAY = (None, "abc", {}, KEY, [2**70])
HUGE = (2**31, 2**40, 10**30, -(10**30), 10**5000)
INTEGER = (2.5, "2", True, None, *HUGE)
POSITIVE = (0, -1, *INTEGER)
CHOICE = ("nope", 3, None)
BAD = {
    **dict.fromkeys(("x", "kernel", "filter", "indices", "offsets", "images", "reference"), NO_ARRAY),
    **dict.fromkeys(("images_a", "images_b", "features_a", "features_b"), NO_ARRAY),
    **dict.fromkeys(("features_real", "features_fake"), NO_ARRAY),
    **dict.fromkeys(("strides", "kernel_dilation", "feature_group_count", "scale"), POSITIVE),
    **dict.fromkeys(("up", "down", "filter_size", "window", "period", "kernel_size"), POSITIVE),
    **dict.fromkeys(("k", "samples", "surround"), POSITIVE),
    **dict.fromkeys(("input_shape", "spatial_shape"), (*((v, v) for v in POSITIVE), 3, "ab")),
    **dict.fromkeys(("padding_mode", "padding_convention", "implementation", "method"), CHOICE),
    "output_shape": (*((v, v) for v in POSITIVE), 3, (1, 2, 3)),
    "cubic_coeff_a": (None, "a", float("nan"), True),
    "nearest_mode": CHOICE,
    "activation": (None, 3, "relu"),
    "support": (-1, 1, *INTEGER),
    **dict.fromkeys(("cutoff", "width"), (-1, 0, float("nan"), "a", None)),
    "output_padding": (-1, *(v for v in INTEGER if v is not None)),
    "padding": (*INTEGER, "sam", ((1, 2, 3), 0), (1, 2, 3)),
    "radius": (-1, *INTEGER),
    "state": tuple(v for v in NO_ARRAY if v is not None),
    "window_shape": tuple(v for v in POSITIVE if v is not None),
    "precision": ("nope", 3),
    "preferred_element_type": ("int32", "nope", 3),
    "layers": (None, 3, [3], analysis.Layer(3)),
    "shift": (None, 2, *((v, v) for v in INTEGER)),
    "kernels": (None, 3, [KERNEL]),
    "level": (-1, 2, float("nan"), "a", None),
    "ridge": (-1, float("nan"), "a", None),
    "data_range": (-1, 0, float("nan"), "a", None),
}  # fmt: skip
ORDER = {tconvjax.hold: (-1, *INTEGER)}  # elsewhere a choice
PER_AXIS = {"scale", "strides"}  # sequences where no kernel says the rank
SPARED = {  # by design
    "transpose_kernel", "transpose", "aligned", "antialias", "align_corners", "half_pixel_centers",
    "exclude_outside", "f", "ft", "fn", "y", "metric", "args", "key", "draw",
}  # fmt: skip
CALLS = {
    tconvjax.conv: {"x": X, "kernel": KERNEL},
    tconvjax.conv_transpose: {"x": X, "kernel": KERNEL, "padding": 0},
    tconvjax.causal_conv: {"x": X[0], "kernel": KERNEL[0]},
    tconvjax.causal_conv_transpose: {"x": X[0], "kernel": KERNEL[0]},
    tconvjax.conv_transpose_shape: {"spatial_shape": (4, 6), "kernel_size": 3, "padding": 0},
    tconvjax.conv_matrix: {"input_shape": (2, 3, 4), "kernel": KERNEL},
    tconvjax.resize: {"x": X, "scale": (2, 2)},
    tconvjax.resize_conv: {"x": X, "kernel": KERNEL, "scale": 2},
    tconvjax.bilinear_additive: {"x": X, "scale": (2, 2)},
    tconvjax.pixel_shuffle: {"x": X, "scale": (2, 2)},
    tconvjax.pixel_unshuffle: {"x": X, "scale": (2, 2)},
    tconvjax.subpixel_conv: {"x": X, "kernel": KERNEL, "scale": 2},
    tconvjax.pixel_conv_transpose: {"x": X, "kernels": [KERNEL] * 3},
    tconvjax.upfirdn: {"x": X, "filter": np.ones((2, 2), "f")},
    tconvjax.blur_pool: {"x": X, "strides": (2, 2)},
    tconvjax.max_blur_pool: {"x": X, "strides": (2, 2)},
    tconvjax.hold: {"x": X, "scale": (2, 2)},
    tconvjax.filtered_activation: {"x": X, "scale": (2, 2), "activation": jnp.tanh},
    tconvjax.lowpass: {"filter_size": 6, "cutoff": 0.25},
    tconvjax.max_pool: {"x": X, "strides": (2, 2)},
    tconvjax.max_unpool: {"x": X, "indices": X.astype(int), "strides": (2, 2)},
    tconvjax.carafe: {"x": X, "kernels": np.ones((8, 12, 25), "f"), "scale": (2, 2)},
    tconvjax.dysample: {"x": X, "offsets": np.ones((8, 12, 1, 2), "f"), "scale": (2, 2)},
    analysis.tap_counts: {"kernel_size": (3, 3), "strides": (2, 2)},
    analysis.phase_variance: {"kernel_size": (3, 3), "strides": (2, 2)},
    analysis.gradient_coverage: {"kernel_size": (3, 3), "strides": (2, 2)},
    analysis.overlap_map: {"input_shape": (4, 6), "kernel_size": 3, "padding": 0},
    analysis.stacked_overlap: {"input_shape": (4, 6), "layers": [analysis.Layer(3, 2)]},
    analysis.receptive_field: {"input_shape": (4, 6), "layers": [analysis.Layer(3, 2)]},
    analysis.projective_field: {"input_shape": (4, 6), "layers": [analysis.Layer(3, 2)]},
    analysis.center_map: {"kernel_size": (3, 3), "strides": 2},
    analysis.phase_gains: {"kernel": KERNEL, "strides": 2},
    analysis.harmonic_share: {"kernel": KERNEL, "strides": 2},
    analysis.zero_order: {"kernel": KERNEL, "strides": 2},
    analysis.balance: {"kernel": KERNEL, "strides": 2},
    analysis.equivariance_error: {"fn": lambda x: x, "x": X, "shift": (1, 1)},
    analysis.adjoint_error: {"f": lambda x: x, "ft": lambda y: y, "x": X, "y": X},
    metrics.null: {"metric": jnp.mean, "images": IMAGES, "samples": 2},
    metrics.phase_mean_fraction: {"images": IMAGES, "period": 2},
    metrics.cyclic_variance_depth: {"images": IMAGES, "period": 2},
    metrics.cyclic_difference_depth: {"images": IMAGES, "period": 2},
    metrics.band_contrast: {"images": IMAGES, "period": 2},
    metrics.coherence: {"images": IMAGES, "period": 2},
    metrics.checkerboard_coefficient: {"images": IMAGES},
    metrics.radial_spectrum: {"images": IMAGES},
    metrics.log_spectral_distance: {"images_a": IMAGES, "images_b": IMAGES},
    metrics.detectability: {"images_a": IMAGES, "images_b": IMAGES},
    metrics.psnr: {"images": IMAGES, "reference": IMAGES},
    metrics.ssim: {"images": IMAGES, "reference": IMAGES},
    metrics.frechet_distance: {"features_a": FEATURES, "features_b": FEATURES},
    metrics.kernel_distance: {"features_a": FEATURES, "features_b": FEATURES},
    metrics.precision_recall: {"features_real": FEATURES, "features_fake": FEATURES, "k": 1},
}


def bad_values(function, name):
    if name == "order":
        return ORDER.get(function, CHOICE)
    if name == "kernels" and function is tconvjax.carafe:
        return NO_ARRAY
    values = BAD[name]
    if function in {tconvjax.filtered_activation, tconvjax.lowpass} and name == "window":
        return CHOICE
    if function is tconvjax.resize and name == "scale":  # fractions are welcome
        values = tuple(v for v in values if v != 2.5)
    parameters = inspect.signature(function).parameters
    if name in PER_AXIS and "kernel" not in parameters and "kernel_size" not in parameters:
        if function in {analysis.equivariance_error, tconvjax.dysample}:  # an int serves all axes
            return values
        return (*((v, v) for v in values), 2, ())
    return values


@each("function", CALLS)
def test_every_refusal_names_the_function_and_the_argument(function):
    wrong = []
    for name in inspect.signature(function).parameters:
        if name in SPARED:
            continue
        for value in bad_values(function, name):
            try:
                function(**CALLS[function] | {name: value})
                message = "no error"
            except (TypeError, ValueError) as error:
                message = str(error)
            except Exception as error:
                message = repr(error)
            good = message.startswith(f"{function.__name__}: ") and "\n" not in message
            if not (good and name in message):
                wrong.append((name, type(value), message[:200]))
    assert not wrong, "\n".join(map(str, wrong))


KERNELS = {
    initializers.variance_scaling_transpose: {"strides": 2},
    initializers.balanced_transpose: {"strides": 2},
    initializers.icnr_transpose: {"strides": 2},
    initializers.icnr: {"scale": 2},
    initializers.bilinear: {"strides": 2},
}


@each("function", KERNELS)
def test_initializers_name_themselves_and_the_argument(function):
    for name in inspect.signature(function).parameters:
        values = CHOICE if name in {"distribution", "order"} else BAD.get(name, ())
        if name == "scale" and function is initializers.variance_scaling_transpose:
            values = (-1, 0, float("nan"), float("inf"), "a", None, True)
        for value in values:
            with pytest.raises((TypeError, ValueError), match=rf"^{function.__name__}: .*{name}"):
                function(**KERNELS[function] | {name: value})(KEY, (4, 4, 4, 4))


def test_every_public_function_is_in_the_table():
    public = {
        f
        for module in (tconvjax, analysis, metrics)
        for name, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__.startswith("tconvjax") and name[0] != "_"
    }
    others = {
        "accelerate", "audit", "repair", "traced_field",  # of functions, not of values
        "measure",  # of pictures, in test_measure.py
    }  # fmt: skip
    assert {f.__name__ for f in public - set(CALLS)} == others


MOVES = {  # pixels and nothing else, of any dtype
    tconvjax.resize, tconvjax.pixel_shuffle, tconvjax.pixel_unshuffle, tconvjax.max_pool, tconvjax.max_unpool
}  # fmt: skip
CALCULATES = [f for f in CALLS if {"x", "kernel"} & CALLS[f].keys() and f not in MOVES]


@each("dtype", ("float8_e4m3fn", "float8_e5m2"))
@each("function", CALCULATES)
def test_numbers_of_a_few_bits_are_not_calculated_with(function, dtype):
    call = CALLS[function]
    for name, value in call.items():
        if hasattr(value, "dtype"):
            few = jnp.asarray(value, dtype)
            with pytest.raises(TypeError, match=rf"^{function.__name__}: .*{name}.*{dtype}"):
                function(**call | {name: few})


@each("dtype", ("float8_e5m2", "int4", "bool"))
def test_what_moves_pixels_takes_every_dtype(dtype):
    x = jnp.asarray(np.arange(16).reshape(2, 2, 4) % 2, dtype)
    shuffled = tconvjax.pixel_shuffle(x, (2, 2))
    assert shuffled.dtype == dtype
    np.testing.assert_array_equal(tconvjax.pixel_unshuffle(shuffled, (2, 2)), x)
    np.testing.assert_array_equal(tconvjax.resize(x, (2, 1))[::2], x)
    values, indices = tconvjax.max_pool(x, (2, 1))
    assert values.dtype == tconvjax.max_unpool(values, indices, strides=(2, 1)).dtype == dtype


@each("dtype", ("int8", "bool"))
def test_gains_of_integers_are_those_of_their_numbers(dtype):
    kernel = np.ones((3, 3, 2, 2), dtype) * np.asarray(100 if dtype == "int8" else 1, dtype)
    want = analysis.harmonic_share(kernel.astype("f"), 2)
    np.testing.assert_allclose(analysis.harmonic_share(kernel, 2), want)
