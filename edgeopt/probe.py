"""What a board says of itself, and a device profile made of it. Nothing stays on the board."""

from __future__ import annotations

import datetime
import shlex
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import config, disk, profile
from .device import Transport
from .device.registry import toml_text
from .device.session import Event, Placement, Session, ignore
from .errors import ConfigError

DEFAULT_ROOT = "/var/lib/edgeopt"
LAST_WORDS_S = 10.0


def look(transport: Transport, python: str = "python3", on_event: Event = ignore) -> dict[str, Any]:
    """The agent's facts, with `environment`: what wheels must fit. The agent runs in a folder that is removed again.

    Raises AgentFailure (no Python 3.8 there, no room in /tmp), DeviceUnreachable, IntegrityError.
    """
    root = f"/tmp/edgeopt-{uuid.uuid4().hex[:12]}"
    session = Session(transport, Placement(root, python), on_event=on_event)
    with session:
        try:
            return {**session.facts(), "environment": session.request("environment")}
        finally:
            pipe = transport.open(f"rm -rf {shlex.quote(root)}")
            pipe.end(LAST_WORDS_S)
            pipe.close()


def profile_text(facts: Mapping[str, Any], root: str, python: str, day: datetime.date) -> str:
    """A profile as TOML, from `look`'s facts; every figure says that it was read on that board.

    Raises ConfigError for an architecture that profiles do not know.
    """
    environment = facts["environment"]
    machine = environment["machine"]
    if machine not in profile.ARCHITECTURES:
        raise ConfigError(
            f"the board is '{machine}'; profiles know {', '.join(profile.ARCHITECTURES)}, so none can be written for it"
        )
    kernel, version = facts["kernel"], facts["python"]
    model = facts["model"] or facts["cpu_model"] or machine
    who = f"on {model}" + (f", serial {facts['serial']}" if facts["serial"] else "") + f", {day.isoformat()}"
    runtimes = [name for name in profile.RUNTIMES if facts["runtimes"].get(name)]
    lines = [f"# Read from the board by `edgeopt device probe` on {day.isoformat()}."]
    if not runtimes:
        runtimes = ["tflite"]
        lines.append("# No runtime is installed there yet: `edgeopt device setup` brings one.")
    lines += [
        "schema = 1",
        f"name = {toml_text(model)}",
        f"description = {toml_text(f'{model} with Linux {kernel} and Python {version}.')}",
        f"runtimes = [{', '.join(map(toml_text, runtimes))}]",
        "",
        "[cpu]",
        f"architecture = {toml_text(machine)}",
        *([f"model = {toml_text(facts['cpu_model'])}"] if facts["cpu_model"] else []),
        *_processor(facts, machine, who),
    ]
    if facts["memory_bytes"]:
        note = "what the kernel manages, less than what is soldered on"
        lines += ["", "[memory]", _figure("total_bytes", facts["memory_bytes"], f"/proc/meminfo {who}", note)]
    models = [f"models = [{toml_text(facts['model'])}]"] if facts["model"] else []
    lines += ["", "[board]", *models, f"root = {toml_text(root)}", f"python = {toml_text(python)}"]
    lines += ["", "[budget]", "# latency_p50_s = 0.020   # your demand, in seconds: see `edgeopt profiles keys`"]
    text = "\n".join(lines) + "\n"
    config.parse_toml(text, profile.DeviceProfile, "the probed profile")
    return text


def write(path: Path, text: str, overwrite: bool) -> None:
    """Raises ConfigError for a name that profiles cannot have, or a file that is there and may not be replaced."""
    if path.suffix != ".toml":
        raise ConfigError(f"--out {path}: a profile's file ends in .toml")
    if path.exists() and not overwrite:
        raise ConfigError(f"--out {path} exists; name another, or add --overwrite")
    disk.write(path, text)


def _processor(facts: Mapping[str, Any], machine: str, who: str) -> list[str]:
    lines = [_figure("cores", facts["cores"], f"os.cpu_count() {who}")] if facts["cores"] else []
    clocks: list[int] = facts["environment"]["frequencies_max_hz"]
    source = f"cpuinfo_max_freq of every core {who}"
    if len(set(clocks)) == 2 and len(clocks) == facts["cores"]:
        big = clocks.count(max(clocks))
        lines += [_figure("cores_big", big, source), _figure("cores_little", len(clocks) - big, source)]
    if clocks:
        lines.append(_figure("frequency_max_hz", max(clocks), source))
    words = {"neon" if word == "asimd" else word for word in facts["cpu_features"]}
    features = [word for word in profile.INT8_FEATURES[machine] if word in words]
    if features:
        lines.append(_figure("int8_features", features, f"/proc/cpuinfo {who}"))
    return lines


def _figure(key: str, value: object, source: str, note: str = "") -> str:
    shown = f"[{', '.join(map(toml_text, value))}]" if isinstance(value, list) else str(value)
    told = f", note = {toml_text(note)}" if note else ""
    return f"{key} = {{ value = {shown}, source = {toml_text(f'measured: {source}')}{told} }}"
