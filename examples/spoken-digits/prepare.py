"""Writes sounds.csv beside this file: which recordings there are, what is said in each, and by whom.

python prepare.py FOLDER

FOLDER holds the recordings of the Free Spoken Digit Dataset, {digit}_{speaker}_{n}.wav
(https://github.com/Jakobovski/free-spoken-digit-dataset, its folder `recordings`).
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def recordings(folder: Path) -> list[tuple[Path, str, str]]:
    """(file, digit in words, speaker) of every recording, sorted by name."""
    named = [(path, re.fullmatch(r"(\d)_([a-z]+)_\d+\.wav", path.name)) for path in sorted(folder.glob("*.wav"))]
    return [(path, DIGITS[int(name[1])], name[2]) for path, name in named if name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=FOLDER / "sounds.csv")
    given = parser.parse_args()
    rows = recordings(given.folder.resolve())
    if not rows:
        raise SystemExit(
            f"{given.folder} holds no file like 7_jackson_32.wav; name the folder `recordings` of the data set"
        )
    with given.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "digit", "speaker"])
        writer.writerows(rows)
    print(f"{given.out}: {len(rows)} recordings of {len({row[2] for row in rows})} speakers")


if __name__ == "__main__":
    main()
