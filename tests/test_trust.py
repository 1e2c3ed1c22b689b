"""What a bundle may not decide: what a board loads as code, where edgeopt lives there, and how much it unpacks to."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from boards import dense_bundle, dense_tflite, npz
from bundle_variants import add
from conftest import run_cli
from edgeopt_agent import bench, libraries
from edgeopt_agent.samples import load_shard
from edgeopt_agent.wire import RemoteError
from fake_releases import Release, activate, context, release

from edgeopt import bundle as bundles
from edgeopt import profile, validate
from edgeopt.errors import ConfigError, IntegrityError

ETHOS = "/usr/lib/libethosu_delegate.so"  # as the profile imx93-evk names it


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a shared object whose constructor leaves a mark, that mark)."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("library")
    source, made, mark = folder / "mark.c", folder / "mark.so", folder / "ran"
    source.write_text(
        f'#include <stdio.h>\n__attribute__((constructor)) static void run(void) {{ fclose(fopen("{mark}", "w")); }}\n'
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", made, source], check=True)
    return made, mark


def naming(path: Path, options: dict[str, str], runtime: str = "tflite", **manifest: str) -> Path:
    """A bundle whose manifest says so, written without the checks of the one who makes it."""
    dense_bundle(path, 4, 3)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    found = json.loads(members["manifest.json"])
    found["artifact"].update(runtime=runtime, options=options)
    members["manifest.json"] = json.dumps({**found, **manifest}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


NEVER = [
    ("tflite", "delegate", value)
    for value in (
        *("lib.so", "./lib.so", "../lib.so", "/usr/lib/../../tmp/lib.so", "/usr/lib/./lib.so", "//lib.so", ""),
        *("/nowhere/store/lib.so", "/nowhere/current/release/lib.so", "/opt/model.tflite", "/opt/x/health.npz"),
        "/elsewhere/store/{model}",
    )
]
NEVER += [
    ("openvino", "device", "/nowhere/plugins.xml"),
    ("openvino", "extensions", "/usr/lib/libextension.so"),
    ("openvino", "precision", "../f32"),
    ("onnxruntime", "provider", "/usr/lib/libprovider.so"),
    ("onnxruntime", "custom_ops_library", "ops.so/"),
    ("fake", "anything", "/x"),
]


@pytest.mark.parametrize(("runtime", "option", "value"), NEVER)
def test_an_option_that_could_load_what_is_brought_is_refused(
    tmp_path: Path, runtime: str, option: str, value: str
) -> None:
    value = value.replace("{model}", hashlib.sha256(dense_tflite(4, 3)).hexdigest())
    path = naming(tmp_path / "b.edgeopt", {option: value}, runtime)
    with pytest.raises(IntegrityError, match=rf"artifact\.options\.{option}"):
        bundles.read(path)
    good = bundles.read(naming(tmp_path / "good.edgeopt", {}, runtime))
    blobs = {entry.sha256: good.blob(entry) for entry in good.manifest.files.values()}
    changed = good.manifest.model_copy(
        update={"artifact": good.manifest.artifact.model_copy(update={"options": {option: value}})}
    )
    with pytest.raises(IntegrityError):
        bundles.write(tmp_path / "made.edgeopt", changed, blobs)
    assert not (tmp_path / "made.edgeopt").exists()


def test_a_delegate_is_named_by_the_boards_profile(tmp_path: Path) -> None:
    imx, pi = profile.load("imx93-evk"), profile.load("raspberry-pi-4")
    made_for_it = bundles.read(naming(tmp_path / "imx.edgeopt", {"delegate": ETHOS}, profile="imx93-evk"))
    made_for_it.require_own_libraries(imx)
    made_for_it.require_own_libraries(None)
    other = bundles.read(naming(tmp_path / "other.edgeopt", {"delegate": "/usr/lib/libc.so.6"}, profile="imx93-evk"))
    own = bundles.read(naming(tmp_path / "own.edgeopt", {"delegate": ETHOS}, profile="my-board"))
    for bundle, board in ((made_for_it, pi), (other, imx), (other, None), (own, None)):
        with pytest.raises(ConfigError, match="a bundle alone does not say what a board loads"):
            bundle.require_own_libraries(board)
    other.require_own_libraries(imx, {"delegate": "/the/users/own.so"})


@pytest.mark.parametrize("command", ["flash", "bench", "diagnose", "validate"])
def test_every_command_refuses_a_library_of_the_bundles_choice(
    tmp_path: Path, command: str, library: tuple[Path, Path]
) -> None:
    made, mark = library
    path = naming(tmp_path / "b.edgeopt", {"delegate": str(made)})
    done = run_cli(command, path, "--root", tmp_path / "board")
    assert done.returncode == 2, done.stderr
    assert f"its delegate is {made}" in done.stderr
    assert "--profile" in done.stderr
    assert not mark.exists()


def brought(root: Path, where: str, lib: Path) -> str:
    """Puts the library there; how an option names it."""
    data = lib.read_bytes()
    name = hashlib.sha256(data).hexdigest()
    (root / "store" / name).write_bytes(data)
    place = (
        root / where.format(sha256=name) if not where.startswith("/") else Path(where.format(root=root, sha256=name))
    )
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(root / "store" / name)
    return str(place)


@pytest.mark.parametrize(
    "where", ["store/{sha256}", "hooks/lib.so", "{root}.link/lib.so", "{root}.other/lib.so", "jobs/x/lib.so"]
)
def test_the_board_itself_loads_nothing_that_was_brought(
    tmp_path: Path, where: str, library: tuple[Path, Path]
) -> None:
    root, (lib, mark) = tmp_path / "board", library
    activate(root, release(1))
    named = brought(root, where if not where.startswith("{") else where.format(root=root), lib)
    files = {"m.json": dense_tflite(4, 3), "health.npz": npz(np.zeros((2, 4), np.float32))}
    entries = {name: add({}, data) for name, data in files.items()}
    evil = release(2, files=entries, artifact={"runtime": "tflite", "preprocess": [[]], "options": {"delegate": named}})
    with pytest.raises(RemoteError, match="nothing of it was loaded"):
        activate(root, Release(evil.text, files))
    asked = {"file": "m", "files": {"m": entries["m.json"]["sha256"]}, "runtime": "tflite", "threads": 1}
    with pytest.raises(RemoteError, match="nothing of it was loaded"):
        bench.artifact_of(context(root), {**asked, "preprocess": [], "options": {"delegate": named}})
    assert not mark.exists()


def test_the_boards_own_library_is_its_own(tmp_path: Path, library: tuple[Path, Path]) -> None:
    root, lib = tmp_path / "board", tmp_path / "lib.so"
    activate(root, release(1))
    shutil.copy(library[0], lib)
    libraries.require_own(str(root), "tflite", {"delegate": str(lib)})
    libraries.require_own(
        str(root), "tflite", {"delegate": "/usr/lib/libnone.so"}
    )  # the adapter says that it is missing
    for spoil in (lambda: lib.chmod(0o666), lambda: (lib.chmod(0o644), tmp_path.chmod(0o777))):
        spoil()
        with pytest.raises(RemoteError, match="other users"):
            libraries.require_own(str(root), "tflite", {"delegate": str(lib)})
    tmp_path.chmod(0o700)


def test_where_edgeopt_lives_and_which_python_runs_is_not_the_bundles_to_say(tmp_path: Path) -> None:
    """Of a board that nobody described, only a profile that comes with edgeopt speaks."""
    from edgeopt.cli.common import Where

    path = naming(tmp_path / "b.edgeopt", {}, profile="raspberry-pi-4", root="/evil", python="/evil/python")
    opened = bundles.read(path)
    there = Where("ssh://somebody@192.0.2.1", None, None, None, None, None)
    place, board = there.place(opened.manifest.profile), profile.load("raspberry-pi-4").board
    assert (place.root, place.python) == (board.root, board.python)
    naming(path, {}, profile="my-board", root="/evil", python="/evil/python")
    for command in ("flash", "bench", "validate", "diagnose"):
        done = run_cli(command, path, "--device", "ssh://somebody@192.0.2.1")
        assert done.returncode == 2, done.stderr
        assert "name the board's profile with --profile" in done.stderr
    known = Where("ssh://somebody@192.0.2.1", None, "/mine", None, None, None).place("my-board")
    assert (known.root, known.python) == ("/mine", "python3")


def test_a_bundle_is_not_made_with_a_library_that_the_profile_does_not_name(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(dense_tflite(4, 3))
    (tmp_path / "p.json").write_text(json.dumps({"preprocess": [[]], "options": {"delegate": "/usr/lib/libx.so"}}))
    done = run_cli(
        *("bundle", tmp_path / "m.tflite", "--profile", "raspberry-pi-4", "--out", tmp_path / "m.edgeopt"),
        *("--preprocess", tmp_path / "p.json"),
    )
    assert done.returncode == 2, done.stderr
    for word in ("/usr/lib/libx.so", "raspberry-pi-4", "[npu]"):
        assert word in done.stderr
    assert not (tmp_path / "m.edgeopt").exists()


# How much a small bundle may become.


def packed(arrays: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    arrays(buffer, input0=np.zeros((8, 1 << 16), np.float32), source0=np.zeros((8, 3), np.float32))
    return buffer.getvalue()


def test_a_blob_of_a_thousand_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.edgeopt"
    dense_bundle(path, 4, 3)
    first = bundles.read(path)
    entry = first.manifest.files["model.tflite"].model_dump()
    naming(path, {}, files={**first.manifest.model_dump()["files"], **{f"f{n}": entry for n in range(1500)}})  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match="1502 files and shards would take"):
        bundles.read(path)


def test_packed_arrays_are_refused_by_host_and_board(tmp_path: Path) -> None:
    path = tmp_path / "b.edgeopt"
    dense_bundle(path, 4, 3)
    opened = bundles.read(path)
    blobs = {entry.sha256: opened.blob(entry) for entry in opened.manifest.files.values()}
    for name, arrays in (("small", np.savez_compressed), ("whole", np.savez)):
        data = packed(arrays)  # type: ignore[arg-type]
        own = dict(blobs)
        evaluation = {"shards": [add(own, data)], "metric": None, "n": 8, "floor_drop": 0.1, "classes": []}
        manifest = bundles.Manifest.model_validate({**opened.manifest.model_dump(), "evaluation": evaluation})
        made = bundles.write(tmp_path / f"{name}.edgeopt", manifest, own)
        (tmp_path / name).write_bytes(data)
        if name == "whole":
            made.check()
            assert len(validate.read_pack(made).samples) == len(load_shard(str(tmp_path / name))[0][0]) == 8
            continue
        for read in (made.check, lambda made=made: validate.read_pack(made)):
            with pytest.raises(IntegrityError, match="packed"):
                read()
        with pytest.raises(RemoteError, match=r"packed|its own size"):
            load_shard(str(tmp_path / name))


@pytest.mark.parametrize("shape", [(1 << 60,), (1 << 40, 1 << 40), (9, 4)])
def test_a_header_is_not_believed(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Nothing is allocated because a file says so."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "shard", "w") as archive:
        archive.writestr("input0.npy", header.getvalue() + bytes(8 * 4 * 4))
    with pytest.raises(RemoteError, match="cannot be read") as caught:
        load_shard(str(tmp_path / "shard"))
    assert caught.value.kind == "integrity"
