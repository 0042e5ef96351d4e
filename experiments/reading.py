"""Opens and reads every file that a command is given or finds, and refuses what it cannot use.

A file is a regular one, so that no FIFO blocks and no device goes on for ever; it is no larger than its kind
may be; text is UTF-8; integers have 64 bits; tables and lists are at most `DEEPEST` within each other. What is refused
is an `Unreadable`, whose message does not name the file.
"""

import json
import os
import stat
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO

import numpy as np

DEEPEST = 32  # tables and lists within each other
OF_CONFIG, OF_RECORD, OF_LINES = 2**20, 2**28, 2**31  # bytes
SHOWN = 400  # characters of an error, at either end
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a FIFO",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


class Unreadable(ValueError):
    """Why a file cannot be used, in one line."""


class NotToml(Unreadable):
    """A text that does not follow the grammar of TOML."""


def opened(path: Path, largest: int | None = None, flags: int = os.O_RDONLY) -> BinaryIO:
    """Opens a regular file.

    Args:
      path: of the file.
      largest: bytes that it may have.
      flags: of `os.open`; with `O_RDWR` the file is opened for writing, too.

    Raises:
      Unreadable: if it is not there, is no regular file or is larger.
    """
    try:
        if path.exists() or not flags & os.O_CREAT:
            _check(path.stat(), largest)  # first, since opening alone wakes who waits at a FIFO
        number = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name, and ours
        raise Unreadable(getattr(error, "strerror", None) or str(error)) from None
    file = os.fdopen(number, "r+b" if flags & os.O_RDWR else "rb")
    try:
        _check(os.fstat(number), largest)
    except Unreadable:
        file.close()
        raise
    return file


def _check(found: os.stat_result, largest: int | None) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((what for test, what in _KINDS.items() if test(found.st_mode)), "another")
        raise Unreadable(f"expected a regular file; it is {kind}")
    if largest is not None and found.st_size > largest:
        raise Unreadable(_too_large(largest))


def content(path: Path, largest: int) -> bytes:
    """Returns the bytes of a regular file.

    Raises:
      Unreadable: if it is none, or has more bytes.
    """
    with opened(path, largest) as file:
        try:
            found = file.read(largest + 1)  # files of /proc have a size of 0
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from None
    if len(found) > largest:
        raise Unreadable(_too_large(largest))
    return found


def _too_large(largest: int) -> str:
    return f"expected at most {largest // 2**20} MiB; it is larger"


def same(path: Path, other: Path) -> bool:
    """Whether two names are of one file; links and detours are followed."""
    try:
        return path.samefile(other)
    except OSError:  # one is not there
        return False


def toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
      Unreadable: if it is none.
    """
    return parse_toml(_text(content(path, OF_CONFIG)))


def parse_toml(text: str) -> dict[str, Any]:
    """Returns the table of a TOML text.

    Raises:
      Unreadable: if it is none, or holds what no config may.
    """
    return _plain(tomllib.loads, text, "TOML")


def record(path: Path, shape: Any = object) -> Any:
    """Reads a JSON file of a shape, see `misfit`.

    Raises:
      Unreadable: if it is none.
    """
    value = parse_json(content(path, OF_RECORD))
    wrong = misfit(value, shape)
    if wrong:
        raise Unreadable(wrong)
    return value


def parse_json(text: bytes) -> Any:
    """Returns the value of a JSON text.

    Raises:
      Unreadable: if it is none.
    """
    return _plain(lambda text: json.loads(text, parse_constant=_refuse), _text(text), "JSON")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _text(found: bytes) -> str:
    try:
        return found.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"expected text in UTF-8; {error.reason} at byte {error.start}") from None


def _plain(parse: Callable[[str], Any], text: str, language: str) -> Any:
    try:
        value = parse(text)
    except RecursionError:
        raise Unreadable(_too_deep()) from None
    except tomllib.TOMLDecodeError as error:
        raise NotToml(f"is not valid {language}: {error}") from None
    except ValueError as error:  # of JSON, and of integers with more than 4300 digits
        raise Unreadable(f"is not valid {language}: {short(str(error))}") from None
    left: list[tuple[Any, int]] = [(value, 0)]
    while left:
        part, depth = left.pop()
        if depth > DEEPEST:
            raise Unreadable(_too_deep())
        if isinstance(part, Mapping):
            left += [(key, depth + 1) for key in part]
            left += [(entry, depth + 1) for entry in part.values()]
        elif isinstance(part, list):
            left += [(entry, depth + 1) for entry in part]
        elif isinstance(part, str):
            wrong = why_no_text(part)
            if wrong:
                raise Unreadable(wrong)
        elif isinstance(part, int) and not -(2**63) <= part < 2**63:
            raise Unreadable(
                f"expected integers of at most 64 bits; got one of {part.bit_length()}"
            )
    return value


def _too_deep() -> str:
    return f"expected at most {DEEPEST} tables and lists within each other; there are more"


def why_no_text(text: str) -> str:
    """Returns why files and terminals cannot hold a text, for NUL or bytes that are no UTF-8; '' if they can."""
    if "\0" in text:
        return f"expected text without NUL; got {short(repr(text))}"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return f"expected text in UTF-8; got {short(ascii(text))}"
    return ""


def why_no_folder(path: Path) -> str:
    """Returns why a folder can neither be there nor be made, '' if nothing is in its way."""
    for place in (path, *path.parents):
        try:
            place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return error.strerror or str(error)
        return "" if place.is_dir() else f"{short(str(place))} is no folder"
    return ""


def short(text: str) -> str:
    """Returns a message as one line that people can read: its ends alone if it is long."""
    line = (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    )
    return line if len(line) <= 2 * SHOWN else f"{line[:SHOWN]} .. {line[-SHOWN:]}"


def misfit(value: Any, shape: Any, at: str = "") -> str:
    """Returns where a value differs from a shape, '' if nowhere.

    Args:
      value: of JSON.
      shape: a type or a union of types; `[shape]`, a list; `{"key": shape}`, a table with these keys at least;
        `{...: shape}`, a table of any keys.
      at: where the value is.
    """
    entries: Mapping[Any, Any] | None = None
    shapes: Mapping[Any, Any] = {}
    if isinstance(shape, list):
        kind, shapes = "a list", {...: shape[0]}
        if isinstance(value, list):
            entries = {str(i): entry for i, entry in enumerate(value)}
    elif isinstance(shape, Mapping):
        kind, shapes = "a table", shape
        if isinstance(value, Mapping):
            entries = value
    else:
        # Of Python's types bool is an int.
        fits = isinstance(value, shape) and (not isinstance(value, bool) or shape in (bool, object))
        if fits:
            return ""
        kind = _name(shape)
    if entries is None:
        return f"{at or 'the whole'}: expected {kind}, got {short(repr(value))}"
    dotted = f"{at}." if at else ""
    for key, inner in shapes.items():
        if key is ...:
            wrong = (misfit(entry, inner, f"{dotted}{name}") for name, entry in entries.items())
            found = next(filter(None, wrong), "")
        else:
            missing = f"{dotted}{key}: missing"
            found = misfit(entries[key], inner, f"{dotted}{key}") if key in entries else missing
        if found:
            return found
    return ""


def _name(shape: Any) -> str:
    kinds = shape.__args__ if isinstance(shape, UnionType) else (shape,)
    return " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)


def archive(
    path: Path, names: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Returns arrays of an npz file; never unpickles.

    Args:
      path: of the file.
      names: of the arrays; None for all that there are.
      optional: names of others, which may be missing.

    Raises:
      Unreadable: if it is no archive, lacks one of the arrays, or does not fit in memory.
    """
    with opened(path) as file:
        try:
            if file.read(6) == b"\x93NUMPY":
                raise Unreadable("it holds one array without a name")
            with zipfile.ZipFile(file) as zipped:
                needs = sum(member.file_size for member in zipped.infolist())
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            if needs > memory:
                sizes = f"{needs / 2**30:.1f} GiB; this machine has {memory / 2**30:.1f}"
                raise Unreadable(f"its arrays take {sizes}")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                members = [
                    *(arrays if names is None else names),
                    *(n for n in optional if n in arrays),
                ]
                for name in members:
                    if name not in arrays:
                        raise Unreadable(
                            f"no array {name!r}; it holds {', '.join(arrays) or 'none'}"
                        )
                found = {name: arrays[name] for name in members}
            for name, array in found.items():
                if not isinstance(array, np.ndarray):
                    raise Unreadable(f"{name!r} is no array")
        except MemoryError:
            raise Unreadable("its arrays do not fit in memory") from None
        except Exception as error:  # zipfile, its codecs and NumPy have many for damaged bytes
            raise Unreadable(short(str(error) or type(error).__name__)) from None
    return found
