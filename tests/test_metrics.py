"""Image metrics against definitions, planted patterns and nulls."""

import io
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each

from tconvjax import metrics
from tconvjax.metrics import _spectra as spectra

BOARD = (np.indices((32, 32)).sum(0) % 2.0)[..., None]
COLUMNS = (np.indices((32, 32))[1] % 2.0)[..., None]
ROWS = (np.indices((32, 32))[0] % 2.0)[..., None]

# Compiled once for each shape; the doctests run them as they are.
phase_mean_fraction = jax.jit(metrics.phase_mean_fraction, static_argnums=1)
band_contrast = jax.jit(metrics.band_contrast, static_argnums=1)
coherence = jax.jit(metrics.coherence, static_argnums=1)
cyclic_variance_depth = jax.jit(metrics.cyclic_variance_depth, static_argnums=1)
cyclic_difference_depth = jax.jit(metrics.cyclic_difference_depth, static_argnums=1)
checkerboard_coefficient = jax.jit(metrics.checkerboard_coefficient)
radial_spectrum = jax.jit(metrics.radial_spectrum)
log_spectral_distance = jax.jit(metrics.log_spectral_distance)
detectability = jax.jit(metrics.detectability)
psnr, ssim = (jax.jit(f, static_argnums=2) for f in (metrics.psnr, metrics.ssim))
frechet_distance = jax.jit(metrics.frechet_distance)
kernel_distance = jax.jit(metrics.kernel_distance)
precision_recall = jax.jit(metrics.precision_recall, static_argnames="k")


def of_images(x):
    """Every metric with one value per image."""
    return {
        "phase_mean_fraction": metrics.phase_mean_fraction(x, 2),
        "cyclic_variance_depth": metrics.cyclic_variance_depth(x, 2),
        "cyclic_difference_depth": metrics.cyclic_difference_depth(x, 2),
        "checkerboard_coefficient": metrics.checkerboard_coefficient(x),
        "psnr": metrics.psnr(x, x[..., ::-1, :, :], 255.0),
        "ssim": metrics.ssim(x, x[..., ::-1, :, :], 255.0),
    }


def of_sets(x, y):
    """Every statistic of a set of images."""
    return {
        "band_contrast": metrics.band_contrast(x, 2),
        "coherence": metrics.coherence(x, 2),
        "radial_spectrum": metrics.radial_spectrum(x),
        "log_spectral_distance": metrics.log_spectral_distance(x, y),
        "detectability": metrics.detectability(x, y),
    }


run_images, run_sets = jax.jit(of_images), jax.jit(of_sets)


def filtered(x, gain):
    """Multiplies spectra by a function of the frequency along both axes, in cycles per pixel."""
    f = np.fft.fftfreq(x.shape[-2])
    transform = np.fft.fft2(np.asarray(x, np.float64), axes=(-3, -2))
    return np.fft.ifft2(transform * gain(f[:, None], f)[..., None], axes=(-3, -2)).real


def smooth(seed, count=64, size=32):
    """1/f fields with random phases: content without a period."""
    noise = np.random.default_rng(seed).normal(size=(count, size, size, 1))
    x = filtered(noise, lambda v, h: 1 / np.maximum(np.hypot(v, h), 1 / size))
    return x / x.std()


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# Definitions


@each("period", (2, 4, (2, 4)))
def test_phase_mean_fraction_is_the_power_on_the_harmonics(period, key):
    x = jax.random.normal(key, (3, 16, 24, 2))
    power = np.sum(abs(np.fft.fft2(np.asarray(x, np.float64), axes=(1, 2))) ** 2, -1)
    s = (period, period) if isinstance(period, int) else period
    on = power[:, :: 16 // s[0], :: 24 // s[1]].sum((1, 2)) - power[:, 0, 0]
    want = on / (power.sum((1, 2)) - power[:, 0, 0])
    np.testing.assert_allclose(phase_mean_fraction(x, period), want, rtol=1e-4)


@each("period", (2, 4))
def test_coherence_is_the_power_of_the_mean_over_the_mean_power(period):
    x = draw(period, 5, 16, 24, 2) + BOARD[:16, :24]
    transforms = np.fft.fft2(x, axes=(1, 2))
    parts = {name: [0.0, 0.0] for name in ("horizontal", "vertical", "diagonal")}
    for v, h in product(range(period), repeat=2):
        if v % 2 == h % 2 == 0 and (period == 4 or v == h == 0):
            continue  # a harmonic of a shorter period, or the mean
        name = "diagonal" if v and h else "horizontal" if h else "vertical"
        at = transforms[:, v * 16 // period, h * 24 // period]
        parts[name][0] += np.sum(abs(at.mean(0)) ** 2)
        parts[name][1] += np.sum(np.mean(abs(at) ** 2, 0))
    for name, got in coherence(x.astype("f"), period)._asdict().items():
        np.testing.assert_allclose(got, parts[name][0] / parts[name][1], rtol=1e-4)


@each("period", (2, (3, 2), (3,), (2, 2, 2)))
def test_cyclic_depths_are_the_spread_of_phases(period):
    """By loops over pixels and their neighbors inside the image, in one, two and three dimensions."""
    s = (period, period) if isinstance(period, int) else period
    rank = len(s)
    x = draw(rank, 2, *(13, 10, 5)[:rank], 2)
    n = tuple(m // p * p for m, p in zip(x.shape[1:], s, strict=False))
    roughness = {p: [] for p in product(*map(range, s))}
    steps = [{p: [] for p in range(q)} for q in s]

    def beside(i, axis, step):
        return x[(slice(None), *(m + step * (a == axis) for a, m in enumerate(i)))]

    for i in product(*map(range, n)):
        for axis in range(rank):
            if i[axis] + 1 < n[axis]:
                step = beside(i, axis, 1) - beside(i, axis, 0)
                steps[axis][i[axis] % s[axis]].append((step**2).sum(-1))
        if all(0 < m < last - 1 for m, last in zip(i, n, strict=True)):
            around = [beside(i, axis, step) for axis in range(rank) for step in (-1, 1)]
            laplacian = sum(around) - 2 * rank * beside(i, 0, 0)
            phase = tuple(m % p for m, p in zip(i, s, strict=True))
            roughness[phase].append((laplacian**2).sum(-1))

    def depth(phases):  # over the phases, for each image
        means = [np.mean(values, 0) for values in phases.values()]
        return np.std(means, 0) / np.mean(means, 0)

    x = x.astype("f")
    np.testing.assert_allclose(cyclic_variance_depth(x, period), depth(roughness), rtol=1e-4)
    want = np.mean([depth(axis) for axis in steps], 0)
    np.testing.assert_allclose(cyclic_difference_depth(x, period), want, rtol=1e-4)


@pytest.mark.parametrize(
    ("taps", "variance", "difference"),
    [((1, 1), 0, 1), ((1, 2, 1), 1, 0), ((1, 3, 3, 1), 0, 0.6)],
    ids=["nearest", "linear, corners aligned", "linear, edges aligned"],
)
def test_cyclic_depths_of_white_noise_enlarged_twice(taps, variance, difference):
    stuffed = np.zeros((20_000, 2))
    stuffed[:, 0] = draw(0, 20_000)
    x = np.convolve(stuffed.ravel(), taps)[8:-8, None].astype("f")
    np.testing.assert_allclose(cyclic_variance_depth(x, (2,)), variance, atol=0.03)
    np.testing.assert_allclose(cyclic_difference_depth(x, (2,)), difference, atol=0.03)


def test_checkerboard_coefficient_is_the_compact_minus_the_wide_laplacian():
    """As quadratic forms of matrices that act on the pixels of a periodic image."""
    x = draw(0, 3, 6, 8, 2)

    def laplacian(n, reach):
        shift = np.roll(np.eye(n), reach, 0)
        return (2 * np.eye(n) - shift - shift.T) / reach**2

    def form(reach):
        rows = np.einsum("bhwc,hk,bkwc->b", x, laplacian(6, reach), x)
        return rows + np.einsum("bhwc,wk,bhkc->b", x, laplacian(8, reach), x)

    want = (form(1) - form(2)) / form(1)
    np.testing.assert_allclose(checkerboard_coefficient(x.astype("f")), want, rtol=1e-5)


@each("pattern", (BOARD, COLUMNS, ROWS))
def test_checkerboard_coefficient_is_one_at_the_highest_frequency(pattern):
    np.testing.assert_allclose(checkerboard_coefficient(3 - pattern), 1, rtol=1e-6)


@each("shape", ((8, 8), (7, 7), (8, 10), (7, 12)))
def test_radial_spectrum_is_the_mean_over_rings(shape):
    height, width = shape
    x = 1 + draw(0, 3, *shape, 2)
    power = np.sum(abs(np.fft.fft2(x, axes=(1, 2))) ** 2, -1).mean(0) / (height * width)
    rings = {}
    for v, h in product(
        range(-(height // 2), height // 2 + 1), range(-(width // 2), width // 2 + 1)
    ):
        squared = (v * v * width**2 + h * h * height**2) * min(shape) ** 2  # over (H·W)²
        ring = next(r for r in range(99) if squared < ((r + 1) * height * width) ** 2)
        rings.setdefault(ring, []).append(power[v, h])
    want = [np.mean(rings[r]) for r in range(len(rings))]
    np.testing.assert_allclose(radial_spectrum(x.astype("f")), want, rtol=1e-4)


def test_log_spectral_distance_laws():
    x, y = draw(0, 2, 64, 16, 16, 3)
    there, back = log_spectral_distance(x, y), log_spectral_distance(y, x)
    np.testing.assert_allclose(there, back, rtol=1e-4)
    np.testing.assert_allclose(log_spectral_distance(x, x), 0, atol=1e-6)
    np.testing.assert_allclose(log_spectral_distance(x, 10 * x + 5), 20, rtol=1e-4)
    levels = [10 * np.log10(radial_spectrum(z))[1:] for z in (x, y)]
    np.testing.assert_allclose(there, np.sqrt(np.mean((levels[0] - levels[1]) ** 2)), rtol=1e-3)
    gradient = jax.jit(jax.grad(metrics.log_spectral_distance))(jnp.asarray(x, "f"), x.astype("f"))
    assert jnp.isfinite(gradient).all()  # at the minimum, where a square root has no slope


def test_detectability_is_that_of_a_regression_by_another_solver():
    from scipy.optimize import minimize

    a, b = draw(0, 31, 12, 12, 1), 1.05 * draw(1, 22, 12, 12, 1)
    levels = [np.log10([radial_spectrum(x[None].astype("f"))[1:] for x in z]) for z in (a, b)]
    right = []
    for train, test in ((0, 1), (1, 0)):
        seen = [z[train::2] for z in levels]
        x = np.concatenate(seen)
        mean, spread = x.mean(0), x.std(0)
        sign = np.repeat([1, -1], [len(z) for z in seen])
        weight = np.repeat([len(x) / 2 / len(z) for z in seen], [len(z) for z in seen])
        odds = lambda w, x, mean=mean, spread=spread: (x - mean) / spread @ w[:-1] + w[-1]
        loss = lambda w, x=x, s=sign, c=weight, odds=odds: (
            c @ np.logaddexp(0, -s * odds(w, x)) + w[:-1] @ w[:-1] / 2
        )
        w = minimize(loss, np.zeros(x.shape[1] + 1)).x
        judge = spectra._logistic_regression(*(z.astype("f") for z in seen), 1.0)
        np.testing.assert_allclose(judge(x.astype("f")), odds(w, x), atol=2e-3)
        right.append([odds(w, levels[0][test::2]) > 0, odds(w, levels[1][test::2]) < 0])
    want = np.mean([np.concatenate(both).mean() for both in zip(*right, strict=True)])
    got = detectability(a, b)
    assert 0.55 < want < 0.95  # neither chance nor certainty, where all judges agree
    np.testing.assert_allclose(got.accuracy, want, atol=1e-6)
    np.testing.assert_allclose(got.cloaking, 2 - 2 * want, atol=1e-6)


def test_detectability_of_sets_far_apart_and_of_equal_ones():
    x = draw(0, 32, 16, 16, 1)
    assert detectability(x, 100 * x) == (1, 0)  # separable: the ridge keeps the weights finite
    assert detectability(x, x) == (0.5, 1)
    assert detectability(0 * x, 0 * x) == (0.5, 1)


def test_psnr_of_a_known_error():
    x = draw(0, 2, 3, 4, 5, 3).astype("f")
    error = np.array([[0.1, 1, 10], [2, 0, 5]])
    want = [[20, 0, -20], [20 * np.log10(1 / 2), np.inf, 20 * np.log10(1 / 5)]]
    sign = np.sign(draw(1, *x.shape))
    got = psnr(x + error[..., None, None, None] * sign, x)
    np.testing.assert_allclose(got, want, atol=1e-3)
    np.testing.assert_allclose(psnr(x + 0.1 * sign, x, 10.0), 40, atol=1e-3)


def test_ssim_is_the_formula_over_all_windows():
    x, y = draw(0, 2, 2, 13, 17, 3)
    y = 0.7 * x + 0.5 * y + 3  # structure, contrast and level
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))[:, :, None]
    window /= window.sum()
    values = []
    for i, j in product(range(3), range(7)):
        u, v = (z[:, i : i + 11, j : j + 11] for z in (x, y))
        mean = lambda z: (window * z).sum((1, 2))
        u0, v0 = mean(u), mean(v)
        covariance = mean(u * v) - u0 * v0
        variances = mean(u**2) - u0**2 + mean(v**2) - v0**2
        c1, c2 = (0.01 * 4) ** 2, (0.03 * 4) ** 2
        values.append(
            (2 * u0 * v0 + c1) * (2 * covariance + c2) / ((u0**2 + v0**2 + c1) * (variances + c2))
        )
    want = np.mean(values, (0, 2))
    np.testing.assert_allclose(ssim(x.astype("f"), y.astype("f"), 4.0), want, rtol=1e-4)


def test_psnr_and_ssim_equal_scikit_image():
    reference = pytest.importorskip("skimage.metrics")
    x = np.clip(128 + 40 * smooth(0, 3, 32), 0, 255).astype("uint8")[..., 0]
    y = np.clip(x + 10 * draw(0, *x.shape), 0, 255).astype("uint8")
    x, y = (np.moveaxis(z, 0, -1) for z in (x, y))  # three channels
    want = reference.peak_signal_noise_ratio(x, y, data_range=255)
    np.testing.assert_allclose(psnr(y, x, 255.0), want, rtol=1e-5)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    want = reference.structural_similarity(x, y, data_range=255, channel_axis=-1, **options)
    np.testing.assert_allclose(ssim(y, x, 255.0), want, rtol=1e-5)


# Planted patterns


@pytest.mark.parametrize(
    ("pattern", "name"), [(BOARD, "diagonal"), (COLUMNS, "horizontal"), (ROWS, "vertical")]
)
def test_orientations_name_the_axis_of_variation(pattern, name):
    planted = smooth(0) + 0.2 * pattern
    clean = band_contrast(smooth(0), 2)._asdict()
    for orientation, contrast in band_contrast(planted, 2)._asdict().items():
        gain = contrast - clean[orientation]
        assert (gain > 5) if orientation == name else (abs(gain) < 0.5), (orientation, gain)
    for orientation, share in coherence(planted, 2)._asdict().items():
        assert (share > 0.9) == (orientation == name), (orientation, share)


def test_an_exact_pattern_leaves_nothing_in_the_other_orientations():
    contrast, share = band_contrast(BOARD[None], 2), coherence(BOARD[None], 2)
    assert contrast.diagonal > 60
    assert abs(contrast.horizontal) < 3
    assert abs(contrast.vertical) < 3
    assert share == (0, 0, 1)


def test_contrast_is_read_off_faint_patterns_on_a_bright_ground():
    """A pattern a hundred units in the last place high, on a ground of 1: far above rounding."""
    faint = 1e-5 * (smooth(0) + 0.2 * BOARD)
    alone, on_ground = (band_contrast(x.astype("float32"), 2) for x in (faint, faint + 1))
    assert alone.diagonal > 5
    np.testing.assert_allclose(np.stack(on_ground), np.stack(alone), atol=1)
    assert coherence((faint + 1).astype("float32"), 2).diagonal > 0.9


def test_band_contrast_attributes_periods():
    x = smooth(3)
    four = x + 0.3 * np.cos(np.pi / 2 * np.arange(32))[:, None]  # varies along the width
    gain = [np.subtract(band_contrast(four, p), band_contrast(x, p)) for p in (2, 4)]
    assert gain[1][0] > 5
    assert abs(gain[0]).max() < 0.5
    two = np.subtract(band_contrast(x + 0.3 * BOARD, 4), band_contrast(x, 4))
    assert abs(two).max() < 0.5


def test_phase_mean_fraction_sees_color_and_nests(key):
    flat_gray = np.concatenate([BOARD, -BOARD], -1)  # no pattern in the sum of the channels
    assert phase_mean_fraction(flat_gray, 2) == 1
    x = jax.random.normal(key, (4, 32, 32, 3)) + 0.5 * BOARD[None]
    assert (phase_mean_fraction(x, 4) >= phase_mean_fraction(x, 2)).all()
    three = jnp.arange(12.0).reshape(1, 12, 1) % 3
    assert phase_mean_fraction(three, (3,)) == 1  # one axis


def test_jpeg_has_period_8():
    """Blocks of their own make steps between them: content stays, but differences repeat."""
    image = pytest.importorskip("PIL.Image")

    def compressed(x):
        buffer = io.BytesIO()
        image.fromarray(x).save(buffer, "JPEG", quality=20)
        return np.asarray(image.open(buffer))

    plain = np.clip(128 + 40 * smooth(0, 16, 64), 0, 255).astype("uint8")
    jpeg = np.stack([compressed(x) for x in plain[..., 0]])[..., None]
    noise = metrics.null(lambda x: cyclic_difference_depth(x, 8).mean(), jpeg).upper
    assert cyclic_difference_depth(jpeg, 8).mean() > 3 * noise
    assert cyclic_difference_depth(plain, 8).mean() < 1.5 * noise
    assert cyclic_difference_depth(jpeg, 7).mean() < 1.5 * noise


def everything(x, reference):
    """One number for each metric of images, larger where it sees more."""
    return {
        "phase_mean_fraction": metrics.phase_mean_fraction(x, 2).mean(),
        "band_contrast": jnp.stack(metrics.band_contrast(x, 2)).max(),
        "coherence": jnp.stack(metrics.coherence(x, 2)).max(),
        "cyclic_variance_depth": metrics.cyclic_variance_depth(x, 2).mean(),
        "cyclic_difference_depth": metrics.cyclic_difference_depth(x, 2).mean(),
        "checkerboard_coefficient": metrics.checkerboard_coefficient(x).mean(),
        "log_spectral_distance": metrics.log_spectral_distance(x, reference),
        "detectability": metrics.detectability(x, reference).accuracy,
    }


@pytest.fixture(scope="module")
def judged():
    """All metrics of a set beside a reference of white noise, and the 99 % point of white noise."""
    reference = draw(1, 64, 32, 32, 1)
    run = jax.jit(everything)
    upper = metrics.null(run, reference, reference, level=0.99).upper
    return lambda x: {name for name, value in run(x, reference).items() if value > upper[name]}


NOISE, SMALL = draw(2, 64, 32, 32, 1), draw(3, 64, 16, 16, 1)
SIGNS = np.sign(draw(4, 64, 1, 1, 1))
SLOW = lambda v, h: np.exp(-((v**2 + h**2) / 0.06**2)) * (v**2 + h**2 > 0)
FINE = lambda v, h: 1.0 + (abs(abs(v) - 0.36) < 0.06) * (abs(abs(h) - 0.36) < 0.06)
FIELD = 20 * filtered(draw(5, 64, 32, 32, 1), SLOW)  # changes its sign in every image, mean 0
LOUDER = np.where(np.arange(64) % 32 < 2, 8, 8 / 15)[:, None, None, None]  # mean 1
BETWEEN = lambda x, axis: (x + np.roll(x, -1, axis)) / 2
ZIPPED = lambda x, axis: np.insert(x, np.arange(x.shape[axis]) + 1, BETWEEN(x, axis), axis)
SEES = {
    "mean": "phase_mean_fraction",
    "band": "band_contrast",
    "same": "coherence",
    "variance": "cyclic_variance_depth",
    "steps": "cyclic_difference_depth",
    "highest": "checkerboard_coefficient",
    "spectrum": "log_spectral_distance",
    "judge": "detectability",
}
SIGN = 2 * BOARD - 1
BLUR = lambda v, h: np.exp(-np.hypot(v, h) / 3)
PLANTED = {
    "nothing": (NOISE, ""),
    "a checkerboard in all images": (NOISE + 0.06 * SIGN, "mean band same spectrum judge"),
    "one too weak to see in an image": (NOISE + 0.016 * SIGN, "same"),
    "sign changes between images": (NOISE + 0.15 * SIGNS * SIGN, "mean band highest spectrum judge"),
    "sign changes within images": (NOISE + 0.25 * FIELD * SIGN, "band highest spectrum judge"),
    "nearest": (SMALL.repeat(2, 1).repeat(2, 2), "steps spectrum judge"),
    "linear, corners aligned": (ZIPPED(ZIPPED(SMALL, 1), 2), "variance spectrum judge"),
    "blur": (filtered(NOISE, BLUR), "spectrum judge"),
    "fine texture without a period": (filtered(NOISE, FINE), "highest spectrum judge"),
    "a few images louder": (NOISE * np.sqrt(LOUDER), "judge"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANTED)
def test_each_metric_sees_what_others_do_not(case, judged):
    images, seen_by = PLANTED[case]
    assert judged(images) == {SEES[word] for word in seen_by.split()}


def test_psnr_is_blind_to_structure_and_ssim_is_not():
    x = 0.5 + 0.1 * smooth(0, 4)
    brighter, noisy = x + 0.05, x + 0.05 * np.sign(draw(0, *x.shape))
    np.testing.assert_allclose(psnr(brighter, x), psnr(noisy, x), rtol=1e-4)
    assert (ssim(brighter, x) > 0.95).all()
    assert (ssim(noisy, x) < 0.9).all()


def test_feature_distances_see_different_things():
    """Skewed features of equal mean and covariance; copies of a few samples; samples between two modes."""
    real, other = draw(0, 2, 600, 4).astype("f")
    skewed = (np.random.default_rng(1).exponential(size=(600, 4)) - 1).astype("f")
    whiten = lambda x: (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    real, other, skewed = (whiten(x) for x in (real, other, skewed))
    assert abs(frechet_distance(real, skewed)) < 1e-3
    assert kernel_distance(real, skewed) > 5 * abs(kernel_distance(real, other))
    few = real[:20].repeat(30, 0) + 1e-3 * other
    collapsed = precision_recall(real, few)
    assert collapsed.precision > 0.9
    assert collapsed.recall < 0.1
    assert collapsed.coverage < 0.5
    modes = np.sign(real[:, :1]) * [5, 0, 0, 0] + 0.1 * real
    bridge = precision_recall(modes.astype("f"), (5 * other[:, :1] * [1, 0, 0, 0]).astype("f"))
    assert bridge.precision < 0.2
    assert bridge.coverage < 0.2


# Nulls


@pytest.mark.slow
def test_null_is_what_is_known_of_white_noise():
    """Closed forms; 95 and 99 % points of the fraction from its chi-square law with 3 and 15 degrees of freedom."""
    one = jax.ShapeDtypeStruct((32, 32, 1), "float32")

    def statistics(x):
        return {
            "two": metrics.phase_mean_fraction(x, 2),
            "four": metrics.phase_mean_fraction(x, 4),
            "board": metrics.checkerboard_coefficient(x),
            "variance": metrics.cyclic_variance_depth(x, 2),
            "variance of four": metrics.cyclic_variance_depth(x, 4),
            "difference": metrics.cyclic_difference_depth(x, 2),
        }

    null, far = (metrics.null(statistics, one, samples=4000, level=p) for p in (0.95, 0.99))
    mean = {"two": 3 / 1023, "four": 15 / 1023, "board": 0.75}
    mean |= {"variance": 0.067, "variance of four": 0.177, "difference": 0.026}
    for name, want in mean.items():
        np.testing.assert_allclose(null.mean[name], want, rtol=0.05, err_msg=name)
    np.testing.assert_allclose([null.upper["two"], far.upper["two"]], [0.0076, 0.0107], rtol=0.06)
    np.testing.assert_allclose([null.upper["four"], far.upper["four"]], [0.0247, 0.029], rtol=0.06)


@each("count", (8, 32))
def test_null_of_coherence_is_one_over_the_number_of_images(count):
    null = metrics.null(metrics.coherence, np.zeros((count, 8, 8, 1)), 2, samples=4000)
    assert isinstance(null.upper, metrics.Orientations)
    np.testing.assert_allclose(null.mean, 1 / count, rtol=0.06)
    if count == 32:  # the chi-square law of one degree of freedom, for many images
        np.testing.assert_allclose(null.upper, 3.84 / count, rtol=0.08)


def test_null_of_contrast_is_zero_decibel():
    null = metrics.null(metrics.band_contrast, np.zeros((64, 32, 32, 1)), 2)
    np.testing.assert_allclose(null.mean, 0, atol=0.2)
    np.testing.assert_allclose(null.upper, 1.65 * 0.46, rtol=0.3)  # sd 0.46 dB


def test_null_keeps_shapes_and_draws_by_key(key):
    x = np.zeros((3, 8, 8, 1))
    null = metrics.null(metrics.phase_mean_fraction, x, 2, samples=5)
    other = metrics.null(metrics.phase_mean_fraction, x, 2, samples=5, key=key)
    assert null.mean.shape == null.upper.shape == (3,)
    assert (null.mean != other.mean).all()


def test_null_by_permutation():
    """Two different sets stand out from random splits of their union; two of one kind do not."""
    a, b = draw(0, 2, 20, 12, 12, 1).astype("f")

    @jax.jit
    def split_and_null(both):
        split = lambda x: metrics.detectability(x[:20], x[20:]).accuracy
        shuffled = lambda key, _: jax.random.permutation(key, both)
        return split(both), metrics.null(split, both, samples=50, draw=shuffled)

    for factor, differ in ((1, False), (1.2, True)):
        accuracy, null = split_and_null(np.concatenate([a, factor * b]))
        np.testing.assert_allclose(null.mean, 0.5, atol=0.06)
        assert (accuracy > null.upper) == differ


# Inputs


def close(got, want, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), got, want)


@pytest.mark.slow
def test_batch_axes_are_kept_or_taken_as_one():
    x = draw(0, 2, 2, 16, 16, 2).astype("f")
    whole = run_images(x)
    close(jax.jit(jax.vmap(jax.vmap(of_images)))(x), whole, 1e-4)
    assert all(value.shape == (2, 2) for value in whole.values())
    flat = x.reshape(4, 16, 16, 2)
    close(run_sets(x, x[::-1]), run_sets(flat, x[::-1].reshape(flat.shape)), 1e-5)
    none = jax.eval_shape(of_images, flat[:0])
    assert all(value.shape == (0,) for value in none.values())


def test_left_over_pixels_at_the_ends_do_not_count():
    x = draw(0, 3, 17, 19, 1)
    for run in (coherence, phase_mean_fraction, cyclic_variance_depth):
        close(run(x, 2), run(x[:, :16, :18], 2), 1e-6)
    close(checkerboard_coefficient(x), checkerboard_coefficient(x[:, :16, :18]), 1e-6)


@each("dtype", ("uint8", "bool", "int32", "float16", "bfloat16", "float64"))
def test_every_real_dtype_is_taken_as_it_is(dtype):
    x = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, (4, 16, 16, 2))
    x = x.astype(jnp.dtype(dtype))
    same = x.astype("float32")
    for run in (
        lambda x: phase_mean_fraction(x, 2),
        radial_spectrum,
        lambda x: psnr(x, x[::-1], 255.0),
    ):
        close(run(x), run(same), 1e-6)


@pytest.mark.usefixtures("x64")
def test_float32_stays_so_where_float64_is_on():
    x = draw(0, 4, 16, 16, 2)
    for dtype in ("float32", "float64"):
        y = x.astype(dtype)
        shapes = jax.eval_shape(lambda y: (of_images(y), of_sets(y, y)), y)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {dtype}
        for run in (frechet_distance, kernel_distance, lambda *f: precision_recall(*f, k=2)):
            shapes = jax.eval_shape(run, y[:, :, 0, 0], y[:, :, 0, 0])
            assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {dtype}


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_gradients_are_slopes():
    x, y, way = draw(0, 3, 4, 16, 16, 2)

    def smooth_ones(x):
        sets = of_sets(x, y)
        return of_images(x) | {name: v for name, v in sets.items() if name != "detectability"}

    f = jax.jit(lambda step: smooth_ones(x + step * way))
    _, slope = jax.jit(lambda step: jax.jvp(f, (step,), (1.0,)))(0.0)
    difference = jax.tree.map(lambda a, b: (a - b) / 2e-5, f(1e-5), f(-1e-5))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), slope, difference
    )


def test_a_pixel_that_is_nan_makes_its_image_nan_or_the_set():
    x = draw(0, 4, 16, 16, 2).astype("f")
    x[1, 3, 4, 0] = np.nan
    for name, value in run_images(x).items():
        assert np.isnan(value).tolist() == [False, True, False, False], name
    for name, value in run_sets(x, abs(x)).items():
        assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(value)), name
    features = x[:, :, 4, 0]
    values = precision_recall(features, abs(features), k=2)
    assert np.isnan(values).all()


@jax.jit
@jax.grad
def slope_of_patterns(x):
    scores = of_images(x)
    return sum(scores[name].sum() for name in set(scores) - {"psnr", "ssim"})


@each("value", (0, 0.1, 1e4, 7))
def test_images_without_variance_score_zero(value):
    x = np.full((4, 16, 16, 2), value, "f")
    scores = run_images(x)
    assert all((scores[name] == 0).all() for name in set(scores) - {"psnr", "ssim"})
    np.testing.assert_allclose(scores["ssim"], 1, rtol=1e-6)
    sets = run_sets(x, x)
    assert (abs(jnp.stack(sets["band_contrast"])) < 1e-3).all()
    assert sets["coherence"] == (0, 0, 0)
    assert sets["log_spectral_distance"] < 1e-3
    assert jnp.isfinite(slope_of_patterns(x)).all()


def test_rounding_is_no_pattern():
    """A ramp in float32 has no curvature but that of its last digits, a gray one no variance."""
    ramp = np.linspace(0.1, 0.9, 32, dtype="f")[:, None, None] * np.ones((32, 1), "f")
    assert cyclic_variance_depth(ramp, 2) == 0
    assert cyclic_difference_depth(ramp, 2) < 1e-3
    gray = (0.1 + 0.2 * np.ones((32, 32, 1), "f")) * (1 + np.finfo("f").eps * ROWS.astype("f"))
    assert phase_mean_fraction(gray, 2) == 0


# Features


def test_frechet_distance_laws(key):
    x = jax.random.normal(key, (2000, 8)) @ jnp.diag(jnp.arange(1.0, 9))
    shift = jnp.arange(8.0)
    np.testing.assert_allclose(frechet_distance(x, x), 0, atol=0.05)
    np.testing.assert_allclose(frechet_distance(x, x + shift[None]), jnp.sum(shift**2), rtol=1e-3)
    mean = x.mean(0, keepdims=True)
    spread = mean + 2 * (x - mean)
    np.testing.assert_allclose(frechet_distance(x, spread), jnp.trace(jnp.cov(x.T)), rtol=1e-3)


def test_frechet_distance_equals_scipy():
    from scipy.linalg import sqrtm

    a, b = np.random.default_rng(0).normal(size=(2, 200, 5))
    b = b @ np.random.default_rng(1).normal(size=(5, 5))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    want = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    np.testing.assert_allclose(
        frechet_distance(a.astype("float32"), b.astype("float32")), want, rtol=1e-3
    )


def test_kernel_distance_equals_the_double_sum_and_is_unbiased(key):
    a, b = np.random.default_rng(0).normal(size=(2, 20, 4))
    k = lambda u, v: (u @ v / 4 + 1) ** 3
    n = range(20)
    want = sum(k(a[i], a[j]) + k(b[i], b[j]) for i in n for j in n if i != j) / 380
    want -= 2 * sum(k(a[i], b[j]) for i in n for j in n) / 400
    got = kernel_distance(a.astype("float32"), b.astype("float32"))
    np.testing.assert_allclose(got, want, rtol=1e-3)
    sets = jax.random.normal(key, (200, 2, 50, 4))
    distances = jax.jit(jax.vmap(lambda s: kernel_distance(s[0], s[1])))(sets)
    assert abs(distances.mean()) < 3 * distances.std() / np.sqrt(200)
    assert distances.min() < 0


@each("k", (1, 3))
def test_precision_recall_is_the_count_of_balls(k):
    real, fake = draw(0, 30, 2), 0.8 * draw(1, 25, 2) + 0.5
    far = lambda a, b: np.sqrt(np.sum((a - b) ** 2))
    reach = lambda x: [
        sorted(far(x[i], u) for u in np.delete(x, i, 0))[k - 1] for i in range(len(x))
    ]
    distances = np.array([[far(r, f) for f in fake] for r in real])
    in_real = distances < np.array(reach(real))[:, None]
    in_fake = distances < np.array(reach(fake))
    found = [in_real.any(0), in_fake.any(1), in_real.sum(0) / k, in_real.any(1)]
    want = [values.mean() for values in found]
    assert all(0 < value < 1 for value in (want[0], want[1], want[3]))
    got = precision_recall(real.astype("f"), fake.astype("f"), k=k)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@each("ground", (0, 1e3))
def test_precision_recall_of_identical_sets_is_one(ground):
    x = (ground + draw(0, 50, 6)).astype(
        "f"
    )  # also far from 0, where products lose what differences keep
    assert precision_recall(x, x, k=5) == (1, 1, 1, 1)
    assert precision_recall(x, x + 100, k=5) == (0, 0, 0, 0)


@each("dtype", (jnp.bfloat16, jnp.float16))
def test_half_precision_features(dtype, key):
    a = jax.random.normal(key, (50, 4)).astype(dtype)
    np.testing.assert_allclose(frechet_distance(a, a), 0, atol=1e-3)
    assert precision_recall(a, a, k=5).precision == 1


# Refusals

IMAGE, FEATURES = np.zeros((2, 16, 16, 1), "f"), np.zeros((4, 2), "f")
BYTES = IMAGE.astype("uint8")


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.phase_mean_fraction(IMAGE, 1), ValueError, "period must be at least 2"),
        (lambda m: m.phase_mean_fraction(IMAGE[0, 0], 2), ValueError, r"2 spatial axes .* got \(16, 1\)"),
        (lambda m: m.phase_mean_fraction(IMAGE[:, :, :1], 2), ValueError, r"at least one period .* got \(16, 1\)"),
        (lambda m: m.phase_mean_fraction(IMAGE + 0j, 2), TypeError, "must be real; got dtype complex64"),
        (lambda m: m.coherence(IMAGE[:, :3], 4), ValueError, r"coherence: .* at least one period .* got \(3, 16\)"),
        (lambda m: m.coherence(IMAGE[:0], 2), ValueError, r"at least one image; got shape \(0, 16, 16, 1\)"),
        (lambda m: m.cyclic_variance_depth(IMAGE[:, :3], 2), ValueError, r"variance_depth: .* two periods .* \(3, "),
        (lambda m: m.cyclic_difference_depth(IMAGE[:, :3], 2), ValueError, r"difference_depth.* two periods .* \(3, "),
        (lambda m: m.checkerboard_coefficient(IMAGE[:, :1]), ValueError, r"checkerboard_coefficient: .* \(1, 16\)"),
        (lambda m: m.band_contrast(IMAGE[:, :6, :6], 2), ValueError, "need more than 7 pixels"),
        (lambda m: m.radial_spectrum(IMAGE[..., :0]), ValueError, r"at least one channel; got \(2, 16, 16, 0\)"),
        (lambda m: m.log_spectral_distance(IMAGE, IMAGE[:, 1:]), ValueError, r"\(16, 16, 1\) and \(15, 16, 1\)"),
        (lambda m: m.detectability(IMAGE, IMAGE[:1]), ValueError, "at least 2 images.* got 2 and 1"),
        (lambda m: m.detectability(IMAGE, IMAGE, ridge=0), ValueError, "ridge must be positive; got ridge=0"),
        (lambda m: m.psnr(IMAGE, IMAGE[:1]), ValueError, r"psnr.* same shape; got \(2, 16, 16, 1\) and \(1, 16"),
        (lambda m: m.psnr(IMAGE, IMAGE, 0), ValueError, "data_range must be positive; got data_range=0"),
        (lambda m: m.psnr(IMAGE, BYTES), ValueError, "need their range; got dtype uint8 and data_range=1"),
        (lambda m: m.ssim(IMAGE[:, :10], IMAGE[:, :10]), ValueError, "at least 11 pixels .* got 10 x 16"),
        (lambda m: m.null(m.coherence, IMAGE, 2, samples=0), ValueError, "samples must be at least 1"),
        (lambda m: m.null(m.coherence, IMAGE, 2, level=95), ValueError, r"level must be a number in \[0, 1\]"),
        (lambda m: m.null(m.coherence, IMAGE, 32), ValueError, r"coherence: .* at least one period"),
        (lambda m: m.frechet_distance(FEATURES, np.zeros((4, 3))), ValueError, "equal numbers"),
        (lambda m: m.kernel_distance(FEATURES[:1], FEATURES), ValueError, "samples >= 2"),
        (lambda m: m.precision_recall(FEATURES, FEATURES, k=4), ValueError, "more than k=4 samples; got 4 and 4"),
        (lambda m: m.precision_recall(FEATURES, FEATURES, k=0), ValueError, "k must be at least 1"),
    ],
)  # fmt: skip
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(metrics)
