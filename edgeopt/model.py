"""The source model: made by the user's factory, known by its exported graph and weights, run as the reference."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ConfigError, MissingDependency, ModelError
from .task import Array

if TYPE_CHECKING:
    import torch

REFERENCE_BATCH = 64


def call_factory(spec: str, folder: Path, arguments: Mapping[str, Any], key: str) -> Any:
    """What `package.module:factory` returns; `folder` (the run file's) comes first on the import path.

    Raises ConfigError (no such module or function) or ModelError (the factory itself failed), naming `key`.
    """
    module_name, _, function_name = spec.partition(":")
    with _importing_from(folder):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and module_name.split(".")[0] != error.name.split(".")[0]:
                raise ConfigError(
                    f"{key} = '{spec}': importing '{module_name}' needs the package '{error.name}', which is not "
                    "installed here; install it for this Python"
                ) from error
            raise ConfigError(
                f"{key} = '{spec}': there is no module '{module_name}' in {folder} or among the installed packages"
            ) from error
        except Exception as error:
            raise ModelError(f"{key} = '{spec}': importing '{module_name}' failed: {_where(error)}") from error
        factory = getattr(module, function_name, None)
        if not callable(factory):
            functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise ConfigError(
                f"{key} = '{spec}': '{module_name}' has no function '{function_name}'; it has: {functions}"
            )
        try:
            return factory(**arguments)
        except Exception as error:
            raise ModelError(f"{key} = '{spec}': the factory failed: {_where(error)}") from error


def load_torch(spec: str, folder: Path, arguments: Mapping[str, Any]) -> torch.nn.Module:
    """The torch module, in eval mode. Raises MissingDependency, ConfigError, ModelError."""
    if importlib.util.find_spec("torch") is None:
        raise MissingDependency("[model] torch needs torch, which is not installed: pip install 'edgeopt[torch]'")
    import torch

    module = call_factory(spec, folder, arguments, "[model] torch")
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"[model] torch = '{spec}' returned {type(module).__name__}; it must return a torch.nn.Module")
    return module.eval()


def graph_hash(module: torch.nn.Module, example: Sequence[Array]) -> str:
    """SHA-256 over the exported graph and every weight; `example`: one prepared array (n, ...) per input.

    Raises ModelError, with the operator or line that torch.export could not take.
    """
    import torch

    arguments = tuple(torch.from_numpy(np.ascontiguousarray(array[:1])) for array in example)
    try:
        with torch.no_grad():
            program = torch.export.export(module, arguments)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise ModelError(
            f"the model cannot be exported with inputs {[tuple(a.shape) for a in arguments]}: "
            f"{text[0] if text else type(error).__name__}; the shapes come from [task] inputs after preprocess"
        ) from error
    digest = hashlib.sha256(re.sub(r"#.*", "", program.graph_module.code).encode("utf-8"))
    for name, tensor in sorted({**program.state_dict, **program.constants}.items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def run_torch(module: torch.nn.Module, inputs: Sequence[Array]) -> tuple[Array, ...]:
    """Outputs, each (n, ...), of prepared inputs, each (n, ...). Raises ModelError for NaN and infinity."""
    import torch

    columns: list[list[Array]] = []
    with torch.no_grad():
        for start in range(0, len(inputs[0]), REFERENCE_BATCH):
            batch = [torch.from_numpy(np.ascontiguousarray(array[start : start + REFERENCE_BATCH])) for array in inputs]
            try:
                result = module(*batch)
            except Exception as error:
                raise ModelError(f"the model failed on samples {start} and after: {_where(error)}") from error
            tensors = tuple(result.values()) if isinstance(result, dict) else result
            columns.append([t.numpy() for t in (tensors if isinstance(tensors, tuple | list) else (tensors,))])
    outputs = tuple(np.concatenate(column, axis=0) for column in zip(*columns, strict=True))
    check_finite(outputs, "the source model")
    return outputs


def check_finite(outputs: Sequence[Array], who: str) -> None:
    """Raises ModelError naming output, count and first sample when an output holds NaN or infinity."""
    for index, output in enumerate(outputs):
        bad = ~np.isfinite(output.astype(np.float64)).reshape(len(output), -1).all(axis=1)
        if bad.any():
            raise ModelError(
                f"output {index} of {who} is NaN or infinite for {int(bad.sum())} of {len(output)} samples, first for "
                f"sample {int(np.flatnonzero(bad)[0])}; mend the model, or its preprocess steps, before optimizing"
            )


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    path = str(folder.resolve())
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)


def _where(error: BaseException) -> str:
    """The error with the last line of the user's code that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next(
        (f for f in reversed(frames) if "site-packages" not in f.filename and "edgeopt/" not in f.filename), None
    )
    place = f" ({Path(last.filename).name}, line {last.lineno})" if last else ""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}{place}"
