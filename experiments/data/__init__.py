"""Data sets: sources of records, by name.

`data = "mnist5k"` in a config is short for `data = { source = "mnist5k" }`; other keys are the keywords of the source's
function. A source is built in, or `module:function`, a function of the user that returns one; see
`experiments.data.source` for what that is. With `in_memory = false`, for sets that do not fit, images are read while
others are trained on.
"""

from collections.abc import Callable, Mapping
from typing import Any

from experiments import plugins
from experiments.data import files, packaged, shapes
from experiments.data.source import (
    Arrays,
    Source,
    Split,
    Streamed,
    arrays,
    split,
    stacked,
    streamed,
)

__all__ = [
    "SOURCES",
    "Arrays",
    "Source",
    "Split",
    "Streamed",
    "arrays",
    "find",
    "load",
    "split",
    "stacked",
    "streamed",
]

OURS = ("source", "in_memory")  # keys that no function of a source is given
SOURCES: dict[str, Callable[..., Source]] = {
    "mnist5k": packaged.mnist5k,
    "digits": packaged.digits,
    "photos": packaged.photos,
    "textures": packaged.textures,
    "faces": packaged.faces,
    "glyphs": packaged.glyphs,
    "shapes": shapes.shapes,
    "npz": files.npz,
    "folder": files.folder,
}


def find(name: str) -> Callable[..., Source]:
    """Returns the function of a source.

    Args:
      name: a key of `SOURCES`, or `module:function`, which is imported, seen from the current folder.

    Raises:
      ValueError: if there is none.
    """
    if name in SOURCES:
        return SOURCES[name]
    return plugins.find(name, "a source")


def load(data: Mapping[str, Any]) -> Split:
    """Reads a data set and splits it.

    Args:
      data: 'source', 'in_memory' (true without) and the keywords of the source's function.

    Raises:
      ValueError: if it cannot be read, or is no data set.
      ImportError: if a package of a built-in set is missing.
    """
    name = data["source"]
    keywords = {key: value for key, value in data.items() if key not in OURS}
    read = stacked if data.get("in_memory", True) else streamed
    if name in SOURCES:
        try:
            return split(read(SOURCES[name](**keywords)))
        except OSError as error:
            raise ValueError(plugins.one_line(error)) from None
    function = find(name)
    try:
        return split(read(function(**keywords)))
    except (Exception, SystemExit) as error:  # the user's code runs
        raise ValueError(f"{name}: {plugins.one_line(error)}") from None
