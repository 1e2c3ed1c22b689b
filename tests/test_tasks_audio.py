"""Sounds as samples: decoded, placed, turned into features; oracles are scipy and the formula written out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import task_project
from conftest import run_cli
from scipy import signal

from edgeopt.errors import ConfigError
from edgeopt.tasks import audio, features

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed: pip install 'edgeopt[tasks]'")

RATE = 8000
TASK = 'audio = "sounds.csv"\ninputs = ["sound"]\nlabels = "word"\ngroups = "speaker"\nmetric = "top1"'
WAVE = "rate_hz = 8000\nlength_s = 0.125"  # 1000 samples
LOG_MEL = WAVE + '\nfeatures = "log-mel"\nfft = 256\nhop = 128\nmels = 20\nlow_hz = 60\nhigh_hz = 4000\nfloor = 1e-3'
SPLITS = {"calibration": '{ groups = ["ann"] }', "selection": '{ groups = ["bob"] }', "final": '{ groups = ["cem"] }'}


def tone(hz: float, samples: int, loud: float = 0.5) -> np.ndarray:
    return loud * np.sin(2 * np.pi * hz * np.arange(samples) / RATE)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Six sounds of three speakers, each of another length: sample i of sound k is (k + 1) / 10, in 16 bits."""
    folder = tmp_path / "project"
    folder.mkdir()
    rows = ["file,word,speaker"]
    for number, (word, speaker) in enumerate((w, s) for s in ("ann", "bob", "cem") for w in ("yes", "no")):
        soundfile.write(
            folder / f"{number}.wav", np.full(400 + 300 * number, (number + 1) / 10), RATE, subtype="PCM_16"
        )
        rows.append(f"{number}.wav,{word},{speaker}")
    (folder / "sounds.csv").write_text("\n".join(rows))
    return task_project.write(folder, TASK, WAVE, **SPLITS)


def rewrite(project: Path, prepare: str) -> np.ndarray:
    task_project.write(project, TASK, prepare, **SPLITS)
    return task_project.everything(project).inputs[0]


def test_sounds_are_cut_and_filled_where_asked(project: Path) -> None:
    found = rewrite(project, WAVE)
    assert (found.dtype, found.shape) == (np.float32, (6, 1000))
    assert np.count_nonzero(found, axis=1).tolist() == [400, 700, 1000, 1000, 1000, 1000]
    assert found.max(axis=1) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], abs=1 / 32768)
    for place, first in (("start", 0), ("middle", 300), ("end", 600)):
        row = rewrite(project, f'{WAVE}\nplace = "{place}"')[0]
        assert np.flatnonzero(row).tolist() == list(range(first, first + 400))
    ramp = np.arange(1500) / 2000
    soundfile.write(project / "0.wav", ramp, RATE, subtype="FLOAT")
    for place, first in (("start", 0), ("middle", 250), ("end", 500)):
        row = rewrite(project, f'{WAVE}\nplace = "{place}"')[0]
        assert np.array_equal(row, ramp[first : first + 1000].astype(np.float32))


def test_splits_share_no_speaker(project: Path) -> None:
    found = task_project.read(project)
    assert {name: np.unique(own.groups).tolist() for name, own in found.items()} == {
        "calibration": ["ann"],
        "selection": ["bob"],
        "final": ["cem"],
    }
    labels = found["final"].labels
    assert labels is not None
    assert labels.tolist() == [1, 0]  # sorted: no, yes


def test_loudness_can_be_made_one(project: Path) -> None:
    soundfile.write(project / "1.wav", np.zeros(500), RATE)
    found = rewrite(project, f'{WAVE}\nlevel = "peak"')
    assert np.abs(found).max(axis=1).tolist() == [1, 0, 1, 1, 1, 1]  # silence stays silent


def test_channels(project: Path) -> None:
    soundfile.write(project / "2.wav", np.tile([[0.5, -0.25]], (1000, 1)), RATE)
    with pytest.raises(ConfigError, match=r"2\.wav \(line 4\): found 2 channels; allowed: 1; set channels = 'mean' or"):
        rewrite(project, WAVE)
    assert rewrite(project, f'{WAVE}\nchannels = "first"')[2, 0] == pytest.approx(0.5, abs=1e-4)
    assert rewrite(project, f'{WAVE}\nchannels = "mean"')[2, 0] == pytest.approx(0.125, abs=1e-4)


def test_power_is_scipys() -> None:
    """With one filter for each frequency nothing but the power spectrum is left."""
    wave, fft, hop = np.random.default_rng(0).normal(size=1000).astype(np.float32), 64, 24
    window = signal.get_window("hann", fft)
    settings = {"nperseg": fft, "noverlap": fft - hop, "detrend": False, "scaling": "spectrum", "mode": "magnitude"}
    _, _, magnitude = signal.spectrogram(wave.astype(float), RATE, window, **settings)
    ours = np.exp(features.log_mel(wave, np.eye(fft // 2 + 1), fft, hop, 1e-9))
    assert ours == pytest.approx((magnitude.T * window.sum()) ** 2, rel=1e-4, abs=1e-6)


def test_a_tone_sounds_in_its_filter(project: Path) -> None:
    """HTK's mel scale: 1000 mel is 1000 Hz, and a filter's peak lies at its middle frequency."""
    low, high, mels = 0.0, 4000.0, 20

    def mel(hz: float) -> float:
        return 1127.01048 * math.log(1 + hz / 700)

    assert mel(1000) == pytest.approx(1000, abs=0.1)
    step = (mel(high) - mel(low)) / (mels + 1)
    for number in (4, 9, 15, 18):
        hz = 700 * (math.exp((mel(low) + step * (number + 1)) / 1127.01048) - 1)
        soundfile.write(project / "0.wav", tone(hz, 1000), RATE)
        row = rewrite(project, LOG_MEL.replace("low_hz = 60", "low_hz = 0"))[0]
        assert row.shape == (1 + (1000 - 256) // 128, mels)
        assert row.dtype == np.float32
        assert (row.argmax(axis=1) == number).all()


def test_silence_has_the_floors_logarithm(project: Path) -> None:
    soundfile.write(project / "0.wav", np.zeros(10), RATE)
    assert rewrite(project, LOG_MEL)[0] == pytest.approx(math.log(1e-3))


def test_filters_are_triangles_that_overlap_by_half() -> None:
    filters = features.mel_filters(RATE, 2048, 20, 60, 4000)
    assert filters.shape == (1025, 20)
    assert filters.max() <= 1
    inner = (np.arange(1025) > filters[:, 0].argmax()) & (np.arange(1025) < filters[:, -1].argmax())
    assert filters.sum(axis=1)[inner] == pytest.approx(1)
    heard = np.flatnonzero(features.mel_filters(RATE, 2048, 20, 60, 3000).any(axis=1))
    assert heard[[0, -1]].tolist() == [math.floor(60 / RATE * 2048) + 1, math.ceil(3000 / RATE * 2048) - 1]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b""), "found no readable sound"),
        (lambda path: path.write_bytes(b"RIFF" + bytes(60)), "found no readable sound .*; allowed: WAV, FLAC or Ogg"),
        (lambda path: soundfile.write(path, np.zeros(0), RATE), "found no sample"),
        (
            lambda path: soundfile.write(path, tone(100, 800), 16000),
            "found 16000 Hz; allowed: rate_hz = 8000; resample",
        ),
        (lambda path: soundfile.write(path, np.full(9, np.nan), RATE, subtype="FLOAT"), "found NaN or infinity"),
    ],
)
def test_bad_sounds(project: Path, make: object, said: str) -> None:
    make(project / "3.wav")  # type: ignore[operator]
    with pytest.raises(ConfigError, match=rf"\[task\] audio = '.*': 3\.wav \(line 5\): {said}"):
        task_project.everything(project)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("length_s = 1.0", "task.prepare.rate_hz: found nothing"),
        (WAVE + "\nfft = 256", "task.prepare.fft: found 256; allowed: nothing with features = 'waveform'"),
        (LOG_MEL.replace("hop = 128\n", ""), "task.prepare.hop: found nothing"),
        (LOG_MEL.replace("hop = 128", "hop = 300"), "task.prepare.hop: found 300; allowed: at most fft = 256"),
        (LOG_MEL.replace("4000", "4001"), "task.prepare.low_hz and task.prepare.high_hz: found 60 to 4001; allowed:"),
        (LOG_MEL.replace("fft = 256", "fft = 1001"), "task.prepare.fft and task.prepare.length_s: found 1001 samples"),
        (LOG_MEL.replace("mels = 20", "mels = 120"), "task.prepare.mels and task.prepare.fft: found 120 filters"),
        (LOG_MEL.replace("log-mel", "mfcc"), 'task.prepare.features: found "mfcc"; allowed: one of waveform, log-mel'),
    ],
)
def test_prepares_that_are_refused(project: Path, prepare: str, said: str) -> None:
    task_project.write(project, TASK, prepare, **SPLITS)
    done = run_cli("optimize", project, "--show-plan")
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split())


def test_what_may_be_asked_for_can_be_made() -> None:
    """The largest number of filters that is not refused gives filters that all hear something."""
    base = {"rate_hz": RATE, "length_s": 1.0, "features": "log-mel", "fft": 256, "hop": 128, "floor": 1.0}
    allowed = 0
    for mels in range(1, 129):
        try:
            audio.Prepare.model_validate({**base, "mels": mels, "low_hz": 60.0, "high_hz": 4000.0})
        except ValueError:
            continue
        assert features.mel_filters(RATE, 256, mels, 60, 4000).any(axis=0).all()
        allowed += 1
    assert allowed > 30
