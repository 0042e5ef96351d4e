"""Resize and Upsample of ONNX as the function `resize`."""

from collections.abc import Mapping, Sequence
from typing import Any

from tconvjax import _geometry as geo
from tconvjax.interop._converted import Converted

UPSAMPLING = ("mode", "scales")
RESIZING = (
    "antialias",
    "axes",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "extrapolation_value",  # of 'tf_crop_and_resize' alone
    "keep_aspect_ratio_policy",
    "mode",
    "nearest_mode",
)
COORDINATES: dict[str, dict[str, Any]] = {
    "half_pixel": {},
    "pytorch_half_pixel": {},  # but for results of one pixel
    "half_pixel_symmetric": {},  # but for fractional scales
    "align_corners": {"align_corners": True},  # but for fractional scales
    "asymmetric": {"half_pixel_centers": False},
}


def as_resize(
    who: str,
    attributes: Mapping[str, Any],
    scales: Sequence[float] | None,
    sizes: Sequence[float] | None,
) -> Converted:
    """Returns a node Resize, from opset 11 on, as the function `resize`.

    Args:
      who: the converter, for error messages.
      attributes: of the node.
      scales: one per axis; None if the graph computes them.
      sizes: of the result, one per axis, those of the batch and of the channels first; None without them.
    """
    read = lambda name, default: attributes.get(name, default)
    mode = geo.choice(who, "mode", read("mode", "nearest"), ("nearest", "linear", "cubic"))
    coordinates = geo.choice(
        who,
        "coordinate_transformation_mode",
        read("coordinate_transformation_mode", "half_pixel"),
        tuple(COORDINATES),
    )
    leading = _leading(who, attributes)
    arguments: dict[str, Any] = {}
    if scales is not None:
        arguments["scale"] = _spatial(who, "scales", scales, leading)
    elif sizes is not None:
        policy = read("keep_aspect_ratio_policy", "stretch")
        geo.choice(who, "keep_aspect_ratio_policy", policy, ("stretch",))
        arguments["output_shape"] = _spatial(who, "sizes", sizes, leading)
    factors = arguments.get("scale", ())
    whole = bool(factors) and all(isinstance(f, int) for f in factors)
    fixed = whole or min(arguments.get("output_shape", (0,))) > 1
    if not fixed and coordinates not in {"half_pixel", "asymmetric"}:
        raise ValueError(
            f"{who}: {coordinates!r} is that of tconvjax.resize by whole scales, or to known sizes beyond one pixel; "
            f"got {arguments or 'what the graph computes'}. Give these as initializers."
        )
    nearest = geo.choice(
        who,
        "nearest_mode",
        read("nearest_mode", "round_prefer_floor"),
        ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    )
    options = COORDINATES[coordinates]
    if mode == "nearest":
        geo.choice(who, "antialias of 'nearest'", str(read("antialias", 0)), ("0",))
        copies = nearest.startswith("round") if not options else nearest == "floor"
        if whole and copies and "align_corners" not in options:  # every pixel s times
            return Converted("resize", arguments | {"method": mode}, {})
        return Converted("resize", arguments | {"method": mode, "nearest_mode": nearest} | options, {})  # fmt: skip
    if (
        whole and mode == "linear" and not options
    ):  # nothing to antialias; a border repeated or left out is the same
        return Converted("resize", arguments | {"method": mode}, {})
    options = options | {
        "antialias": bool(read("antialias", 0)),
        "exclude_outside": bool(read("exclude_outside", 0)),
    }
    if mode == "cubic":
        options["cubic_coeff_a"] = round(
            float(read("cubic_coeff_a", -0.75)), 6
        )  # stored in float32
    return Converted("resize", arguments | {"method": mode} | options, {})


def as_upsample(who: str, attributes: Mapping[str, Any], scales: Sequence[float] | None) -> Converted:  # fmt: skip
    """Returns a node Upsample, or Resize of opset 10, as the function `resize`."""
    mode = attributes.get("mode", "nearest")
    arguments = {} if scales is None else {"scale": _spatial(who, "scales", scales, None)}
    whole = all(isinstance(f, int) for f in arguments.get("scale", (0.5,)))
    if mode != "nearest" or not whole:
        raise ValueError(
            f"{who}: Upsample, and Resize of opset 10, must repeat pixels, as runtimes disagree about the rest; got "
            f"mode={mode!r}, scales={'computed' if scales is None else tuple(scales)}. Convert the model to opset 11."
        )
    return Converted("resize", arguments | {"method": "nearest"}, {})


def _leading(who: str, attributes: Mapping[str, Any]) -> int | None:
    """Returns 0 if the attribute `axes` names the spatial axes alone, and None without it."""
    axes = attributes.get("axes")
    if axes is None:
        return None
    if tuple(axes) != tuple(range(2, 2 + len(axes))) or not axes:
        raise ValueError(
            f"{who}: axes must be those of space, in order, from 2 on; got axes={tuple(axes)}. Write (2, 3) for images."
        )
    return 0


def _spatial(who: str, name: str, values: Sequence[float], leading: int | None) -> tuple[Any, ...]:
    """Returns the numbers of the spatial axes, whole ones as ints."""
    numbers = tuple(int(v) if v == int(v) else float(v) for v in values)
    spatial = numbers if leading == 0 else numbers[2:]
    moved = leading is None and name == "scales" and numbers[:2] != (1, 1)
    if not spatial or moved or min(spatial) <= 0:
        raise ValueError(
            f"{who}: {name} must be positive, 1 for batch and channels, and one per spatial axis; got {name}="
            f"{numbers}. Resize the spatial axes alone."
        )
    return spatial
