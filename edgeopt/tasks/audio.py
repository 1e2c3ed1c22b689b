"""Sounds: float32 waveforms (samples,) from -1 to 1, or their log-mel spectra (frames, mels)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from ..config import Choices, Conflict, Section, show
from ..errors import MissingDependency
from ..task import Array
from .features import log_mel, mel_filters
from .items import Content, Item, read_files, unfit

SOURCE = "sounds: a folder with one sub-folder per class, or a CSV file with the columns file, labels' and groups'."
DISTRIBUTIONS = ("soundfile", "numpy")
SUFFIXES = (".wav", ".flac", ".ogg")
LOG_MEL = ("fft", "hop", "mels", "low_hz", "high_hz", "floor")

Count = Annotated[int, Field(ge=1)]
Hertz = Annotated[float, Field(ge=0)]


class Prepare(Section):
    rate_hz: Count = Field(description="Sample rate of every file; another one is refused, not resampled.")
    length_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        description="Every sound becomes so long: longer ones are cut, shorter ones filled with silence."
    )
    place: Annotated[str, Choices(("start", "middle", "end"))] = Field(
        default="start", description="Which part of a longer sound is kept, and where a shorter one comes to lie."
    )
    channels: Annotated[str, Choices(("one", "mean", "first"))] = Field(
        default="one", description="Files of one channel only, or what to make of several."
    )
    level: Annotated[str, Choices(("recorded", "peak"))] = Field(
        default="recorded", description="As loud as it was recorded, or each sound's loudest sample made 1."
    )
    features: Annotated[str, Choices(("waveform", "log-mel"))] = Field(
        default="waveform",
        description="The samples from -1 to 1, or log(floor + power) of Hann windows in mel filters.",
    )
    fft: Annotated[int, Field(ge=2)] | None = Field(default=None, description="For log-mel: samples of a window.")
    hop: Count | None = Field(default=None, description="For log-mel: samples from one window to the next.")
    mels: Count | None = Field(default=None, description="For log-mel: filters, evenly spaced on HTK's mel scale.")
    low_hz: Hertz | None = Field(default=None, description="For log-mel: where the lowest filter begins.")
    high_hz: Hertz | None = Field(default=None, description="For log-mel: where the highest filter ends.")

    floor: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="For log-mel: added to each filter's power, as silence has no logarithm."
    )

    @property
    def samples(self) -> int:
        return max(1, round(self.length_s * self.rate_hz))

    def conflicts(self) -> Iterator[Conflict]:
        given = {key: getattr(self, key) for key in LOG_MEL}
        if self.features != "log-mel":
            for key, value in given.items():
                if value is not None:
                    yield Conflict((key,), show(value), "nothing with features = 'waveform'", "remove it")
            return
        missing = [key for key, value in given.items() if value is None]
        if missing:
            yield from (Conflict((key,), "nothing", "a number for features = 'log-mel'", "add it") for key in missing)
            return
        yield from self._log_mel_conflicts(*(given[key] for key in LOG_MEL[:-1]))

    def _log_mel_conflicts(self, fft: int, hop: int, mels: int, low_hz: float, high_hz: float) -> Iterator[Conflict]:
        if fft > self.samples:
            mend = "lower fft or raise length_s"
            yield Conflict(("fft", "length_s"), f"{fft} samples", f"at most the {self.samples} of a sound", mend)
        if hop > fft:
            yield Conflict(("hop",), show(hop), f"at most fft = {fft}: every sample is heard", "lower it")
        if not low_hz < high_hz <= self.rate_hz / 2:
            allowed = f"low_hz below high_hz, at most half of rate_hz: {self.rate_hz / 2:g}"
            yield Conflict(("low_hz", "high_hz"), f"{low_hz:g} to {high_hz:g}", allowed, "correct them")
        elif mels > fft or not mel_filters(self.rate_hz, fft, mels, low_hz, high_hz).any(axis=0).all():
            allowed = "so few that each filter holds a frequency of the window"
            yield Conflict(("mels", "fft"), f"{mels} filters on windows of {fft}", allowed, "lower mels or raise fft")


def read(source: Path, labels: str | None, groups: str | None, part: str | None = None) -> list[Item]:
    return read_files(source, labels, groups, part, SUFFIXES)


def input_conflicts(inputs: Sequence[str]) -> Iterator[Conflict]:
    if len(inputs) != 1:
        yield Conflict(("inputs",), f"{len(inputs)} names", "one: a sound is one array", "leave one")


def files(prepare: Prepare, folder: Path) -> list[Path]:  # noqa: ARG001
    return []


def decoder(prepare: Prepare, inputs: Sequence[str], folder: Path) -> Callable[[Content], tuple[Array, ...]]:  # noqa: ARG001
    """Of a sound its waveform, float32 (samples,), or its log-mel spectrum, float32 (frames, mels)."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: no libsndfile for this machine
        raise MissingDependency(
            "sounds need 'soundfile', which is not installed: pip install 'edgeopt[tasks]'"
        ) from error
    filters = _filters(prepare)

    def decode(content: Content) -> tuple[Array, ...]:
        try:
            sound, rate = soundfile.read(str(content), dtype="float32", always_2d=True)
        except Exception as error:  # a decoder may raise anything on what it was not made for
            raise unfit(f"no readable sound ({error})", "WAV, FLAC or Ogg", "save it again, or remove it") from error
        if rate != prepare.rate_hz:
            mend = "resample the files, or correct rate_hz"
            raise unfit(f"{rate} Hz", f"rate_hz = {prepare.rate_hz}", mend)
        wave = _placed(_one_channel(sound, prepare.channels), prepare.samples, prepare.place)
        loudest = np.abs(wave).max()
        if prepare.level == "peak" and loudest > 0:
            wave = wave / loudest
        if filters is None:
            return (wave,)
        assert prepare.fft is not None
        assert prepare.hop is not None
        assert prepare.floor is not None
        return (log_mel(wave, filters, prepare.fft, prepare.hop, prepare.floor),)

    return decode


def _filters(prepare: Prepare) -> Array | None:
    if prepare.features == "waveform":
        return None
    given = [prepare.fft, prepare.mels, prepare.low_hz, prepare.high_hz]
    return mel_filters(prepare.rate_hz, *given)  # type: ignore[arg-type]  # conflicts() saw that none is absent


def _one_channel(sound: Array, how: str) -> Array:
    """sound: (samples, channels) float32 -> (samples,)."""
    if not len(sound):
        raise unfit("no sample", "a sound", "record it again, or remove it")
    if not np.isfinite(sound).all():
        raise unfit("NaN or infinity", "finite samples", "save it again, or remove it")
    if sound.shape[1] > 1 and how == "one":
        raise unfit(f"{sound.shape[1]} channels", "1", "set channels = 'mean' or 'first'")
    one: Array = sound.mean(axis=1, dtype=np.float32) if how == "mean" else sound[:, 0]
    return one


def _placed(wave: Array, samples: int, place: str) -> Array:
    spare = abs(samples - len(wave))
    before = {"start": 0, "middle": spare // 2, "end": spare}[place]
    if len(wave) >= samples:
        return wave[before : before + samples]
    return np.pad(wave, (before, spare - before))
