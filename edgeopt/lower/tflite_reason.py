"""What a framework of the way to TFLite says when it fails, as one line of a ModelError."""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
import sysconfig
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from edgeopt.errors import LoweringFault, ModelError
from edgeopt.lower import quiet

_OPERATOR = re.compile(r"(?:target=torch\.ops\.|Lowering not found: |operation '|op ')([a-z_]+\.[\w.]+)")
_NODE = re.compile(r"While executing %(\w+)")
_PLACE = re.compile(r'(File "[^"]+", line \d+)')
_OF_TORCH = re.compile(r'torch/nn/modules/(\w+)\.py(?:", line |:)(\d+)')


@contextlib.contextmanager
def named_failure(what: str, kind: type[ModelError] = ModelError) -> Iterator[Path]:
    """Runs a framework silently in a scratch folder; whatever it raises becomes an error of this kind with node and
    operator."""
    with tempfile.TemporaryDirectory() as folder, quiet() as kept:
        try:
            yield Path(folder)
        except Exception as error:
            kept.seek(0)
            reason = _reason(error, kept.read().decode("utf-8", "replace"))
            mend = "; rewrite that part with operators that TFLite has, or leave runtime 'tflite' out of the profile"
            raise kind(f"{what}: {reason}{'' if kind is LoweringFault else mend}") from error


def _reason(error: Exception, printed: str) -> str:
    """One line out of a framework's failure and of what it printed: operator, node, place, first words."""
    message = str(error)
    mlir = [line.strip() for line in printed.splitlines() if "error:" in line]
    operator, node = _OPERATOR.search("\n".join([message, *mlir])), _NODE.search(message)
    named = [f"operator '{operator[1]}'"] if operator else []
    named += [f"node '{node[1]}'"] if node else []
    named += [f"layer {kind}" for place in _OF_TORCH.findall(f"{message} {mlir[:1]}")[-1:] if (kind := _layer(*place))]
    places = _PLACE.findall(message)
    own = [place for place in places if "-packages" not in place] or _user_frames(error)
    named += [f"in {place}" for place in (own or places)[-1:]]
    first = next((line.strip() for line in [*mlir[:1], *message.splitlines()] if line.strip()), type(error).__name__)
    return f"{', '.join(named) or 'operator not known'}: {first[:300]}"


def _layer(file: str, line: str) -> str | None:
    """The class of torch's that this line of torch/nn/modules is in."""
    source = importlib.import_module(f"torch.nn.modules.{file}").__file__
    tree = ast.parse(Path(str(source)).read_text("utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.lineno <= int(line)]
    return found[-1].name if found and int(line) <= (found[-1].end_lineno or 0) else None


def _user_frames(error: Exception) -> list[str]:
    """Places of a failed trace that belong neither to an installed package, to Python, nor to this package."""
    standard = sysconfig.get_paths()["stdlib"]
    own = str(Path(__file__).parent)
    return [
        f'File "{frame.filename}", line {frame.lineno}'
        for frame in traceback.extract_tb(error.__traceback__)
        if "-packages" not in frame.filename and not frame.filename.startswith((standard, own, "<"))
    ]
