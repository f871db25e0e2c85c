"""How long it takes to find everything under /kaggle/input when MAGICK lies there.

    python tests/benchmarks/bench_discovery.py [--files 140000]

Builds the tree (empty files in hash folders, as MAGICK's images/<first two>/<page_id>.png, an
index, a competition with its test folder and sample, a checkpoint) and times `discover`, against
what walking the whole tree once costs.
"""

import argparse
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from src.inputs.discovery import discover  # noqa: E402


def build_tree(root, count):
    images = root / "datasets" / "someone" / "magick" / "images"
    names = [hashlib.md5(str(number).encode()).hexdigest() for number in range(count)]
    for prefix in sorted({name[:2] for name in names}):
        (images / prefix).mkdir(parents=True)
    for name in names:
        (images / name[:2] / f"{name}.png").touch()
    index = "page_id\tsubject\n" + "".join(f"{name}\ta subject\n" for name in names)
    (images.parent / "index.tsv").write_text(index)
    test = root / "competitions" / "matting" / "test_dataset" / "orig_1024"
    test.mkdir(parents=True)
    for number in range(2000):
        (test / f"{number}.png").touch()
    (test.parents[1] / "sample_submission.csv").write_text("filename,image_utf\n")
    (root / "weights").mkdir()
    (root / "weights" / "u2netp_alpha.pth").touch()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=140_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build_tree(Path(folder), arguments.files)
        began = time.perf_counter()
        found = discover(Path(folder))
        seconds = time.perf_counter() - began
        for kind, paths in found.items():
            print(f"{kind:11} {paths[0].relative_to(folder) if paths else '-'}")
        began = time.perf_counter()
        total = sum(len(files) for _, _, files in os.walk(folder))
        walked = time.perf_counter() - began
        print(f"{total:,} files: found in {seconds:.2f} s, walked in {walked:.2f} s")


if __name__ == "__main__":
    main()
