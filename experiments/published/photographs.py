"""Photographs of scikit-image: eight crops to measure networks on, and crops of other pictures to repair them with.

All are RGB in [0, 1]. `halved` makes the input of a network from what it shall restore.
"""

from typing import Any

import jax
import numpy as np
import skimage.data

MEASURED = ("astronaut", "coffee", "rocket", "immunohistochemistry")
OTHERS = (
    "chelsea", "hubble_deep_field", "retina", "colorwheel", "camera", "coins", "moon", "stereo_motorcycle",
)  # fmt: skip
SIZE = 320  # of a measured crop


def measured() -> np.ndarray:
    """Returns eight crops of 320 x 320 pixels, the upper left and the lower right corner of four photographs."""
    pictures = [_picture(name) for name in MEASURED]
    corners = [(p[:SIZE, :SIZE], p[-SIZE:, -SIZE:]) for p in pictures]
    crops: list[Any] = [crop for pair in corners for crop in pair]
    return np.stack(crops)


def others(size: int, count: int) -> np.ndarray:
    """Returns crops of pictures that are not measured, at half their size and random places.

    One of the pictures after the other.

    Args:
      size: pixels along each axis.
      count: number of crops.
    """
    random = np.random.Generator(np.random.PCG64(0))
    pictures = []
    for name in OTHERS:
        picture = _picture(name)
        height, width = (n // 2 * 2 for n in picture.shape[:2])
        pictures.append(np.asarray(halved(picture[None, :height, :width]))[0])
    crops = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        y, x = (int(random.integers(n - size + 1)) for n in picture.shape[:2])
        crops.append(picture[y : y + size, x : x + size])
    return np.stack(crops).astype(np.float32)


def halved(images: Any) -> jax.Array:
    """Returns images at half their size, by cubic interpolation with antialiasing."""
    batch, height, width, channels = images.shape
    return jax.image.resize(images, (batch, height // 2, width // 2, channels), "cubic")


def _picture(name: str) -> np.ndarray:
    found = getattr(skimage.data, name)()
    picture = np.asarray(found[0] if isinstance(found, tuple) else found, np.float32) / 255
    rgb = picture[..., :3] if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1)
    return np.ascontiguousarray(rgb)
