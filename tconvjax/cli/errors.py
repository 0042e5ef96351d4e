"""What an error says, in one line."""

from traceback import TracebackException


def one_line(error: BaseException) -> str:
    """Returns the first line that an error says, or else its type; even of one that fails to say anything."""
    lines = str(TracebackException(type(error), error, None)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
