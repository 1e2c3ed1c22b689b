"""Roots that are not as edgeopt left them: whatever stands there, status answers and a flash mends it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run_cli
from edgeopt_agent import operations, releases, replies
from edgeopt_agent.root import prepare
from fake_releases import Release, activate, current, release

ONE, TWO, THREE = release(1), release(2), release(3)


@pytest.fixture(scope="module")
def flashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONE, then TWO."""
    root = tmp_path_factory.mktemp("flashed") / "board"
    activate(root, ONE)
    activate(root, TWO)
    return root


@pytest.fixture
def root(flashed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(flashed, tmp_path / "board", symlinks=True))


def a_link(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        gone(path)
        path.symlink_to(target)

    return make


def a_file(data: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        gone(path)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    return make


def a_folder(path: Path) -> None:
    gone(path)
    (path / "in it").mkdir(parents=True)


def gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


BLOB, NEXT = f"store/{TWO.hashes['m.json']}", f"store/{THREE.hashes['m.json']}"
RECORD = "activations/2/record.json"
WITHOUT = {"number": 2, "release": TWO.id, "previous_activation": 1, "why": "flash", "activated_at": 1.0}
ODD = [
    ("current", a_link("releases")),
    ("current", a_link("/nowhere/activations/2")),
    ("current", a_link("activations/0")),
    ("current", a_link("activations/99")),
    ("current", a_link("current")),
    ("current", a_file(b"")),
    ("current", a_folder),
    ("activations/2/release", a_link("../../releases/none")),
    ("activations/2/release", gone),
    *((RECORD, a_file(data)) for data in (b"", b"[]", b"{", b"\xff\xfe", bytes(200), b'{"number": 2}', b"[" * 9999)),
    *(
        (RECORD, a_file(json.dumps({**WITHOUT, **change}).encode()))
        for change in (
            {"why": None},
            {"confirm_by": {}},
            {"previous_activation": 2},
            {"number": True},
            {"release": "../../x"},
        )
    ),
    (RECORD, a_folder),
    (f"releases/{TWO.id}/manifest.json", a_file(b"[]")),
    (f"releases/{TWO.id}/manifest.json", a_folder),
    (f"releases/{TWO.id}", gone),
    (f"releases/{THREE.id}", a_file(b"")),
    (f"releases/{THREE.id}/manifest.json", a_folder),
    (f"releases/{THREE.id}/m.json", a_folder),
    ("releases/x", a_file(b"")),
    (BLOB, a_folder),
    (BLOB, a_link("/nowhere")),
    (BLOB, gone),
    (NEXT, a_folder),
    (NEXT, a_file(b"damaged")),
    (NEXT + ".part", a_folder),
    (NEXT + ".part", a_file(bytes(10**6))),
    ("store/x", a_folder),
    ("activations/3", a_file(b"")),
    ("activations/x", a_file(b"")),
    ("activations/03", a_folder),
    (".new-link", a_folder),
    ("bin/edgeopt-agent", a_folder),
    ("bin/.new-x", a_folder),
    ("power-mode.json", a_file(b"")),
    ("power-mode.json", a_file(b'{"boot_id": "x", "settings": [["/etc/passwd", "root"]]}')),
    ("power-mode.json", a_folder),
    ("reserve", a_file(b"")),
    ("reserve/0", a_folder),
    ("jobs/x", a_file(b"")),
    *((name, a_folder) for name in ("lock", "store.lock", "log.jsonl")),
    *((name, a_file(b"")) for name in ("jobs", "hooks")),
    ("activations/1", gone),
]


@pytest.mark.parametrize(("name", "make"), ODD, ids=[f"{number} {name[:24]}" for number, (name, _) in enumerate(ODD)])
def test_status_answers_and_a_flash_mends_it(root: Path, name: str, make: Callable[[Path], None]) -> None:
    make(root / name)
    prepare(str(root))
    found, _ = operations.do(str(root), "status", {"verify": True}, b"")
    is_touched = name.startswith(("current", "activations/2", f"releases/{TWO.id}", BLOB)) and name != NEXT
    assert (found["current"]["whole"] is False) == (is_touched and not name.endswith(".part"))
    if is_touched:
        assert "flash again" in found["current"]["problem"] or "manifest" in found["current"]["problem"]
    assert replies.reply_problem("status", 1, {"id": 1, "ok": True, "result": json.loads(json.dumps(found))}) is None
    assert activate(root, THREE)["activation"]["release"] == THREE.id
    assert current(root)[0] == THREE.id
    after, _ = operations.do(str(root), "status", {"verify": True}, b"")
    assert after["current"]["whole"]
    assert after["previous"] is None or after["previous"]["whole"]


def a_record(**changes: object) -> Callable[[Path], None]:
    """With these values in place of its own: JSON as Python writes it, with NaN and infinity."""

    def make(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {"activated_at": 1e300},
        {"activated_at": -1},
        {"activated_at": float("nan")},
        {"why": "x" * 300},
        {"why": "\ud800"},
        {"confirm_by": {"boot_id": "x", "boottime_s": float("inf")}},
        {"previous_activation": 1 << 80},
        {"number": 2.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_record_that_no_host_takes_is_none(root: Path, changes: dict[str, object]) -> None:
    a_record(**changes)(root / "current" / "record.json")
    done = run_cli("status", "--root", root)
    assert done.returncode == 5, done.stdout + done.stderr
    assert "flash again" in done.stdout
    assert activate(root, THREE)["activation"]["release"] == THREE.id
    done = run_cli("status", "--root", root)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("damage", ["current", RECORD, f"releases/{TWO.id}", BLOB])
def test_the_way_back_leads_to_what_is_whole(root: Path, damage: str) -> None:
    gone(root / damage)
    if damage == "current":
        a_folder(root / damage)
    activate(root, THREE)
    assert current(root) == (THREE.id, TWO.id if damage == "current" else ONE.id)


@pytest.mark.parametrize("make", [a_folder, a_file(b"x"), a_link("releases")], ids=["folder", "file", "link"])
def test_the_command_tells_a_current_that_is_none(root: Path, make: Callable[[Path], None]) -> None:
    make(root / "current")
    done = run_cli("status", "--root", root)
    assert done.returncode == 5, done.stdout + done.stderr
    assert "flash again" in done.stdout + done.stderr


def test_the_odd_thing_is_kept_under_another_name(root: Path) -> None:
    a_folder(root / "current")
    activate(root, THREE)
    (kept,) = root.glob("current.odd-*")
    assert (kept / "in it").is_dir()


def test_a_new_release_keeps_the_reserve_and_old_ones_go(root: Path) -> None:
    for number in range(4, 8):
        activate(root, release(number))
    assert len(list((root / "releases").iterdir())) == 3
    assert sorted(int(path.name) for path in (root / "activations").iterdir()) == [4, 5, 6]


# Who may read, and who may write.


def modes(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mode & 0o777 for path in root.rglob("*") if path.exists()}


@pytest.mark.parametrize("mask", [0o000, 0o027, 0o077])
def test_everybody_reads_a_release_and_nobody_else_writes(tmp_path: Path, mask: int) -> None:
    """Whatever the umask of the board; a root that was made under another one is mended."""
    root, before = tmp_path / "board", os.umask(mask)
    try:
        activate(root, ONE)
    finally:
        os.umask(before)
    found = modes(root)
    assert not {name: oct(mode) for name, mode in found.items() if mode & 0o022}
    parts = ["", *(f"releases/{ONE.id}", "store", "releases", "activations", "activations/1", "current/release")]
    for name in [*parts, f"current/release/{'m.json'}", "current/release/manifest.json"]:
        mode = (root / name).stat().st_mode & 0o777
        assert mode == (0o755 if (root / name).is_dir() else 0o644), name
    for path in (root / "store", root / "releases", root / "store" / TWO.hashes["m.json"]):
        if path.exists():
            path.chmod(0o700)
    activate(root, TWO)
    assert (root / "store").stat().st_mode & 0o777 == (root / "releases").stat().st_mode & 0o777 == 0o755


AS_OTHER = 61234


def foreign(root: Path, name: str = "") -> None:
    os.chown(root / name, AS_OTHER, AS_OTHER)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (foreign, "belongs to another user"),
        (lambda root: foreign(root, "hooks"), "belongs to another user"),
        (lambda root: foreign(root, "store"), "belongs to another user"),
        (lambda root: ((root / "theirs").mkdir(), foreign(root, "theirs"), root.chmod(0o1777)), "every user"),
        (lambda root: (root / "store").chmod(0o777), "every user"),
        (lambda root: (root / "bin").chmod(0o777), "every user"),
        (lambda root: root.parent.chmod(0o777), "above the root"),
    ],
)
def test_a_root_that_others_may_change_is_refused(
    root: Path, change: Callable[[Path], None], named: str, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: root.parent.chmod(0o700))
    (root / "hooks").mkdir()
    change(root)
    with pytest.raises(releases.RemoteError, match=named) as caught:
        prepare(str(root))
    assert caught.value.kind == "unsupported-root"


def test_a_new_file_system_open_to_all_is_closed(tmp_path: Path) -> None:
    """As tmpfs is mounted where nobody says how."""
    root = tmp_path / "board"
    root.mkdir()
    root.chmod(0o1777)
    prepare(str(root))
    assert root.stat().st_mode & 0o022 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_told_whose_the_root_is(root: Path) -> None:
    from edgeopt_agent import wire
    from edgeopt_agent.files import code_path

    for path in (root, *root.parents):
        if path.stat().st_uid == 0 and path.name.startswith(("board", "test_", "pytest-", "popen-")):
            path.chmod(0o755)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from edgeopt_agent.main import main; main(sys.argv[2:])"
    asked = [("status", {"verify": True}), ("job.start", {"job": "x", "request": {"kind": "rollback"}})]
    lines = b"".join(wire.encode({"id": number, "op": op, **more}) for number, (op, more) in enumerate(asked))
    user = ["setpriv", "--reuid", str(AS_OTHER), "--regid", str(AS_OTHER), "--clear-groups"]
    command = [*user, "/usr/bin/python3", "-B", "-c", code, code_path(), "serve", "--root", str(root)]
    done = subprocess.run(command, input=lines, capture_output=True, check=False, timeout=60)
    if b"PermissionError" in done.stderr or not done.stdout:
        pytest.skip(f"this checkout cannot be read by other users: {done.stderr[-200:]!r}")
    status, started = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert status["result"]["current"]["release"] == TWO.id
    for word in (str(root / "jobs"), "uid 0", f"uid {AS_OTHER}"):
        assert word in started["error"]["message"]


def test_a_release_of_too_many_files_is_refused(root: Path) -> None:
    entry = json.loads(THREE.text)["files"]["m.json"]
    many = release(9, files={f"f{number}": entry for number in range(5000)})
    with pytest.raises(releases.RemoteError, match="files"):
        activate(root, Release(many.text, THREE.blobs | many.blobs))
