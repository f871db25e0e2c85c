"""Seconds from a photo on disk to its cut-out: this script against onnxruntime, the same weights.

    python tests/benchmarks/bench_peers.py --photos FOLDER

The peer does what rembg's session u2netp does: stretch to 320 by Lanczos, normalise by the maximum
and ImageNet's mean, one forward pass, stretch the range of the result, enlarge it, write a PNG of
the image's own colours. Ours mirrors as well, lifts the matte to full size with the image as its
guide and estimates the foreground's colours; a row each without the second view. Two threads each,
in turns. Cold: the seconds of one photo with the start of the process; warm: of each further one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

WEIGHTS = ROOT / "kernel" / "weights" / "u2netp_alpha.pth"
TURNS, COUNT, THREADS = 3, 20, 2
MEAN, STD = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))


def peer(onnx, out, photos):
    """Write a cut-out of each photo as rembg does. Imports only what that needs."""
    import onnxruntime
    from PIL import Image, ImageOps

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    for photo in photos:
        image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
        small = np.float32(image.resize((320, 320), Image.Resampling.LANCZOS))
        inputs = (small / max(small.max(), 1e-6) - MEAN) / STD
        outputs = session.run(None, {"image": np.float32(inputs.transpose(2, 0, 1)[None])})
        alpha = outputs[0][0, 0]
        alpha = (alpha - alpha.min()) / (alpha.max() - alpha.min())
        mask = Image.fromarray((alpha * 255).astype(np.uint8)).resize(
            image.size, Image.Resampling.LANCZOS)
        empty = Image.new("RGBA", image.size, 0)
        Image.composite(image.convert("RGBA"), empty, mask).save(Path(out) / f"{photo.stem}.png")


def seconds(command, photos, out):
    """Wall clock of a process that cuts out these photos"""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    began = time.perf_counter()
    subprocess.run([sys.executable, *command, *photos], check=True, cwd=out, env=environment,
                   stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def prepared(folder):
    """{system: command} with an ONNX file and a checkpoint without mirroring in the folder"""
    from src.network.checkpoint import read_checkpoint, write_checkpoint
    from src.tools.export_onnx import export

    checkpoint = read_checkpoint(WEIGHTS)
    export(checkpoint, folder / "weights.onnx")
    write_checkpoint(folder / "plain.pth", checkpoint.model_state,
                     recipe={**checkpoint.recipe, "flip": False})
    ours = [ROOT / "kernel" / "main.py", "--save", "cutouts", "--device", "cpu", "--checkpoint"]
    return {"onnxruntime": [__file__, "--peer", folder / "weights.onnx", folder, "--photos"],
            "ours, not mirrored": [*ours, folder / "plain.pth", "--"],
            "ours": [*ours, WEIGHTS, "--"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        peer(*arguments.peer, arguments.photos)
        return
    photos = sorted(path.resolve() for folder in arguments.photos for path in folder.iterdir()
                    if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:COUNT]
    with tempfile.TemporaryDirectory() as folder:
        systems = prepared(Path(folder))
        cold, all_ = ({name: [] for name in systems} for _ in range(2))
        for _ in range(TURNS):
            for name, command in systems.items():
                cold[name].append(seconds(command, photos[:1], folder))
                all_[name].append(seconds(command, photos, folder))
    print(f"{len(photos)} photos, seconds (median of {TURNS} turns), times the peer's")
    base = {}
    for name in systems:
        one = float(np.median(cold[name]))
        more = (float(np.median(all_[name])) - one) / (len(photos) - 1)
        base = base or {"one": one, "more": more}
        print(f"{name:20} cold {one:.2f} ({one / base['one']:.2f}), "
              f"warm {more:.3f} ({more / base['more']:.2f})")


if __name__ == "__main__":
    main()
