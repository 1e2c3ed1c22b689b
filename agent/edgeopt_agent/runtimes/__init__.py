"""One file per runtime, found by its name and imported when asked for.

A runtime module has
  PACKAGES            distributions that can serve it, best first
  available()         {"package", "version"} of the one installed for this Python, else None; imports nothing heavy
  require()           imports it, without a model; raises RemoteError('missing-runtime')
  OPTIONS             the options that load() knows, with the values that each may have
  load(path, threads, options) a Session, after which `Session.inputs` and `.outputs` describe the tensors
and its Session has
  inputs, outputs     lists of {"name", "shape", "dtype"}
  set_inputs(arrays)  copies them in; invoke() runs; get_outputs() returns copies
  executed()          what the runtime says it runs, None for what it does not tell: {"threads", "delegate_nodes",
                      "precision", "ops": {operator: count}, "macs": {type: multiply-accumulates}}
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, Dict, List, Mapping, Optional, Sequence

from ..wire import RemoteError


def names() -> List[str]:
    """Every runtime this agent has an adapter for; fakes serve tests and are not listed."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "fake")


def load(name: str) -> Any:
    """The adapter module. Raises RemoteError('bad-request')."""
    if name != "fake" and name not in names():
        raise RemoteError("bad-request", f"unknown runtime {name!r}; this agent has: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def check_options(name: str, known: Mapping[str, Sequence[str]], options: Dict[str, Any]) -> None:
    """Raises RemoteError('bad-request') for an option or a value that the adapter does not know."""
    for key, value in options.items():
        if value not in known.get(key, ()):
            allowed = {option: list(values) for option, values in known.items()}
            raise RemoteError("bad-request", f"runtime '{name}' does not take {key} = {value!r}; it takes: {allowed}")


def installed(packages: Sequence[str]) -> Optional[Dict[str, str]]:
    """The first of `packages` that is installed, with its version, without importing it."""
    from importlib import metadata

    for package in packages:
        try:
            return {"package": package, "version": metadata.version(package)}
        except metadata.PackageNotFoundError:
            continue
    return None
