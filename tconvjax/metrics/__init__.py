"""Metrics of checkerboards in images, distances between sets of images, and their values by chance.

Images are channels last, `(*batch, height, width, channels)`, gray ones with one channel. Every real dtype is used
without rescaling: booleans count as 0 and 1, bytes as 0 to 255; half precision and integers calculate in float32.
Energies are summed over channels, so that a colored pattern is not averaged away. Metrics of images keep the batch
axes, one value per image; statistics of a set (`band_contrast`, `coherence`, spectra, distances) treat all batch axes
as one.

Borders are not cropped: before measuring, cut off the pixels that padding spoils, a kernel's extent, at the same place
in all images. Sizes that the period does not divide are cropped at their ends. An image without variance scores 0 in
every metric of a pattern. A pixel that is NaN makes its image NaN, and in a statistic the whole set.

Values are not calibrated against content: compare them with the values of white noise, from `null`, and of real images
of the same kind. Photographs have periods of their own: 8 from JPEG, which the cyclic depths see, 2 from the color
filter of the camera. Every metric is blind to some patterns, which its docstring names; use two of different kinds.
"""

from tconvjax.metrics._features import PrecisionRecall as PrecisionRecall
from tconvjax.metrics._features import frechet_distance as frechet_distance
from tconvjax.metrics._features import kernel_distance as kernel_distance
from tconvjax.metrics._features import precision_recall as precision_recall
from tconvjax.metrics._nulls import Null as Null
from tconvjax.metrics._nulls import null as null
from tconvjax.metrics._periodic import Orientations as Orientations
from tconvjax.metrics._periodic import band_contrast as band_contrast
from tconvjax.metrics._periodic import checkerboard_coefficient as checkerboard_coefficient
from tconvjax.metrics._periodic import coherence as coherence
from tconvjax.metrics._periodic import cyclic_difference_depth as cyclic_difference_depth
from tconvjax.metrics._periodic import cyclic_variance_depth as cyclic_variance_depth
from tconvjax.metrics._periodic import phase_mean_fraction as phase_mean_fraction
from tconvjax.metrics._quality import psnr as psnr
from tconvjax.metrics._quality import ssim as ssim
from tconvjax.metrics._spectra import Detectability as Detectability
from tconvjax.metrics._spectra import detectability as detectability
from tconvjax.metrics._spectra import log_spectral_distance as log_spectral_distance
from tconvjax.metrics._spectra import radial_spectrum as radial_spectrum
