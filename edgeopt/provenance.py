"""Which board was measured: by its own facts, never by the profile's name. Where the two disagree, it is a stand-in."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import profile as profiles
from .errors import ConfigError
from .profile import ANY, DeviceProfile

# Debian's and uname's names for what profiles call otherwise
ALIASES = {"arm64": "aarch64", "amd64": "x86_64", "armv8l": "armv7l", "armhf": "armv7l"}
# Of the memory that is soldered on, Linux sees so much: firmware, graphics and the kernel keep the rest (of a Raspberry
# Pi Zero 2 W an eighth, of a Jetson Orin Nano a fifth); and a "4 GB" may be meant in powers of two or of ten.
LEAST_MEMORY, MOST_MEMORY = 0.75, 1.08
GB = 1e9
RECORDED = (
    *("model", "machine", "userland", "cpu_model", "cores", "cores_allowed", "memory_bytes", "system", "stand_in"),
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """One fact in which a board is not the profile's."""

    what: str
    profile: str
    board: str

    def __str__(self) -> str:
        return f"{self.what}: {self.profile} in the profile, {self.board} on the board"


def named(board: Mapping[str, Any]) -> str:
    """A board by its own name, or its processor's where it has none: "Raspberry Pi 4 Model B Rev 1.4"."""
    return str(board.get("model") or board.get("cpu_model") or board.get("machine") or board.get("hostname") or "board")


def described(board: Mapping[str, Any]) -> str:
    """All that tells what a board is: "AMD EPYC, 2 cores, 25.3 GB, x86_64, Debian GNU/Linux 12 (bookworm)"."""
    machine, userland = board.get("machine"), board.get("userland")
    total, allowed, memory = (_number(board.get(key)) for key in ("cores", "cores_allowed", "memory_bytes"))
    parts = [
        board.get("model"),
        board.get("cpu_model"),
        f"{total:g} core{'' if total == 1 else 's'}" if total else None,
        f"{allowed:g} of them allowed" if total and allowed and allowed < total else None,
        f"{memory / GB:.1f} GB" if memory else None,
        machine,
        f"{userland} userland" if userland and userland != machine else None,
        board.get("system"),
    ]
    return ", ".join(str(part) for part in parts if part) or named(board)


def record(board: Mapping[str, Any]) -> dict[str, Any]:
    """What a bundle keeps of the board on which it was measured."""
    return {key: board.get(key) for key in RECORDED}


def differences(profile: DeviceProfile, board: Mapping[str, Any]) -> list[Difference]:
    """In what a board (edgeopt_agent.facts.hardware and identity) is not the profile's: architecture, model, processor,
    cores, memory, instructions for int8. What it does not tell is no difference."""
    found = [*_of_architecture(profile, board), *_of_names(profile, board), *_of_numbers(profile, board)]
    return found if any(one.what == "architecture" for one in found) else [*found, *_of_instructions(profile, board)]


def _of_architecture(profile: DeviceProfile, board: Mapping[str, Any]) -> Iterator[Difference]:
    """A 64-bit kernel may run a 32-bit system: it is a board of either."""
    wanted = profile.cpu.architecture
    machines = [ALIASES.get(str(name), str(name)) for name in (board.get("machine"), board.get("userland")) if name]
    if wanted != ANY and machines and wanted not in machines:
        yield Difference("architecture", wanted, machines[0])


def _of_names(profile: DeviceProfile, board: Mapping[str, Any]) -> Iterator[Difference]:
    models, model = profile.board.models, board.get("model")
    if models and model and not any(_begins(str(model), own) for own in models):
        yield Difference("model", " or ".join(f"'{own}'" for own in models), f"'{model}'")
    cpu, found = profile.cpu, board.get("cpu_model")
    wanted = cpu.names or ((cpu.model,) if cpu.model else ())
    if wanted and found and not any(_same_cores(own, str(found)) for own in wanted):
        yield Difference("processor", " or ".join(f"'{own}'" for own in wanted), f"'{found}'")


def _of_numbers(profile: DeviceProfile, board: Mapping[str, Any]) -> Iterator[Difference]:
    """Cores that are switched off, or that a cpuset takes away, are there nevertheless."""
    cores, counts = profile.cpu.cores, {board[key] for key in ("cores", "cores_present") if board.get(key)}
    if cores and counts and cores.value not in counts:
        yield Difference("cores", str(cores.value), str(max(counts)))
    total, found = profile.memory.total_bytes, board.get("memory_bytes")
    if total and found and not LEAST_MEMORY <= found / total.value <= MOST_MEMORY:
        yield Difference("memory", f"{total.value / GB:.1f} GB", f"{found / GB:.1f} GB")


def _of_instructions(profile: DeviceProfile, board: Mapping[str, Any]) -> Iterator[Difference]:
    features, there = profile.cpu.int8_features, board.get("cpu_features")
    if features and there:
        have = {"neon" if word == "asimd" else word for word in there}
        if missing := [word for word in features.value if word not in have]:
            yield Difference("instructions for int8", ", ".join(missing), f"only {', '.join(there)}")


def _words(text: str) -> list[str]:
    """Of a processor's or board's name, without what makers add or leave out at will."""
    plain = re.sub(r"\((r|tm|c)\)|[®™]|@.*$|\b(cpu|processor)\b", " ", text.lower())
    return re.findall(r"[^\s,/()]+", plain)


def _begins(model: str, wanted: str) -> bool:
    """Whether a board's name is that one, whatever revision follows."""
    words = _words(wanted)
    return _words(model)[: len(words)] == words


def _same_cores(wanted: str, found: str) -> bool:
    """Whether the kinds of cores are the same; of "Intel(R) Xeon(R) Gold 6230" a part names it, too."""
    asked, there = ([_words(part) for part in text.split(" + ")] for text in (wanted, found))
    return len(asked) == len(there) and all(any(_holds(own, part) for own in there) for part in asked)


def _holds(words: Sequence[str], part: Sequence[str]) -> bool:
    return any(list(words[at : at + len(part)]) == list(part) for at in range(len(words) - len(part) + 1))


def generic_profile(machine: str | None) -> str | None:
    """A bundled profile that fits any board of that architecture."""
    generic = [name for name in profiles.names() if name.startswith("generic-")]
    wanted = ALIASES.get(machine or "", machine)
    return next((name for name in generic if profiles.load(name).cpu.architecture == wanted), None)


def checked(
    profile: DeviceProfile | None, board: Mapping[str, Any], address: str, stand_in: bool
) -> dict[str, Any] | None:
    """None where the board is the profile's, or no profile is known; else, where a stand-in is allowed, what is written
    down of it: {"profile", "name", "differences": [{"what", "profile", "board"}]}.

    Raises ConfigError with every difference and what to do.
    """
    found = differences(profile, board) if profile else []
    if profile is None or not found:
        return None
    if not stand_in:
        fitting = generic_profile(board.get("userland") or board.get("machine"))
        generic = f"--profile {fitting} fits any such machine, " if fitting else ""
        raise ConfigError(
            f"profile '{profile.id}' is of {profile.name}, but {address} is {described(board)}. "
            f"{'; '.join(map(str, found))}. Name the board's own profile ({generic}`edgeopt profiles list` tells all, "
            "`edgeopt device probe` writes one; where both mean the same, add the board's word to [board] models or "
            "[cpu] names of the profile), or add --stand-in (in a run file: [device] stand_in = true): then all that "
            "is measured is marked so"
        )
    return {"profile": profile.id, "name": profile.name, "differences": [dataclasses.asdict(one) for one in found]}


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def mark(board: Mapping[str, Any]) -> str | None:
    """The words that stand beside all that was measured on a stand-in; None on the profile's own board."""
    own = board.get("stand_in")
    if not isinstance(own, Mapping):
        return None
    return f"on a stand-in ({described(board)}) for {own.get('name') or own.get('profile')}"
