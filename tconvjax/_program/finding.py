"""What an audit says of one place of a program."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal[
    "transposed_convolution", "pixel_shuffle", "resize", "strided_convolution", "strided_pool"
]
Severity = Literal["none", "low", "medium", "high"]
SEVERITIES: tuple[Severity, ...] = ("none", "low", "medium", "high")


class Cost(NamedTuple):
    """What a layer costs: multiplications and additions of one call, parameters, input pixels seen along each axis."""

    flops: int
    parameters: int
    receptive_field: tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """One place of a program.

    Attributes:
      kind: what it does.
      severity: 'high' for patterns that weights cannot avoid or that the given weights have strongly, 'medium' for
        patterns of random weights, 'low' for weak ones and for uneven gradients, 'none' for what is clean.
      primitive: name of the operation in the jaxpr.
      kernel_size: taps along each axis; of a pixel shuffle those of the convolution before it, if there is one.
      strides: factor of enlargement, or of reduction, along each axis.
      file: source file of the user's own line, '' if it is not known.
      line: its number, 0 if it is not known.
      message: what is wrong and what to do, in words.
      remedy: what to use instead.
      input_shape: of the image.
      output_shape: of the image.
      overlap_ratio: most over fewest taps that meet a pixel of the large image; inf if some meet none.
      variance_ratio: largest over smallest sum of squared weights of a phase; equal to `overlap_ratio` for random ones.
      harmonic_share: of a constant's output energy on the stride harmonics, in [0, 1]; None if it cannot be known.
      weights: 'given', 'drawn' at random in the shape of the given ones, or 'none'.
      center_shift: pixels of the large image by which the layer displaces it.
      period: of the pattern, in pixels of the function's output, or of the layer's where that is no image.
      cost: of the layer, or None.
      remedy_cost: of the remedy, or None.
    """

    kind: Kind
    severity: Severity
    primitive: str
    kernel_size: tuple[int, ...] | None
    strides: tuple[int, ...]
    file: str
    line: int
    message: str
    remedy: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    overlap_ratio: float
    variance_ratio: float
    harmonic_share: float | None
    weights: Literal["given", "drawn", "none"]
    center_shift: tuple[float, ...]
    period: tuple[int, ...]
    cost: Cost | None = None
    remedy_cost: Cost | None = None
