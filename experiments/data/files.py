"""Data sets in files of the user: an npz archive, or a folder of images."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from experiments import reading
from experiments.data.source import Arrays, arrays

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")  # by content: Pillow would hand others to programs outside


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
    optional = {"label": label, "mask": mask}
    names = {"image": image} | {key: name for key, name in optional.items() if name != key}
    try:
        archive = reading.archive(Path(path), list(names.values()), list(optional))
        columns = {
            key: archive[name] for key, name in (optional | names).items() if name in archive
        }
    except reading.Unreadable as error:
        raise ValueError(f"{path}: cannot be used: {error}") from None
    return arrays(**columns)


class Pictures:
    """The images of files, a source that opens one when it is indexed."""

    def __init__(
        self,
        files: Sequence[Path],
        labels: np.ndarray | None,
        masks: Sequence[Path] | None,
        size: int | None,
    ) -> None:
        """Reads the heads of all files.

        Raises:
          ValueError: if one cannot be read or does not fit the others.
        """
        self._files, self._masks, self._size = files, masks, size
        self.labels = labels
        modes = _heads(files, size)
        self._mode = "L" if modes <= {"L"} else "RGB"  # if one has colors, all have
        if masks is not None:
            _heads(masks, size, mask=True)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._files)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Returns a record, its values as they are in the files."""
        image = _opened(self._files[index], self._size).convert(self._mode)
        record: dict[str, Any] = {"image": np.asarray(image)}
        if self.labels is not None:
            record["label"] = self.labels[index]
        if self._masks is not None:
            record["mask"] = np.asarray(_opened(self._masks[index], self._size, mask=True))
        return record


def folder(path: str, size: int | None = None, masks: str | None = None) -> Pictures:
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
    labels = None
    if list(classes) != [root]:
        labels = np.repeat(np.arange(len(classes)), [len(f) for f in classes.values()])
    paths = masks and [Path(masks) / file.relative_to(root).with_suffix(".png") for file in files]
    return Pictures(files, labels, paths or None, size)


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


def _heads(files: Sequence[Path], size: int | None, *, mask: bool = False) -> set[str]:
    """Returns the modes of pictures as `_opened` gives them, if all have one size."""
    modes, first = set(), None
    for file in files:
        with _open(file, mask=mask) as picture:
            modes.add(_converted(picture.mode, mask=mask))
            # That of a PNG file itself would decode all of it.
            turned = not mask and Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1) > 4
            pixels = picture.size[::-1] if turned else picture.size
        first = first or pixels
        if size is None and pixels != first:
            raise ValueError(
                f"{files[0]} has {'x'.join(map(str, first))} pixels, {file} has {'x'.join(map(str, pixels))}; all must "
                "have one size. Set data.size to scale and crop them"
            )
    return modes


def _converted(mode: str, *, mask: bool) -> str:
    """Returns the mode of 8 bits, grey or color, for that of a file; a mask keeps its numbers."""
    if mask:
        return "L" if mode == "1" else mode
    return "L" if mode in ("1", "L", "LA") else "RGB"


@contextlib.contextmanager
def _open(path: Path, *, mask: bool) -> Iterator[Image.Image]:
    """Opens a picture, and names the file if this or what is done with it fails."""
    try:
        reading.opened(path).close()  # a FIFO would block Pillow
        with Image.open(path, formats=FORMATS) as file:
            mode = file.mode
            if mode[0] not in "IF" and (not mask or mode in ("1", "L", "P")):
                yield file
                return
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as an image: {reason}") from None
    if mode[0] in "IF":
        raise ValueError(f"{path}: has more than 8 bits per channel. Save it with 8")
    raise ValueError(f"{path}: a mask must have one channel, got mode {mode!r}")


def _opened(path: Path, size: int | None, *, mask: bool = False) -> Image.Image:
    """Returns a picture with 8 bits, grey or color; a mask with the numbers that it holds."""
    with _open(path, mask=mask) as file:
        picture = file if mask else ImageOps.exif_transpose(file)
        picture.load()
    mode = _converted(picture.mode, mask=mask)
    picture = picture if picture.mode == mode else picture.convert(mode)
    how = Image.Resampling.NEAREST if mask else Image.Resampling.BICUBIC
    return picture if size is None else ImageOps.fit(picture, (size, size), how)
