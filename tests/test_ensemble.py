"""Several checkpoints: `--checkpoint A.pth B.pth` and, on Kaggle, `--set ensemble=true`."""

import dataclasses

import numpy as np
import pytest
import torch

from conftest import draw, load_bundle

BUNDLE = load_bundle()
RECIPE = {"predict_size": 32, "flip": False, "refine": True, "calibration": "none"}
VIEWS = {"ours": 1, "other": 2, "published": 1, "large": 1}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """{name: path}: two checkpoints of ours, published weights, the large network, a torn file."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    content = {
        "ours": (BUNDLE.U2NETP(), {"recipe": RECIPE}),
        "other": (BUNDLE.U2NETP(), {"recipe": {**RECIPE, "predict_size": 64, "flip": True}}),
        "published": (BUNDLE.U2NETP(), {}), "large": (BUNDLE.U2NET(), {"recipe": RECIPE})}
    paths = {name: folder / f"{name}.pth" for name in content}
    for name, (model, more) in content.items():
        BUNDLE.write_checkpoint(paths[name], model.state_dict(), **more)
    paths["torn"] = folder / "torn.pth"
    paths["torn"].write_bytes(paths["ours"].read_bytes()[:9999])
    return paths


@pytest.fixture
def predict(weights, tmp_path, monkeypatch, capfd):
    """(status, masks, what was said) of a prediction with the checkpoints of these names"""
    monkeypatch.chdir(tmp_path)
    for name in ("1", "2"):
        noise = np.random.default_rng(int(name)).integers(0, 256, (50, 70, 3), dtype=np.uint8)
        draw(tmp_path / "tests" / f"{name}.png", noise)

    def run(*names, flags=()):
        status = BUNDLE.main(["--checkpoint", *(str(weights[name]) for name in names),
                              "--test-root", "tests", "--out", "-".join(names), "--workers", "0",
                              "--preview", "0", *flags])
        said = capfd.readouterr()
        masks = []
        if status == 0:
            rows = BUNDLE.read_rows(tmp_path / "-".join(names) / "submission.csv")
            masks = [BUNDLE.decode_mask(text).astype(float) for _, text in rows]
        return status, masks, said.out + said.err

    return run


@pytest.mark.parametrize("names", [
    ("ours", "other"), ("ours", "large"), ("ours", "published", "other")])
def test_masks_are_the_mean_of_all_views(predict, names):
    """Each with its own network, size and mirroring; without a recipe by the default one."""
    status, masks, said = predict(*names)
    alone = [predict(name, flags=("--mode", "predict", "--predict-size", "32")
                     if name == "published" else ())[1] for name in names]
    assert status == 0 and said.count("averaged with:") == len(names) - 1
    for mean, *own in zip(masks, *alone):
        expected = np.average(own, axis=0, weights=[VIEWS[name] for name in names])
        assert np.abs(mean - expected).max() <= 1
    assert any((np.array(own[0]) != own[1]).any() for own in zip(*alone))


def test_the_same_weights_count_once(predict):
    status, masks, said = predict("ours", "ours")
    assert status == 0 and "and counts once" in said
    assert np.array_equal(masks, predict("ours")[1])


def test_a_broken_member_is_one_sentence(predict, weights):
    status, _, said = predict("ours", "torn")
    assert status == 2 and f"error: {weights['torn']}: is cut off or damaged" in said
    assert "Traceback" not in said


def test_training_starts_from_one(predict):
    status, _, said = predict("ours", "other", flags=("--mode", "train"))
    assert status == 2 and "--mode train: training starts from one checkpoint" in said


def test_every_attached_checkpoint_of_this_project_counts(weights, tmp_path, capsys):
    attached = tmp_path / "input"
    for name in ("ours", "other", "published"):
        (attached / name).mkdir(parents=True)
        (attached / name / f"{name}.pth").write_bytes(weights[name].read_bytes())
    inputs = BUNDLE.find_inputs(BUNDLE.parse_settings(["--ensemble=true"]), attached)
    found = {path.stem for path in (inputs.checkpoint, *inputs.others)}
    assert found == {"ours", "other", "published"}
    assert BUNDLE.find_inputs(BUNDLE.Settings(), attached).others == ()

    first, *others = (attached / name / f"{name}.pth" for name in ("ours", "other", "published"))
    predictor, checkpoint = BUNDLE.load(first, "cpu"), BUNDLE.read_checkpoint(first)
    together = BUNDLE.with_others(predictor, checkpoint, others, True, None)
    assert [view.size for view in together.views] == [32, 64, 64]
    assert together.recipe == dataclasses.replace(predictor.recipe, calibration=None)
    assert f"{others[1]}: has no recipe" in capsys.readouterr().out
    assert BUNDLE.with_others(predictor, checkpoint, (), True, None) is predictor
