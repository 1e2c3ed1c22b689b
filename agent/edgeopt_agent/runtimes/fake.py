"""A runtime without a package, for tests: its model is a JSON file that says how long invoke takes, and its gain."""

from __future__ import annotations

import json
import os
import time
from typing import Any, Dict, List, Optional, Sequence

from . import check_options

PACKAGES = ()
OPTIONS: Dict[str, Any] = {}


def available() -> Optional[Dict[str, str]]:
    return {"package": "fake", "version": "0"}


def require() -> None:
    """There is nothing to import."""


class Session:
    """{"shape": [1, 4], "invoke_s": 0.001, "first_s": [], "allocate_bytes": 0, "gain": 1.0, "prints": ""}: output =
    input x gain. `first_s`: seconds of the first invokes.

    `prints` goes to file descriptor 1 at every invoke, as runtimes written in C do.
    """

    def __init__(self, path: str, threads: int, batch: int) -> None:
        with open(path, encoding="utf-8") as file:
            self._model = json.load(file)
        self._threads = threads
        self._ballast = b"x" * self._model.get("allocate_bytes", 0)
        tensor = {"name": "x", "shape": self._model["shape"], "dtype": "float32"}
        if batch > 1:
            tensor = dict(tensor, shape=[batch] + tensor["shape"][1:])
        self.inputs, self.outputs = [tensor], [dict(tensor, name="y")]
        self._first: List[float] = self._model.get("first_s", [])
        self._prints = self._model.get("prints", "").encode("utf-8")
        self._value: List[Any] = []

    def set_inputs(self, arrays: Sequence[Any]) -> None:
        self._value = [array * self._model.get("gain", 1.0) for array in arrays]

    def invoke(self) -> None:
        if self._prints:
            os.write(1, self._prints)
        end = time.perf_counter() + (self._first.pop(0) if self._first else self._model.get("invoke_s", 0.0))
        while time.perf_counter() < end:
            pass

    def get_outputs(self) -> List[Any]:
        return self._value

    def executed(self) -> Dict[str, Any]:
        known = {"ops": {"FAKE": 1}, "delegate_nodes": 0, "precision": None, "macs": None}
        return dict(known, threads=self._threads, places={"CPU": {"FAKE": 1}}, macs_at={})

    def operators(self, runs: int) -> List[Dict[str, Any]]:
        own = {"op": "FAKE", "name": "fake", "place": "CPU", "type": None, "macs": None}
        return [dict(own, seconds=self._model.get("invoke_s", 0.0) if runs else None)]


def load(path: str, threads: int, options: Dict[str, Any], batch: int = 1) -> Session:
    check_options("fake", OPTIONS, options)
    return Session(path, threads, batch)
