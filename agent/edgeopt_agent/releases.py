"""Releases on this board: one symlink decides, and every step before it can be lost without harm.

<root>/store/<sha256>            blobs
<root>/releases/<id>/            manifest.json and one symlink per file into the store; <id> = SHA-256 of the manifest
<root>/activations/<n>/          which release, after which activation (activations.py)
<root>/current -> activations/<n>   replaced by one rename, so the release and its predecessor change together
<root>/hooks/pause, resume       the owner's programs, run around the change when they exist (hooks.py)
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import stat
import sys
import time
from typing import Any, Dict, Optional, Tuple

from . import activations, facts, health, hooks, requests, room, store
from .files import (
    append_line,
    code_path,
    fsync_folder,
    note,
    read_text,
    remove,
    replace_symlink,
    sha256_file,
    size_of,
    sweep_temporaries,
    write_atomic,
    write_json,
)
from .jobs import Context
from .root import others_may_change
from .wire import RemoteError, field, is_plain_name, is_sha256

NOT_CONFIRMED = "not confirmed"
MOST_FILES = 4096
LEAST_PREFIX = 8  # characters of a release's id that `confirm` takes for it


def activate(context: Context, request: Dict[str, Any]) -> Dict[str, Any]:
    """Check a release, write it, try it, and make it current.

    Raises RemoteError; the current release is then untouched, except where the error says that the new one is current.
    """
    root, text = context.root, field(request, "manifest", str)
    release = hashlib.sha256(text.encode("utf-8")).hexdigest()
    if release != field(request, "release", str):
        raise RemoteError("integrity", "the manifest does not have the hash that the host announced")
    manifest = requests.manifest(text)
    recover(root)
    record = activations.current_record(root)
    if record is not None and record["release"] == release and _summary(root, record, verify=True)["whole"]:
        return {"activation": record, "health": None, "already": True}
    context.stage("checking hashes")
    blobs = {entry["sha256"] for entry in _files(manifest).values()}
    whole = {sha256: store.whole(root, sha256) for sha256 in blobs}
    paths = {name: whole[entry["sha256"]] for name, entry in manifest["files"].items()}
    context.stage("health check")
    checked = health.check(root, manifest, paths, context.folder)
    context.stage("activating")
    follows = _return_from(root, release)
    _write_release(root, release, text, manifest)
    confirm_s = manifest["policy"].get("confirm_within_s")
    record = _switch(root, release, "flash", follows, confirm_s)
    if confirm_s is not None:
        _await_confirmation(context, record, confirm_s)
    room.collect_garbage(root)
    return {"activation": record, "health": checked, "already": False}


def rollback(context: Context) -> Dict[str, Any]:
    """Make the predecessor of the current release current again, after the same checks but for its latency."""
    root = context.root
    now = activations.current_record(root)
    before = activations.record_of(root, now["previous_activation"]) if now else None
    if now is None or before is None:
        raise RemoteError("no-release", f"there is no earlier release under {root} to go back to")
    release = before["release"]
    manifest, paths = verified(root, release)
    checked = health.check(root, manifest, paths, context.folder, refuse_slow=False)
    record = _switch(root, release, "rollback", before["previous_activation"])
    return {"activation": record, "health": checked, "from": now["release"]}


def rollback_job(context: Context, _request: Dict[str, Any]) -> Dict[str, Any]:
    """With what is current then and what is before it, as `status` tells them."""
    now = activations.current_record(context.root)
    back = recover(context.root)
    if now is not None and back is not None:  # an overdue return is what was asked for; one step back, not two
        done = {"activation": back, "health": None, "from": now["release"]}
    else:
        done = rollback(context)
    return dict(status(context.root, verify=False), **done)


def confirm(root: str, release: Optional[str] = None) -> Dict[str, Any]:
    """The running application says that the current release works; its record. release: the one that it means, whole or
    its first characters, since by now another one may be current. Raises RemoteError."""
    record = activations.current_record(root)
    if record is None:
        raise RemoteError("no-release", f"there is no current release under {root} to confirm")
    if release is not None and (len(release) < LEAST_PREFIX or not record["release"].startswith(release)):
        raise RemoteError(
            "bad-request",
            f"release {release[:64]!r} is not current under {root}, so it cannot be confirmed: {record['release']} is "
            f"(at least {LEAST_PREFIX} characters name one)",
        )
    path = os.path.join(activations.folder_of(root, record["number"]), "confirmed.json")
    write_json(path, {"confirmed_at": time.time(), "release": record["release"]})
    return record


def recover(root: str) -> Optional[Dict[str, Any]]:
    """Return to the predecessor when the current release should have been confirmed by now and was not.

    Called at the start of every job; call it at boot (`edgeopt-agent recover`) where a policy asks for confirmation.
    """
    record = activations.current_record(root)
    if record is None or activations.is_confirmed(root, record) or not activations.is_over(record["confirm_by"]):
        return None
    before = activations.record_of(root, record["previous_activation"])
    if before is None:
        return None  # the first release has nothing to return to, and a board keeps its one release
    room.make(root, vital=True)
    try:
        verified(root, before["release"])
    except RemoteError as error:
        note(f"the current release was not confirmed, but stays: {error}")
        return None
    return _switch(root, before["release"], NOT_CONFIRMED, before["previous_activation"])


def status(root: str, verify: bool) -> Dict[str, Any]:
    """Which release is current and which one a rollback returns to, with the `verdict` of their manifests (None: not
    told); with `verify`, every hash is computed again."""
    number = activations.current_number(root)
    if number is None:
        odd = _unreadable(None, f"'{root}/current' is no link to an activation; flash again")
        return {"root": root, "current": odd if activations.has_odd_current(root) else None, "previous": None}
    record = activations.record_of(root, number)
    if record is None:
        damage = f"the record of activation {number} is missing or damaged; flash again"
        return {"root": root, "current": _unreadable(number, damage), "previous": None}
    before = activations.record_of(root, record["previous_activation"])
    summary = dict(_summary(root, record, verify), confirmed=activations.is_confirmed(root, record))
    link = os.path.join(activations.folder_of(root, number), "release")
    if os.path.realpath(link) != os.path.realpath(os.path.join(root, "releases", record["release"])):
        summary["whole"], summary["problem"] = False, f"{link} does not lead to its release; flash again"
    return {
        "root": root,
        "current": summary,
        "previous": _summary(root, before, verify) if before else None,
    }


def verified(root: str, release: str) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """(manifest, paths by name) of a release whose every hash holds. Raises RemoteError('integrity')."""
    manifest = _manifest(root, release)
    paths, good = {}, set()
    for name, entry in _files(manifest).items():
        paths[name] = os.path.join(root, "releases", release, name)
        real = os.path.realpath(paths[name])
        if real not in good and (size_of(real) is None or sha256_file(real) != entry["sha256"]):
            raise RemoteError(
                "integrity", f"file '{name}' of release {release[:12]} is missing or damaged; flash again"
            )
        good.add(real)
    return manifest, paths


def _manifest(root: str, release: str) -> Dict[str, Any]:
    """As it was activated: its hash is the release's name. Raises RemoteError('integrity')."""
    path = os.path.join(root, "releases", release, "manifest.json")
    if not is_sha256(release) or size_of(path) is None:
        raise RemoteError("integrity", f"release {release[:12]} has no manifest under {root}")
    if sha256_file(path) != release:
        raise RemoteError("integrity", f"the manifest of release {release[:12]} is damaged")
    return requests.manifest(read_text(path))


def _files(manifest: Dict[str, Any]) -> Dict[str, Dict[str, Any]]:
    """{name: entry}. Raises RemoteError('bad-request') for names that cannot lie beside each other in a folder."""
    files: Dict[str, Dict[str, Any]] = field(manifest, "files", dict)
    if len(files) > MOST_FILES:
        raise RemoteError("bad-request", f"a release of {len(files)} files; at most {MOST_FILES} are taken")
    for name in files:
        if not is_plain_name(name) or name == "manifest.json":
            raise RemoteError("bad-request", f"not a file name: {name!r}")
    return files


def _return_from(root: str, release: str) -> Optional[int]:
    """The activation that a rollback from `release` leads to, once it is current: the last one of another release that
    is whole and was not left unconfirmed. Flashed again, the same as before."""
    record = activations.last(root)
    while record is not None:
        is_other = record["release"] != release
        if is_other and activations.is_confirmed(root, record) and _is_whole(root, record["release"]):
            number: int = record["number"]
            return number
        record = activations.record_of(root, record["previous_activation"])
    return None


def _is_whole(root: str, release: str) -> bool:
    try:
        verified(root, release)
    except RemoteError as error:
        note(f"nothing can return to it: {error}")
        return False
    return True


def _unreadable(number: Optional[int], problem: str) -> Dict[str, Any]:
    known = ("release", "previous_activation", "why", "activated_at", "confirm_by", "name", "verdict", "measured_on")
    return dict(dict.fromkeys(known), number=number, whole=False, problem=problem, confirmed=True)


def _summary(root: str, record: Dict[str, Any], verify: bool) -> Dict[str, Any]:
    """One release in words; damage is said, never raised: `status` must answer on a broken board too."""
    summary = dict(record, whole=None, problem=None, name=None, verdict=None, measured_on=None)
    try:
        manifest = _manifest(root, record["release"])
        summary["name"], summary["runtime"] = manifest["name"], manifest["artifact"]["runtime"]
        summary["verdict"], summary["measured_on"] = manifest.get("verdict"), manifest.get("measured_on")
        if verify:
            verified(root, record["release"])
            summary["whole"] = True
    except (RemoteError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        summary["whole"], summary["problem"] = False, str(error)
    return summary


def _write_release(root: str, release: str, text: str, manifest: Dict[str, Any]) -> None:
    """Each file appears by rename, so a half-written release is completed by the next flash."""
    folder = os.path.join(root, "releases", release)
    if not os.path.isdir(folder) or os.path.islink(folder):
        remove(folder)
        os.makedirs(folder)
    sweep_temporaries(folder)
    for name, entry in manifest["files"].items():
        replace_symlink(os.path.join("..", "..", "store", entry["sha256"]), os.path.join(folder, name))
        _let_read(store.path_of(root, entry["sha256"]))
    write_atomic(os.path.join(folder, "manifest.json"), text.encode("utf-8"))
    for place in (folder, os.path.dirname(folder), os.path.join(root, "store")):
        _let_read(place)
        fsync_folder(place)  # an upload may have been cut between its rename and its fsync


def _let_read(path: str) -> None:
    """The application may be another user than the one who flashes, whatever the umask was when this was made."""
    mode = stat.S_IMODE(os.stat(path).st_mode)
    wanted = 0o755 if os.path.isdir(path) else 0o644
    if mode != wanted:
        os.chmod(path, wanted)


def _switch(
    root: str, release: str, why: str, follows: Optional[int], confirm_within_s: Optional[float] = None
) -> Dict[str, Any]:
    """The change between the owner's pause and resume hooks; `follows`: the activation that a rollback returns to.

    When pausing or the change fails, the application is resumed with what is current. A release that nobody confirmed
    is left whatever its hooks say: they may be what is broken.
    """
    must = why != NOT_CONFIRMED
    unusable = hooks.why_unusable(root)
    if unusable:
        note(unusable)
    if unusable and must:
        raise RemoteError("hook", f"{unusable}; nothing was changed")
    try:
        failure = hooks.run(root, "pause", release)
        if failure and must:
            raise RemoteError("hook", failure)
        record = _make_current(root, release, why, follows, confirm_within_s)
    except BaseException:
        now = activations.current_record(root)
        hooks.run(root, "resume", now["release"] if now else "")
        raise
    _log(root, record)
    failure = hooks.run(root, "resume", release)
    if failure and must:
        raise RemoteError("hook", f"release {release[:12]} is current, but {failure}: the application may stand still")
    return record


def _make_current(
    root: str, release: str, why: str, follows: Optional[int], confirm_within_s: Optional[float]
) -> Dict[str, Any]:
    """Write an activation beside the current one, then point `current` to it."""
    last = activations.last(root)
    now = activations.current_number(root) or (last["number"] if last else 0)
    record = {
        "number": now + 1,
        "release": release,
        "previous_activation": follows,
        "why": why,
        "activated_at": time.time(),
        "confirm_by": activations.limit_after(confirm_within_s),
    }
    _sweep(root, now)
    write_entry(root)
    folder = activations.folder_of(root, now + 1)
    os.mkdir(folder)
    replace_symlink(os.path.join("..", "..", "releases", release), os.path.join(folder, "release"))
    write_json(os.path.join(folder, "record.json"), record)
    for place in (folder, os.path.dirname(folder)):
        _let_read(place)
    fsync_folder(os.path.dirname(folder))
    fsync_folder(root)  # store, releases, activations and bin may be new themselves
    replace_symlink(os.path.join("activations", str(now + 1)), os.path.join(root, "current"))
    return record


def _await_confirmation(context: Context, record: Dict[str, Any], seconds: float) -> None:
    context.emit({"event": "waiting", "what": f"the application must confirm within {seconds:g} s"})
    while not activations.is_confirmed(context.root, record):
        over = activations.is_over(record["confirm_by"])
        if recover(context.root) is not None:
            raise RemoteError("health", f"nobody confirmed the new release within {seconds:g} s; the old one is back")
        if over and not activations.is_confirmed(context.root, record):
            raise RemoteError(
                "health", f"nobody confirmed the new release within {seconds:g} s, and there is no whole older one"
            )
        time.sleep(0.05)


def write_entry(root: str, python: str = "") -> None:
    """bin/edgeopt-agent: rollback and status work on the board without a host. `python`: its interpreter, else this."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from edgeopt_agent.main import main; main(sys.argv[2:])"
    python, archive, folder = map(shlex.quote, (python or sys.executable, code_path(), root))
    text = f"#!/bin/sh\nexec {python} -c '{code}' {archive} \"$@\" --root {folder}\n"
    path = os.path.join(root, "bin", "edgeopt-agent")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    sweep_temporaries(os.path.dirname(path))
    if facts.read(path) != text.strip() or others_may_change(os.stat(path)):
        write_atomic(path, text.encode("utf-8"), mode=0o755)


def _log(root: str, record: Dict[str, Any]) -> None:
    """History for people; a disk that is too full for it does not undo what was done."""
    try:
        append_line(os.path.join(root, "log.jsonl"), json.dumps(record, sort_keys=True).encode("utf-8"), durable=True)
    except OSError as error:
        note(f"log.jsonl lacks activation {record['number']}: {error}")


def _sweep(root: str, now: int) -> None:
    """Remove what a power cut left: activations that never became current, and probes of the root.

    Where a release is current nobody probes any more (root.prepare)."""
    for name in os.listdir(root) if now else []:
        if name.startswith(".probe-"):
            remove(os.path.join(root, name))
    activations.sweep(root, now)
