"""`edgeopt init`: a commented run file that works, from arrays or files, torch or ONNX, by flags or asked for."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import re
import subprocess
import tomllib
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import EDGEOPT, run_cli
from model_files import conv_onnx

from edgeopt import config, lower, plan, runfile, scaffold, task
from edgeopt.device import registry
from edgeopt.errors import ConfigError
from edgeopt.scaffold.text import EXCLUSIVE

RNG = np.random.default_rng(0)
MODEL = (
    "from helpers import ready\n\ndef load(width=2):\n    ...\n\ndef build(width):\n    ...\n\ndef _load():\n    ...\n"
)
N = 120
WATCH = {
    "motion": RNG.normal(size=(N, 6, 16)).astype(np.float32),
    "exercise": RNG.integers(0, 3, N),
    "subject": np.repeat(np.arange(10), N // 10),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with net.py, a torch model's module, and nothing else."""
    made = tmp_path / "my project"
    made.mkdir()
    (made / "net.py").write_text(MODEL)
    return made


def save(path: Path, arrays: Mapping[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def init(folder: Path, data: Path | str, *more: str, model: str = "net:load") -> dict[str, Any]:
    """What `edgeopt init --json` says, with the run file's content as "run_file"."""
    command = ["init", folder, "--model", model, "--data", data, "--profile", "generic-x86-64", "--json", *more]
    done = run_cli(*command, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["file"] == str(folder / "edgeopt.toml")
    made = plan.load(folder, lower.abilities())
    return {**said, "run_file": made.run_file.model_dump(mode="json"), "text": (folder / "edgeopt.toml").read_text()}


def test_arrays_with_few_groups(folder: Path) -> None:
    save(folder / "data.npz", WATCH)
    said = init(folder, folder / "data.npz")
    section = said["run_file"]["task"]
    assert [section[key] for key in ("arrays", "inputs", "labels", "groups", "metric")] == [
        "data.npz",
        ["motion"],
        "exercise",
        "subject",
        "top1",
    ]
    groups = [said["run_file"]["splits"][name]["groups"] for name in task.SPLITS]
    assert groups == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9]]
    assert said["run_file"]["name"] == "my-project"
    assert said["next"].startswith("edgeopt optimize ")
    assert said["check"] == []


def test_every_key_is_there_with_its_comment_and_can_be_taken_in(folder: Path) -> None:
    """A line that begins with #key, without its #, is still a run file; no other key than the schema's is named."""
    save(folder / "data.npz", WATCH)
    text = init(folder, folder / "data.npz")["text"]
    keys = [key for key in config.keys(runfile.RunFile) if key.allowed != "table"]
    for key in keys:
        section, _, name = key.key.rpartition(".")
        hidden = name in EXCLUSIVE.get(section, ()) or section.startswith("splits.")
        if hidden or name in ("prepare", "preprocess"):
            continue
        (line,) = re.findall(rf"^#?{name} = .*$", _section(text, section), re.MULTILINE)
        assert key.description.split()[-1] in line, line
    lines = text.splitlines()
    optional = [number for number, line in enumerate(lines) if re.match(r"#\w+ = ", line)]
    assert len(optional) > 15
    for number in optional:
        if lines[number].startswith(("#op", "#mean", "#std", "#axis")):
            continue
        changed = "\n".join([*lines[:number], lines[number][1:], *lines[number + 1 :]])
        changed = changed.replace('mode = "rapid"', 'mode = "quick"') if "latency_p95_s" in lines[number] else changed
        changed = changed.replace("#mode", "mode") if "latency_p95_s" in lines[number] else changed
        _, problems = config.check_text(changed, runfile.RunFile)
        assert problems == [], lines[number]
        (folder / "edgeopt.toml").write_text(changed)
        plan.load(folder, lower.abilities())
    block = re.sub(r"^#(\[\[|op|mean|std|axis)", r"\1", text, flags=re.MULTILINE)
    assert runfile.RunFile.model_validate(tomllib.loads(block)).task.preprocess["motion"][0]["op"] == "normalize"


def _section(text: str, name: str) -> str:
    return re.split(r"^\[", text.partition(f"[{name}] ")[2] if name else text, maxsplit=1, flags=re.MULTILINE)[0]


def test_arrays_for_an_onnx_model(folder: Path) -> None:
    """The model says names, types and layout; bytes become floats, and the channels come first."""
    conv_onnx(folder / "net.onnx")
    data = {"pixels": RNG.integers(0, 255, (N, 8, 8, 3), dtype=np.uint8), "y": RNG.integers(0, 8, N)}
    save(folder / "data.npz", {**data, "noise": RNG.normal(size=N)})
    said = init(folder, folder / "data.npz", model="net.onnx")
    assert said["run_file"]["model"] == {"torch": None, "onnx": "net.onnx", "arguments": {}}
    steps = said["run_file"]["task"]["preprocess"]["pixels"]
    assert [step["op"] for step in steps] == ["scale", "transpose"]
    assert steps[1]["axes"] == [0, 3, 1, 2]
    assert said["check"] == [
        "not used of data.npz: noise",
        "[task.preprocess] pixels, scale: bytes become 0 to 1; as in training?",
    ]
    assert "prune" not in re.sub("#.*?#", "", said["text"].partition("[ladder]")[2]).split("Structured")[0]
    counts = [said["run_file"]["splits"][name]["count"] for name in task.SPLITS]
    assert counts == [24, 36, 60]


def test_numbers_as_labels(folder: Path) -> None:
    target = RNG.normal(scale=40, size=N)
    save(folder / "data.npz", {"a": RNG.normal(size=(N, 5)), "target": target, "site": np.repeat(np.arange(60), 2)})
    said = init(folder, folder / "data.npz")
    assert said["run_file"]["task"]["metric"] == "negative_mae"
    assert said["run_file"]["ladder"]["floor_drop"] == pytest.approx(0.01 * target.std(), rel=0.05)
    assert said["run_file"]["task"]["preprocess"]["a"] == [{"op": "cast", "dtype": "float32"}]
    assert said["check"] == ["[ladder] floor_drop is in the score's unit"]


def test_what_the_names_do_not_tell_must_be_said(folder: Path) -> None:
    both = {"x": RNG.normal(size=(N, 5)).astype(np.float32), "p": np.arange(N) % 3, "q": np.arange(N) % 2}
    data = save(folder / "data.npz", both)
    command = ["init", folder, "--model", "net:load", "--data", data, "--profile", "generic-x86-64"]
    done = run_cli(*command)
    assert done.returncode == 2
    assert "p, q could be meant by --labels; name one" in done.stderr
    done = run_cli(*command, "--labels", "r")
    assert done.returncode == 2
    assert "--labels r:" in done.stderr
    assert not (folder / "edgeopt.toml").exists()
    said = init(folder, data, "--labels", "q", "--groups", "p")
    section = said["run_file"]["task"]
    assert (section["inputs"], section["labels"], section["groups"]) == (["x"], "q", "p")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((N, 4)), "y": np.arange(N) - 5}, "[task] labels run from -5"),
        ({"x": np.zeros((5, 4)), "y": np.arange(5)}, "found 5 samples"),
        ({"y": np.arange(N)}, "name the inputs, in the model's order"),
        ({"a": np.float32(3)}, "arrays with one row per sample are needed"),
    ],
)
def test_data_that_do_not_fit(folder: Path, arrays: Any, said: str) -> None:
    data = save(folder / "data.npz", arrays)
    done = run_cli("init", folder, "--model", "net:load", "--data", data, "--profile", "generic-x86-64")
    assert done.returncode == 2
    assert said in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["data.npz", "net.py"]


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--model", "net:lode", "it has: load, build; did you mean load?"),
        ("--model", "nets:load", "module 'nets' is neither in"),
        ("--model", "gone.onnx", "gone.onnx: no such file"),
        ("--model", "net", "package.module:factory"),
        ("--data", "gone.npz", "gone.npz: nothing there"),
        ("--data", "net.py", "found a .py; allowed: an .npz, a .csv, or a folder"),
        ("--profile", "raspberry-pi-44", "did you mean raspberry-pi-4"),
        ("--device", "kitchen", "'kitchen' is not an address"),
        ("--groups", "nobody", "--groups nobody:"),
    ],
)
def test_flags_that_name_nothing(folder: Path, tmp_path: Path, flag: str, value: str, said: str) -> None:
    save(folder / "data.npz", WATCH)
    flags = {"--model": "net:load", "--data": folder / "data.npz", "--profile": "generic-x86-64", flag: value}
    if flag == "--device":
        del flags["--profile"]
    words = [word for pair in flags.items() for word in pair]
    done = run_cli("init", folder, *words, env={"EDGEOPT_DEVICES": str(tmp_path / "none.toml")})
    assert done.returncode == 2
    assert said in done.stderr
    assert not (folder / "edgeopt.toml").exists()


def test_a_file_that_is_no_archive(folder: Path) -> None:
    for name, content in (("cut.npz", b"PK\x03\x04 and no more"), ("text.npz", b"hello")):
        (folder / name).write_bytes(content)
        done = run_cli("init", folder, "--model", "net:load", "--data", folder / name, "--profile", "generic-x86-64")
        assert done.returncode == 2
        assert name in done.stderr


def test_nothing_is_replaced(folder: Path) -> None:
    save(folder / "data.npz", WATCH)
    (folder / "edgeopt.toml").write_text("mine")
    done = run_cli("init", folder, "--model", "net:load", "--data", folder / "data.npz", "--profile", "generic-x86-64")
    assert done.returncode == 2
    assert "init replaces none" in done.stderr
    assert (folder / "edgeopt.toml").read_text() == "mine"
    made = scaffold.draft(folder, scaffold.Wanted("net:load", folder / "data.npz", "generic-x86-64"))
    with pytest.raises(ConfigError, match="replaces none"):
        scaffold.write(folder, made)
    assert sorted(path.name for path in folder.iterdir()) == ["data.npz", "edgeopt.toml", "net.py"]


def test_a_file_that_comes_meanwhile_is_not_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder / "data.npz", WATCH)
    made = scaffold.draft(folder, scaffold.Wanted("net:load", folder / "data.npz", "generic-x86-64"))
    monkeypatch.setattr(plan, "load", lambda *_: (folder / "edgeopt.toml").write_text("mine"))
    with pytest.raises(ConfigError, match="replaces none"):
        scaffold.write(folder, made)
    assert (folder / "edgeopt.toml").read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["data.npz", "edgeopt.toml", "net.py"]


def test_what_the_plan_refuses_is_not_written(folder: Path, tmp_path: Path) -> None:
    """A profile whose only runtime cannot take the model: the plan's own words, and no file."""
    conv_onnx(folder / "net.onnx")
    save(folder / "data.npz", {"image": np.zeros((N, 3, 8, 8), np.float32), "y": np.arange(N) % 8})
    board = tmp_path / "board.toml"
    board.write_text(
        'schema = 1\nname = "B"\ndescription = "Only tflite."\nruntimes = ["tflite"]\n'
        '[cpu]\narchitecture = "x86_64"\n[board]\nroot = "/var/lib/edgeopt"\npython = "python3"\n'
    )
    done = run_cli("init", folder, "--model", "net.onnx", "--data", folder / "data.npz", "--profile", board)
    assert done.returncode == 6
    assert "of [model] onnx this edgeopt makes artifacts for" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["data.npz", "net.onnx", "net.py"]


def test_a_known_board_brings_its_profile(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "devices.toml"))
    registry.put("kitchen", registry.Entry(address="ssh://pi@kitchen", profile="raspberry-pi-4"))
    registry.put("bare", registry.Entry(address="ssh://pi@bare"))
    data = save(folder / "data.npz", WATCH)
    flags = ["--model", "net:load", "--data", data]
    done = run_cli("init", folder, *flags, "--device", "bare")
    assert done.returncode == 2
    assert "init: --profile must be given" in done.stderr
    done = run_cli("init", folder, *flags, "--device", "kitchen")
    assert done.returncode == 0, done.stderr
    section = plan.load(folder, lower.abilities()).run_file.device
    assert (section.profile, section.address) == ("raspberry-pi-4", "kitchen")


def test_samples_of_another_shape_than_the_model_takes(folder: Path) -> None:
    conv_onnx(folder / "net.onnx", shape=("n", 3, 8, 8))
    save(folder / "data.npz", {"image": np.zeros((N, 3, 9, 8), np.float32), "y": np.arange(N) % 8})
    (said,) = init(folder, folder / "data.npz", model="net.onnx")["check"]
    assert said.startswith("[task] inputs: a sample of 'image' is [3, 9, 8], and the model takes 'image' float32")


# asking


def test_without_a_terminal_the_flags_are_named(folder: Path) -> None:
    save(folder / "data.npz", WATCH)
    done = run_cli("init", folder)
    assert done.returncode == 2
    assert "--model, --data, --profile must be given" in done.stderr
    assert "models net:load; data" in done.stderr
    assert "data.npz" in done.stderr


def test_on_a_terminal_what_was_found_is_the_default(folder: Path) -> None:
    both = {"x": RNG.normal(size=(N, 5)).astype(np.float32), "p": np.arange(N) % 3, "q": np.arange(N) % 2}
    save(folder / "data.npz", both)
    ours, theirs = pty.openpty()
    answers = {b"Model (": b"", b"Data (": b"", b"Profile of": b"raspberry-pi-4", b"Labels (": b"q"}
    process = subprocess.Popen([EDGEOPT, "init", folder], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal is gone with its last user
        while data := os.read(ours, 4096):
            shown += data
            for question in [question for question in answers if re.search(re.escape(question) + rb".*: $", shown)]:
                os.write(ours, answers.pop(question) + b"\n")
    os.close(ours)
    assert process.wait(60) == 0, shown.decode()
    assert answers == {}
    made = plan.load(folder, lower.abilities())
    assert (made.run_file.model.torch, made.run_file.task.labels, made.profile.id) == (
        "net:load",
        "q",
        "raspberry-pi-4",
    )


# files


def test_pictures_in_folders(folder: Path) -> None:
    pictures = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(10):
            pictures.new("RGB", (20, 16)).save(folder / "pictures" / name / f"{number}.png")
    said = init(folder, folder / "pictures")
    section = said["run_file"]["task"]
    assert (section["images"], section["inputs"], section["classes"]) == ("pictures", ["image"], ["cat", "dog"])
    assert section["prepare"] == {"resize": 256, "crop": [224, 224]}
    assert [step["op"] for step in section["preprocess"]["image"]] == ["scale", "transpose"]
    assert any("224 is a guess" in line for line in said["check"])
    assert any("order of the model's outputs" in line for line in said["check"])
    assert "#orientation = " in said["text"]


def test_pictures_for_a_model_that_says_its_size(folder: Path) -> None:
    (folder / "pictures" / "a").mkdir(parents=True)
    for number in range(12):
        (folder / "pictures" / "a" / f"{number}.png").touch()
    conv_onnx(folder / "net.onnx", shape=("n", 3, 96, 128))
    said = init(folder, folder / "pictures", model="net.onnx")
    assert said["run_file"]["task"]["prepare"]["crop"] == [128, 96]
    assert not any("guess" in line for line in said["check"])


def test_sounds_in_a_table(folder: Path) -> None:
    rows = []
    for number in range(30):
        with wave.open(str(folder / f"{number}.wav"), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(bytes(2 * 100 * (30 + number)))
        rows.append((f"{number}.wav", ["no", "yes"][number % 2], f"s{number % 5}"))
    with (folder / "sounds.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "word", "speaker"), *rows])
    said = init(folder, folder / "sounds.csv")
    section = said["run_file"]["task"]
    assert (section["audio"], section["labels"], section["groups"]) == ("sounds.csv", "word", "speaker")
    assert section["prepare"] == {"rate_hz": 8000, "length_s": 0.8}
    assert said["run_file"]["splits"]["final"]["groups"] == ["s3", "s4"]


def test_texts_need_their_tokenizer(folder: Path) -> None:
    with (folder / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((f"words {n}", n % 3) for n in range(40))])
    command = ["init", folder, "--model", "net:load", "--data", folder / "texts.csv", "--profile", "generic-x86-64"]
    done = run_cli(*command)
    assert done.returncode == 2
    assert "tokenizer.json or vocab.txt" in done.stderr
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nwords\n")
    section = init(folder, folder / "texts.csv")["run_file"]["task"]
    assert section["inputs"] == ["input_ids", "attention_mask"]
    assert section["prepare"] == {"tokenizer": "vocab.txt", "length": 128, "lowercase": True}
    assert (section["metric"], section["classes"]) == ("top1", [])


def test_models_and_data_that_lie_there(folder: Path) -> None:
    (folder / "b.onnx").touch()
    (folder / "broken.py").write_text("def load(:")
    (folder / "pictures" / "cat").mkdir(parents=True)
    (folder / "pictures" / "cat" / "1.PNG").touch()
    (folder / "runs" / "x").mkdir(parents=True)
    (folder / "runs" / "x" / "1.png").touch()
    save(folder / "data.npz", WATCH)
    assert scaffold.models_in(folder) == ["b.onnx", "net:load"]
    assert [path.name for path in scaffold.data_in(folder)] == ["data.npz", "pictures"]
