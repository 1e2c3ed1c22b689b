"""Arrays from other people's .npz files: of bundles, boards and run folders. Nothing in them is unpickled, and nothing
is allocated on the word of a header."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import disk
from .errors import IntegrityError

Array = NDArray[Any]

MOST_BYTES = 1 << 30  # of a file's arrays together, unpacked
MOST_ARRAYS = 10_000
KINDS = "biufUS"  # truth values, numbers and texts


def read(source: Path | bytes, what: str, only: str | None = None) -> dict[str, Array]:
    """Every array of an .npz by its name, or `only` one; what: how a message calls the file.

    Raises IntegrityError where it is no .npz of plain arrays, or more than MOST_BYTES; FileNotFoundError.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
            return _arrays(archive, only)
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise whatever a damaged file makes them do
        raise IntegrityError(f"{what}: not arrays of samples ({error or type(error).__name__})") from error


def write(path: Path, columns: Mapping[str, Any]) -> None:
    """As numpy's savez_compressed, at a quarter of its time: a million latencies hardly become smaller with effort.

    Raises OSError as disk.write does.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, column in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(column), allow_pickle=False)
    disk.write(path, buffer.getbuffer())


def numbered(arrays: Mapping[str, Array], name: str) -> tuple[Array, ...]:
    """name0, name1, … Raises ValueError where one between is missing, or one has no axis of samples."""
    count = sum(key.startswith(name) and key[len(name) :].isdigit() for key in arrays)
    for key in (f"{name}{index}" for index in range(count)):
        if key not in arrays:
            raise ValueError(f"it has {', '.join(sorted(arrays))[:200]}, but not {key}")
        if arrays[key].ndim == 0:
            raise ValueError(f"{key} is a single number, and has no samples")
    return tuple(arrays[f"{name}{index}"] for index in range(count))


def require_rows(arrays: Mapping[str, Array], least: int = 1, most: int = MOST_BYTES) -> None:
    """Raises ValueError unless all arrays have as many samples, from `least` to `most`."""
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) > 1 or not least <= max(counts.values(), default=0) <= most:
        raise ValueError(f"its arrays have {counts} samples; they must be as many, {least} or more")


def _arrays(archive: zipfile.ZipFile, only: str | None) -> dict[str, Array]:
    entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MOST_ARRAYS or total > MOST_BYTES:
        raise ValueError(f"{len(entries)} arrays of {total} bytes, at most {MOST_ARRAYS} and {MOST_BYTES} are read")
    found = {}
    for entry in entries if only is None else [entry for entry in entries if entry.filename == f"{only}.npy"]:
        _require_plain(archive, entry)
        with archive.open(entry) as member:
            found[entry.filename.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    return found


def _require_plain(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Raises ValueError where the array's header asks for more than its file has."""
    if not entry.filename.endswith(".npy"):
        raise ValueError(f"{entry.filename!r:.80} is no array")
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{entry.filename!r:.80} has version {version} of numpy's format")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(member)
    size = dtype.itemsize
    for length in shape:
        size *= length
    if dtype.kind not in KINDS or size > entry.file_size or not all(0 <= length <= entry.file_size for length in shape):
        raise ValueError(f"{entry.filename!r:.80} says it is {dtype} {shape}, in {entry.file_size} bytes")
