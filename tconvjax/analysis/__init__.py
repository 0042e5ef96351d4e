"""Properties of a layer's output that follow from its integers and weights, before any image is made.

Phases are counted on the kernel as it is *painted*: w[a] lands on pixel `s·i + a`, so phase p of the full output,
before any crop, is fed by the taps w[p], w[p + s], .. A crop by o pixels shifts which pixel shows which phase and
changes nothing else. Kernels are in the layouts of `tconvjax.conv_transpose`.
"""

from tconvjax.analysis._counts import gradient_coverage as gradient_coverage
from tconvjax.analysis._counts import phase_variance as phase_variance
from tconvjax.analysis._counts import tap_counts as tap_counts
from tconvjax.analysis._laws import adjoint_error as adjoint_error
from tconvjax.analysis._laws import equivariance_error as equivariance_error
from tconvjax.analysis._maps import CenterMap as CenterMap
from tconvjax.analysis._maps import Layer as Layer
from tconvjax.analysis._maps import center_map as center_map
from tconvjax.analysis._maps import overlap_map as overlap_map
from tconvjax.analysis._maps import projective_field as projective_field
from tconvjax.analysis._maps import receptive_field as receptive_field
from tconvjax.analysis._maps import stacked_overlap as stacked_overlap
from tconvjax.analysis._weights import balance as balance
from tconvjax.analysis._weights import harmonic_share as harmonic_share
from tconvjax.analysis._weights import phase_gains as phase_gains
from tconvjax.analysis._weights import zero_order as zero_order
