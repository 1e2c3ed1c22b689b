"""Trains the example's model on the calibration split's three speakers and writes weights.npz.

Needs sounds.csv (python prepare.py FOLDER). Samples, spectra, normalisation and splits are the run file's own, so that
the network learns from what the board will hear. Takes about a minute. The same seed gives the same weights
on the same machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from digit_model import DigitNet
from torch import nn
from torch.nn import functional

from edgeopt import data as run_data
from edgeopt import lower, plan
from edgeopt.cache import Cache, default_root
from edgeopt.errors import EdgeoptError
from edgeopt.task import Samples

FOLDER = Path(__file__).parent
EPOCHS = 20
BATCH = 50
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.1
# Other people's voices: earlier or later, quicker or slower, higher or lower, in another room.
SHIFT, TEMPO = 0.25, 0.25  # of the window's length
PITCH, TRACT = 0.08, 0.15  # of the spectrum's height
GAIN, TILT, NOISE = 0.5, 0.3, 0.2  # in units of the normalised spectrum
MASKED_FRAMES, MASKED_BANDS = 10, 6


def symmetric(size: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    return torch.rand(size, generator=random) * 2 - 1


def varied(spectrum: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """The same words by other people. spectrum: (n, 1, time, mels), normalised."""
    n, _, frames, mels = spectrum.shape
    along = torch.linspace(-1, 1, frames) * (1 + TEMPO * symmetric((n, 1), random)) + SHIFT * symmetric((n, 1), random)
    up = torch.linspace(-1, 1, mels) * (1 + TRACT * symmetric((n, 1), random)) + PITCH * symmetric((n, 1), random)
    grid = torch.stack([up[:, None, :].expand(n, frames, mels), along[:, :, None].expand(n, frames, mels)], -1)
    spectrum = functional.grid_sample(spectrum, grid, padding_mode="border", align_corners=True)
    tilt = TILT * symmetric((n, 1, 1, 1), random) * torch.linspace(-1, 1, mels)
    spectrum = spectrum + GAIN * symmetric((n, 1, 1, 1), random) + tilt
    spectrum = spectrum + NOISE * torch.rand((n, 1, 1, 1), generator=random) * torch.randn(
        spectrum.shape, generator=random
    )
    return masked(masked(spectrum, 2, MASKED_FRAMES, random), 3, MASKED_BANDS, random)


def masked(spectrum: torch.Tensor, axis: int, widest: int, random: torch.Generator) -> torch.Tensor:
    """A band of each spectrum set to its mean, as in SpecAugment (Park et al. 2019)."""
    n, size = len(spectrum), spectrum.shape[axis]
    shape = [size if number == axis else 1 for number in range(4)]
    start = torch.randint(0, size, (n, 1, 1, 1), generator=random)
    width = torch.randint(0, widest + 1, (n, 1, 1, 1), generator=random)
    place = torch.arange(size).view(shape)
    return torch.where((place >= start) & (place < start + width), spectrum.mean((2, 3), keepdim=True), spectrum)


def batches(n: int, random: torch.Generator) -> Iterator[torch.Tensor]:
    order = torch.randperm(n, generator=random)
    return iter(torch.split(order[: n // BATCH * BATCH], BATCH))


def train(spectrum: torch.Tensor, digit: torch.Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # layers this small only wait for one another
    random = torch.Generator().manual_seed(seed)
    model = DigitNet().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = len(spectrum) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * steps, pct_start=0.2)
    for epoch in range(EPOCHS):
        total = 0.0
        for rows in batches(len(spectrum), random):
            logits = model(varied(spectrum[rows], random))
            loss = functional.cross_entropy(logits, digit[rows], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{EPOCHS}  loss {total / steps:.3f}", flush=True)
    return model.eval()


def save(model: nn.Module, path: Path) -> None:
    """float16, rounded in the model as well, so that what is scored is what is written."""
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    np.savez_compressed(path, **{name: tensor.numpy() for name, tensor in state.items()})


def data() -> dict[str, tuple[torch.Tensor, torch.Tensor, Samples]]:
    """Per split: spectra (n, 1, 64, 40), digits (n,), and the raw samples."""
    made = plan.load(FOLDER, lower.abilities())
    found = {}
    for name, samples in run_data.opened(made, Cache(default_root()), lambda _: None).items():
        (spectrum,) = samples.prepared(made.preprocess)
        found[name] = torch.from_numpy(spectrum), torch.from_numpy(samples.labels), samples
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER / "weights.npz")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.monotonic()
    try:
        splits = data()
    except EdgeoptError as error:
        sys.exit(f"{error}\n(sounds.csv is made by: python prepare.py FOLDER)")
    spectrum, digit, raw = splits["calibration"]
    print(f"raw spectra: mean {raw.inputs[0].mean():.4f}, standard deviation {raw.inputs[0].std():.4f}", flush=True)
    model = train(spectrum, digit, given.seed)
    save(model, given.out)
    for name, (spectrum, digit, samples) in splits.items():
        with torch.no_grad():
            score = float((model(spectrum).argmax(1) == digit).float().mean())
        speakers = ", ".join(sorted(set(map(str, samples.groups))))
        print(f"{name}: {speakers}: {len(digit)} recordings, accuracy {score:.3f}")
    print(f"{given.out}: {given.out.stat().st_size} bytes, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
