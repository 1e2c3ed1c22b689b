"""A Python environment for a board, made on the host: the wheels that fit its architecture, libc and Python.

Needs no internet and no pip on the board; the host needs pip, and an index or a folder of wheels.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .device.session import Event, Session, ignore
from .errors import ConfigError, MissingDependency

# Per runtime, what the agent's adapter needs, best first. Dependencies that only converters and tools have stay away:
# a board's disk is small, and the board imports each runtime before its environment becomes current.
RUNTIMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "tflite": (("ai-edge-litert", "numpy"), ("tflite-runtime", "numpy<2")),
    "openvino": (("openvino", "numpy"),),
    "onnxruntime": (("onnxruntime", "numpy"),),
}
OLDEST_GLIBC = {"x86_64": 5, "i686": 5}  # manylinux1; other architectures began with 2.17
LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
LEGACY_ONLY_X86 = (5, 12)
PIP_LIMIT_S = 1800.0
OFFLINE = ("NewConnectionError", "ConnectTimeoutError", "name resolution", "Retrying (Retry(", "ProxyError", "SSLError")


@dataclasses.dataclass(frozen=True)
class Target:
    """What wheels must fit. libc: glibc or musl; numpy: the version that the board has by itself."""

    python: str
    machine: str
    libc: str
    libc_version: str
    numpy: str | None = None

    @classmethod
    def of(cls, environment: Mapping[str, Any], address: str) -> Target:
        """From the agent's answer. Raises MissingDependency for what no wheel is made for."""
        libc = environment["libc"]
        if environment["implementation"] != "cpython" or libc is None:
            what = f"{environment['implementation']} with {libc['name'] if libc else 'an unknown libc'}"
            raise MissingDependency(
                f"{address}: wheels are for CPython with glibc or musl, and the board has {what}; install the runtime "
                "there by hand and name its Python with --board-python"
            )
        numpy = environment["numpy"]
        return cls(environment["python"], environment["machine"], libc["name"], libc["version"], numpy)

    @classmethod
    def parse(cls, text: str) -> Target:
        """What `str` gave. Raises ConfigError."""
        found = re.fullmatch(r"Python (3\.\d+\.\d+) (\w+) (glibc|musl) (\d+\.\d+)(?: numpy (\S+))?", text)
        if found is None:
            raise ConfigError(
                f'wheels = "{text}": allowed: "Python 3.11.2 aarch64 glibc 2.36", as `device add` wrote it'
            )
        return cls(found[1], found[2], found[3], found[4], found[5])

    def __str__(self) -> str:
        own = f" numpy {self.numpy}" if self.numpy else ""
        return f"Python {self.python} {self.machine} {self.libc} {self.libc_version}{own}"

    def tags(self) -> list[str]:
        """Platform tags, the newest first. pip does not know that a newer libc runs what an older one does."""
        major, minor = map(int, self.libc_version.split("."))
        if self.libc == "musl":
            return [f"musllinux_{major}_{number}_{self.machine}" for number in range(minor, -1, -1)]
        oldest = OLDEST_GLIBC.get(self.machine, 17)
        numbers = range(minor, oldest - 1, -1)
        tags = [f"manylinux_{major}_{number}_{self.machine}" for number in numbers]
        tags += [f"{LEGACY[number]}_{self.machine}" for number in numbers if number in LEGACY]
        return [*tags, f"linux_{self.machine}"]


@dataclasses.dataclass(frozen=True)
class Wheels:
    """What was chosen. system_packages: the board's own numpy serves, as no wheel of it fits."""

    files: tuple[Path, ...]
    packages: tuple[str, ...]
    system_packages: bool


def choose(target: Target, runtimes: Sequence[str], folder: Path, given: Path | None, address: str) -> Wheels:
    """Fill `folder` with one wheel per package; `given`: a folder to take them from instead of an index.

    Raises MissingDependency naming what there is no wheel of, ConfigError, before anything is sent anywhere.
    """
    unknown = [name for name in runtimes if name not in RUNTIMES]
    if unknown or not runtimes:
        raise ConfigError(f"--runtime {', '.join(unknown)}: allowed: {', '.join(RUNTIMES)}")
    if given is not None and not given.is_dir():
        raise ConfigError(f"--wheels {given}: no such folder; fill one with `edgeopt device setup … --download-only`")
    if importlib.util.find_spec("pip") is None:
        raise MissingDependency(f"pip is missing for {sys.executable}; install it there: {sys.executable} -m ensurepip")
    refused = []
    for packages in _combinations(runtimes):
        said = _download(target, packages, folder, given)
        if said is None:
            return Wheels(tuple(sorted(folder.glob("*.whl"))), packages, False)
        without = [package for package in packages if not package.startswith("numpy")]
        if said.startswith("numpy") and _numpy_serves(target, packages):
            said = _download(target, without, folder, given)
            if said is None:
                return Wheels(tuple(sorted(folder.glob("*.whl"))), tuple(without), True)
        refused.append(f"{' + '.join(packages)} (no wheel of {said})")
    where = f"in {given}" if given else "in the package index"
    raise MissingDependency(
        f"{address}: no wheels {where} for {', '.join(runtimes)} on {target}; looked for: {'; '.join(refused)}, built "
        f"for {target.tags()[0]} or older. Nothing was sent. Build what is missing and give its folder with --wheels, "
        "choose another --runtime, or install a newer Python on the board and name it with --board-python"
    )


def set_up(session: Session, wheels: Wheels, runtimes: Sequence[str]) -> dict[str, Any]:
    """Send the wheels (what is there already is not sent again) and make them the board's environment.

    {"id", "python": to be used from now on, "versions"}. Raises AgentFailure (no-space, missing-runtime, …).
    """
    names = {}
    for path in wheels.files:
        names[path.name] = session.send(path.read_bytes(), path.name)
    request = {"kind": "set-up", "wheels": names, "runtimes": list(runtimes), "system_packages": wheels.system_packages}
    _, result = session.run(request)
    return result


def is_there(environment: Mapping[str, Any], runtimes: Sequence[str]) -> bool:
    """Whether the board's current environment is whole, for its present Python, and has these runtimes."""
    current = environment["current"]
    return bool(
        current
        and current["whole"]
        and environment["python"].startswith(current["python"] + ".")
        and set(runtimes) <= set(current["runtimes"])
    )


def kept(environment: Mapping[str, Any]) -> list[str]:
    """Runtimes of the board's current environment: a new one has them too, since a release may need them."""
    current = environment["current"]
    return list(current.get("runtimes", ())) if current else []


def _combinations(runtimes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every way to serve all of them: each package once, numpy with the strictest demand."""
    for parts in itertools.product(*(RUNTIMES[name] for name in runtimes)):
        packages = dict.fromkeys(itertools.chain.from_iterable(parts))
        if "numpy<2" in packages:
            packages.pop("numpy", None)
        yield tuple(packages)


def _numpy_serves(target: Target, packages: Sequence[str]) -> bool:
    return target.numpy is not None and ("numpy<2" not in packages or target.numpy.startswith("1."))


def _download(target: Target, packages: Sequence[str], folder: Path, given: Path | None) -> str | None:
    """pip's choice into the emptied `folder`; the name of what has no wheel, or None. Raises MissingDependency."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--retries", "2", "--dest", str(folder)]
    command += [word for tag in target.tags() for word in ("--platform", tag)]
    command += ["--python-version", target.python, "--implementation", "cp"]
    command += ["--no-index", "--find-links", str(given)] if given else []
    try:
        done = subprocess.run([*command, *packages], capture_output=True, text=True, check=False, timeout=PIP_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise MissingDependency(f"pip did not end within {PIP_LIMIT_S:g} s; is the package index reachable?") from error
    if done.returncode == 0:
        return None
    missing = re.search(r"No matching distribution found for ([^\s;]+)", done.stderr)
    if any(words in done.stderr for words in OFFLINE):
        raise MissingDependency(
            f"the package index cannot be reached from here, so no wheels can be fetched for {target}; give a folder "
            "that was filled before with --wheels (`edgeopt device setup … --download-only FOLDER`)"
        )
    if missing is None:
        raise MissingDependency(f"pip failed for {', '.join(packages)}: {done.stderr.strip()[-600:]}")
    return missing[1]


def prepare(
    target: Target, runtimes: Sequence[str], given: Path | None, out: Path, address: str, on_event: Event = ignore
) -> list[Path]:
    """The wheels for a board, copied into `out`, for a laptop that will have no network. Raises as `choose`."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-wheels-") as folder:
        on_event({"event": "stage", "what": f"choosing wheels for {target}"})
        found = choose(target, runtimes, Path(folder) / "wheels", given, address)
        out.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(path, out / path.name)) for path in found.files]
