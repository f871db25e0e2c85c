"""The recipe: how a checkpoint's weights are to be used for prediction."""

from dataclasses import asdict, dataclass, fields

from src.runtime.console import UserError

CALIBRATIONS = ("none", "notebook", "fitted")
SIZES = range(32, 4097)  # pixels
WAY_OUT = "take another checkpoint, or save its weights alone"


@dataclass(frozen=True)
class Recipe:
    """How to predict. A checkpoint stores it as a dict of the same names.

    predict_size: side of the network's input in pixels, or a tuple of them to average over. flip:
    average the alphas of the image and its mirror image. refine: let edges follow the full-size
    image (refinement.py). calibration: "none", "notebook" or "fitted" (calibration.py); None while
    validation data have chosen nothing. curve: for "fitted", alpha at equal steps of the prediction
    from 0 to 1.

    The defaults are for weights that come without a recipe: refinement lowered the MSE of every
    network and size it was tried with, at 20 ms an image; mirroring helps less and doubles the
    time.
    """

    predict_size: int | tuple[int, ...] = 320
    flip: bool = False
    refine: bool = True
    calibration: str | None = None
    curve: tuple[float, ...] | None = None

    @property
    def sizes(self):
        """The sides of the network's input, as a tuple"""
        several = isinstance(self.predict_size, tuple)
        return self.predict_size if several else (self.predict_size,)


def read_recipe(checkpoint, size):
    """The `Recipe` stored in a `Checkpoint`, with defaults for what it lacks, `size` for its size.

    Raises UserError, naming the file, when a stored value makes no sense.
    """
    stored = checkpoint.recipe if checkpoint and checkpoint.recipe else {}
    if not isinstance(stored, dict):
        raise UserError(f"{checkpoint.path}: its recipe is {stored!r}, not a dict; {WAY_OUT}")
    known = {"predict_size": size, **{item.name: stored[item.name] for item in fields(Recipe)
                                      if item.name in stored}}
    for name, (makes_sense, wanted) in CHECKS.items():
        if name in known and not makes_sense(known[name]):
            raise UserError(f"{checkpoint.path}: its recipe has {name} "
                            f"{shortened_repr(known[name])} instead of {wanted}; {WAY_OUT}")
    if known.get("calibration") == "fitted" and not known.get("curve"):
        raise UserError(f"{checkpoint.path}: its recipe is fitted but has no curve; {WAY_OUT}")
    return Recipe(**{name: tuple(value) if isinstance(value, list) else value
                     for name, value in known.items()})


def are_sizes(value):
    """Whether this is a side of the network's input, or a list of some."""
    sides = value if isinstance(value, (list, tuple)) else [value]
    return len(sides) > 0 and all(type(side) is int and side in SIZES for side in sides)


def is_curve(value):
    """Whether this is None, or a list of at least two rising numbers from 0 to 1."""
    if value is None:
        return True
    return (isinstance(value, (list, tuple)) and len(value) > 1
            and all(isinstance(each, (int, float)) for each in value)
            and all(0 <= a <= b <= 1 for a, b in zip(value, value[1:])))


CHECKS = {  # of a stranger's recipe: whether a value makes sense, and what would
    "predict_size": (are_sizes, f"a whole number from {SIZES[0]} to {SIZES[-1]}"),
    "flip": (lambda value: isinstance(value, bool), "True or False"),
    "refine": (lambda value: isinstance(value, bool), "True or False"),
    "calibration": (lambda value: value in (None, *CALIBRATIONS), " or ".join(CALIBRATIONS)),
    "curve": (is_curve, "rising numbers from 0 to 1"),
}


def shortened_repr(value):
    text = repr(value)
    return text if len(text) < 40 else text[:40] + "…"


def stored_form(recipe):
    """The recipe as a checkpoint holds it: a dict of plain values, without those that are None."""
    return {name: value for name, value in asdict(recipe).items() if value is not None}
