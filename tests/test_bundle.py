"""A damaged, foreign or hostile bundle is refused with a reason, or reads as what it was; never anything else."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_variants import add
from conftest import run_cli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt import bundle as bundles
from edgeopt.errors import ConfigError, IntegrityError

FAST = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def small_bundle(folder: Path) -> bundles.Bundle:
    """A bundle of a few hundred bytes with everything that a manifest can have."""
    blobs: dict[str, bytes] = {}
    buffer = io.BytesIO()
    np.savez(buffer, input0=np.zeros((1, 2), np.float32), source0=np.ones((1, 2), np.float32))
    shard = add(blobs, buffer.getvalue())
    manifest = {
        "format": 1,
        "name": "small",
        "created_by": "edgeopt 0",
        "profile": "generic-x86-64",
        "root": "/var/lib/edgeopt",
        "python": "python3",
        "verdict": "pass",
        "budgets": {"latency_p50_s": 0.01},
        "artifact": {
            "file": "model.tflite",
            "runtime": "tflite",
            "threads": 1,
            "preprocess": [[{"op": "normalize", "mean": [0.0], "std": [1.0], "axis": 1}]],
        },
        "files": {"model.tflite": add(blobs, b"model"), "health.npz": add(blobs, b"health")},
        "health": {
            "file": "health.npz",
            "metric": "top1",
            "of": 1,
            "least_correct": 1,
            "greatest_median_latency_s": 1.0,
            "greatest_output_error": 0.1,
        },
        "policy": {"confirm_within_s": 5.0},
        "evaluation": {"shards": [shard], "metric": "top1", "n": 1, "floor_drop": 0.01, "classes": ["a", "b"]},
        "lineage": {"steps": []},
    }
    return bundles.write(folder / "small.edgeopt", bundles.Manifest.model_validate(manifest), blobs)


@pytest.fixture
def small(tmp_path: Path) -> bundles.Bundle:
    return small_bundle(tmp_path)


def everything(bundle: bundles.Bundle) -> tuple[str, str, list[bytes]]:
    """All that a flash or a validation takes from a bundle."""
    shards = bundle.manifest.evaluation.shards if bundle.manifest.evaluation else []
    entries = [*bundle.manifest.files.values(), *shards]
    return bundle.release, bundle.text, [bundle.blob(entry) for entry in entries]


def read_all(path: Path) -> tuple[str, str, list[bytes]] | None:
    """What the file holds, or None where it is refused, as a person is told it: with the file and a reason."""
    try:
        opened = bundles.read(path)
        opened.check()
        return everything(opened)
    except IntegrityError as error:
        if str(path) not in str(error):
            raise AssertionError(f"{error} does not name {path}") from error
        return None


@FAST
@given(data=st.data())
def test_a_flipped_byte_is_refused_or_changes_nothing(small: bundles.Bundle, data: st.DataObject) -> None:
    whole = small.path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    bits = data.draw(st.integers(1, 255))
    path = small.path.with_name("flipped.edgeopt")
    path.write_bytes(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
    assert read_all(path) in (None, everything(small))


def test_every_lost_tail_is_refused(small: bundles.Bundle) -> None:
    whole = small.path.read_bytes()
    path = small.path.with_name("cut.edgeopt")
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert read_all(path) is None, size


@FAST
@given(data=st.data())
def test_lost_doubled_and_foreign_parts_are_refused_or_change_nothing(
    small: bundles.Bundle, data: st.DataObject
) -> None:
    whole = small.path.read_bytes()
    begin, end = sorted(data.draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
    instead = data.draw(st.one_of(st.just(whole[begin:end] * 2), st.binary(max_size=40)))
    path = small.path.with_name("mixed.edgeopt")
    path.write_bytes(whole[:begin] + instead + whole[end:])
    assert read_all(path) in (None, everything(small))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, child in inner for found in ((*path, key), *places(child, (*path, key)))]


def repacked(small: bundles.Bundle, text: bytes, path: Path) -> Path:
    """The bundle with another manifest, its checksums right: damage that only reading can find."""
    with zipfile.ZipFile(small.path) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            target.writestr(info, text if info.filename == "manifest.json" else source.read(info))
    return path


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@FAST
@given(data=st.data())
def test_any_change_of_a_manifest_is_refused_or_is_another_release(small: bundles.Bundle, data: st.DataObject) -> None:
    manifest = json.loads(small.text)
    *way, last = data.draw(st.sampled_from(places(manifest)))
    changed = copy.deepcopy(manifest)
    parent = changed
    for key in way:
        parent = parent[key]
    how = data.draw(st.sampled_from(["remove", "replace", "rename", "add"]))
    if how == "replace" or isinstance(parent, list):
        parent[last] = data.draw(json_values)
    elif how == "remove":
        del parent[last]
    elif how == "rename":
        parent[data.draw(st.text(max_size=8))] = parent.pop(last)
    else:
        parent[data.draw(st.text(max_size=8))] = data.draw(json_values)
    text = json.dumps(changed, indent=1, sort_keys=True).encode() + b"\n"
    found = read_all(repacked(small, text, small.path.with_name("changed.edgeopt")))
    if found is not None:
        assert found[0] == hashlib.sha256(text).hexdigest()
        assert (found[0] == small.release) == (text == small.text.encode())


@FAST
@given(text=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_a_manifest_of_anything_else_is_refused(small: bundles.Bundle, text: bytes) -> None:
    assert read_all(repacked(small, text, small.path.with_name("other.edgeopt"))) is None


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        (("format",), 2, "format"),
        (("artifact", "file"), "missing.tflite", "artifact.file"),
        (("artifact", "runtime"), "../tflite", "artifact.runtime"),
        (("files", "model.tflite", "sha256"), "../../etc/passwd", "sha256"),
        (("files", "model.tflite", "size_bytes"), -1, "size_bytes"),
        (("artifact", "preprocess"), [[{"op": "eval"}]], "eval"),
        (("health", "least_correct"), 1.5, "least_correct"),
        (("evaluation", "n"), "many", "evaluation.n"),
    ],
)
def test_a_wrong_manifest_names_its_key(small: bundles.Bundle, key: tuple[str, ...], value: Any, named: str) -> None:
    manifest = json.loads(small.text)
    parent = manifest
    for part in key[:-1]:
        parent = parent[part]
    parent[key[-1]] = value
    path = repacked(small, json.dumps(manifest).encode(), small.path.with_name("wrong.edgeopt"))
    with pytest.raises(IntegrityError) as caught:
        bundles.read(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_named_like_paths_are_refused(small: bundles.Bundle) -> None:
    for name in ("../x", "/etc/x", "a/b", ".hidden", "manifest.json", ""):
        manifest = json.loads(small.text)
        manifest["files"][name] = manifest["files"]["model.tflite"]
        path = repacked(small, json.dumps(manifest).encode(), small.path.with_name("named.edgeopt"))
        assert read_all(path) is None, name


def test_members_that_no_manifest_names_are_never_written(small: bundles.Bundle) -> None:
    """Paths out of the folder, links and doubles: a bundle is read by hash, so they are just not read."""
    path = small.path.with_name("hostile.edgeopt")
    path.write_bytes(small.path.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../outside", "/tmp/edgeopt-outside", "blobs/../../outside", "blobs/C:\\outside"):
            archive.writestr(name, b"x")
        link = zipfile.ZipInfo("blobs/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    before = sorted(small.path.parent.rglob("*")), sorted(small.path.parent.parent.glob("outside*"))
    assert read_all(path) == everything(small)
    assert (sorted(small.path.parent.rglob("*")), sorted(small.path.parent.parent.glob("outside*"))) == before
    assert not Path("/tmp/edgeopt-outside").exists()


def test_other_bytes_under_a_blobs_name_are_refused(small: bundles.Bundle) -> None:
    """The zip's own checksums are right, so only the hash can tell."""
    path = small.path.with_name("other.edgeopt")
    for change in (lambda data: data[::-1], lambda data: data[:-1], lambda _: b""):
        repack(path, small, lambda info, data, change=change: (0, data if "json" in info.filename else change(data)))
        assert read_all(path) is None


def repack(path: Path, small: bundles.Bundle, change: Callable[[zipfile.ZipInfo, bytes], tuple[int, bytes]]) -> Path:
    with zipfile.ZipFile(small.path) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            method, data = change(info, source.read(info))
            target.writestr(info.filename, data, compress_type=method)
    return path


def test_a_bomb_is_not_unpacked(small: bundles.Bundle) -> None:
    zeros = b"\0" * (64 << 20)

    def packed_manifest(info: zipfile.ZipInfo, data: bytes) -> tuple[int, bytes]:
        return (zipfile.ZIP_DEFLATED, zeros) if info.filename == "manifest.json" else (zipfile.ZIP_STORED, data)

    def packed_blob(info: zipfile.ZipInfo, data: bytes) -> tuple[int, bytes]:
        return (zipfile.ZIP_DEFLATED, zeros) if info.filename != "manifest.json" else (zipfile.ZIP_STORED, data)

    def large_blob(info: zipfile.ZipInfo, data: bytes) -> tuple[int, bytes]:
        return zipfile.ZIP_STORED, data if info.filename == "manifest.json" else data + b"x"

    def large_manifest(info: zipfile.ZipInfo, data: bytes) -> tuple[int, bytes]:
        more = b" " * bundles.MANIFEST_LIMIT_BYTES if info.filename == "manifest.json" else b""
        return zipfile.ZIP_STORED, data + more

    path = small.path.with_name("bomb.edgeopt")
    for change, said in ((packed_manifest, "is packed or encrypted"), (large_manifest, "are allowed")):
        with pytest.raises(IntegrityError, match=said):
            bundles.read(repack(path, small, change))
    for change, said in ((packed_blob, "is packed or encrypted"), (large_blob, "are allowed")):
        opened = bundles.read(repack(path, small, change))
        with pytest.raises(IntegrityError, match=said):
            opened.check()


def test_a_size_that_lies_is_refused_before_so_much_is_read(small: bundles.Bundle) -> None:
    """The zip says that a member is larger than the file that holds it."""
    whole = bytearray(small.path.read_bytes())
    central = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"manifest.json"))
    for offset in (20, 24):
        whole[central + offset : central + offset + 4] = (bundles.MANIFEST_LIMIT_BYTES - 1).to_bytes(4, "little")
    path = small.path.with_name("lie.edgeopt")
    path.write_bytes(whole)
    assert read_all(path) is None


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written.append(small_bundle(tmp_path / name))
    assert written[0].path.read_bytes() == written[1].path.read_bytes()
    assert written[0].release == written[1].release
    turned = tmp_path / "turned.edgeopt"
    blobs = {hashlib.sha256(data).hexdigest(): data for data in reversed(everything(written[0])[2])}
    bundles.write(turned, written[0].manifest, blobs)
    assert turned.read_bytes() == written[0].path.read_bytes()


def test_a_write_that_fails_leaves_the_old_file(small: bundles.Bundle) -> None:
    before = small.path.read_bytes()
    with pytest.raises(TypeError):
        bundles.write(small.path, small.manifest, {"0" * 64: None})  # type: ignore[dict-item]
    assert small.path.read_bytes() == before
    assert [path.name for path in small.path.parent.iterdir()] == [small.path.name]


def test_a_missing_file_is_the_users(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such bundle.*edgeopt optimize"):
        bundles.read(tmp_path / "nothing.edgeopt")


@pytest.mark.parametrize("command", ["flash", "validate"])
def test_damage_is_exit_code_5_and_the_board_stays_untouched(
    small: bundles.Bundle, tmp_path: Path, command: str
) -> None:
    damaged = tmp_path / "damaged.edgeopt"
    damaged.write_bytes(small.path.read_bytes()[:-9])
    done = run_cli(command, damaged, "--root", tmp_path / "board", "--json")
    assert done.returncode == 5
    assert str(damaged) in done.stderr
    assert "get it again" in done.stderr
    assert json.loads(done.stdout)["exit_code"] == 5
    assert not (tmp_path / "board").exists()
    missing = run_cli(command, tmp_path / "nothing.edgeopt", "--root", tmp_path / "board")
    assert missing.returncode == 2
