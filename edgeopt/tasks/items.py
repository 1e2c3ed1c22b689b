"""Which samples there are: a folder with one sub-folder per class, or a CSV file with a row per sample."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..config import nearest
from ..errors import ConfigError

Content = Path | str


@dataclasses.dataclass(frozen=True)
class Item:
    """One sample before it is decoded: a file or a text. `where` names it in messages."""

    where: str
    content: Content
    label: str | None
    group: str | None
    part: str | None = None  # which of the given splits' rows it is of


def unfit(found: str, allowed: str, mend: str) -> ConfigError:
    return ConfigError(f"found {found}; allowed: {allowed}; {mend}")


def read_files(
    source: Path, labels: str | None, groups: str | None, part: str | None, suffixes: Sequence[str]
) -> list[Item]:
    """Files of a folder with one sub-folder per class, or those that a CSV file lists. Raises ConfigError."""
    if source.is_dir():
        if groups is not None:
            raise ConfigError(
                f"[task] groups = '{groups}': found a folder; allowed: a CSV file with the columns file, "
                f"{labels or 'label'} and {groups}; write one, or leave groups out"
            )
        if part is not None:
            raise ConfigError(
                f"[splits] column = '{part}': found a folder; allowed: a CSV file with that column; write one, or give "
                "one folder for each part of the data"
            )
        return list(_in_folders(source, suffixes))
    if not source.exists():
        raise unfit("nothing there", "a folder or a CSV file", "correct the path")
    items: list[Item] = []
    first: dict[Path, str] = {}
    for item in read_table(source, "file", labels, groups, part):
        path = source.parent / str(item.content)
        if not path.is_file():
            raise ConfigError(
                f"{item.where}: {unfit('no such file', f'paths relative to {source.parent}', 'correct it')}"
            )
        if path in first:
            raise ConfigError(f"{item.where}: {unfit(f'{path.name} again', 'each file once', f'see {first[path]}')}")
        first[path] = item.where
        items.append(dataclasses.replace(item, content=path, where=f"{item.content} ({item.where})"))
    return items


def read_table(source: Path, column: str, labels: str | None, groups: str | None, part: str | None) -> list[Item]:
    """Rows of a UTF-8 CSV file with a header: `column` is the content, `part` the split. Raises ConfigError."""
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            others = (labels, groups, part)
            _require_columns(reader.fieldnames or [], [column, *(name for name in others if name is not None)])
            items = [_item(row, reader.line_num, column, others) for row in reader]
    except FileNotFoundError as error:
        raise unfit("nothing there", "a CSV file", "correct the path") from error
    except UnicodeDecodeError as error:
        raise unfit(f"byte {error.start} that is not UTF-8", "a CSV file in UTF-8", "save it as UTF-8") from error
    except OSError as error:
        raise unfit(str(error.strerror).lower(), "a readable CSV file", "check the path and its permissions") from error
    except csv.Error as error:
        raise unfit(
            f"after line {reader.line_num}: {error}", "a CSV file", "put texts with commas in double quotes"
        ) from error
    if not items:
        raise unfit("a header and no row", "a row per sample", "add rows")
    return items


def _require_columns(found: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in found:
            mend = nearest(name, found) or "name them in the first line, or correct the names in the run file"
            raise unfit(f"the columns {', '.join(found) or '(none)'}", f"columns {', '.join(wanted)}", mend)
    twice = sorted({name for name in wanted if list(found).count(name) > 1})
    if twice:
        raise unfit(f"the column {twice[0]} twice", "each column once", "rename one")


def _item(row: dict[str, str], line: int, column: str, others: tuple[str | None, ...]) -> Item:
    """others: the columns of label, group and part."""
    where = f"line {line}"
    if None in row or None in row.values():
        raise ConfigError(
            f"{where}: {unfit('more or fewer cells than columns', 'a cell per column', 'quote texts that hold commas')}"
        )
    for name in (column, *others):
        if name is not None and not row[name].strip():
            raise ConfigError(f"{where}: {unfit(f'an empty {name}', 'a value in every row', 'fill it in')}")
    label, group, part = (row[name].strip() if name is not None else None for name in others)
    return Item(where, row[column], label, group, part)


def _in_folders(source: Path, suffixes: Sequence[str]) -> Iterator[Item]:
    """By class, then by name, both sorted; hidden files are left out."""
    names = _visible(source)
    classes = [name for name in names if (source / name).is_dir()]
    stray = [name for name in names if name not in classes]
    if stray or not classes:
        found = f"the file {stray[0]} beside the classes" if classes else "no sub-folder"
        mend = "move it into one, or list the files in a CSV file with the columns file and label"
        raise unfit(found, "one sub-folder per class, named after it", mend)
    for name in classes:
        count = 0
        for path in _below(source / name):
            if path.suffix.lower() not in suffixes:
                raise ConfigError(
                    f"{path.relative_to(source)}: "
                    f"{unfit(path.suffix or 'no suffix', ', '.join(suffixes), 'convert it, or move it elsewhere')}"
                )
            yield Item(path.relative_to(source).as_posix(), path, name, None)
            count += 1
        if not count:
            raise ConfigError(f"{name}/: {unfit('an empty folder', 'files of that class', 'fill or remove it')}")


def _below(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where) / name for name in sorted(files) if not name.startswith("."))


def _visible(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise unfit(str(error.strerror).lower(), "a readable folder", "check its permissions") from error
