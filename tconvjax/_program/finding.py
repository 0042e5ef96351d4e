"""The result of an audit at one place of a program."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal[
    "transposed_convolution",
    "pixel_shuffle",
    "resize",
    "strided_convolution",
    "strided_pool",
    "not_understood",
]
Severity = Literal["none", "low", "medium", "high"]
SEVERITIES: tuple[Severity, ...] = ("none", "low", "medium", "high")


class Cost(NamedTuple):
    """Cost of a layer: multiplications and additions of one call, parameters, receptive field in pixels per axis."""

    flops: int
    parameters: int
    receptive_field: tuple[int, ...]


class Measured(NamedTuple):
    """What a resampler does on given data.

    Attributes:
      share: share of the energy of its result on the stride harmonics, in [0, 1].
      rms: root mean square of what its periodic part contributes to the output, in units of the output.
      contrast: power of the output near the harmonics, over that without the periodic part, in dB: the band contrast
        that the resampler is responsible for. Negative where it cancels patterns of other layers.
      visible: `rms` over the range of the output, largest minus smallest value.
    """

    share: float
    rms: float
    contrast: float
    visible: float


@dataclass(frozen=True)
class Finding:
    """A resampler of a program: what enlarges an image, with the filters and sums up to the next nonlinear operation.

    Attributes:
      kind: kind of operation; 'not_understood' for one that hides what it does.
      severity: 'high' where output pixels receive unequal numbers of taps, 'medium' where weights alone are uneven,
        'low' for uneven gradients and what is not understood, 'none' where a constant stays constant. Gradients that
        leave pixels out are 'medium'.
      primitive: name of the operation in the jaxpr.
      kernel_size: taps along each axis; for a pixel shuffle, those of the convolution before it, or None.
      strides: factor of enlargement or reduction along each axis.
      file: source file of the user's own line, '' if unknown.
      line: its number, 0 if unknown.
      message: the fault and its remedy, in words.
      remedy: suggested replacement.
      input_shape: shape of the small image.
      output_shape: shape of the image after the operation.
      overlap_ratio: largest over smallest number of taps of a pixel of the large image, by the operation alone; inf if
        some pixel has none.
      variance_ratio: largest over smallest sum of squared weights of a phase; `overlap_ratio` for random weights.
      harmonic_share: share of a constant's output energy on the stride harmonics behind the resampler, in [0, 1]; None
        if unknown.
      weights: 'given', 'drawn' at random in the shape of the given ones, or 'none'.
      center_shift: displacement of the image by the layer, in pixels of the large image.
      period: period of the pattern, in pixels of the function's output, or of the layer's if that is no image.
      cost: cost of the layer, or None.
      remedy_cost: cost of the remedy, or None.
      layer: path of the module, 'Generator/ConvTranspose_2', or of its weights in the arguments or in what the function
        closes over, "params['up']['kernel']", 'm.6.weight'; '' if unknown.
      count: number of times that the program has it.
      measured: what it does on given data, if the program was run; None else, and inside of loops.
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
    layer: str = ""
    count: int = 1
    measured: Measured | None = None
