"""What a checkpoint says of its own use is input like any other."""

import pytest
from types import SimpleNamespace


def stored(recipe):
    return SimpleNamespace(path="weights.pth", recipe=recipe)


def test_what_is_written_is_read_again(kernel):
    recipe = kernel.Recipe((352, 448), True, False, "notebook")
    written = kernel.stored_form(recipe)
    assert written == {"predict_size": (352, 448), "flip": True, "refine": False,
                       "calibration": "notebook"}
    assert kernel.read_recipe(stored(written), 64) == recipe
    assert kernel.read_recipe(stored({**written, "predict_size": [352, 448]}), 64) == recipe
    assert kernel.stored_form(kernel.Recipe(64)) == {
        "predict_size": 64, "flip": False, "refine": True}


@pytest.mark.parametrize("checkpoint, size", [
    (None, 64), (stored(None), 64), (stored({}), 64), (stored({"predict_size": 352}), 352),
    (stored({"trials": [1], "share": 0.4}), 64)])
def test_what_is_missing_takes_its_default(kernel, checkpoint, size):
    assert kernel.read_recipe(checkpoint, 64) == kernel.Recipe(size)
    assert kernel.Recipe().calibration is None  # nothing chosen yet


@pytest.mark.parametrize("curve", [[0.0, 0.25, 1.0], "nonsense", None])
def test_an_earlier_versions_curve_is_ignored_with_a_line(kernel, capsys, curve):
    recipe = {"predict_size": 352, "calibration": "fitted", "curve": curve}
    assert kernel.read_recipe(stored(recipe), 64) == kernel.Recipe(352, calibration="none")
    assert capsys.readouterr().out == "weights.pth: its calibration curve is ignored\n"


@pytest.mark.parametrize("recipe, says", [
    ("320", "its recipe is '320', not a dict"),
    ({"predict_size": 20}, "has predict_size 20 instead of a whole number from 32 to 4096"),
    ({"predict_size": "320"}, "has predict_size '320' instead"),
    ({"predict_size": []}, "has predict_size [] instead"),
    ({"predict_size": [320, 7]}, "has predict_size [320, 7] instead"),
    ({"predict_size": True}, "has predict_size True instead"),
    ({"predict_size": 1e9}, "has predict_size 1000000000.0 instead"),
    ({"flip": "yes"}, "has flip 'yes' instead of True or False"),
    ({"refine": None}, "has refine None instead of True or False"),
    ({"calibration": "best"}, "has calibration 'best' instead of none or notebook"),
    ({"calibration": ["none"] * 99}, "instead of none or notebook"),
])
def test_a_value_that_makes_no_sense_is_one_sentence(kernel, recipe, says):
    with pytest.raises(kernel.UserError) as refusal:
        kernel.read_recipe(stored(recipe), 64)
    text = str(refusal.value)
    assert text.startswith("weights.pth: ") and says in text and len(text) < 200
