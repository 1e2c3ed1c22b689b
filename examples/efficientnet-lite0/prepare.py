"""Writes pictures.csv beside this file: which pictures there are, and which of the 1,000 ImageNet classes each shows.

python prepare.py FOLDER

FOLDER holds either one sub-folder per class or one picture per class; in both cases their sorted order is the classes'
order, 0 to 999.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CLASSES = 1000
SUFFIXES = (".jpg", ".jpeg", ".png")


def pictures(folder: Path) -> Iterator[tuple[Path, int]]:
    """(file, class) of every picture."""
    entries = sorted(path for path in folder.iterdir() if path.is_dir() or path.suffix.lower() in SUFFIXES)
    if len(entries) != CLASSES:
        raise SystemExit(
            f"{folder} holds {len(entries)} pictures and folders; {CLASSES} are needed, one for each class"
        )
    for number, entry in enumerate(entries):
        files = (
            sorted(path for path in entry.rglob("*") if path.suffix.lower() in SUFFIXES) if entry.is_dir() else [entry]
        )
        yield from ((path, number) for path in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=FOLDER / "pictures.csv")
    given = parser.parse_args()
    if not given.folder.is_dir():
        raise SystemExit(f"{given.folder} is no folder; name the one that holds the pictures")
    rows = list(pictures(given.folder.resolve()))
    with given.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows(rows)
    print(f"{given.out}: {len(rows)} pictures of {CLASSES} classes")


if __name__ == "__main__":
    main()
