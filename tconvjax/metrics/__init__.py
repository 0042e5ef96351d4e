"""What a checkerboard leaves in images, how far sets of images are apart, and what chance alone would give.

Images are channels last, `(*batch, height, width, channels)`, gray ones with one channel. Every real dtype is taken as
it is, without rescaling: booleans count as 0 and 1, bytes as 0 to 255; half precision and integers calculate in
float32. Energies are summed over channels, so that a colored pattern is not averaged away. Metrics of images keep the
batch axes, one value per image; statistics of a set (`band_contrast`, `coherence`, spectra, distances) take all batch
axes as one.

Borders: nothing is cropped there, so cut off what padding spoils, a kernel's extent, before measuring, at the same
place in all images. Sizes that the period does not divide lose what is left over at their ends. An image without
variance scores 0 in every metric of a pattern. A pixel that is NaN makes its image NaN, in a statistic the whole set.

Values are not calibrated against content: `null` gives those of white noise, real images of the same kind the others.
Photographs have periods of their own: 8 from JPEG, which the cyclic depths see, 2 from the color filter of the camera.
One metric alone is blind to some patterns, as each says; read two of different kind.
"""

from tconvjax.metrics.features import PrecisionRecall as PrecisionRecall
from tconvjax.metrics.features import frechet_distance as frechet_distance
from tconvjax.metrics.features import kernel_distance as kernel_distance
from tconvjax.metrics.features import precision_recall as precision_recall
from tconvjax.metrics.nulls import Null as Null
from tconvjax.metrics.nulls import null as null
from tconvjax.metrics.periodic import Orientations as Orientations
from tconvjax.metrics.periodic import band_contrast as band_contrast
from tconvjax.metrics.periodic import checkerboard_coefficient as checkerboard_coefficient
from tconvjax.metrics.periodic import coherence as coherence
from tconvjax.metrics.periodic import cyclic_difference_depth as cyclic_difference_depth
from tconvjax.metrics.periodic import cyclic_variance_depth as cyclic_variance_depth
from tconvjax.metrics.periodic import phase_mean_fraction as phase_mean_fraction
from tconvjax.metrics.quality import psnr as psnr
from tconvjax.metrics.quality import ssim as ssim
from tconvjax.metrics.spectra import Detectability as Detectability
from tconvjax.metrics.spectra import detectability as detectability
from tconvjax.metrics.spectra import log_spectral_distance as log_spectral_distance
from tconvjax.metrics.spectra import radial_spectrum as radial_spectrum
