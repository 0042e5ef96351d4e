"""What an error says, in one line, and text that a terminal shows as it is."""

from traceback import TracebackException


def one_line(error: BaseException) -> str:
    """Returns the first line that an error says, or else its type; even of one that fails to say anything."""
    lines = str(TracebackException(type(error), error, None)).strip().splitlines()
    return printable(lines[0]) if lines else type(error).__name__


def printable(text: str) -> str:
    """Returns `text` with control characters as escapes: the name of a file must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
