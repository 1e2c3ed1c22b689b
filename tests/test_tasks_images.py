"""Pictures as samples: what is decoded, how it is labelled, what is refused, and what the cache knows."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_project
from conftest import run_cli

from edgeopt import config, decode, lower, plan, runfile, tasks
from edgeopt.cache import Cache
from edgeopt.errors import ConfigError

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed: pip install 'edgeopt[tasks]'")

TASK = 'images = "pictures"\ninputs = ["picture"]\nlabels = "label"\nmetric = "top1"'
CSV = TASK.replace('"pictures"', '"pictures.csv"')


def picture(path: Path, width: int = 8, height: int = 6, mode: str = "RGB", shade: int = 0, **save: Any) -> Path:
    """Its red is 10 x column, its green 10 x row, its blue `shade`; other modes are converted from that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 10 * np.arange(width), 10 * np.arange(height)[:, None]
    pixels[..., 2] = shade
    Image.fromarray(pixels).convert(mode).save(path, **save)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """pictures/{cat,dog,eel}/{0,1}.png, every one of another blue."""
    folder = tmp_path / "project"
    for index, name in enumerate(("dog", "cat", "eel")):
        for number in range(2):
            picture(folder / "pictures" / name / f"{number}.png", shade=100 + 10 * index + number)
    return task_project.write(folder, TASK)


def blues(folder: Path) -> list[int]:
    return task_project.everything(folder).inputs[0][:, 0, 0, 2].tolist()


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_every_kind_keeps_the_contract(kind: str) -> None:
    module = tasks.load(kind)
    assert kind in runfile.TaskSection.model_fields
    assert runfile.TaskSection.model_fields[kind].description == tasks.source_words(kind)
    assert {key.key for key in config.keys(module.Prepare)} == set(module.Prepare.model_fields)
    assert all(key.description for key in config.keys(module.Prepare))
    for name in ("read", "input_conflicts", "files", "decoder"):
        assert callable(getattr(module, name))
    assert f"For {kind}:" in config.explain(runfile.RunFile)


def test_folders_are_classes_in_sorted_order(project: Path) -> None:
    found = task_project.everything(project)
    assert found.inputs[0].dtype == np.uint8
    assert found.inputs[0].shape == (6, 6, 8, 3)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert blues(project) == [110, 111, 100, 101, 120, 121]
    assert found.inputs[0][0, 2, 3].tolist() == [30, 20, 110]  # [sample, row, column] of red, green, blue


def test_classes_give_the_order_where_they_are_named(project: Path) -> None:
    task_project.write(project, TASK + '\nclasses = ["eel", "cat", "dog"]')
    labels = task_project.everything(project).labels
    assert labels is not None
    assert labels.tolist() == [1, 1, 2, 2, 0, 0]


def test_folders_named_by_numbers_are_the_numbers(project: Path) -> None:
    for old, new in (("cat", "10"), ("dog", "9"), ("eel", "0")):
        (project / "pictures" / old).rename(project / "pictures" / new)
    labels = task_project.everything(project).labels
    assert labels is not None
    assert sorted(labels.tolist()) == [0, 0, 9, 9, 10, 10]


def test_classes_named_by_numbers_are_names(project: Path) -> None:
    """Without them folder 1 would be the second class."""
    for old, new in (("cat", "1"), ("dog", "2"), ("eel", "0")):
        (project / "pictures" / old).rename(project / "pictures" / new)
    task_project.write(project, TASK + '\nclasses = ["1", "2", "0"]')
    labels = task_project.everything(project).labels
    assert labels is not None
    assert labels.tolist() == [2, 2, 0, 0, 1, 1]


def test_a_table_gives_order_labels_and_groups(project: Path) -> None:
    rows = [
        "camera,file,label",
        "7,pictures/eel/1.png,eel",
        f"3,{project}/pictures/cat/0.png,cat",
        "7,pictures/dog/0.png,dog",
    ]
    (project / "pictures.csv").write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    groups = {name: f"{{ groups = [{group}] }}" for name, group in (("calibration", 7), ("selection", 3), ("final", 4))}
    task_project.write(project, CSV + '\ngroups = "camera"', **groups)
    found = task_project.everything(project)
    assert blues(project) == [121, 110, 100]
    assert found.labels is not None
    assert found.groups is not None
    assert (found.labels.tolist(), found.groups.tolist()) == ([2, 0, 1], [7, 3, 7])
    with pytest.raises(ConfigError, match="there is no group 4"):
        task_project.read(project)


def test_sizes(project: Path) -> None:
    """The shorter side first, then the middle; oracle: Pillow called directly."""
    task_project.write(project, TASK, 'resize = 9\ncrop = [10, 7]\nfilter = "bilinear"')
    found = task_project.everything(project).inputs[0]
    with Image.open(project / "pictures" / "cat" / "0.png") as opened:
        wanted = np.asarray(opened.resize((12, 9), Image.Resampling.BILINEAR))[1:8, 1:11]
    assert np.array_equal(found[0], wanted)
    task_project.write(project, TASK, 'stretch = [4, 5]\nmode = "L"\nconvert = true')
    assert task_project.everything(project).inputs[0].shape == (6, 5, 4, 1)


def test_the_middle_of_a_picture_is_its_pixels(project: Path) -> None:
    task_project.write(project, TASK, "crop = [4, 2]")
    found = task_project.everything(project).inputs[0][0]
    assert found[..., 0].tolist() == [[20, 30, 40, 50]] * 2
    assert found[..., 1].tolist() == [[20] * 4, [30] * 4]


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_what_loses_nothing_is_taken(project: Path, mode: str) -> None:
    path = picture(project / "pictures" / "cat" / "0.png", mode=mode)
    with Image.open(path) as opened:
        wanted = np.asarray(opened.convert("RGB"))
    assert np.array_equal(task_project.everything(project).inputs[0][0], wanted)


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", "png"), ("LA", "png"), ("CMYK", "jpg")])
def test_what_loses_something_is_refused_unless_asked_for(project: Path, mode: str, suffix: str) -> None:
    (project / "pictures" / "cat" / "0.png").unlink()
    picture(project / "pictures" / "cat" / f"0.{suffix}", mode=mode)
    said = rf"cat/0\.{suffix}: found a picture of mode {mode}; allowed: RGB, L, 1, P; .*convert = true"
    with pytest.raises(ConfigError, match=said):
        task_project.everything(project)
    task_project.write(project, TASK, "convert = true")
    assert task_project.everything(project).inputs[0].shape == (6, 6, 8, 3)


def test_sixteen_bits_are_refused_whatever_is_asked_for(project: Path) -> None:
    Image.fromarray(np.full((6, 8), 1000, np.uint16)).save(project / "pictures" / "cat" / "0.png")
    task_project.write(project, TASK, "convert = true")
    with pytest.raises(ConfigError, match=r"cat/0.png: found a picture of mode I;16; .*8 bits"):
        task_project.everything(project)


def test_a_turned_camera_must_be_spoken_of(project: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture(project / "pictures" / "cat" / "0.png", exif=exif)
    with pytest.raises(ConfigError, match=r"cat/0.png: found a note .* orientation = 'apply' or 'ignore'"):
        task_project.everything(project)
    reds = {}
    for how in ("ignore", "apply"):
        task_project.write(project, TASK, f'orientation = "{how}"')
        reds[how] = task_project.everything(project).inputs[0][0, 0, :, 0].tolist()
    assert reds["ignore"] == list(range(0, 80, 10))
    assert reds["apply"] == reds["ignore"][::-1]


def add(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return change


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(12000, dtype=np.uint8).reshape(40, 100, 3)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add("pictures/cat/0.png", b""), r"pictures': cat/0\.png: found no readable picture .*; allowed: .*remove it"),
        (add("pictures/cat/0.png", png()[:200]), r"cat/0\.png: found no readable picture \(.*truncated"),
        (add("pictures/cat/0.png", b"GIF89a" + bytes(100)), r"cat/0\.png: found no readable picture"),
        (
            add("pictures/eel/1.png", png()),
            r"eel/1\.png: found shape \(40, 100, 3\); allowed: \(6, 8, 3\), as of cat/0\.png",
        ),
        (add("pictures/cat/notes.txt", b"hello"), r"cat/notes\.txt: found \.txt; allowed: \.jpg, .*elsewhere"),
        (
            add("pictures/stray.png", png()),
            r"found the file stray\.png beside the classes; allowed: one sub-folder per class",
        ),
        (
            lambda folder: (folder / "pictures" / "fox").mkdir(),
            r"fox/: found an empty folder; allowed: files of that class",
        ),
        (
            lambda folder: shutil.rmtree(folder / "pictures"),
            r"pictures': found nothing there; allowed: a folder or a CSV",
        ),
        (
            lambda folder: [shutil.rmtree(p) for p in (folder / "pictures").iterdir()],
            r"found no sub-folder; .*CSV file",
        ),
    ],
    ids=["empty", "cut", "garbage", "size", "suffix", "stray", "empty class", "absent", "no class"],
)
def test_bad_folders(project: Path, change: Callable[[Path], object], said: str) -> None:
    change(project)
    with pytest.raises(ConfigError, match=rf"\[task\] images = '.*{said}"):
        task_project.everything(project)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\npictures/cat/9.png,cat\n", "line 2: found no such file; allowed: paths relative to"),
        ("file,label\npictures/cat/0.png,cat\npictures/cat/0.png,dog\n", "line 3: found 0.png again; .*see line 2"),
        ("file,lable\npictures/cat/0.png,cat\n", "found the columns file, lable; .*did you mean lable"),
        ("file,label,label\na,b,c\n", "found the column label twice"),
        ("file,label\n", "found a header and no row"),
        ("", r"found the columns \(none\)"),
        ("file,label\npictures/cat/0.png\n", "line 2: found more or fewer cells than columns"),
        ("file,label\npictures/cat/0.png,cat,x\n", "line 2: found more or fewer cells"),
        ("file,label\npictures/cat/0.png, \n", "line 2: found an empty label"),
        ("file,label\npictures/cat/0.png,cta\n", r"0.png \(line 2\): found label 'cta'; .*did you mean cat"),
        ("file,label\npictures/cat/0.png,2\n", r"found label '2'; .* a number from 0 to 1"),
        ("file,label\npictures/cat/0.png,-1\n", r"found label '-1'"),
        ('file,label\n"pictures,cat\n', "found after line 1: unexpected end of data"),
    ],
)
def test_bad_tables(project: Path, text: str, said: str) -> None:
    task_project.write(project, CSV + '\nclasses = ["cat", "dog"]')
    (project / "pictures.csv").write_text(text)
    with pytest.raises(ConfigError, match=rf"\[task\] images = '.*{said}"):
        task_project.everything(project)


def test_a_table_that_is_no_text(project: Path) -> None:
    task_project.write(project, CSV)
    (project / "pictures.csv").write_bytes(b"file,label\n\xff,\n")
    with pytest.raises(ConfigError, match="byte 11 that is not UTF-8"):
        task_project.everything(project)


@pytest.mark.parametrize(
    ("task", "prepare", "said"),
    [
        (TASK, "resize = 0", ["task.prepare.resize: found 0", "at least 1"]),
        (TASK, "rezise = 9", ["task.prepare.rezise", "did you mean resize?"]),
        (TASK, 'filter = "cubic"', ["task.prepare.filter", "one of bicubic, bilinear", "did you mean bicubic?"]),
        (TASK, "crop = 224", ["task.prepare.crop: found 224", "[width, height] in pixels"]),
        (TASK, "resize = 9\nstretch = [9, 9]", ["task.prepare.resize and task.prepare.stretch: found both"]),
        (TASK + '\narrays = "x.npz"', "", ["task.arrays and task.images: found both", "exactly one"]),
        (TASK.replace("top1", "negative_mae"), "", ["task.metric and task.images: found 'negative_mae'", "top1, top5"]),
        (TASK.replace('["picture"]', '["a", "b"]'), "", ["task.inputs: found 2 names", "a picture is one array"]),
        (TASK.replace("images", "arrays"), "resize = 9", ["task.prepare: found a table", "images"]),
    ],
)
def test_run_files_that_are_refused(project: Path, task: str, prepare: str, said: list[str]) -> None:
    task_project.write(project, task, prepare)
    done = run_cli("optimize", project, "--show-plan")
    assert done.returncode == 2, done.stderr
    for words in said:
        assert words in done.stderr.replace("\n", " ")


def test_groups_of_a_folder_and_columns_named_as_inputs(project: Path) -> None:
    task_project.write(project, TASK + '\ngroups = "camera"')
    with pytest.raises(
        ConfigError, match=r"groups = 'camera': found a folder; allowed: a CSV file with the columns file"
    ):
        task_project.everything(project)
    task_project.write(project, TASK.replace('"label"', '"picture"'))
    with pytest.raises(ConfigError, match="found 'picture' as column and as input"):
        task_project.everything(project)


def test_the_cache_knows_what_was_decoded(project: Path) -> None:
    def hit() -> bool:
        cache = Cache(project.with_name("cache"))
        task_project.read(project, cache=cache)
        assert cache.hits + cache.misses == ["decoded images"]
        return bool(cache.hits)

    assert [hit(), hit()] == [False, True]
    os.utime(project / "pictures" / "cat" / "0.png", (0, 0))
    task_project.write(project, TASK + '\nclasses = ["eel", "dog", "cat"]')
    assert hit(), "neither a file's time nor the order of classes is in the pixels"
    picture(project / "pictures" / "cat" / "0.png", shade=9)
    assert [hit(), hit()] == [False, True]
    assert 9 in blues(project)
    task_project.write(project, TASK, 'filter = "nearest"')
    assert not hit()
    (project / "pictures" / "eel" / "1.png").unlink()
    assert not hit()


def golden(project: Path) -> tuple[bytes, dict[str, Any]]:
    data = decode.golden(plan.load(project, lower.abilities()), Cache(project.with_name("cache")), "images")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return data, dict(archive)


def test_golden_samples_are_files_and_what_they_become(project: Path) -> None:
    data, found = golden(project)
    assert data == golden(project)[0]
    assert found["input0"].shape == (4, 6, 8, 3)
    assert json.loads(str(found["prepare"]))["filter"] == "bicubic"
    for number, pixels in enumerate(found["input0"]):
        assert (project / "pictures" / str(found[f"name{number}"])).read_bytes() == found[f"raw{number}"].tobytes()
        with Image.open(io.BytesIO(found[f"raw{number}"].tobytes())) as opened:
            assert np.array_equal(np.asarray(opened), pixels)


def test_golden_samples_are_small_where_there_are_small_ones(project: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), np.uint8)
    for path in sorted((project / "pictures").rglob("*.png"))[1:]:
        Image.fromarray(noise).save(path)
    task_project.write(project, TASK, "stretch = [8, 6]")
    data, found = golden(project)
    assert len(data) < 100_000
    assert [str(found[f"name{number}"]) for number in range(len(found["input0"]))] == ["cat/0.png"]


def test_a_hit_loads_no_decoder(project: Path) -> None:
    script = (
        "import sys; from pathlib import Path; import task_project\n"
        "task_project.read(Path(sys.argv[1]))\n"
        "print([name for name in ('PIL', 'soundfile', 'tokenizers', 'torch') if name in sys.modules])"
    )
    said = []
    for _ in range(2):
        command = [sys.executable, "-c", script, str(project)]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        said.append(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.strip())
    assert said == ["['PIL']", "[]"]


def test_progress_is_told_and_memory_is_bounded(project: Path) -> None:
    side, n = 128, 60
    for number in range(n):
        picture(project / "pictures" / "cat" / f"big-{number}.png", 25, 25)
    task_project.write(project, TASK, f"stretch = [{side}, {side}]")
    events: list[dict[str, Any]] = []
    tracemalloc.start()
    data = tasks.index("images", project / "pictures", {"stretch": [side, side]}, ["picture"], "label", None, project)
    (project / "out").mkdir()
    data.decode(project / "out", lambda done, total: events.append({"done": done, "of": total}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert events == [{"done": number + 1, "of": n + 6} for number in range(n + 6)]
    assert peak < n * side * side * 3 / 4, f"{peak} bytes were held at once"


def test_the_installed_command_names_the_file(project: Path) -> None:
    (project / "net.py").write_text("def load():\n    raise AssertionError('data comes first')\n")
    (project / "pictures" / "dog" / "1.png").write_bytes(b"no picture")
    done = run_cli("optimize", project, "--cache", project / "cache", "--json")
    assert done.returncode == 2, done.stderr
    assert "dog/1.png: found no readable picture" in json.loads(done.stdout)["error"]["message"]
