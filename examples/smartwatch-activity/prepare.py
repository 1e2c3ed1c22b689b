"""Cuts seglearn's smartwatch recordings into windows and writes data.npz beside this file.

The recordings ship as a pickled object array. It is read here only, and only from the installed package;
data.npz holds plain arrays: motion (n, 6, 128) float32, exercise (n,) int64, subject (n,) int64.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np

RATE_HZ = 50
WINDOW = 128  # 2.56 s: one repetition of an exercise
STEP = 64
EXERCISES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")


def recordings() -> dict[str, object]:
    """seglearn's dictionary. The package is found but not imported: its import needs pandas, its data does not."""
    spec = importlib.util.find_spec("seglearn")
    if spec is None or spec.origin is None:
        raise SystemExit("seglearn is not installed, and its recordings are needed: pip install 'edgeopt[examples]'")
    path = Path(spec.origin).parent / "data" / "watch_dataset.npy"
    if not path.is_file():
        raise SystemExit(f"{path} is missing; reinstall seglearn: pip install --force-reinstall --no-deps seglearn")
    content: dict[str, object] = np.load(path, allow_pickle=True).item()
    return content


def windows(series: np.ndarray, length: int = WINDOW, step: int = STEP) -> np.ndarray:
    """Overlapping windows of one recording. series: (time, 6); returns (n, 6, length) float32."""
    cut = np.lib.stride_tricks.sliding_window_view(series, length, axis=0)[::step]
    return np.ascontiguousarray(cut, dtype=np.float32)


def build(content: dict[str, object]) -> dict[str, np.ndarray]:
    """The arrays of data.npz, in the order of the recordings."""
    if tuple(content["y_labels"]) != EXERCISES:  # type: ignore[arg-type]
        raise SystemExit(f"seglearn's exercises are {content['y_labels']}, expected {list(EXERCISES)}")
    motion, exercise, subject = [], [], []
    for series, label, person in zip(content["X"], content["y"], content["subject"], strict=True):  # type: ignore[call-overload]
        cut = windows(np.asarray(series))
        motion.append(cut)
        exercise.append(np.full(len(cut), label, np.int64))
        subject.append(np.full(len(cut), person, np.int64))
    return {
        "motion": np.concatenate(motion),
        "exercise": np.concatenate(exercise),
        "subject": np.concatenate(subject),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("data.npz"))
    out: Path = parser.parse_args().out
    arrays = build(recordings())
    partial = out.with_name(out.name + ".part")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    partial.replace(out)
    print(
        f"{out}: {len(arrays['motion'])} windows of 6 x {WINDOW} at {RATE_HZ} Hz, "
        f"{len(np.unique(arrays['subject']))} subjects, {len(EXERCISES)} exercises"
    )


if __name__ == "__main__":
    main()
