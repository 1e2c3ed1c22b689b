"""Samples as a worker takes them: read from shards, or made up. Each array of a sample has its batch axis of 1."""

from __future__ import annotations

import os
import random
import zipfile
from typing import Any, Dict, List, Optional, Tuple

from .wire import RemoteError

KINDS = "biufUS"  # truth values, numbers and texts
PIECE = 4096  # numbers made at a time: what making them takes would count as the model's memory, too


def load_shard(path: str) -> Tuple[List[Any], Optional[Any], Dict[str, Any]]:
    """An .npz of input0, input1, … and perhaps labels: (inputs, labels, everything).

    Raises RemoteError('integrity') for what is none: pickles, packed arrays (a small file could take all memory) and
    headers that promise more than the file has are refused before anything is allocated.
    """
    import numpy as np

    try:
        _require_plain(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise RemoteError("integrity", f"a shard of samples cannot be read: {error}") from error
    inputs = [arrays[f"input{i}"] for i in range(sum(name.startswith("input") for name in arrays))]
    return inputs, arrays.get("labels"), arrays


def _require_plain(path: str) -> None:
    """Raises ValueError, and what zipfile and numpy raise."""
    import math

    from numpy.lib import format as npy

    headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > os.path.getsize(path):
            raise ValueError("its arrays would take more than its own size")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or not member.filename.endswith(".npy"):
                raise ValueError(f"{member.filename!r:.80} is packed, or no array")
            with archive.open(member) as file:
                version = npy.read_magic(file)
                if version not in headers:
                    raise ValueError(
                        f"{member.filename!r:.80} has a format of numpy's that is not known here: {version}"
                    )
                shape, _, dtype = headers[version](file)
            if dtype.kind not in KINDS or not dtype.itemsize or math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{member.filename!r:.80} says it is {dtype} {shape} in {member.file_size} bytes")


def random_samples(tensors: List[Dict[str, Any]], count: int) -> List[List[Any]]:
    """`count` samples in the artifact's own shapes, always the same: floats of mean 0 and variance 1, bytes over their
    range, other integers (they may be indices) below 100. Without numpy.random, for the same reason as PIECE."""
    import numpy as np

    source = random.Random(0)
    samples = []
    for _ in range(count):
        sample = []
        for tensor in tensors:
            shape = [1 if size < 0 and axis == 0 else size for axis, size in enumerate(tensor["shape"])]
            if min(shape, default=1) < 0:
                raise RemoteError(
                    "bad-request",
                    f"input '{tensor['name']}' has sizes that are free: {tensor['shape']}; random tensors cannot stand "
                    "for it, give real inputs",
                )
            array = np.empty(shape, tensor["dtype"])
            flat = array.reshape(-1)
            for start in range(0, flat.size, PIECE):
                size = min(PIECE, flat.size - start)
                bits = np.frombuffer(source.getrandbits(32 * size).to_bytes(4 * size, "little"), dtype=np.uint32)
                flat[start : start + size] = _values(bits, array.dtype)
            sample.append(array)
        samples.append(sample)
    return samples


def _values(bits: Any, dtype: Any) -> Any:
    if dtype.kind == "f":
        return (bits / 2.0**31 - 1.0) * 3.0**0.5
    below = 2 if dtype.kind == "b" else 256 if dtype.itemsize == 1 else 100
    return (bits % below).astype(dtype)


def split_samples(inputs: List[Any]) -> List[List[Any]]:
    return [[array[i : i + 1] for array in inputs] for i in range(len(inputs[0]))] if inputs else []


def read_samples(shards: List[str], most: Optional[int]) -> List[List[Any]]:
    """The samples of all shards; the first `most` as copies, so that the rest does not stay in memory."""
    samples: List[List[Any]] = []
    for shard in shards:
        samples += split_samples(load_shard(shard)[0])
    return samples if most is None else [[array.copy() for array in sample] for sample in samples[:most]]
