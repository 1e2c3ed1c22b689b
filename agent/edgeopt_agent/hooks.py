"""<root>/hooks/pause and resume: programs of the board's owner, run around a change where they exist."""

from __future__ import annotations

import os
import subprocess
from typing import Optional

from .files import note
from .root import others_may_change

NAMES = ("pause", "resume")
TIMEOUT_S = 60.0


def why_unusable(root: str) -> Optional[str]:
    """Of a hook that is there and cannot be run: it would be left out, and nobody would know; None: all can."""
    for name in NAMES:
        path = _path(root, name)
        if not os.path.lexists(path):
            continue
        if not os.path.isfile(path):
            return f"the hook {path} is no file; make it a program, or take it away"
        found = os.stat(path)
        if others_may_change(found):
            return (
                f"the hook {path} can be changed by other users of the board; chown it to this user and chmod go-w it"
            )
        if not os.access(path, os.X_OK):
            mend = (
                "its file system is mounted noexec: mount that without it" if found.st_mode & 0o111 else "chmod +x it"
            )
            return f"the hook {path} is there, but cannot be run; {mend}, or take the hook away"
    return None


def run(root: str, name: str, release: str) -> Optional[str]:
    """What went wrong, or None. The job's log has it too."""
    path = _path(root, name)
    if not os.access(path, os.X_OK) or not os.path.isfile(path):
        return None
    environment = dict(os.environ, EDGEOPT_ROOT=root, EDGEOPT_RELEASE=release)
    try:
        done = subprocess.run([path], env=environment, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
        failure = f"ended with exit code {done.returncode}" if done.returncode else None
    except subprocess.TimeoutExpired:
        failure = f"did not end within {TIMEOUT_S:g} s and was killed"
    except OSError as error:
        failure = f"cannot be started ({error.strerror}); has it a first line like #!/bin/sh?"
    if failure is None:
        return None
    failure = f"the hook {path} {failure}"
    note(failure)
    return failure


def _path(root: str, name: str) -> str:
    return os.path.join(root, "hooks", name)
