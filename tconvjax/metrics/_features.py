"""Distances between two sets of features: by Gaussians, by kernels, by neighborhoods.

The caller computes the features; no network is part of these functions. Values of different features are not
comparable.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tconvjax import _geometry as geo
from tconvjax._arguments import as_array
from tconvjax.metrics import _arrays as arrays


class PrecisionRecall(NamedTuple):
    """Fidelity (precision, density) and diversity (recall, coverage) of one set against another."""

    precision: jax.Array
    recall: jax.Array
    density: jax.Array
    coverage: jax.Array


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> jax.Array:
    """Returns the squared Fréchet distance of two Gaussians fitted to sets of features.

    `|m_a − m_b|² + tr S_a + tr S_b − 2 tr (S_a^½ S_b S_a^½)^½`. It is called FID only for features of the Inception
    network. Biased upwards by roughly 0.6·dim²/n for unit features: compare sets of equal size, beside two halves of
    real data. Blind to all but means and covariances.

    Args:
      features_a: `(samples, features)`, more samples than features for a meaningful covariance.
      features_b: the same number of features.

    Returns:
      A scalar >= 0 up to rounding, in squared units of the features.

    Raises:
      ValueError: unless both are two-dimensional with equal numbers of features and at least 2 samples.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (500, 4))
      >>> print(f"{frechet_distance(x, x + jnp.array([[3.0, 0, 0, 0]])):.2f}")
      9.00

    References:
      Heusel et al. 2017, arXiv:1706.08500.
    """
    a, b = _features("frechet_distance", features_a=features_a, features_b=features_b)
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
    values, vectors = jnp.linalg.eigh(cov_a)
    root_a = arrays.product(vectors * jnp.sqrt(jnp.maximum(values, 0))[None], vectors.T)
    cross = jnp.linalg.eigvalsh(arrays.product(arrays.product(root_a, cov_b), root_a))
    return (
        jnp.sum((mean_a - mean_b) ** 2)
        + jnp.trace(cov_a)
        + jnp.trace(cov_b)
        - 2 * jnp.sum(jnp.sqrt(jnp.maximum(cross, 0)))
    )


def kernel_distance(features_a: ArrayLike, features_b: ArrayLike) -> jax.Array:
    """Returns the unbiased squared maximum mean discrepancy with the kernel `(x·y/dim + 1)³`.

    It is called KID only for features of the Inception network. Unbiased, so it may be slightly negative for equal
    distributions. Sees third moments, too, to which `frechet_distance` is blind. Blind to what the
    features leave out.

    Args:
      features_a: `(samples, features)`.
      features_b: the same number of features.

    Returns:
      A scalar.

    Raises:
      ValueError: unless both are two-dimensional with equal numbers of features and at least 2 samples.

    Example:
      >>> a, b = jax.random.normal(jax.random.key(0), (2, 500, 4))
      >>> abs(float(kernel_distance(a, b))) < 0.1 < float(kernel_distance(a, b + 1))
      True

    References:
      Binkowski et al. 2018, arXiv:1801.01401.
    """
    a, b = _features("kernel_distance", features_a=features_a, features_b=features_b)

    def k(u: jax.Array, v: jax.Array) -> jax.Array:
        return (arrays.product(u, v.T) / u.shape[1] + 1) ** 3

    def off_diagonal_mean(u: jax.Array) -> jax.Array:
        gram = k(u, u)
        return (gram.sum() - jnp.trace(gram)) / (len(u) * (len(u) - 1))

    return off_diagonal_mean(a) + off_diagonal_mean(b) - 2 * k(a, b).mean()


def precision_recall(
    features_real: ArrayLike, features_fake: ArrayLike, *, k: int = 5
) -> PrecisionRecall:
    """Returns precision, recall, density and coverage of a set: its likeness to the real one, and its diversity.

    Every sample has a ball that reaches to its k-th neighbor in its own set, without the border. Precision: part of the
    fakes in some real ball. Recall: part of the reals in some fake ball. Density: mean number of real balls around a
    fake, over k. Coverage: part of the reals with a fake in their ball. Separates samples that are missing from samples
    that are out of place, for which `frechet_distance` gives one number. Outliers with wide balls raise precision and
    recall, but not density and coverage. Blind to what the features leave out.

    Args:
      features_real: `(samples, features)`.
      features_fake: the same number of features. A collapsed set has recall and coverage near 0.
      k: neighbors, from 1 to below the samples of both sets. Only values of the same k and sizes are comparable.

    Returns:
      Scalars in [0, 1], density in [0, samples/k]; all 1 for identical sets of distinct samples. Not differentiable.

    Raises:
      ValueError: unless both are two-dimensional with equal numbers of features, or for too few samples.

    Example:
      >>> real = jax.random.normal(jax.random.key(0), (200, 2))
      >>> half = real[real[:, 0] > 0]  # all genuine, but one side is missing
      >>> print("%.2f %.2f %.2f %.2f" % precision_recall(real, half))
      1.00 0.68 1.02 0.64

    References:
      Naeem et al. 2020, arXiv:2002.09797; precision and recall of Kynkäänniemi et al. 2019, arXiv:1904.06991.
    """
    who = "precision_recall"
    real, fake = _features(who, features_real=features_real, features_fake=features_fake)
    geo.positive_int(who, "k", k)
    if k >= min(len(real), len(fake)):
        raise ValueError(
            f"{who}: both sets must have more than k={k} samples; got {len(real)} and {len(fake)}. Use a smaller k."
        )

    def radius(x: jax.Array) -> jax.Array:
        others = jnp.where(jnp.eye(len(x), dtype=bool), jnp.inf, _squared_distances(x, x))
        return jnp.sort(others, 1)[:, k - 1]

    distances = _squared_distances(real, fake)
    in_real = distances < radius(real)[:, None]
    in_fake = distances < radius(fake)[None]
    result = PrecisionRecall(
        precision=in_real.any(0).mean(dtype=real.dtype),
        recall=in_fake.any(1).mean(dtype=real.dtype),
        density=in_real.sum(0).mean(dtype=real.dtype) / k,
        coverage=in_real.any(1).mean(dtype=real.dtype),
    )
    undefined = jnp.isnan(distances).any()  # comparisons hide a NaN
    return jax.tree.map(lambda value: jnp.where(undefined, jnp.nan, value), result)


def _squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """`|a_i − b_j|²`, row by row from differences: products of large features would not give 0 for equal ones."""
    return jax.lax.map(lambda row: jnp.sum((b - row[None]) ** 2, -1), a)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean = x.mean(0)
    y = x - mean[None]
    return mean, arrays.product(y.T, y) / (len(x) - 1)


def _features(who: str, **sets: ArrayLike) -> tuple[jax.Array, jax.Array]:
    a, b = (as_array(who, name, f) for name, f in sets.items())
    if any(jnp.issubdtype(f.dtype, jnp.complexfloating) for f in (a, b)):
        raise TypeError(f"{who}: features must be real; got {a.dtype} and {b.dtype}.")
    a, b = (arrays.at_least_float32(f) for f in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"{who}: features must be two arrays (samples >= 2, features) with equal numbers of features; got shapes "
            f"{a.shape} and {b.shape}."
        )
    return a, b
