"""What a checkpoint says of its own use is input like any other."""

import pytest
from types import SimpleNamespace


def stored(recipe):
    return SimpleNamespace(path="weights.pth", recipe=recipe)


def test_what_is_written_is_read_again(kernel):
    recipe = kernel.Recipe(352, True, False, "fitted", (0.0, 0.25, 1.0))
    written = kernel.stored_form(recipe)
    assert written == {"predict_size": 352, "flip": True, "refine": False, "calibration": "fitted",
                       "curve": (0.0, 0.25, 1.0)}
    assert kernel.read_recipe(stored(written), 64) == recipe
    assert kernel.read_recipe(stored({**written, "curve": [0.0, 0.25, 1.0]}), 64) == recipe


@pytest.mark.parametrize("checkpoint, size", [
    (None, 64), (stored(None), 64), (stored({}), 64), (stored({"predict_size": 352}), 352),
    (stored({"trials": [1], "share": 0.4}), 64)])
def test_what_is_missing_takes_its_default(kernel, checkpoint, size):
    assert kernel.read_recipe(checkpoint, 64) == kernel.Recipe(size)
    assert kernel.Recipe().calibration is None  # nothing chosen yet


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
    ({"calibration": "best"}, "has calibration 'best' instead of none or notebook or fitted"),
    ({"calibration": "fitted"}, "its recipe is fitted but has no curve"),
    ({"curve": [0, 2]}, "has curve [0, 2] instead of rising numbers from 0 to 1"),
    ({"curve": [1, 0]}, "has curve [1, 0] instead"),
    ({"curve": ["a"] * 999}, "instead of rising numbers"),
    ({"curve": [0, float("nan")]}, "instead of rising numbers"),
])
def test_a_value_that_makes_no_sense_is_one_sentence(kernel, recipe, says):
    with pytest.raises(kernel.UserError) as refusal:
        kernel.read_recipe(stored(recipe), 64)
    text = str(refusal.value)
    assert text.startswith("weights.pth: ") and says in text and len(text) < 200
