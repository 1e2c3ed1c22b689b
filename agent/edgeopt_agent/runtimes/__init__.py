"""One file per runtime, found by its name and imported when asked for.

A runtime module has
  PACKAGES            distributions that can serve it, best first
  available()         {"package", "version"} of the one installed for this Python, else None; imports nothing heavy
  require()           imports it, without a model; raises RemoteError('missing-runtime')
  OPTIONS             the options that load() knows, with the values that each may have (PATH: any absolute path)
  load(path, threads, options, batch) a Session, after which `Session.inputs` and `.outputs` describe the tensors;
                      batch: 1 leaves the model as it is, more are so many samples a query, or RemoteError('runtime')
and its Session has
  inputs, outputs     lists of {"name", "shape", "dtype"}
  set_inputs(arrays)  copies them in; invoke() runs; get_outputs() returns copies
  executed()          what the runtime says it runs, None for what it does not tell: {"threads", "delegate_nodes",
                      "precision", "ops": {operator: count}, "macs": {type: multiply-accumulates},
                      "places": {place: {operator: count}}, "macs_at": {place: multiply-accumulates}}
  operators(runs)     every operator that ran, in order: {"op", "name", "place", "type", "macs", "seconds"}; seconds:
                      the median of `runs` queries in a session of its own, None where the runtime does not tell

An option that asks for an accelerator which is not there is RemoteError('fallback'): nothing falls back unseen.
"""

from __future__ import annotations

import collections
import importlib
import pkgutil
from typing import Any, Dict, List, Mapping, Optional, Sequence

from ..wire import RemoteError

PATH = "an absolute path"
INT8 = ("int8", "uint8")


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
        allowed_values = known.get(key, ())
        is_path = PATH in allowed_values and isinstance(value, str) and value.startswith("/")
        if value not in allowed_values and not is_path:
            allowed = {option: list(values) for option, values in known.items()}
            raise RemoteError("bad-request", f"runtime '{name}' does not take {key} = {value!r}; it takes: {allowed}")


def summary(operators: List[Dict[str, Any]]) -> Dict[str, Any]:
    """{"macs", "places", "macs_at"} of executed()."""
    macs: Dict[str, int] = collections.Counter()
    macs_at: Dict[str, int] = collections.Counter()
    places: Dict[str, Dict[str, int]] = {}
    for one in operators:
        own = places.setdefault(one["place"], {})
        own[one["op"]] = own.get(one["op"], 0) + 1
        if one["macs"]:
            macs[one["type"]] += one["macs"]
            macs_at[one["place"]] += one["macs"]
    return {"macs": dict(macs), "places": places, "macs_at": dict(macs_at)}


def mac_type(data: str, weights: str) -> str:
    """Of a multiplication: "int8" for any mix of signed and unsigned, "int8 x float32" where the two differ."""
    return " x ".join(dict.fromkeys("int8" if kind in INT8 else kind for kind in (data, weights)))


def median(values: Sequence[float]) -> Optional[float]:
    return sorted(values)[len(values) // 2] if values else None


def installed(packages: Sequence[str]) -> Optional[Dict[str, str]]:
    """The first of `packages` that is installed, with its version, without importing it."""
    from importlib import metadata

    for package in packages:
        try:
            return {"package": package, "version": metadata.version(package)}
        except metadata.PackageNotFoundError:
            continue
    return None
