"""Texts as samples: tokens of the user's own tokenizer file, as several inputs of the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import task_project
from conftest import run_quick

from edgeopt import decode, lower, plan
from edgeopt.cache import Cache
from edgeopt.errors import ConfigError

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install 'edgeopt[tasks]'")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "where", "is", "my", "card", "##s", "lost", "?", "café", "cafe"]
TASK = 'text = "texts.csv"\ninputs = ["input_ids", "attention_mask"]\nlabels = "intent"\nmetric = "top1"'
VOCABULARY = 'tokenizer = "vocab.txt"\nlength = 7\nlowercase = true'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write(tmp_path / "project")


def write(folder: Path) -> Path:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    (folder / "texts.csv").write_text(
        'text,intent\nWhere is my card?,where\n"My cards, lost",lost\nis my card lost is my card lost,lost\n'
    )
    return task_project.write(folder, TASK, VOCABULARY)


def tokens(row: np.ndarray) -> str:
    return " ".join(WORDS[number] for number in row)


def test_texts_become_numbers_and_masks_in_the_models_order(project: Path) -> None:
    found = task_project.everything(project)
    ids, mask = found.inputs
    assert {(array.dtype, array.shape) for array in found.inputs} == {(np.dtype("int32"), (3, 7))}
    assert [tokens(row) for row in ids] == [
        "[CLS] where is my card ? [SEP]",
        "[CLS] my card ##s [UNK] lost [SEP]",
        "[CLS] is my card lost is [SEP]",  # cut, and still ended
    ]
    assert mask.tolist() == [[1] * 7] * 3
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0, 0]


def test_labels_that_are_names_become_the_classes(project: Path) -> None:
    made = decode.with_classes(plan.load(project, lower.abilities()))
    assert made.run_file.task.classes == ("lost", "where")
    (project / "texts.csv").write_text("text,intent\na,1\nb,0\nc,1\n")
    assert decode.with_classes(plan.load(project, lower.abilities())).run_file.task.classes == ()


def test_short_texts_are_filled(project: Path) -> None:
    task_project.write(project, TASK.replace('mask"]', 'mask", "token_type_ids"]'), VOCABULARY.replace("7", "9"))
    ids, mask, types = task_project.everything(project).inputs
    assert tokens(ids[0]) == "[CLS] where is my card ? [SEP] [PAD] [PAD]"
    assert mask[0].tolist() == [1] * 7 + [0] * 2
    assert not types.any()


def test_case_and_accents_stay_where_asked(project: Path) -> None:
    (project / "texts.csv").write_text("text,intent\nCafé café,a\nx,b\nx,c\n", encoding="utf-8")
    assert tokens(task_project.everything(project).inputs[0][0, :4]) == "[CLS] cafe cafe [SEP]"
    task_project.write(project, TASK, VOCABULARY.replace("true", "false"))
    assert tokens(task_project.everything(project).inputs[0][0, :4]) == "[CLS] [UNK] café [SEP]"


def test_a_tokenizer_file_says_all_itself(project: Path) -> None:
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"lost": 5, "card": 4, "<u>": 1, "<pad>": 9}, unk_token="<u>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(project / "mine.json"))
    task_project.write(project, TASK, 'tokenizer = "mine.json"\nlength = 4\npad = "<pad>"')
    ids, mask = task_project.everything(project).inputs
    assert ids.tolist() == [[1, 1, 1, 4], [1, 1, 1, 5], [1, 1, 4, 5]]
    (project / "texts.csv").write_text("text,intent\ncard,a\nlost,b\nx,c\n")
    ids, mask = task_project.everything(project).inputs
    assert (ids[0].tolist(), mask[0].tolist()) == ([4, 9, 9, 9], [1, 0, 0, 0])


def test_the_cache_knows_texts_and_vocabulary(project: Path) -> None:
    def hit() -> bool:
        cache = Cache(project.with_name("cache"))
        task_project.read(project, cache=cache)
        return bool(cache.hits)

    assert [hit(), hit()] == [False, True]
    (project / "vocab.txt").write_text("\n".join([*WORDS, "cards"]), encoding="utf-8")
    assert [hit(), hit()] == [False, True]
    table = (project / "texts.csv").read_text()
    (project / "texts.csv").write_text(table.replace(",where", ",elsewhere"))
    assert hit(), "labels are not in the tokens"
    (project / "texts.csv").write_text(table.replace("Where is", "Where was"))
    assert not hit()


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("length = 7", "task.prepare.tokenizer: found nothing; allowed: the path of a WordPiece vocab.txt or"),
        (VOCABULARY.replace("vocab.txt", "spiece.model"), 'task.prepare.tokenizer: found "spiece.model"'),
        ('tokenizer = "vocab.txt"\nlength = 7', "task.prepare.lowercase: found nothing; allowed: true or false for a"),
        ('tokenizer = "t.json"\nlength = 7\nlowercase = true', "task.prepare.lowercase: found a value"),
        (VOCABULARY.replace("7", "1"), "task.prepare.length: found 1; allowed: whole number, at least 2"),
    ],
)
def test_prepares_that_are_refused(project: Path, prepare: str, said: str) -> None:
    task_project.write(project, TASK, prepare)
    done = run_quick("optimize", project, "--show-plan")
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split())


def test_inputs_have_the_names_of_what_a_tokenizer_gives(project: Path) -> None:
    task_project.write(project, TASK.replace("input_ids", "ids"), VOCABULARY)
    with pytest.raises(
        ConfigError, match=r"task\.inputs: found 'ids'; allowed: input_ids, attention_mask, token_type_ids"
    ):
        task_project.everything(project)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("vocab.txt", b"a\nb\n", r"tokenizer = '.*vocab\.txt': found no line \[UNK\]; allowed: one token per line"),
        ("vocab.txt", b"\xff", r"tokenizer = '.*vocab\.txt': found .*utf-8.*; allowed: a tokenizer file"),
        ("vocab.txt", b"[UNK]\n[CLS]\n[SEP]", r"found no token '\[PAD\]'; .*set pad"),
        ("vocab.txt", None, r"vocab\.txt cannot be read \(No such file"),
        ("texts.csv", None, r"text = '.*texts\.csv': found nothing there; allowed: a CSV file; correct"),
        ("texts.csv", b"sentence,intent\na,b\n", "found the columns sentence, intent; allowed: columns text, intent"),
        ("texts.csv", b"text,intent\n  ,b\n", "line 2: found an empty text"),
        ("texts.csv", b"text,intent\na, b, c\n", "line 2: found more or fewer cells than columns; .*quote texts"),
    ],
)
def test_bad_files(project: Path, file: str, content: bytes | None, said: str) -> None:
    (project / file).unlink()
    if content is not None:
        (project / file).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        task_project.everything(project)


def test_a_damaged_tokenizer_file(project: Path) -> None:
    (project / "t.json").write_text(json.dumps({"version": "1.0"}))
    task_project.write(project, TASK, 'tokenizer = "t.json"\nlength = 7')
    with pytest.raises(
        ConfigError, match=r"tokenizer = '.*t\.json': found .*; allowed: a tokenizer file; save it again"
    ):
        task_project.everything(project)


NET = """
import torch


class Intent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(13, 8)
        self.out = torch.nn.Linear(8, 2)

    def forward(self, ids, mask):
        known = mask.unsqueeze(-1).float()
        return self.out((self.words(ids) * known).sum(1) / known.sum(1))


def load():
    torch.manual_seed(0)
    return Intent().eval()
"""


def write_ladder(project: Path, runtime: str) -> None:
    """A model and enough texts to optimize it, in a project of this file."""
    (project / "net.py").write_text(NET)
    lines = [
        f"{a} {b} my card {c},{'where' if a == 'where' else 'lost'}"
        for a in WORDS[4:8]
        for b in WORDS[4:8]
        for c in WORDS[8:]
    ]
    (project / "texts.csv").write_text("text,intent\n" + "\n".join(lines) + "\n", encoding="utf-8")
    counts = {"calibration": "{ count = 16 }", "selection": "{ count = 20 }", "final": "{ count = 20 }"}
    task_project.write(project, TASK, VOCABULARY, **counts)
    text = (project / "edgeopt.toml").read_text()
    text = text.replace('rungs = ["fp32"]', f'rungs = ["fp32", "int8"]\nruntime = "{runtime}"')
    (project / "edgeopt.toml").write_text(text.replace("floor_drop = 0.02", "floor_drop = 0.9"))


@pytest.mark.parametrize("runtime", ["tflite", "openvino", "onnxruntime"])
def test_a_text_model_goes_through_the_ladder(project: Path, runtime: str) -> None:
    pytest.importorskip("torch")
    write_ladder(project, runtime)
    where = ["--root", project / "board", "--cache", project / "cache", "--out", project / "run"]
    done = run_quick("optimize", project, *where, "--allow-undecided", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {trial["name"] for trial in found["trials"]} >= {"fp32", "int8"}
    assert found["final"]["n"] == 20
    assert found["trials"][0]["score"]["agreement"] == 1.0
    assert (project / "run" / "files.edgeopt").exists()
