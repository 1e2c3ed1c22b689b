"""Trains the example's model on subjects 1-5 and writes weights.npz; subjects 6-7 select, 8-10 are never seen.

Needs data.npz (python prepare.py). Takes about half a minute on two cores. The same seed gives the same weights on the
same machine and thread count.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from watch_model import WatchNet

FOLDER = Path(__file__).parent
TRAINING, SELECTION, FINAL = (1, 2, 3, 4, 5), (6, 7), (8, 9, 10)
EPOCHS = 20
BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.01
LABEL_SMOOTHING = 0.1
ROTATION_DEG = 20.0  # how far a watch sits askew on the wrist
TEMPO = 0.2  # repetitions up to 20 % faster or slower
GAIN = 0.1


def split(data: dict[str, np.ndarray], subjects: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """motion (n, 6, 128) and exercise (n,) of these subjects."""
    rows = np.isin(data["subject"], subjects)
    return torch.from_numpy(data["motion"][rows]), torch.from_numpy(data["exercise"][rows])


def statistics(motion: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per channel, each (1, 6, 1), rounded as the run file states them."""
    mean, std = motion.double().mean((0, 2)), motion.double().std((0, 2), correction=0)
    return tuple(torch.round(v, decimals=4).float().view(1, -1, 1) for v in (mean, std))  # type: ignore[return-value]


def rotations(n: int, random: torch.Generator) -> torch.Tensor:
    """Random small rotations, (n, 3, 3), by Rodrigues' formula."""
    axis = functional.normalize(torch.randn(n, 3, generator=random), dim=1)
    angle = (torch.rand(n, 1, 1, generator=random) * 2 - 1) * math.radians(ROTATION_DEG)
    x, y, z = axis.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(n, 3, 3)
    return torch.eye(3) + torch.sin(angle) * cross + (1 - torch.cos(angle)) * (cross @ cross)


def varied(motion: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """The same movements by other people: watch turned, gain changed, tempo stretched. motion: (n, 6, 128)."""
    n, channels, length = motion.shape
    turn = rotations(n, random)
    motion = torch.cat([turn @ motion[:, :3], turn @ motion[:, 3:]], 1)
    motion = motion * (1 + GAIN * torch.randn(n, channels, 1, generator=random))
    tempo = 1 + TEMPO * (torch.rand(n, 1, generator=random) * 2 - 1)
    shift = 0.1 * (torch.rand(n, 1, generator=random) * 2 - 1)
    at = torch.linspace(-1, 1, length) * tempo + shift
    grid = torch.stack([at, torch.zeros_like(at)], -1).unsqueeze(1)
    return functional.grid_sample(motion.unsqueeze(2), grid, padding_mode="reflection", align_corners=True).squeeze(2)


def batches(n: int, random: torch.Generator) -> Iterator[torch.Tensor]:
    order = torch.randperm(n, generator=random)
    return iter(torch.split(order[: n // BATCH * BATCH], BATCH))


def train(motion: torch.Tensor, exercise: torch.Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    mean, std = statistics(motion)
    model = WatchNet().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * (len(motion) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.2)
    for epoch in range(EPOCHS):
        total = 0.0
        for rows in batches(len(motion), random):
            logits = model((varied(motion[rows], random) - mean) / std)
            loss = functional.cross_entropy(logits, exercise[rows], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{EPOCHS}  loss {total / (len(motion) // BATCH):.3f}", flush=True)
    return model.eval()


def accuracy(model: nn.Module, motion: torch.Tensor, exercise: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(motion).argmax(1) == exercise).float().mean())


def save(model: nn.Module, path: Path) -> None:
    """float16, rounded in the model as well, so that what is scored is what is written."""
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    np.savez_compressed(path, **{name: tensor.numpy() for name, tensor in state.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=FOLDER / "data.npz")
    parser.add_argument("--out", type=Path, default=FOLDER / "weights.npz")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if not given.data.is_file():
        raise SystemExit(f"{given.data} is missing; make it with: python prepare.py")
    started = time.monotonic()
    with np.load(given.data, allow_pickle=False) as arrays:
        data = dict(arrays)
    motion, exercise = split(data, TRAINING)
    mean, std = statistics(motion)
    model = train(motion, exercise, given.seed)
    save(model, given.out)
    print(f"mean {[round(v, 4) for v in mean.flatten().tolist()]}")
    print(f"std  {[round(v, 4) for v in std.flatten().tolist()]}")
    for name, subjects in (("training", TRAINING), ("selection", SELECTION), ("final, held out", FINAL)):
        motion, exercise = split(data, subjects)
        score = accuracy(model, (motion - mean) / std, exercise)
        print(f"{name}: subjects {subjects[0]}-{subjects[-1]}, {len(motion)} windows, accuracy {score:.3f}")
    print(f"{given.out}: {given.out.stat().st_size} bytes, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
