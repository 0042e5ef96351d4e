"""Data sets in files of the user: an npz archive, or a folder of images."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from experiments.data.source import Arrays, arrays

SUFFIXES = (".png", ".jpg", ".jpeg")


def npz(path: str, image: str = "image", label: str = "label", mask: str = "mask") -> Arrays:
    """Reads the arrays of an npz archive, records along their first axis.

    Args:
      path: of the file.
      image: the name of the array of images.
      label: of that of labels; 'label' may be missing.
      mask: of that of masks; 'mask' may be missing.

    Raises:
      ValueError: if the file cannot be read, or the arrays are not there or none of images.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array without a name")
        with archive:
            optional = {"label": label, "mask": mask}
            wanted = {"image": image} | {
                key: name for key, name in optional.items() if name != key or name in archive
            }
            for name in wanted.values():
                if name not in archive:
                    raise ValueError(f"no array {name!r}; it holds {', '.join(archive) or 'none'}")
            columns = {key: archive[name] for key, name in wanted.items()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be used: {error}") from None
    return arrays(**columns)


def folder(path: str, size: int | None = None, masks: str | None = None) -> Arrays:
    """Reads the PNG and JPEG files of a folder, or of its sub-folders, whose names are then the labels.

    Args:
      path: of the folder; files are taken in the order of their names.
      size: pixels along each axis: images are scaled to cover a square and cropped around its center. Without it, all
        must have one size.
      masks: folder of PNG files with the names of the images; values are numbered in their order.

    Raises:
      ValueError: if there are no images, or a file cannot be read or does not fit the others.
    """
    if size is not None and size < 1:
        raise ValueError(f"size: must be at least 1, got {size}")
    root = Path(path)
    classes = _classes(root)
    files = [file for files in classes.values() for file in files]
    images = [_opened(file, size) for file in files]
    color = any(image.mode != "L" for image in images)  # then all are
    columns: dict[str, Any] = {
        "image": _stack(files, [image.convert("RGB") if color else image for image in images])
    }
    if list(classes) != [root]:
        columns["label"] = np.repeat(np.arange(len(classes)), [len(f) for f in classes.values()])
    if masks is not None:
        paths = [Path(masks) / file.relative_to(root).with_suffix(".png") for file in files]
        columns["mask"] = _stack(paths, [_opened(file, size, mask=True) for file in paths])
    return arrays(**columns)


def _classes(root: Path) -> dict[Path, list[Path]]:
    """Returns images by the folder they lie in."""
    if not root.is_dir():
        raise ValueError(f"{root}: is no folder")
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    here = _images(root)
    if not folders and not here:
        raise ValueError(f"{root}: holds no images; expected files *.png, *.jpg or *.jpeg")
    if not folders:
        return {root: here}
    if here:
        raise ValueError(
            f"{root}: holds images, such as {here[0].name}, beside folders, such as {folders[0].name}. Move them into "
            "folders, whose names are the labels, or elsewhere"
        )
    classes = {folder: _images(folder) for folder in folders}
    for folder, files in classes.items():
        if not files:
            raise ValueError(f"{folder}: holds no images, and its name would be a label. Remove it")
    return classes


def _images(folder: Path) -> list[Path]:
    return [
        p
        for p in sorted(folder.iterdir())
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    ]


def _opened(path: Path, size: int | None, *, mask: bool = False) -> Image.Image:
    """Returns a picture with 8 bits, grey or color; a mask with the numbers that it holds."""
    try:
        with Image.open(path) as file:
            picture: Image.Image = file if mask else ImageOps.exif_transpose(file)
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as an image: {said}") from None
    mode = picture.mode
    if mode[0] in "IF":
        raise ValueError(f"{path}: has more than 8 bits per channel. Save it with 8")
    if mask and mode not in ("1", "L", "P"):
        raise ValueError(f"{path}: a mask must have one channel, got mode {mode!r}")
    if mode == "1":
        picture = picture.convert("L")
    elif not mask and mode != "L":
        picture = picture.convert("L" if mode == "LA" else "RGB")
    how = Image.Resampling.NEAREST if mask else Image.Resampling.BICUBIC
    return picture if size is None else ImageOps.fit(picture, (size, size), how)


def _stack(files: list[Path], images: list[Image.Image]) -> np.ndarray:
    for file, image in zip(files, images, strict=True):
        if image.size != images[0].size:
            raise ValueError(
                f"{files[0]} has {'x'.join(map(str, images[0].size))} pixels, {file} has "
                f"{'x'.join(map(str, image.size))}; all must have one size. Set data.size to scale and crop them"
            )
    return np.stack([np.asarray(image) for image in images])
