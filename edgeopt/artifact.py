"""An artifact: files side by side that a runtime loads, and how. What is sent to boards, measured and bundled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import formats
from .cache import key_of, sha256_bytes, sha256_file
from .errors import ConfigError, IntegrityError, ModelError
from .formats import tflite
from .profile import DeviceProfile

Steps = list[list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Artifact:
    """paths: the first is loaded, the others are found beside it. preprocess: a list of steps per input.

    options: the runtime's own settings (edgeopt_agent.runtimes), such as {"precision": "f32"}. frequency_max_hz: the
    cap of the CPUs' clock under which it is to be measured; None: as the board is.
    """

    name: str
    paths: tuple[Path, ...]
    hashes: tuple[str, ...]
    size_bytes: int
    runtime: str
    threads: int
    preprocess: Steps
    options: dict[str, Any]
    frequency_max_hz: float | None = None

    @classmethod
    def of_files(
        cls,
        paths: Sequence[Path],
        runtime: str,
        threads: int,
        preprocess: Steps,
        options: dict[str, Any],
        name: str | None = None,
    ) -> Artifact:
        hashes = tuple(sha256_file(path) for path in paths)
        size = sum(path.stat().st_size for path in paths)
        return cls(name or paths[0].stem, tuple(paths), hashes, size, runtime, threads, preprocess, options)

    @property
    def file(self) -> str:
        return self.paths[0].name

    @property
    def sha256(self) -> str:
        """Of its one file; of more, of the list of their hashes."""
        return self.hashes[0] if len(self.hashes) == 1 else key_of(self.entry()["files"])

    def entry(self) -> dict[str, Any]:
        """How a job request names it."""
        capped = {} if self.frequency_max_hz is None else {"frequency_max_hz": self.frequency_max_hz}
        return {
            **capped,
            "file": self.file,
            "files": {path.name: sha256 for path, sha256 in zip(self.paths, self.hashes, strict=True)},
            "runtime": self.runtime,
            "threads": self.threads,
            "preprocess": self.preprocess,
            "options": self.options,
        }

    def require_fit(self, runtimes: Mapping[str, Any], where: str, bundle: Path | None = None) -> None:
        """Raises ModelError for what the runtime there (as the agent's facts tell them) cannot take of the files.

        bundle: where the files come from, if they lie in a folder that is nobody's.
        """
        if self.runtime not in formats.RUNTIME_OF.values():
            return
        try:
            formats.check(formats.read(self.paths[0], self.runtime), runtimes, where, self.options)
        except ModelError as error:
            raise ModelError(str(error).replace(str(self.paths[0].parent), str(bundle)) if bundle else error) from error

    def require_fixed_sizes(self) -> None:
        """Raises ConfigError when random tensors cannot stand for the inputs, whose sizes are free."""
        if self.runtime not in formats.RUNTIME_OF.values():
            return
        for port in formats.read(self.paths[0], self.runtime).inputs:
            if None in port.shape[1:]:
                raise ConfigError(
                    f"{self.name}: input {port} has sizes that are free; fix them with --shape, once per input, or "
                    "give real inputs with --inputs FILE.npz"
                )

    def read(self) -> dict[str, bytes]:
        """The bytes of its files by name. Raises IntegrityError when one changed since it was hashed."""
        found = {}
        for path, sha256 in zip(self.paths, self.hashes, strict=True):
            found[path.name] = path.read_bytes()
            if sha256_bytes(found[path.name]) != sha256:
                raise IntegrityError(f"{path} changed while it was used; run again")
        return found


def options_for(path: Path, profile: DeviceProfile | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The runtime's settings: those given, and for what was compiled for an NPU the delegate that the profile names."""
    npu = profile.npu if profile else None
    if "delegate" in given or npu is None or npu.delegate is None or path.suffix != ".tflite":
        return dict(given)
    is_compiled = any(operator.kind == tflite.ETHOS_U for operator in formats.read(path).operators)
    return {"delegate": npu.delegate.value, **given} if is_compiled else dict(given)


def of_model(path: Path, threads: int, name: str | None = None, options: Mapping[str, Any] | None = None) -> Artifact:
    """A model file as it is, a vendor's too: .tflite, an OpenVINO .xml with its .bin, an .onnx with its external data.

    options: the runtime's own settings. Raises ConfigError, ModelError for a file that is damaged or not whole.
    """
    if path.suffix not in formats.RUNTIME_OF:
        raise ConfigError(f"{path}: neither a bundle (.edgeopt) nor a model: {', '.join(formats.RUNTIME_OF)}")
    contents = formats.read(path)
    return Artifact.of_files(contents.paths, contents.runtime, threads, [], dict(options or {}), name)
