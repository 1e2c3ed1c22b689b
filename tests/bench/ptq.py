"""What `edgeopt quantize` costs over calling the libraries by hand: EfficientNet-Lite0 to int8, in turns, as ratios.

By hand is what somebody would write who knows the libraries: load, convert, quantize, save, nothing compared. edgeopt
adds the comparison of every stage with the source. Both are processes of their own, imports included. The artifacts
must be of one size, so that both did the same. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MODEL = Path(__file__).resolve().parents[2] / "examples" / "efficientnet-lite0"
EDGEOPT = Path(sys.executable).with_name("edgeopt")
SHAPE = (3, 224, 224)
MOST = 1.5
SIZES_AGREE = 0.02
SUFFIX = {"openvino": ".xml", "tflite": ".tflite"}


def by_hand_openvino(images: np.ndarray, out: Path) -> None:
    """images: (n, 3, 224, 224) float32."""
    import lite0
    import nncf
    import openvino
    import torch

    example = torch.from_numpy(images[:1])
    model = openvino.convert_model(lite0.load(), example_input=example, input=[(1, *SHAPE)])
    data = nncf.Dataset([image[None] for image in images])
    openvino.save_model(nncf.quantize(model, data, subset_size=len(images)), out, compress_to_fp16=False)


def by_hand_tflite(images: np.ndarray, out: Path) -> None:
    """images: (n, 3, 224, 224) float32."""
    import lite0
    import litert_torch
    import torch
    from ai_edge_quantizer import quantizer, recipe

    net = litert_torch.to_channel_last_io(lite0.load(), args=[0]).eval()
    rows = images.transpose(0, 2, 3, 1)
    plain = out.with_name("plain.tflite")
    litert_torch.convert(net, (torch.from_numpy(rows[:1].copy()),)).export(str(plain))
    work = quantizer.Quantizer(str(plain), recipe.static_wi8_ai8())
    ranges = work.calibrate({"serving_default": [{"args_0": row[None]} for row in rows]})
    work.quantize(ranges).export_model(str(out), overwrite=True)


def run(command: list[object], folder: Path) -> tuple[float, str]:
    """(seconds of the whole process, what it printed)."""
    began = time.monotonic()
    done = subprocess.run(list(map(str, command)), cwd=folder, check=False, capture_output=True, text=True)
    spent = time.monotonic() - began
    if done.returncode:
        sys.exit(f"{command}: {done.stderr[-2000:]}")
    return spent, done.stdout


def sizes(out: Path) -> int:
    return sum(path.stat().st_size for path in (out, out.with_suffix(".bin")) if path.exists())


def pair(runtime: str, folder: Path, number: int) -> tuple[float, float, list[dict[str, object]]]:
    """(seconds of edgeopt, seconds by hand, edgeopt's parts)."""
    ours, theirs = folder / f"ours{SUFFIX[runtime]}", folder / f"theirs{SUFFIX[runtime]}"
    command = [EDGEOPT, "quantize", "lite0:load", "--inputs", "images.npz", "--to", runtime, "--out", ours]
    sides = [
        lambda: run([*command, "--overwrite", "--json"], folder),
        lambda: run([sys.executable, __file__, "--by-hand", runtime, theirs], folder),
    ]
    first = number % 2  # who begins takes turns, too
    measured = {index: sides[index]() for index in (first, 1 - first)}
    if abs(sizes(ours) / sizes(theirs) - 1) > SIZES_AGREE:
        sys.exit(f"{sizes(ours)} and {sizes(theirs)} bytes: the two did not do the same")
    return measured[0][0], measured[1][0], json.loads(measured[0][1])["seconds"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--runtime", choices=list(SUFFIX), default="openvino")
    parser.add_argument("--by-hand", nargs=2, metavar=("RUNTIME", "OUT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.by_hand:
        sys.path.insert(0, str(MODEL))
        runtime, out = chosen.by_hand
        images = np.load("images.npz")["image"]
        (by_hand_openvino if runtime == "openvino" else by_hand_tflite)(images, Path(out))
        return 0
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "lite0.py").write_text((MODEL / "lite0.py").read_text())
        images = np.random.default_rng(0).normal(size=(chosen.samples, *SHAPE)).astype(np.float32)
        np.savez(folder / "images.npz", image=images)
        found = []
        for number in range(chosen.pairs):
            print(f"pair {number + 1} of {chosen.pairs}", file=sys.stderr, flush=True)
            found.append(pair(chosen.runtime, folder, number))
    ratios = [own / hand for own, hand, _ in found]
    middle = statistics.median(ratios)
    print(
        f"EfficientNet-Lite0 to {chosen.runtime} int8, {chosen.samples} samples: edgeopt / by hand = {middle:.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} pairs); medians "
        f"{statistics.median(p[0] for p in found):.1f} and {statistics.median(p[1] for p in found):.1f} s"
    )
    for part in found[-1][2]:
        print(f"  {part['seconds']:8.2f} s  {part['what']}")
    print(f"at most {MOST}: {'yes' if middle <= MOST else 'NO'}")
    return 0 if middle <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
