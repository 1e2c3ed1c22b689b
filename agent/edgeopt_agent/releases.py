"""Releases on this board: one symlink decides, and every step before it can be lost without harm.

<root>/store/<sha256>            blobs
<root>/releases/<id>/            manifest.json and one symlink per file into the store; <id> = SHA-256 of the manifest
<root>/activations/<n>/          record.json (which release, after which activation) and `release`, a symlink to it
<root>/current -> activations/<n>   replaced by one rename, so the release and its predecessor change together
<root>/hooks/pause, resume       the owner's programs, run around the change when they exist
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional

from . import facts, health, store
from .files import code_path, fsync_folder, read_json, sha256_file, sweep_temporaries, write_atomic, write_json
from .jobs import Context
from .wire import RemoteError, field, is_plain_name, is_sha256

KEEP_PREVIOUS = 2
HOOK_TIMEOUT_S = 60.0
NOT_CONFIRMED = "not confirmed"


def activate(context: Context, request: Dict[str, Any]) -> Dict[str, Any]:
    """Check a release, write it, try it, and make it current.

    Raises RemoteError; the current release is then untouched, except where the error says that the new one is current.
    """
    root, text = context.root, field(request, "manifest", str)
    release = hashlib.sha256(text.encode("utf-8")).hexdigest()
    if release != field(request, "release", str):
        raise RemoteError("integrity", "the manifest does not have the hash that the host announced")
    manifest = json.loads(text)
    recover(root)
    context.stage("checking hashes")
    paths = {name: store.whole(root, entry["sha256"]) for name, entry in manifest["files"].items()}
    context.stage("health check")
    checked = health.check(manifest, paths, context.folder)
    context.stage("activating")
    _write_release(root, release, text, manifest)
    confirm_s = manifest["policy"].get("confirm_within_s")
    record = _switch(root, release, "flash", _return_from(root, release), confirm_s)
    if confirm_s is not None:
        _await_confirmation(context, record, confirm_s)
    try:
        _collect_garbage(root)
    except OSError as error:
        print(f"what nothing uses stays until the next flash: {error}", file=sys.stderr)
    return {"activation": record, "health": checked}


def rollback(context: Context) -> Dict[str, Any]:
    """Make the predecessor of the current release current again, after the same checks but for its latency."""
    root = context.root
    now = current_record(root)
    before = _record(root, now["previous_activation"]) if now and now["previous_activation"] else None
    if now is None or before is None:
        raise RemoteError("no-release", f"there is no earlier release under {root} to go back to")
    release = before["release"]
    manifest, paths = verified(root, release)
    checked = health.check(manifest, paths, context.folder, refuse_slow=False)
    record = _switch(root, release, "rollback", before["previous_activation"])
    return {"activation": record, "health": checked, "from": now["release"]}


def rollback_job(context: Context, _request: Dict[str, Any]) -> Dict[str, Any]:
    """With what is current then and what is before it, as `status` tells them."""
    now = current_record(context.root)
    back = recover(context.root)
    if now is not None and back is not None:  # an overdue return is what was asked for; one step back, not two
        done = {"activation": back, "health": None, "from": now["release"]}
    else:
        done = rollback(context)
    return dict(status(context.root, verify=False), **done)


def confirm(root: str) -> Dict[str, Any]:
    """The running application says that the current release works."""
    record = current_record(root)
    if record is None:
        raise RemoteError("no-release", f"there is no current release under {root} to confirm")
    write_json(os.path.join(_activation(root, record["number"]), "confirmed.json"), {"confirmed_at": time.time()})
    return record


def recover(root: str) -> Optional[Dict[str, Any]]:
    """Return to the predecessor when the current release should have been confirmed by now and was not.

    Called at the start of every job; call it at boot (`edgeopt-agent recover`) where a policy asks for confirmation.
    """
    record = current_record(root)
    if record is None or record.get("confirm_by") is None or is_confirmed(root, record):
        return None
    limit = record["confirm_by"]
    if limit["boot_id"] == facts.read("/proc/sys/kernel/random/boot_id") and time.monotonic() < limit["monotonic_s"]:
        return None
    before = _record(root, record["previous_activation"]) if record["previous_activation"] else None
    if before is None:
        return None  # the first release has nothing to return to, and a board keeps its one release
    try:
        verified(root, before["release"])
    except RemoteError as error:
        print(f"the current release was not confirmed, but stays: {error}", file=sys.stderr)
        return None
    return _switch(root, before["release"], NOT_CONFIRMED, before["previous_activation"])


def status(root: str, verify: bool) -> Dict[str, Any]:
    """Which release is current and which one a rollback returns to, with the `verdict` of their manifests (None: not
    told); with `verify`, every hash is computed again."""
    number = current_number(root)
    if number is None:
        return {"root": root, "current": None, "previous": None}
    record = _record(root, number)
    if record is None:
        return {"root": root, "current": _unreadable(number), "previous": None}
    before = _record(root, record["previous_activation"]) if record["previous_activation"] else None
    return {
        "root": root,
        "current": dict(_summary(root, record, verify), confirmed=is_confirmed(root, record)),
        "previous": _summary(root, before, verify) if before else None,
    }


def verified(root: str, release: str) -> Any:
    """(manifest, paths by name) of a release whose every hash holds. Raises RemoteError('integrity')."""
    path = os.path.join(root, "releases", release, "manifest.json")
    if not is_sha256(release) or not os.path.exists(path):
        raise RemoteError("integrity", f"release {release[:12]} has no manifest under {root}")
    if sha256_file(path) != release:
        raise RemoteError("integrity", f"the manifest of release {release[:12]} is damaged")
    manifest = read_json(path)
    paths = {}
    for name, entry in manifest["files"].items():
        paths[name] = os.path.join(root, "releases", release, name)
        if not os.path.exists(paths[name]) or sha256_file(paths[name]) != entry["sha256"]:
            raise RemoteError(
                "integrity", f"file '{name}' of release {release[:12]} is missing or damaged; flash again"
            )
    return manifest, paths


def current_number(root: str) -> Optional[int]:
    try:
        return int(os.path.basename(os.readlink(os.path.join(root, "current"))))
    except FileNotFoundError:
        return None


def current_record(root: str) -> Optional[Dict[str, Any]]:
    number = current_number(root)
    return None if number is None else _record(root, number)


def is_confirmed(root: str, record: Dict[str, Any]) -> bool:
    path = os.path.join(_activation(root, record["number"]), "confirmed.json")
    return record.get("confirm_by") is None or os.path.exists(path)


def _activation(root: str, number: int) -> str:
    return os.path.join(root, "activations", str(number))


def _record(root: str, number: int) -> Optional[Dict[str, Any]]:
    """None when it is missing or damaged: nothing is known then, and a flash mends it."""
    try:
        record: Dict[str, Any] = read_json(os.path.join(_activation(root, number), "record.json"))
        return record
    except (FileNotFoundError, ValueError):
        return None


def _return_from(root: str, release: str) -> Optional[int]:
    """The activation that a rollback from `release` leads to, once it is current; flashed again, the same as before."""
    record = current_record(root)
    if record is not None and record["release"] == release:
        previous: Optional[int] = record["previous_activation"]
        return previous
    return current_number(root)


def _unreadable(number: int) -> Dict[str, Any]:
    known = ("release", "previous_activation", "why", "activated_at", "confirm_by", "name", "verdict", "measured_on")
    problem = f"the record of activation {number} is missing or damaged; flash again"
    return dict(dict.fromkeys(known), number=number, whole=False, problem=problem, confirmed=True)


def _summary(root: str, record: Dict[str, Any], verify: bool) -> Dict[str, Any]:
    """One release in words; damage is said, never raised: `status` must answer on a broken board too."""
    summary = dict(record, whole=None, problem=None, name=None, verdict=None, measured_on=None)
    path = os.path.join(root, "releases", record["release"], "manifest.json")
    try:
        manifest = read_json(path)
        summary["name"], summary["runtime"] = manifest["name"], manifest["artifact"]["runtime"]
        summary["verdict"], summary["measured_on"] = manifest.get("verdict"), manifest.get("measured_on")
        if verify:
            verified(root, record["release"])
            summary["whole"] = True
    except (RemoteError, OSError, ValueError, KeyError) as error:
        summary["whole"], summary["problem"] = False, str(error)
    return summary


def _write_release(root: str, release: str, text: str, manifest: Dict[str, Any]) -> None:
    """Each file appears by rename, so a half-written release is completed by the next flash."""
    folder = os.path.join(root, "releases", release)
    os.makedirs(folder, exist_ok=True)
    sweep_temporaries(folder)
    for name, entry in manifest["files"].items():
        if not is_plain_name(name) or name == "manifest.json":
            raise RemoteError("bad-request", f"not a file name: {name!r}")
        replace_symlink(os.path.join("..", "..", "store", entry["sha256"]), os.path.join(folder, name))
    write_atomic(os.path.join(folder, "manifest.json"), text.encode("utf-8"))
    fsync_folder(os.path.dirname(folder))
    fsync_folder(os.path.join(root, "store"))  # an upload may have been cut between its rename and its fsync


def _switch(
    root: str, release: str, why: str, follows: Optional[int], confirm_within_s: Optional[float] = None
) -> Dict[str, Any]:
    """The change between the owner's pause and resume hooks; `follows`: the activation that a rollback returns to.

    When pausing or the change fails, the application is resumed with what is current. A release that nobody confirmed
    is left whatever its hooks say: they may be what is broken.
    """
    must = why != NOT_CONFIRMED
    try:
        failure = _hook(root, "pause", release)
        if failure and must:
            raise RemoteError("hook", failure)
        record = _make_current(root, release, why, follows, confirm_within_s)
    except BaseException:
        now = current_record(root)
        _hook(root, "resume", now["release"] if now else "")
        raise
    _log(root, record)
    failure = _hook(root, "resume", release)
    if failure and must:
        raise RemoteError("hook", f"release {release[:12]} is current, but {failure}: the application may stand still")
    return record


def _make_current(
    root: str, release: str, why: str, follows: Optional[int], confirm_within_s: Optional[float]
) -> Dict[str, Any]:
    """Write an activation beside the current one, then point `current` to it."""
    number = (current_number(root) or 0) + 1
    record = {
        "number": number,
        "release": release,
        "previous_activation": follows,
        "why": why,
        "activated_at": time.time(),
        "confirm_by": _confirm_by(confirm_within_s),
    }
    _sweep(root)
    write_entry(root)
    folder = _activation(root, number)
    os.mkdir(folder)
    replace_symlink(os.path.join("..", "..", "releases", release), os.path.join(folder, "release"))
    write_json(os.path.join(folder, "record.json"), record)
    fsync_folder(os.path.dirname(folder))
    fsync_folder(root)  # store, releases, activations and bin may be new themselves
    replace_symlink(os.path.join("activations", str(number)), os.path.join(root, "current"))
    return record


def _confirm_by(seconds: Optional[float]) -> Optional[Dict[str, Any]]:
    if seconds is None:
        return None
    boot_id = facts.read("/proc/sys/kernel/random/boot_id")
    return {"boot_id": boot_id, "monotonic_s": time.monotonic() + seconds}


def _await_confirmation(context: Context, record: Dict[str, Any], seconds: float) -> None:
    context.emit({"event": "waiting", "what": f"the application must confirm within {seconds:g} s"})
    due = record["confirm_by"]["monotonic_s"]
    while not is_confirmed(context.root, record):
        over = time.monotonic() >= due
        if recover(context.root) is not None:
            raise RemoteError("health", f"nobody confirmed the new release within {seconds:g} s; the old one is back")
        if over and not is_confirmed(context.root, record):
            raise RemoteError(
                "health", f"nobody confirmed the new release within {seconds:g} s, and there is no whole older one"
            )
        time.sleep(0.05)


def replace_symlink(target: str, path: str) -> None:
    temporary = os.path.join(os.path.dirname(path), ".new-link")
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.rename(temporary, path)
    fsync_folder(os.path.dirname(path))


def write_entry(root: str, python: str = "") -> None:
    """bin/edgeopt-agent: rollback and status work on the board without a host. `python`: its interpreter, else this."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from edgeopt_agent.main import main; main(sys.argv[2:])"
    python, archive, folder = map(shlex.quote, (python or sys.executable, code_path(), root))
    text = f"#!/bin/sh\nexec {python} -c '{code}' {archive} \"$@\" --root {folder}\n"
    path = os.path.join(root, "bin", "edgeopt-agent")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    sweep_temporaries(os.path.dirname(path))
    if facts.read(path) != text.strip():
        write_atomic(path, text.encode("utf-8"), mode=0o755)


def _hook(root: str, name: str, release: str) -> Optional[str]:
    """Run the owner's program, where there is one; what went wrong, or None. The job's log has it too."""
    path = os.path.join(root, "hooks", name)
    if not os.access(path, os.X_OK):
        return None
    environment = dict(os.environ, EDGEOPT_ROOT=root, EDGEOPT_RELEASE=release)
    try:
        done = subprocess.run([path], env=environment, timeout=HOOK_TIMEOUT_S, stdin=subprocess.DEVNULL)
        failure = f"ended with exit code {done.returncode}" if done.returncode else None
    except subprocess.TimeoutExpired:
        failure = f"did not end within {HOOK_TIMEOUT_S:g} s and was killed"
    except OSError as error:
        failure = f"cannot be started ({error.strerror}); has it a first line like #!/bin/sh?"
    if failure is None:
        return None
    failure = f"the hook {path} {failure}"
    print(failure, file=sys.stderr)
    return failure


def _log(root: str, record: Dict[str, Any]) -> None:
    """History for people; a disk that is too full for it does not undo what was done."""
    try:
        with open(os.path.join(root, "log.jsonl"), "ab") as file:
            file.write(json.dumps(record, sort_keys=True).encode("utf-8") + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        print(f"log.jsonl lacks activation {record['number']}: {error}", file=sys.stderr)


def _chain(root: str, keep: int) -> List[Dict[str, Any]]:
    """The current activation and the ones that rollbacks lead to, newest first."""
    chain: List[Dict[str, Any]] = []
    number = current_number(root)
    while number is not None and len(chain) <= keep:
        record = _record(root, number)
        if record is None:
            break
        chain.append(record)
        number = record["previous_activation"]
    return chain


def _sweep(root: str) -> None:
    """Remove what a power cut left: activations that never became current, and probes of the root.

    Where a release is current nobody probes any more (root.prepare)."""
    now = current_number(root) or 0
    for name in os.listdir(root) if now else []:
        if name.startswith(".probe-"):
            shutil.rmtree(os.path.join(root, name))
    for name in os.listdir(os.path.join(root, "activations")):
        if not name.isdigit() or int(name) > now:
            shutil.rmtree(os.path.join(root, "activations", name))


def _collect_garbage(root: str) -> None:
    """Keep the current release, KEEP_PREVIOUS to return to, and blobs that an upload under way may need."""
    chain = _chain(root, KEEP_PREVIOUS)
    numbers = {str(record["number"]) for record in chain}
    releases = {record["release"] for record in chain}
    for name in os.listdir(os.path.join(root, "activations")):
        if name not in numbers:
            shutil.rmtree(os.path.join(root, "activations", name))
    for name in os.listdir(os.path.join(root, "releases")):
        if name not in releases:
            shutil.rmtree(os.path.join(root, "releases", name))
    trim(root)


def trim(root: str) -> None:
    """Keep the store within its quota; what the releases here need stays whatever its size. Only with BoardLock."""
    used = set()
    for release in os.listdir(os.path.join(root, "releases")):
        try:
            manifest = read_json(os.path.join(root, "releases", release, "manifest.json"))
        except (OSError, ValueError):
            return  # damaged: nobody knows which blobs it needs, so all stay
        used |= {entry["sha256"] for entry in manifest["files"].values()}
    try:
        store.trim(root, used)
    except OSError as error:
        print(f"the store was not trimmed: {error}", file=sys.stderr)
