"""The version of the installed package."""

from importlib import metadata

try:
    __version__ = metadata.version("tconvjax")
except metadata.PackageNotFoundError:  # a source tree that nobody installed
    __version__ = "0+unknown"
