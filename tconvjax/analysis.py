"""Properties of a layer's output that follow from its integers and weights, before any image is made.

`traced_field` alone is of whole networks, as JAX traces them.

Phases are counted on the kernel as it is *painted*: w[a] lands on pixel `s·i + a`, so phase p of the full output,
before any crop, is fed by the taps w[p], w[p + s], .. A crop by o pixels shifts which pixel shows which phase and
changes nothing else. Kernels are in the layouts of `tconvjax.conv_transpose`.
"""

from tconvjax._analysis.counts import gradient_coverage as gradient_coverage
from tconvjax._analysis.counts import phase_variance as phase_variance
from tconvjax._analysis.counts import tap_counts as tap_counts
from tconvjax._analysis.laws import adjoint_error as adjoint_error
from tconvjax._analysis.laws import equivariance_error as equivariance_error
from tconvjax._analysis.maps import CenterMap as CenterMap
from tconvjax._analysis.maps import Layer as Layer
from tconvjax._analysis.maps import center_map as center_map
from tconvjax._analysis.maps import overlap_map as overlap_map
from tconvjax._analysis.maps import projective_field as projective_field
from tconvjax._analysis.maps import receptive_field as receptive_field
from tconvjax._analysis.maps import stacked_overlap as stacked_overlap
from tconvjax._analysis.weights import balance as balance
from tconvjax._analysis.weights import harmonic_share as harmonic_share
from tconvjax._analysis.weights import phase_gains as phase_gains
from tconvjax._analysis.weights import zero_order as zero_order
from tconvjax._program.fields import TracedField as TracedField
from tconvjax._program.fields import traced_field as traced_field
