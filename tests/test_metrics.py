"""Image metrics against definitions, planted patterns and nulls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each

from tconvjax import metrics

BOARD = (np.indices((32, 32)).sum(0) % 2.0)[..., None]
COLUMNS = (np.indices((32, 32))[1] % 2.0)[..., None]
ROWS = (np.indices((32, 32))[0] % 2.0)[..., None]


def smooth(seed, count=64, size=32):
    """1/f fields with random phases: content without a period."""
    noise = np.random.default_rng(seed).normal(size=(count, size, size))
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    f[0, 0] = 1
    x = np.fft.ifft2(np.fft.fft2(noise) / f).real
    return (x / x.std())[..., None]


@each("period", (2, 4, (2, 4)))
def test_phase_mean_fraction_is_the_power_on_the_harmonics(period, key):
    x = jax.random.normal(key, (3, 16, 24, 2))
    power = np.sum(abs(np.fft.fft2(np.asarray(x, np.float64), axes=(1, 2))) ** 2, -1)
    s = (period, period) if isinstance(period, int) else period
    on = power[:, :: 16 // s[0], :: 24 // s[1]].sum((1, 2)) - power[:, 0, 0]
    want = on / (power.sum((1, 2)) - power[:, 0, 0])
    np.testing.assert_allclose(metrics.phase_mean_fraction(x, period), want, rtol=1e-4)


@pytest.mark.parametrize(("period", "null"), [(2, 0.00293), (4, 0.01466), (8, 0.0616)])
def test_phase_mean_fraction_of_white_noise(period, null, key):
    x = jax.random.normal(key, (512, 32, 32, 1))
    np.testing.assert_allclose(metrics.phase_mean_fraction(x, period).mean(), null, rtol=0.1)


def test_phase_mean_fraction_sees_color_and_nests_and_crops(key):
    flat_gray = np.concatenate([BOARD, -BOARD], -1)  # no pattern in the sum of the channels
    assert metrics.phase_mean_fraction(flat_gray, 2) == 1
    x = (
        jax.random.normal(key, (4, 33, 31, 3))
        + 0.5 * np.pad(BOARD, ((0, 1), (0, 0), (0, 0)))[None, :, :31]
    )
    two, four = (metrics.phase_mean_fraction(x, p) for p in (2, 4))
    assert (four >= two).all()
    np.testing.assert_allclose(two, metrics.phase_mean_fraction(x[:, :32, :30], 2), rtol=1e-6)
    assert (
        metrics.phase_mean_fraction(jnp.arange(12.0).reshape(1, 12, 1) % 3, (3,)) == 1
    )  # one axis


@each("value", (0, 0.1, 1e4, 7))
def test_images_without_variance_score_zero(value):
    x = jnp.full((2, 16, 16, 3), value)
    assert (metrics.phase_mean_fraction(x, 2) == 0).all()
    assert (abs(jnp.stack(metrics.band_contrast(x, 2))) < 1e-3).all()
    gradient = jax.grad(lambda x: metrics.phase_mean_fraction(x, 2).sum())(x.astype(float))
    assert jnp.isfinite(gradient).all()


def test_uint8_images(key):
    x = jax.random.randint(key, (3, 16, 16, 3), 0, 256).astype(jnp.uint8)
    np.testing.assert_allclose(
        metrics.phase_mean_fraction(x, 2),
        metrics.phase_mean_fraction(x.astype(float) / 255, 2),
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("pattern", "name"), [(BOARD, "diagonal"), (COLUMNS, "horizontal"), (ROWS, "vertical")]
)
def test_band_contrast_names_the_axis_of_variation(pattern, name):
    clean = metrics.band_contrast(smooth(0), 2)._asdict()
    planted = metrics.band_contrast(smooth(0) + 0.2 * pattern, 2)._asdict()
    for orientation in clean:
        gain = planted[orientation] - clean[orientation]
        assert (gain > 5) if orientation == name else (abs(gain) < 0.5), (orientation, gain)


def test_an_exact_pattern_leaves_nothing_in_the_other_orientations():
    contrast = metrics.band_contrast(BOARD[None], 2)
    assert contrast.diagonal > 60
    assert abs(contrast.horizontal) < 3
    assert abs(contrast.vertical) < 3


def test_contrast_is_read_off_faint_patterns_on_a_bright_ground():
    """A pattern a hundred units in the last place high, on a ground of 1: far above rounding."""
    faint = 1e-5 * (smooth(0) + 0.2 * BOARD)
    alone, on_ground = (metrics.band_contrast(x.astype("float32"), 2) for x in (faint, faint + 1))
    assert alone.diagonal > 5
    np.testing.assert_allclose(np.stack(on_ground), np.stack(alone), atol=1)


def test_phase_means_are_blind_to_a_pattern_with_changing_sign():
    fields, modulation = smooth(1, size=64), smooth(2, size=64)
    board = (np.indices((64, 64)).sum(0) % 2 - 0.5)[..., None]
    sign_changing = fields + 0.2 * modulation * board
    null = metrics.phase_mean_fraction(fields, 2).mean()
    assert metrics.phase_mean_fraction(sign_changing, 2).mean() < 3 * null + 1e-3
    assert metrics.band_contrast(sign_changing, 2).diagonal > 5


def test_band_contrast_attributes_periods():
    x = smooth(3)
    four = x + 0.3 * np.cos(np.pi / 2 * np.arange(32))[:, None]  # varies along the width
    gain = [
        np.subtract(metrics.band_contrast(four, p), metrics.band_contrast(x, p)) for p in (2, 4)
    ]
    assert gain[1][0] > 5
    assert abs(gain[0]).max() < 0.5
    two = np.subtract(metrics.band_contrast(x + 0.3 * BOARD, 4), metrics.band_contrast(x, 4))
    assert abs(two).max() < 0.5


def test_band_contrast_of_white_noise_is_zero_decibel(key):
    x = jax.random.normal(key, (256, 32, 32, 1))
    for period in (2, 4):
        assert max(abs(float(v)) for v in metrics.band_contrast(x, period)) < 1


def test_metrics_are_jittable(key):
    x = jax.random.normal(key, (4, 32, 32, 1))
    jitted = jax.jit(lambda x: (metrics.phase_mean_fraction(x, 2), metrics.band_contrast(x, 4)))(x)
    eager = (metrics.phase_mean_fraction(x, 2), metrics.band_contrast(x, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), jitted, eager)


def test_frechet_distance_laws(key):
    x = jax.random.normal(key, (2000, 8)) @ jnp.diag(jnp.arange(1.0, 9))
    shift = jnp.arange(8.0)
    np.testing.assert_allclose(metrics.frechet_distance(x, x), 0, atol=0.05)
    np.testing.assert_allclose(
        metrics.frechet_distance(x, x + shift[None]), jnp.sum(shift**2), rtol=1e-3
    )
    mean = x.mean(0, keepdims=True)
    spread = mean + 2 * (x - mean)
    np.testing.assert_allclose(
        metrics.frechet_distance(x, spread), jnp.trace(jnp.cov(x.T)), rtol=1e-3
    )


def test_frechet_distance_equals_scipy():
    from scipy.linalg import sqrtm

    a, b = np.random.default_rng(0).normal(size=(2, 200, 5))
    b = b @ np.random.default_rng(1).normal(size=(5, 5))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    want = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    np.testing.assert_allclose(
        metrics.frechet_distance(a.astype("float32"), b.astype("float32")), want, rtol=1e-3
    )


def test_kernel_distance_equals_the_double_sum_and_is_unbiased(key):
    a, b = np.random.default_rng(0).normal(size=(2, 20, 4))
    k = lambda u, v: (u @ v / 4 + 1) ** 3
    n = range(20)
    want = sum(k(a[i], a[j]) + k(b[i], b[j]) for i in n for j in n if i != j) / 380
    want -= 2 * sum(k(a[i], b[j]) for i in n for j in n) / 400
    got = metrics.kernel_distance(a.astype("float32"), b.astype("float32"))
    np.testing.assert_allclose(got, want, rtol=1e-3)
    sets = jax.random.normal(key, (200, 2, 50, 4))
    distances = jax.vmap(lambda s: metrics.kernel_distance(s[0], s[1]))(sets)
    assert abs(distances.mean()) < 3 * distances.std() / np.sqrt(200)
    assert distances.min() < 0


@each("dtype", (jnp.bfloat16, jnp.float16))
def test_half_precision_features(dtype, key):
    a = jax.random.normal(key, (50, 4)).astype(dtype)
    np.testing.assert_allclose(metrics.frechet_distance(a, a), 0, atol=1e-3)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: metrics.phase_mean_fraction(jnp.zeros((4, 4, 1)), 1),
            ValueError,
            "period must be at least 2",
        ),
        (
            lambda: metrics.phase_mean_fraction(jnp.zeros((4, 4)), 2),
            ValueError,
            "with 2 spatial axes",
        ),
        (
            lambda: metrics.phase_mean_fraction(jnp.zeros((4, 1, 1)), 2),
            ValueError,
            "at least one period",
        ),
        (
            lambda: metrics.phase_mean_fraction(jnp.zeros((4, 4, 1), complex), 2),
            TypeError,
            "must be real",
        ),
        (
            lambda: metrics.band_contrast(jnp.zeros((1, 6, 6, 1)), 2),
            ValueError,
            "need more than 7 pixels",
        ),
        (
            lambda: metrics.frechet_distance(jnp.zeros((4, 2)), jnp.zeros((4, 3))),
            ValueError,
            "equal numbers",
        ),
        (
            lambda: metrics.kernel_distance(jnp.zeros((1, 2)), jnp.zeros((4, 2))),
            ValueError,
            "samples >= 2",
        ),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
