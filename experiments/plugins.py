"""Functions and classes that users add without a change here, named `module:function`.

A config may name a data source, a task and an upsampler so, the command line a logger. Modules are imported as seen
from the current folder, before any work. A resolved config, its digest and the name of its folder hold the name of a
function, not its code: whoever changes the code of a run that has begun moves the folder away.
"""

import difflib
import importlib
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NewType

Name = NewType("Name", str)  # `module:function`, as a value of an option


def is_name(value: Any) -> bool:
    """Whether a value has the form `module:function`."""
    return isinstance(value, str) and re.fullmatch(r"[\w.]+:\w+", value) is not None


def find(name: str, returns: str) -> Callable[..., Any]:
    """Imports a function, seen from the current folder.

    Args:
      name: `module:function`.
      returns: what it should return, for errors: 'a source'.

    Raises:
      ValueError: if there is none.
    """
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with redirect_stdout(sys.stderr):
            imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # the user's code runs
        raise ValueError(f"module {module!r} cannot be imported: {one_line(error)}") from None
    found = getattr(imported, function, None)
    if found is None:
        near = difflib.get_close_matches(function, dir(imported), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"module {module!r} has no {function!r}{hint}")
    if not callable(found):
        raise ValueError(f"{name} must be a function that returns {returns}; got {found!r}")
    return found


def one_line(error: BaseException) -> str:
    """Returns the text of an exception of the user's code, in one line."""
    text = " ".join(str(error).split())
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"
