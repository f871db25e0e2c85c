"""How good checkpoints are, by kind of backdrop: MSE and SAD at the images' own size.

    python tests/benchmarks/bench_weights.py --val-csv CSV CHECKPOINT ... [--size 320] [--worst DIR]
                                              [--trimap]

Each is used with the recipe it brings, or at --size with the recipe that needs no choice. SAD is
the sum of absolute differences in thousands of pixels (Rhemann et al., CVPR 2009). --worst draws
the ten worst images of each checkpoint. With --trimap the CSV's alphas are trimaps, and what they
leave open (128) is not counted: so photographs can be judged whose alpha nobody knows.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from src.runtime.hardware import prepare_machine  # noqa: E402
from src.data.pairs import read_pairs  # noqa: E402
from src.prediction.predictor import load  # noqa: E402
from src.results.preview import save_validation_preview  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--val-csv", type=Path, required=True)
    parser.add_argument("--size", type=int)
    parser.add_argument("--worst", type=Path)
    parser.add_argument("--trimap", action="store_true")
    arguments = parser.parse_args()
    prepare_machine(0)
    pairs = read_pairs(arguments.val_csv)
    kinds = pd.read_csv(arguments.val_csv).get("backdrop", pd.Series(["all"] * len(pairs)))
    for path in arguments.checkpoints:
        predictor = load(path, "cpu")
        if arguments.size:
            predictor = predictor.with_recipe(predict_size=arguments.size)
        rows = [(image, alpha, truth, Path(file).name)
                for file, image, alpha, truth in predictor.validation(pairs)]
        errors = [(alpha - truth)[(not arguments.trimap) | (np.rint(truth * 255) != 128)]
                  for _, alpha, truth, _ in rows]
        table = pd.DataFrame({
            "backdrop": kinds,
            "MSE": [np.square(error).mean() for error in errors],
            "SAD": [np.abs(error).sum() / 1000 for error in errors]})
        means = table.groupby("backdrop")[["MSE", "SAD"]].mean()
        means.loc["all"] = table[["MSE", "SAD"]].mean()
        print(f"{path}: {predictor.recipe}")
        print(means.to_string(float_format=lambda value: f"{value:.4f}"), flush=True)
        if arguments.worst:
            worst = table.sort_values("MSE", ascending=False).index[:10]
            save_validation_preview([rows[i] for i in worst], arguments.worst / f"{path.stem}.png")


if __name__ == "__main__":
    main()
