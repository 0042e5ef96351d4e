"""Pictures of the command line, which `tconvjax.plot` draws."""

import importlib
import os
from io import BytesIO
from pathlib import Path
from typing import Any


def check(path: Path | None) -> None:
    """Raises unless a picture can be drawn to the path; commands call it before any work."""
    if path is None:
        return
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"--picture must be a file in a folder that exists; got {path}.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--picture must be a file that can be written; got {path}.")
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise ImportError('--picture needs matplotlib. Run: pip install "tconvjax[plot]"') from None
    kinds = figures.Figure().canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise ValueError(
            f"--picture must end in one of {', '.join(f'.{k}' for k in kinds)}; got {path}."
        )


def axes(width: float, height: float) -> Any:
    """Returns the axes of a new figure, without pyplot, which would look for a screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained").add_subplot()


def save(figure: Any, path: Path) -> None:
    """Writes a figure."""
    buffer = BytesIO()  # a failure to draw must not leave half a file
    figure.savefig(buffer, format=path.suffix.lower().removeprefix("."))
    path.write_bytes(buffer.getvalue())
