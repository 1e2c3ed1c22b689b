"""The agent's sampler of power by itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from edgeopt_agent.energy import READING, Sampler
from edgeopt_agent.power import Sensor


def sensor() -> Sensor:
    return Sensor("hwmon", "VDD_IN", "nowhere", lambda: 5.0, interval_s=0.0)


def test_readings_that_could_not_be_kept_end_the_job_with_the_files_name() -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"), Sampler(sensor(), "/dev/full"):
        time.sleep(0.1)


def test_what_went_wrong_first_is_what_is_told() -> None:
    with pytest.raises(KeyError), Sampler(sensor(), "/dev/full"):  # noqa: PT012
        time.sleep(0.1)
        raise KeyError


def test_a_full_disk_is_known_while_the_sampler_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(sensor(), "/dev/full")
    monkeypatch.setattr("edgeopt_agent.energy.READING", Large)
    with pytest.raises(OSError, match="/dev/full"), sampler:  # noqa: PT012
        for _ in range(200):
            time.sleep(0.05)
            sampler.require_whole()
        pytest.fail("a full disk went unseen for 10 s")


class Large:
    """Readings that fill the file's buffer at once."""

    @staticmethod
    def pack(_at: float, _value: float) -> bytes:
        return bytes(1 << 16)


def test_every_reading_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "power.f64"
    with Sampler(sensor(), str(path)) as sampler:
        sampler.require_whole()
        time.sleep(0.2)
    rows = list(READING.iter_unpack(path.read_bytes()))
    assert len(rows) >= 2
    assert {value for _, value in rows} == {5.0}
