"""Convolutions of XLA, read as one of the three faces.

Along each axis the three arrays of a convolution of XLA meet in

    lhs[m]  rhs[o]  out[a]        where        s·a + d·o − low = t·m

with t = lhs_dilation, s = window_strides, d = rhs_dilation. An array whose coefficient is 1 may be the big image, and
each of the two others the kernel; for every such reading one of the three faces computes the result.
"""

from math import inf, prod
from typing import Any, NamedTuple

from tconvjax._geometry import Geometry, kernel_extent

# The letters of XLA's arrays, in the order of its specs: batch and features, or outputs and inputs.
SPECS = {"lhs": "NC", "rhs": "OC", "out": "NO"}


class Reading(NamedTuple):
    """A convolution of XLA as a face.

    Attributes:
      arrays: which of 'lhs', 'rhs' and 'out' is x, w and y.
      axes: axes of each array in the face's layout, without its stack axis; for a flipped kernel, in and out swapped.
      flipped: the array that is read backwards in space, if any.
      geometry: geometry of the face.
    """

    arrays: dict[str, str]
    axes: dict[str, tuple[int, ...]]
    flipped: str | None
    geometry: Geometry


class Groups(NamedTuple):
    """Groups of a convolution, as that many convolutions without groups.

    Attributes:
      number: of groups.
      axes: axis of lhs, rhs and out that is split among them; the groups are its slow part.
      lhs: shape of lhs in one group, as also `rhs` and `out`.
      params: parameters of the convolution of one group.
    """

    number: int
    axes: tuple[int, int, int]
    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    out: tuple[int, ...]
    params: dict[str, Any]


def groups_apart(
    lhs: tuple[int, ...], rhs: tuple[int, ...], out: tuple[int, ...], params: dict[str, Any]
) -> Groups | None:
    """Returns the groups of a convolution as problems of their own, in which any array may be the kernel.

    None if it has none. The arguments are those of `read`.
    """
    numbers = params["dimension_numbers"]
    of_features, of_batch = params["feature_group_count"], params["batch_group_count"]
    number = of_features * of_batch
    if number == 1:
        return None
    axes = (numbers.lhs_spec[int(of_features > 1)], numbers.rhs_spec[0], numbers.out_spec[1])
    lhs, rhs, out = (
        (*shape[:axis], shape[axis] // number, *shape[axis + 1 :])
        for shape, axis in zip((lhs, rhs, out), axes, strict=True)
    )
    one = {"feature_group_count": 1, "batch_group_count": 1}
    return Groups(number, axes, lhs, rhs, out, params | one)


def read(
    lhs: tuple[int, ...],
    rhs: tuple[int, ...],
    out: tuple[int, ...],
    params: dict[str, Any],
    *,
    kernel_is_rhs: bool = False,
) -> Reading | None:
    """Reads a convolution of XLA, given by the shapes of its arrays and its parameters, as one of the faces.

    The big image is the array with the largest extent among those whose coefficient is 1 along every axis; the kernel
    is the one with the smaller extent of the two others. Here n elements with the coefficient c extend over
    c(n − 1) + 1 pixels. With groups, the kernel is the array that holds only one group's share of a letter; with
    `kernel_is_rhs` it is rhs, as in a layer, even if the image is smaller. Any such choice is exact; this one is the
    convolution's role in a network:

        big lhs, kernel rhs    gather       a convolution
        big out, kernel rhs    paint        a transposed convolution, or the gradient of a convolution
        big lhs, kernel out    correlate    the kernel gradient of a convolution
        big rhs, kernel out    correlate    the kernel gradient of a transposed convolution

    JAX makes the two other ones, with the kernel in lhs, for derivatives of kernel gradients.
    """
    numbers = params["dimension_numbers"]
    specs = {"lhs": numbers.lhs_spec, "rhs": numbers.rhs_spec, "out": numbers.out_spec}
    size = {
        name: tuple(shape[axis] for axis in specs[name][2:])
        for name, shape in (("lhs", lhs), ("rhs", rhs), ("out", out))
    }
    step = {
        "lhs": params["lhs_dilation"],
        "rhs": params["rhs_dilation"],
        "out": params["window_strides"],
    }
    if not size["lhs"] or 0 in (*lhs, *rhs, *out):
        return None

    def extent(name: str) -> float:
        sizes = kernel_extent(size[name], step[name])
        return prod(sizes) if all(isinstance(n, int) for n in sizes) else inf  # symbolic: an image

    kernels = ["rhs", "out", "lhs"]
    if params["feature_group_count"] > 1 or kernel_is_rhs:
        kernels = ["rhs"]
    if params["batch_group_count"] > 1:
        kernels = ["out"]

    def unspread() -> list[str]:
        return [n for n in ("lhs", "out", "rhs") if set(step[n]) == {1} and [n] != kernels]

    bigs = unspread()
    if not bigs:  # a single pixel is not spread, whatever its step
        for name, sizes in size.items():
            step[name] = tuple(1 if n == 1 else s for n, s in zip(sizes, step[name], strict=True))
        bigs = unspread()
    if not bigs:
        return None
    big = max(bigs, key=extent)
    kernel = min((name for name in kernels if name != big), key=extent)
    (small,) = {*SPECS} - {big, kernel}
    arrays = {"x": big, "w": kernel, "y": small}

    # s·a + d·o − low = t·m, solved for the big image and with the negative term counted from its end.
    flipped = {"lhs": None, "out": "rhs", "rhs": "out"}[big]
    lows = [low for low, _ in params["padding"]]
    if flipped:
        ends = kernel_extent(size[flipped], step[flipped])
        lows = [end - 1 - low for end, low in zip(ends, lows, strict=True)]

    # Each of batch, in and out is shared by two arrays.
    axes = {}
    for role, others in (("x", "yw"), ("w", "xy"), ("y", "xw")):
        name = arrays[role]
        first, last = (
            specs[name][
                next(i for i, letter in enumerate(SPECS[name]) if letter in SPECS[arrays[o]])
            ]
            for o in others
        )
        space = specs[name][2:]
        if role == "w":
            axes[name] = (*space, *((last, first) if name == flipped else (first, last)))
        else:
            axes[name] = (first, *space, last)
    geometry = Geometry(
        big=size[big],
        small=size[small],
        kernel_size=size[kernel],
        strides=tuple(step[small]),
        kernel_dilation=tuple(step[kernel]),
        offset=tuple(lows),
        feature_group_count=params["feature_group_count"] * params["batch_group_count"],
    )
    return Reading(arrays, axes, flipped, geometry)
