"""The agent as one file: the same sources give the same bytes, so its hash is its name.

It is compiled at every start and sent over slow links, so docstrings and comments stay here; line numbers hold."""

from __future__ import annotations

import functools
import hashlib
import io
import tokenize
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
    with zipfile.ZipFile(buffer, "w", compresslevel=9) as archive:
        for name in sorted(sources):
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, lean(sources[name].decode("utf-8")), compresslevel=9)
    data = buffer.getvalue()
    return data, hashlib.sha256(data).hexdigest()


def lean(source: str) -> str:
    """Python source without its docstrings and comments, every statement on the line where it was."""
    lines = source.splitlines(keepends=True)
    begins = True  # a statement
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        (row, column), (last, end) = token.start, token.end
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][:column].rstrip() + "\n"
        elif token.type == tokenize.STRING and begins and not lines[last - 1][end:].strip():
            lines[row - 1 : last] = [lines[row - 1][:column] + '""\n'] + ["\n"] * (last - row)
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            begins = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    return "".join(lines)
