"""Texts: token numbers and masks, int32 (length,), by the user's own tokenizer file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ..config import Allowed, Conflict, Section
from ..errors import ConfigError, MissingDependency
from ..task import Array
from .items import Content, Item, read_table, unfit

SOURCE = "texts: a CSV file with the columns text, labels' and groups'."
DISTRIBUTIONS = ("tokenizers", "numpy")
INPUTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
SPECIAL = ("[UNK]", "[CLS]", "[SEP]")


class Prepare(Section):
    tokenizer: Annotated[
        str, Field(pattern=r"\.(txt|json)$"), Allowed("the path of a WordPiece vocab.txt or of a tokenizer.json")
    ] = Field(description="The tokenizer that the model was trained with, relative to the run file.")
    length: Annotated[int, Field(ge=2)] = Field(
        description="Tokens of every sample, special ones included; longer texts are cut, shorter ones padded."
    )
    lowercase: bool | None = Field(
        default=None,
        description="For a vocab.txt: whether case and accents are dropped; a tokenizer.json says so itself.",
    )
    pad: Annotated[str, Field(min_length=1)] = Field(default="[PAD]", description="The token that fills up.")

    def conflicts(self) -> Iterator[Conflict]:
        if self.tokenizer.endswith(".txt") and self.lowercase is None:
            mend = "say whether the vocabulary is of a lower-case ('uncased') model"
            yield Conflict(("lowercase",), "nothing", "true or false for a vocab.txt", mend)
        if self.tokenizer.endswith(".json") and self.lowercase is not None:
            yield Conflict(("lowercase",), "a value", "nothing: a tokenizer.json says so itself", "remove it")


def read(source: Path, labels: str | None, groups: str | None, part: str | None = None) -> list[Item]:
    return read_table(source, "text", labels, groups, part)


def input_conflicts(inputs: Sequence[str]) -> Iterator[Conflict]:
    for name in inputs:
        if name not in INPUTS:
            yield Conflict(("inputs",), f"'{name}'", ", ".join(INPUTS), "name them in the model's order")


def files(prepare: Prepare, folder: Path) -> list[Path]:
    return [folder / Path(prepare.tokenizer).expanduser()]


def decoder(prepare: Prepare, inputs: Sequence[str], folder: Path) -> Callable[[Content], tuple[Array, ...]]:
    """Of a text its arrays, int32 (length,), one for each of `inputs`."""
    path = files(prepare, folder)[0]
    what = f"[task.prepare] tokenizer = '{path}'"
    tokenizer = _tokenizer(path, prepare, what)
    pad = tokenizer.token_to_id(prepare.pad)
    if pad is None:
        raise ConfigError(
            f"{what}: found no token '{prepare.pad}'; allowed: one of its tokens; set pad in [task.prepare]"
        )
    tokenizer.enable_truncation(prepare.length)
    tokenizer.enable_padding(length=prepare.length, pad_id=pad, pad_token=prepare.pad)

    def decode(content: Content) -> tuple[Array, ...]:
        encoded = tokenizer.encode(str(content))
        return tuple(np.array(getattr(encoded, INPUTS[name]), np.int32) for name in inputs)

    return decode


def _tokenizer(path: Path, prepare: Prepare, what: str) -> Any:
    try:
        import tokenizers
        from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
    except ImportError as error:
        raise MissingDependency(
            "texts need 'tokenizers', which is not installed: pip install 'edgeopt[tasks]'"
        ) from error
    try:
        if path.suffix == ".json":
            return tokenizers.Tokenizer.from_file(str(path))
        words = path.read_text(encoding="utf-8").splitlines()
    except Exception as error:  # the library raises bare Exceptions
        raise ConfigError(f"{what}: {unfit(str(error), 'a tokenizer file', 'save it again')}") from error
    missing = [token for token in SPECIAL if token not in words]
    if missing:
        allowed = f"one token per line, these among them: {', '.join(SPECIAL)}"
        raise ConfigError(f"{what}: {unfit(f'no line {missing[0]}', allowed, 'take the vocabulary of the model')}")
    vocabulary = {word: number for number, word in enumerate(words)}
    return BertWordPieceTokenizer(vocabulary, lowercase=bool(prepare.lowercase))
