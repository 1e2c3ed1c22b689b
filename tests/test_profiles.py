"""Device profiles: the contract of every bundled file, what is refused, and `edgeopt profiles`."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt import profile
from edgeopt.cli.profiles import profiles
from edgeopt.config import check_text
from edgeopt.errors import ConfigError

FOLDER = Path(__file__).parent.parent / "device_profiles"
FILES = sorted(FOLDER.glob("*.toml"))

FULL = """schema = 1
name = "Bench board"
description = "Every key, once."
runtimes = ["tflite", "openvino"]

[cpu]
architecture = "aarch64"
model = "Cortex-A76"
cores = { value = 8, source = "https://board.example/cpu" }
cores_big = { value = 4, source = "https://board.example/cpu" }
cores_little = { value = 4, source = "https://board.example/cpu" }
frequency_max_hz = { value = 2_400_000_000, source = "https://board.example/cpu" }
int8_features = { value = ["neon", "asimddp"], source = "https://board.example/cpu", note = "from /proc/cpuinfo" }

[memory]
total_bytes = { value = 4_294_967_296, source = "https://board.example/memory" }

[npu]
model = { value = "ethos-u65", source = "https://board.example/npu" }
io_types = { value = ["int8"], source = "https://board.example/npu" }
macs_per_cycle = { value = 256, source = "https://board.example/npu" }
frequency_hz = { value = 1_000_000_000, source = "https://board.example/npu" }

[[sensors]]
kind = "hwmon"
rail = "VDD_IN"
source = "https://board.example/power"

[power]
idle_w = { value = 2.7, source = "measured: bench meter, 10 minutes" }
typical_w = { value = 6.4, source = "measured: bench meter, stress-ng" }
budget_w = 5

[board]
root = "/var/lib/edgeopt"
python = "/usr/bin/python3"

[budget]
latency_p50_s = 0.008
latency_p95_s = 0.010
size_bytes = 2_000_000
peak_memory_bytes = 50_000_000
"""


def saved(tmp_path: Path, text: str, name: str = "bench-board.toml") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


# ---- every bundled file ----


def test_names_are_the_files() -> None:
    assert profile.names() == [file.stem for file in FILES]
    assert {"raspberry-pi-4", "imx93-evk", "generic-x86-64", "generic-arm64"} <= set(profile.names())


def leaves(data: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(data, dict):
        return [leaf for name, value in data.items() for leaf in leaves(value, f"{key}.{name}".lstrip("."))]
    return [(key, data)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_contract_of_a_bundled_profile(file: Path) -> None:
    board = profile.load(file.stem)
    assert board.id == file.stem
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", board.id)
    assert board == profile.load(file)
    assert board.budget == profile.Budget(), "demands belong to a board's owner, not to the bundled profile"
    assert board.cost == profile.Cost(), "prices belong to a board's owner, too"
    assert board.power.budget_w is None
    raw = tomllib.loads(file.read_text())
    numbers = [key for key, value in leaves(raw) if isinstance(value, int | float) and key != "schema"]
    assert all(key.endswith(".value") for key in numbers), "a figure without its source"
    sources = [value for key, value in leaves(raw) if key.endswith(".source")]
    assert all(source.startswith("https://") for source in sources)
    if file.stem.startswith("generic-"):
        assert not sources


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_dump_is_json_with_every_key_and_validates_again(file: Path) -> None:
    dump = json.loads(json.dumps(profile.load(file).dump()))
    assert dump.pop("id") == file.stem
    assert dump["npu"] is None or dump["npu"]["model"]["source"]
    assert profile.DeviceProfile.model_validate(dump).cpu == profile.load(file).cpu


# ---- loading ----


def test_full_profile(tmp_path: Path) -> None:
    board = profile.load(saved(tmp_path, FULL))
    assert board.id == "bench-board"
    assert board.cpu.cores is not None
    assert board.cpu.cores.value == 8
    assert board.power.idle_w is not None
    assert board.power.idle_w.source.startswith("measured:")
    assert board.budget.latency_p95_s == 0.010
    assert board.sensors is not None
    assert board.sensors[0].rail == "VDD_IN"


def test_absent_is_none_and_never_a_guess() -> None:
    board = profile.load("generic-x86-64")
    absent: list[object] = [board.cpu.cores, board.memory.total_bytes, board.power.idle_w, board.npu, board.sensors]
    assert absent == [None] * 5
    assert set(board.budget.model_dump().values()) == {None}


def test_unknown_name_lists_the_names_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'raspberrypi4'.*generic-arm64, .*did you mean raspberry-pi-4\?"):
        profile.load("raspberrypi4")
    with pytest.raises(ConfigError, match=r"boards/x.*ends in \.toml"):
        profile.load("boards/x")
    with pytest.raises(ConfigError, match=r"(?s)x\.toml: .*no such file"):
        profile.load("boards/x.toml")


# ---- refusals ----


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("schema = 1", "schema = 2", ["line 1: schema: found 2", "one of 1"]),
        (
            'architecture = "aarch64"',
            'architecture = "arm64"',
            ["cpu.architecture", '"arm64"', "x86_64, aarch64, armv7l"],
        ),
        ('{ value = 8, source = "https://board.example/cpu" }', "8", ["cpu.cores", "found 8", 'source = "…"']),
        ("value = 8,", "value = 0,", ["line 9: cpu.cores.value", "found 0", "whole number, at least 1"]),
        ("value = 8,", "value = 9,", ["cpu.cores and cpu.cores_big and cpu.cores_little", "4 + 4 = 8"]),
        ("value = 2_400_000_000,", "value = -1,", ["cpu.frequency_max_hz.value", "found -1", "above 0, in hertz"]),
        ('"neon", "asimddp"', '"neno"', ["cpu.int8_features.value[0]", '"neno"', "asimddp", "did you mean neon?"]),
        ('"neon", "asimddp"', '"neon", "avx2"', ["cpu.int8_features and cpu.architecture", "avx2 on aarch64", "i8mm"]),
        ('"neon", "asimddp"', '"neon", "neon"', ["cpu.int8_features", "neon more than once"]),
        ('"https://board.example/memory"', '"datasheet"', ["memory.total_bytes.source", '"datasheet"', "https://"]),
        (', source = "https://board.example/memory"', "", ["memory.total_bytes.source", "found nothing", "add memory"]),
        ('"tflite", "openvino"', '"tensorrt"', ["runtimes[0]", '"tensorrt"', "tflite, openvino, onnxruntime"]),
        ('"tflite", "openvino"', '"tflite", "tflite"', ["runtimes", "more than once"]),
        ('"tflite", "openvino"', "", ["runtimes", "found []", "list of at least 1"]),
        ('value = ["int8"]', 'value = ["int7"]', ["npu.io_types.value[0]", '"int7"', "int8, int16"]),
        ('kind = "hwmon"', 'kind = "ina3221"', ["sensors[0].kind", '"ina3221"', "rapl, hwmon, power_supply"]),
        ("idle_w =", "idle_mw =", ["power.idle_mw", "unknown key", "idle_w, typical_w, budget_w", "mean idle_w?"]),
        ("budget_w = 5", "budget_w = 2.5", ["power.budget_w and power.idle_w", "2.5 W", "2.7 W", "above 2.7"]),
        ("value = 6.4", "value = 1.4", ["power.typical_w and power.idle_w", "1.4 W", "2.7 W"]),
        ('"/var/lib/edgeopt"', '"edgeopt"', ["board.root", '"edgeopt"', "absolute path"]),
        ('"/var/lib/edgeopt"', '"/"', ["board.root", 'found "/"', "not / itself"]),
        ('"/var/lib/edgeopt"', '"/var/../edgeopt"', ["board.root", "/var/../edgeopt", "absolute path"]),
        ('"/var/lib/edgeopt"', '"/a b; rm -r"', ["board.root", "absolute path"]),
        ('"/usr/bin/python3"', '"python3 -u"', ["board.python", '"python3 -u"', "without arguments"]),
        ("latency_p50_s = 0.008", "latency_p50_s = 0.8", ["budget.latency_p95_s and budget.latency_p50_s", "0.8 s"]),
        ("latency_p95_s", "latency_p95_ms", ["budget.latency_p95_ms", "unknown key", "did you mean latency_p95_s?"]),
        ("size_bytes = 2_000_000", "size_bytes = 2e6", ["budget.size_bytes", "2000000.0", "whole number", "in bytes"]),
        ("= 50_000_000", "= 5_000_000_000", ["budget.peak_memory_bytes and memory.total_bytes", "4294967296"]),
    ],
)
def test_each_refusal_names_file_key_found_and_allowed(tmp_path: Path, old: str, new: str, said: list[str]) -> None:
    assert FULL.count(old) == 1
    file = saved(tmp_path, FULL.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        profile.load(file)
    assert caught.value.exit_code == 2
    for text in [str(file), "allowed: ", *said]:
        assert text in str(caught.value)


# ---- any corruption ----


def quoted(value: Any) -> str:
    """Plain data as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {quoted(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(quoted, value))}]"
    return json.dumps(value)


def places(data: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


GOOD = tomllib.loads(FULL)
PLACES = [place for place in places(GOOD) if place]
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
WRONG = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    WORDS,
    st.just({}),
    st.just([]),
    st.lists(st.integers(0, 9), max_size=2),
    st.dictionaries(WORDS, st.integers(0, 9), max_size=2),
    st.sampled_from([GOOD["cpu"]["cores"], GOOD["power"]["idle_w"], GOOD["sensors"], GOOD["runtimes"]]),
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(PLACES), st.sampled_from(["replace", "remove", "rename"]), WRONG, WORDS)
def test_a_corrupted_profile_is_valid_or_its_key_is_named(
    place: tuple[str | int, ...], how: str, wrong: Any, name: str
) -> None:
    data = copy.deepcopy(GOOD)
    table: Any = data
    for part in place[:-1]:
        table = table[part]
    old = table[place[-1]]
    if how == "replace" and wrong is not None:
        table[place[-1]] = wrong
    else:
        del table[place[-1]]
        if how == "rename" and isinstance(table, dict):
            table[name] = old
    text = "\n".join(f"{json.dumps(key)} = {quoted(value)}" for key, value in data.items())
    board, problems = check_text(text, profile.DeviceProfile)
    assert (board is None) == bool(problems)
    top = str(place[0])
    for problem in problems:
        assert top in problem.key or json.dumps(name).strip('"') in problem.key
        assert problem.found
        assert problem.allowed
        assert problem.mend


# ---- the command line ----


def run(*arguments: str) -> Result:
    return CliRunner().invoke(profiles, list(arguments))


def test_list_show_and_keys() -> None:
    listed = run("list")
    assert listed.exit_code == 0
    assert run().output == listed.output
    lines = [line.split() for line in listed.output.splitlines()]
    assert lines[0] == ["profile", "architecture", "runtimes", "board"]
    assert [line[0] for line in lines[1:-1]] == profile.names()
    assert listed.output.splitlines()[-1].startswith("The first runtime of a profile is its default")
    shown = run("show", "imx93-evk").output
    assert "cpu.cores = 2   (https://" in shown
    assert "power.idle_w = not stated" in shown
    assert "power.idle_w   [default: absent]" in run("keys").output


def test_json_is_one_document() -> None:
    assert [board["id"] for board in json.loads(run("list", "--json").stdout)["profiles"]] == profile.names()
    assert run("--json").stdout == run("list", "--json").stdout
    assert run("--json", "keys").exit_code == 2
    assert json.loads(run("show", "imx93-evk", "--json").stdout) == profile.load("imx93-evk").dump()
    keys = {key["key"]: key for key in json.loads(run("keys", "--json").stdout)["keys"]}
    assert keys["cpu.architecture"]["default"] is None
    assert keys["sensors[].kind"]["allowed"] == "one of rapl, hwmon, power_supply, pmic"


def test_check_passes_what_is_valid() -> None:
    result = run("check", *map(str, FILES))
    assert result.exit_code == 0
    assert result.output.count(": valid") == len(FILES)


def test_check_lists_all_problems_of_all_files(tmp_path: Path) -> None:
    good = saved(tmp_path, FULL, "good.toml")
    two = saved(tmp_path, FULL.replace("value = 8", "value = 0").replace("hwmon", "x"), "two.toml")
    gone = tmp_path / "gone.toml"
    result = run("check", str(good), str(two), str(gone))
    assert isinstance(result.exception, ConfigError)
    for text in (f"{two}: 2 problems", "cpu.cores.value", "sensors[0].kind", f"{gone}: 1 problem"):
        assert text in str(result.exception)
    assert f"{good}: valid" in result.output

    result = run("check", "--json", str(good), str(two))
    assert isinstance(result.exception, ConfigError)
    first, second = json.loads(result.stdout)["files"]
    assert (first["valid"], first["problems"]) == (True, [])
    assert [(problem["key"], problem["line"]) for problem in second["problems"]] == [
        ("cpu.cores.value", 9),
        ("sensors[0].kind", 25),
    ]


@pytest.mark.parametrize("command", [[], ["list"], ["show"], ["check"], ["keys"]])
def test_help_has_an_example(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Example:\n" in result.output
    assert "edgeopt profiles" in result.output


def test_commands_load_no_heavy_module() -> None:
    code = (
        "import sys; from edgeopt.cli.profiles import profiles; profiles(['list'], standalone_mode=False);"
        "sys.exit(sorted({'numpy', 'torch', 'paramiko'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
