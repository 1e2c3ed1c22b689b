"""The agent as one file: the same sources give the same bytes, so its hash is its name."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from importlib import resources

EPOCH = (1980, 1, 1, 0, 0, 0)


@functools.cache
def agent_archive() -> tuple[bytes, str]:
    """(the .pyz as bytes, its SHA-256)."""
    package = resources.files("edgeopt_agent")
    sources = {"__main__.py": package.joinpath("__main__.py").read_bytes()}
    within = [entry for entry in package.iterdir() if entry.is_dir() and entry.joinpath("__init__.py").is_file()]
    for folder, place in (("edgeopt_agent", package), *((f"edgeopt_agent/{entry.name}", entry) for entry in within)):
        for entry in place.iterdir():
            if entry.name.endswith(".py"):
                sources[f"{folder}/{entry.name}"] = entry.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(sources):
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, sources[name])
    data = buffer.getvalue()
    return data, hashlib.sha256(data).hexdigest()
