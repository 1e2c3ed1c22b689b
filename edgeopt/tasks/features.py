"""What a network hears: log-mel spectra in numpy.

As in speech recognition's textbooks (Davis and Mermelstein 1980): Hann window, power spectrum, triangular filters that
are evenly spaced on HTK's mel scale, natural logarithm.
"""

from __future__ import annotations

import numpy as np

from ..task import Array


def mel_filters(rate_hz: int, fft: int, mels: int, low_hz: float, high_hz: float) -> Array:
    """(fft // 2 + 1, mels) float64: triangles of height 1, each reaching from its neighbour's peak to the other's."""

    def mel(hz: float) -> float:
        return float(2595.0 * np.log10(1.0 + hz / 700.0))

    edges_mel = np.linspace(mel(low_hz), mel(high_hz), mels + 2)
    edges_hz = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
    bins_hz = np.fft.rfftfreq(fft, 1.0 / rate_hz)[:, None]
    rising = (bins_hz - edges_hz[:-2]) / np.diff(edges_hz)[:-1]
    falling = (edges_hz[2:] - bins_hz) / np.diff(edges_hz)[1:]
    filters: Array = np.maximum(0.0, np.minimum(rising, falling))
    return filters


def log_mel(sound: Array, filters: Array, fft: int, hop: int, floor: float) -> Array:
    """log(floor + filtered power), (frames, mels) float32, of sound (samples,); frames = 1 + (samples - fft) // hop."""
    frames = np.lib.stride_tricks.sliding_window_view(sound.astype(np.float64), fft)[::hop]
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(fft) / fft)
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    spectrum: Array = np.log(power @ filters + floor).astype(np.float32)
    return spectrum
