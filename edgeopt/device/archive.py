"""The agent as one file: the same sources give the same bytes, so its hash is its name.

It is compiled at every start and sent over slow links, so what does nothing there stays here: docstrings, comments,
annotations and the imports that only they need. Line numbers hold."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import tokenize
import zipfile
from collections.abc import Iterator
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
    """Python source without docstrings, comments and annotations, every statement on the line where it was."""
    return _without_words(_without_types(source))


def _without_words(source: str) -> str:
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


def _without_types(source: str) -> str:
    """An annotation of several lines stays, and those of fields: a NamedTuple needs them."""
    tree = ast.parse(source)
    lines = source.encode("utf-8").splitlines(keepends=True)  # ast counts bytes
    for row, begin, end in sorted(_annotations(tree, lines), reverse=True):  # what stands before keeps its column
        lines[row - 1] = lines[row - 1][:begin] + lines[row - 1][end:]
    imports = [node for node in tree.body if _is_for_types(node)]
    for node in imports:  # first none of them, so that what is left tells which are needed
        assert node.end_lineno is not None
        lines[node.lineno - 1 : node.end_lineno] = [b"\n"] * (node.end_lineno - node.lineno + 1)
    left = list(ast.walk(ast.parse(b"".join(lines))))
    used = {node.id for node in left if isinstance(node, ast.Name)}
    annotated = any(getattr(node, "annotation", None) or getattr(node, "returns", None) for node in left)
    for node in imports:
        if isinstance(node, ast.ImportFrom):
            kept = [alias.name for alias in node.names if alias.name in used or (annotated and _is_future(node))]
            lines[node.lineno - 1] = f"from {node.module} import {', '.join(kept)}\n".encode() if kept else b"\n"
    return b"".join(lines).decode("utf-8")


def _annotations(tree: ast.Module, lines: list[bytes]) -> Iterator[tuple[int, int, int]]:
    """(line, first byte, byte after it) of what says no more than a type."""
    fields = {one for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for one in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            note = node.returns
            row, begin = note.lineno, lines[note.lineno - 1].rindex(b" ->", 0, note.col_offset)
        elif isinstance(node, ast.arg) and node.annotation is not None:
            note, row, begin = node.annotation, node.lineno, node.col_offset + len(node.arg.encode("utf-8"))
        elif isinstance(node, ast.AnnAssign) and node.value is not None and node not in fields:
            note = node.annotation
            row, begin = node.target.end_lineno or 0, node.target.end_col_offset or 0
        else:
            continue
        if row == note.lineno == note.end_lineno:
            yield row, begin, note.end_col_offset or 0


def _is_for_types(node: ast.stmt) -> bool:
    """An import of typing, or one that only type checkers see."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.ImportFrom) and (node.module == "typing" or _is_future(node))


def _is_future(node: ast.ImportFrom) -> bool:
    return node.module == "__future__"
