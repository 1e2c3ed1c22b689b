"""Flash, rollback and status: the host brings bytes and asks; the board checks, decides and switches."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import measure
from .bundle import Bundle
from .device.session import Session
from .errors import AgentFailure, EdgeoptError
from .profile import DeviceProfile


def flash(session: Session, bundle: Bundle, python: str, board: DeviceProfile | None = None) -> dict[str, Any]:
    """Make the bundle's release current on the board: {"activation", "health", "release", "name", "verdict" of the
    bundle, "made_for" (the profile's id), "measured_on" (the board of its figures), "already": nothing was changed}.

    board: its profile, where it is known. Every blob is checked before the first is sent; the runtime, and what it can
    take, before anything is. Raises ConfigError, IntegrityError, ModelError, AgentFailure (no-space, read-only,
    missing-runtime, health, …), DeviceUnreachable.
    """
    bundle.require_own_libraries(board)
    bundle.check()
    facts = session.facts()
    measure.require_runtime(facts, bundle.manifest.artifact.runtime, session.address, python)
    done: dict[str, Any] = {"release": bundle.release, "name": bundle.manifest.name, "device": session.address}
    done["verdict"], done["made_for"] = bundle.manifest.verdict, bundle.manifest.profile
    own = bundle.manifest.measured_on
    done["measured_on"] = own.model_dump() if own else None
    done["frequency_max_hz"] = bundle.manifest.artifact.frequency_max_hz  # nothing sets it: its owner must know
    with tempfile.TemporaryDirectory(prefix="edgeopt-flash-") as folder:
        bundle.artifact(Path(folder)).require_fit(facts["runtimes"], session.address, bundle.path)
    with _telling_what_is_current(session):
        for name, entry in bundle.manifest.files.items():
            session.send(bundle.blob(entry), name)
        _, result = session.run({"kind": "activate", "release": bundle.release, "manifest": bundle.text})
    return {**done, "already": False, **result}


@contextlib.contextmanager
def _telling_what_is_current(session: Session) -> Iterator[None]:
    """A failure of the board's side says what runs there now."""
    try:
        yield
    except AgentFailure as error:
        raise AgentFailure(f"{error}; {_current(session)}", error.kind, error.traceback) from error


def _current(session: Session) -> str:
    """What runs on the board after a failure: asked there, never concluded from the failure."""
    try:
        current = session.status(verify=False)["current"]
    except EdgeoptError as error:
        return f"which release is current there cannot be told now ({error})"
    if current is None:
        return "no release is current there"
    return f"{describe(current)} is current there"


def describe(entry: dict[str, Any]) -> str:
    """A release of `Session.status` in a few words; name and hash are None where the board's record is damaged."""
    return f"{entry['name'] or 'a damaged release'} ({(entry['release'] or '?')[:12]})"


def rollback(session: Session) -> dict[str, Any]:
    """Make the predecessor of the current release current: {"activation", "health", "from", "name", "verdict",
    "measured_on"}, and "current" and "previous" as `Session.status` has them afterwards. Raises AgentFailure."""
    with _telling_what_is_current(session):
        _, result = session.run({"kind": "rollback"})
    return {**result, **{key: result["current"][key] for key in ("name", "verdict", "measured_on")}}
