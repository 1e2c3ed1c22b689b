"""The contract between host and board: round trips, hostile bytes, and what a shell says before the agent does."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from boards import local_session
from edgeopt_agent import wire
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.device.local import LocalPipe, LocalTransport
from edgeopt.device.session import Placement, Session
from edgeopt.errors import AgentFailure, ProtocolError

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
messages = st.dictionaries(st.text().filter(lambda key: key != "bytes"), values)


def receive_from(data: bytes) -> tuple[dict[str, Any], bytes]:
    stream = io.BytesIO(data)
    return wire.receive(lambda: stream.readline(wire.MAX_LINE_BYTES), stream.read)


@relaxed
@given(st.lists(st.tuples(messages, st.binary()), max_size=5))
def test_messages_and_payloads_come_back_in_order(sent: list[tuple[dict[str, Any], bytes]]) -> None:
    stream = io.BytesIO(b"".join(wire.encode(message, payload) for message, payload in sent))
    for message, payload in sent:
        got, data = wire.receive(lambda: stream.readline(wire.MAX_LINE_BYTES), stream.read)
        assert {key: value for key, value in got.items() if key != "bytes"} == message
        assert data == payload
        assert got.get("bytes", 0) == len(payload)
    with pytest.raises(EOFError):
        wire.receive(stream.readline, stream.read)


@relaxed
@given(messages, st.binary(min_size=1))
def test_a_stream_that_ends_early_is_an_end_and_no_message(message: dict[str, Any], payload: bytes) -> None:
    whole = wire.encode(message, payload)
    for length in {0, 1, len(whole) // 2, len(whole) - len(payload), len(whole) - 1}:
        with pytest.raises(EOFError):
            receive_from(whole[:length])


@relaxed
@given(messages)
def test_a_message_is_one_line_of_ascii(message: dict[str, Any]) -> None:
    encoded = wire.encode(message)
    assert encoded.endswith(b"\n")
    assert encoded.count(b"\n") == 1
    assert encoded.isascii()


jsonish = st.one_of(
    st.binary(),
    values.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"NaN", b'{"a": NaN}', b'{"a": -Infinity}', b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000]),
    st.builds(lambda size: b'{"bytes": ' + json.dumps(size).encode() + b"}", values),
)


@relaxed
@given(jsonish, st.sampled_from([b"", b"\n", b"\r\n", b"\n\0\xff"]))
def test_hostile_bytes_raise_nothing_but_wire_and_end_errors(line: bytes, end: bytes) -> None:
    try:
        message = wire.decode(line + end)
    except wire.WireError:
        pass
    else:
        assert isinstance(message, dict)
    try:
        message, payload = receive_from(line + end)
    except (wire.WireError, EOFError):
        pass
    else:
        assert len(payload) == message.get("bytes", 0)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_json_has_no_nan_in_either_direction(text: str) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(b'{"value": %s}\n' % text.encode())
    with pytest.raises(ValueError, match="JSON"):
        wire.encode({"value": float(text)})


@pytest.mark.parametrize("size", [-1, wire.MAX_LINE_BYTES + 1, 1.5, "4", True, None, [4]])
def test_a_payload_size_that_cannot_be_is_refused(size: object) -> None:
    with pytest.raises(wire.WireError, match="'bytes' must be an integer"):
        wire.decode(json.dumps({"bytes": size}).encode())


def test_an_endless_line_is_refused_and_not_read_to_its_end() -> None:
    class Endless:
        def readline(self, limit: int) -> bytes:
            return b"x" * limit

    with pytest.raises(wire.WireError, match="more than"):
        wire.receive(lambda: Endless().readline(wire.MAX_LINE_BYTES), lambda _: b"")


@relaxed
@given(st.text())
def test_a_plain_name_cannot_leave_its_folder(name: str) -> None:
    for text in (name, f"../{name}", f"a/{name}", f".{name}", f"a\0{name}", f"a{name}\n"):
        if wire.is_plain_name(text):
            assert Path("/folder", text).resolve().parent == Path("/folder")
            assert not text.startswith(".")
            assert "\n" not in text


def serve_raw(root: Path, sent: bytes) -> list[dict[str, Any]]:
    """Replies of a real agent to raw bytes."""
    serve = [sys.executable, "-m", "edgeopt_agent", "serve", "--root", str(root)]
    done = subprocess.run(serve, input=sent, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    before, _, replies = done.stdout.partition(wire.SENTINEL + b"\n")
    assert before.strip() == b""
    return [wire.decode(line) for line in replies.splitlines()]


@pytest.mark.parametrize("garbage", [b"\xff\xfe\n", b"[1]\n", b'{"bytes": -1}\n', b"GET / HTTP/1.1\r\n\r\n"])
def test_the_agent_answers_garbage_with_the_reason_and_ends(tmp_path: Path, garbage: bytes) -> None:
    replies = serve_raw(
        tmp_path, wire.encode({"id": 1, "op": "hello"}) + garbage + wire.encode({"id": 2, "op": "hello"})
    )
    assert [reply["ok"] for reply in replies] == [True, False]
    assert replies[1]["error"]["kind"] == "bad-request"


def test_bad_requests_name_what_is_wrong_and_the_agent_goes_on(tmp_path: Path) -> None:
    bad = {
        "unknown op 'fly'": {"op": "fly"},
        "'op' must be str": {"op": ["hello"]},
        "'sha256' must be a list of": {"op": "blob.stat", "sha256": "ab"},
        "'sha256[0]' must be a SHA-256, not '../x'": {"op": "blob.stat", "sha256": ["../x"]},
        "'offset' must be a whole number from 0": {"op": "blob.put", "sha256": "0" * 64, "size_bytes": 1, "offset": -1},
        "'job' must be a plain name": {"op": "job.start", "job": "../x", "request": {}},
        "there is no job x": {"op": "job.poll", "job": "x", "offset": 0, "wait_s": 0},
        "'wait_s' must be a number, not '1'": {"op": "job.poll", "job": "x", "offset": 0, "wait_s": "1"},
        "'limit' must be a whole number from 0": {"op": "job.file", "job": "x", "name": "y", "offset": 0, "limit": -1},
        "'verify' is missing; it must be true or false": {"op": "status"},
    }
    sent = b"".join(wire.encode({"id": number, **request}) for number, request in enumerate(bad.values()))
    replies = serve_raw(tmp_path, sent + wire.encode({"id": 99, "op": "hello"}))
    assert replies[-1]["ok"]
    for words, reply in zip(bad, replies[:-1], strict=True):
        assert not reply["ok"], words
        assert words in reply["error"]["message"]
        assert reply["error"]["kind"] in ("bad-request", "not-found")


class NoisyTransport(LocalTransport):
    """A board whose login shell prints before it runs a command."""

    def __init__(self, noise: bytes, folder: Path) -> None:
        self._banner = folder / "banner"
        self._banner.write_bytes(noise)

    def open(self, command: str) -> LocalPipe:
        return super().open(f"cat {shlex.quote(str(self._banner))}; {command}")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_whatever_a_shell_prints_first_is_skipped(tmp_path: Path, noise: bytes) -> None:
    place = Placement(str(tmp_path / "root"), sys.executable)
    with Session(NoisyTransport(noise, tmp_path), place, reply_s=15.0) as session:
        assert session.status()["current"] is None


@pytest.mark.parametrize(
    "noise", [b"edgeopt-wire-0\nedgeopt-wire-1x\n", b"no newline at the end", b"\r\n" * 90, b'{"id":1,"ok":true}\n']
)
def test_noise_that_looks_like_the_protocol_is_skipped(tmp_path: Path, noise: bytes) -> None:
    place = Placement(str(tmp_path / "root"), sys.executable)
    with Session(NoisyTransport(noise, tmp_path), place, reply_s=15.0) as session:
        assert session.facts()["cores"]


def test_a_shell_that_never_comes_to_the_point_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="500 lines came before the agent's first word"):
        Session(NoisyTransport(b"motd\n" * 5000, tmp_path), Placement(str(tmp_path / "root"), sys.executable))


def test_what_an_account_without_a_shell_says_is_in_the_message(tmp_path: Path) -> None:
    class NoLogin(LocalTransport):
        def open(self, command: str) -> LocalPipe:  # noqa: ARG002
            return super().open("echo 'This account is currently not available.'; exit 1")

    with pytest.raises(AgentFailure, match=r"exit code 1.*account is currently not available") as caught:
        Session(NoLogin(), Placement(str(tmp_path), sys.executable))
    assert caught.value.exit_code == 4


def test_a_foreign_agent_is_not_talked_to(tmp_path: Path) -> None:
    """Its hash is not the one that was sent."""

    class Foreign(LocalTransport):
        def open(self, command: str) -> LocalPipe:  # noqa: ARG002
            return super().open(f"exec {shlex.quote(sys.executable)} -m edgeopt_agent serve --root {tmp_path}")

    with pytest.raises(ProtocolError, match="this host speaks wire 1 and sent agent"):
        Session(Foreign(), Placement(str(tmp_path), sys.executable))


def test_an_agent_that_answers_another_question_is_a_protocol_error(tmp_path: Path) -> None:
    class Parrot(LocalTransport):
        def open(self, command: str) -> LocalPipe:  # noqa: ARG002
            return super().open(f'echo {wire.SENTINEL.decode()}; echo \'{{"id": 7, "ok": true, "result": {{}}}}\'; cat')

    with pytest.raises(ProtocolError, match="not a reply to request 1"):
        Session(Parrot(), Placement(str(tmp_path), sys.executable))


def test_a_damaged_copy_of_the_agent_is_replaced(tmp_path: Path) -> None:
    with local_session(tmp_path) as session:
        name = session.hello["agent_sha256"]
    archive = tmp_path / "agent" / f"{name}.pyz"
    archive.write_bytes(archive.read_bytes()[:-100])
    with local_session(tmp_path) as session:
        assert session.hello["agent_sha256"] == name
    assert len(list((tmp_path / "agent").iterdir())) == 1
