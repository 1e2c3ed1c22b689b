"""A board in this process: a real agent whose conversation is written down, and one that says it again with changes."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
import numpy as np
from edgeopt_agent import main, wire

from edgeopt.device.archive import agent_archive

Said = list[tuple[str, dict[str, Any], bytes]]  # (op, reply, payload) in order
Answer = Callable[[dict[str, Any], bytes], bytes]
NUMBERS = (0.0, -1.0, 1e308, 1e-320, 1e-9, 3.0, np.nan, np.inf, -np.inf)


class NothingToSay(Exception):
    """The host asks what it did not ask while the conversation was written down."""


class BoardHere:
    """A transport to it. answer: the bytes that the agent says to a request."""

    address = "local"

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def open(self, command: str) -> PipeHere:
        return PipeHere(self._answer if " serve " in command else None)

    def close(self) -> None:
        """Nothing is held."""


class PipeHere:
    def __init__(self, answer: Answer | None) -> None:
        self._answer = answer
        self._said = b"\n" + wire.SENTINEL + b"\n" if answer else b""

    def write(self, data: bytes, timeout_s: float) -> None:  # noqa: ARG002
        line, _, payload = data.partition(b"\n")
        if self._answer:
            self._said += self._answer(wire.decode(line), payload)

    def finish_input(self) -> None:
        """Nothing waits for it."""

    def read(self, limit: int, timeout_s: float) -> bytes:  # noqa: ARG002
        found, self._said = self._said[:limit], self._said[limit:]
        return found

    def end(self, timeout_s: float) -> tuple[int | None, str]:  # noqa: ARG002
        return 0, ""

    def close(self) -> None:
        """It has ended."""


class Recorder:
    """An agent that works, and what it said."""

    def __init__(self, root: Path) -> None:
        self.said: Said = []
        self._root = str(root)
        main.prepare(self._root)

    def __call__(self, request: dict[str, Any], payload: bytes) -> bytes:
        reply, data = main.answer(self._root, request, payload)
        if request["op"] == "hello":
            reply["result"]["agent_sha256"] = agent_archive()[1]
        self.said.append((request["op"], copy.deepcopy(reply), data))
        return wire.encode(reply, data)


class Replay:
    """Says what was said, op by op."""

    MOST_REQUESTS = 3000

    def __init__(self, said: Said) -> None:
        self._said = said
        self._next: dict[str, int] = {}
        self._count = 0

    def __call__(self, request: dict[str, Any], _payload: bytes) -> bytes:
        op = request["op"]
        own = [place for place, (name, _, _) in enumerate(self._said) if name == op]
        self._count += 1
        assert self._count < self.MOST_REQUESTS, "the host asks for ever"
        if not own:
            raise NothingToSay(op)
        number = self._next.get(op, 0)
        self._next[op] = number + 1
        place = own[min(number, len(own) - 1)]
        _, reply, data = self._said[place]
        return self.answer(place, {**reply, "id": request["id"]}, data)

    def answer(self, _place: int, reply: dict[str, Any], data: bytes) -> bytes:
        return wire.encode(reply, data)


class Liar(Replay):
    """Changes one reply, or the numbers in one file."""

    def __init__(self, said: Said, chance: random.Random) -> None:
        super().__init__(_with_other_numbers(said, chance) if chance.random() < 0.25 else said)
        self._chance = chance
        self._wrong = -1 if self._said is not said else chance.randrange(len(said))

    def answer(self, place: int, reply: dict[str, Any], data: bytes) -> bytes:
        if place != self._wrong:
            return super().answer(place, reply, data)
        self._wrong = -1
        return self._lie(reply, data)

    def _lie(self, reply: dict[str, Any], data: bytes) -> bytes:
        way = self._chance.random()
        if way < 0.1:
            return self._chance.choice(
                (b"garbage\n", b"\xff\xfe\n", b"{}\n", b"[" * 100_000 + b"\n", b"\n", b'{"id":1}\n', b"x" * 100 + b"\n")
            )
        if data and way < 0.5:
            data = self._chance.choice((mutations.data(data, self._chance), data * 2, bytes(len(data)), b""))
        else:
            reply = mutations.document(reply, self._chance)
        if isinstance(reply, dict) and "bytes" not in reply and data:
            reply["bytes"] = len(data)
        return json.dumps(reply).encode() + b"\n" + data


def _with_other_numbers(said: Said, chance: random.Random) -> Said:
    """The conversation with a file of samples, or of arrays, whose content is another one, and its hash with it."""
    files = [place for place, (op, _, data) in enumerate(said) if op == "job.file" and data]
    if not files:
        return said
    place = chance.choice(files)
    op, reply, data = said[place]
    if data[:2] == b"PK" or len(data) % 8:
        changed = mutations.data(data, chance)
    else:
        numbers = np.frombuffer(data).copy()
        some = slice(chance.randrange(len(numbers)), None, chance.choice((1, 2, 1000)))
        numbers[some] = chance.choice(NUMBERS)
        changed = numbers.tobytes()[: chance.choice((len(data), len(data) - 16, len(data) - 3))]
    old, new = (hashlib.sha256(one).hexdigest() for one in (data, changed))
    found = [(name, json.loads(json.dumps(one).replace(old, new)), held) for name, one, held in said]
    found[place] = (op, {**reply, "result": {"size_bytes": len(changed)}}, changed)
    return _resized(found, new, len(changed))


def _resized(said: Said, sha256: str, size_bytes: int) -> Said:
    def entries(value: Any) -> Any:
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from entries(item)
        if isinstance(value, dict) and value.get("sha256") == sha256:
            yield value

    for _, reply, _ in said:
        for entry in entries(reply):
            entry["size_bytes"] = size_bytes
    return said
