"""Libraries that an option of a runtime names, as a vendor's delegate: loading one runs its code in the worker.

They are the board's own. What a host or a bundle has brought lies in an edgeopt folder, and nothing there is loaded,
whatever it is called; nor is what somebody else on this board could put in its place.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Iterator

from . import runtimes
from .root import FOLDERS, others_may_change
from .wire import RemoteError


def require_own(root: str, runtime: str, options: Dict[str, Any]) -> None:
    """Raises RemoteError('bad-request') for a library that is not the board's own. One that is not there at all is
    the adapter's to name."""
    known = runtimes.load(runtime).OPTIONS
    for option, value in options.items():
        if runtimes.PATH in known.get(option, ()):
            wrong = _why_not_own(root, value)
            if wrong:
                raise RemoteError("bad-request", f"{option} = {value!r}: {wrong}; nothing of it was loaded")


def _why_not_own(root: str, path: Any) -> str:
    """Empty when nothing is wrong."""
    if not isinstance(path, str) or not path.startswith("/") or os.path.normpath(path) != path or "\0" in path:
        return "an absolute path without . and .. is needed"
    real = os.path.realpath(path)
    if os.path.realpath(root) in _above(real) or any(map(_is_edgeopts, {*_above(path), *_above(real)})):
        return "it lies in edgeopt's folder on the board, and what was brought there is never loaded as code"
    if not os.path.exists(real):
        return ""
    if not os.path.isfile(real):
        return "it is no file"
    for place in [real, *_above(real)]:
        if others_may_change(os.stat(place)):
            return f"{place} can be changed by other users of the board; its owner must be root or this user"
    return ""


def _above(path: str) -> Iterator[str]:
    while path != "/":
        path = os.path.dirname(path)
        yield path


def _is_edgeopts(folder: str) -> bool:
    """Whether it is a root, of this agent or of another one on this board."""
    return all(os.path.isdir(os.path.join(folder, name)) for name in FOLDERS)
