"""Errors as one line, and text that cannot control a terminal."""

from traceback import TracebackException


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type if there is none; `str(error)` may raise."""
    lines = str(TracebackException(type(error), error, None)).strip().splitlines()
    return printable(lines[0]) if lines else type(error).__name__


def printable(text: str) -> str:
    """Returns `text` with escaped control characters: the name of a file must not control a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
