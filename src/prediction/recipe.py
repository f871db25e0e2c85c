"""The recipe: how a checkpoint's weights are to be used for prediction."""

from dataclasses import asdict, dataclass, fields

from src.runtime.console import UserError, log

CALIBRATIONS = ("none", "notebook")
SIZES = range(32, 4097)  # pixels
WAY_OUT = "take another checkpoint, or save its weights alone"


@dataclass(frozen=True)
class Recipe:
    """How to predict. A checkpoint stores it as a dict of the same names.

    predict_size: side of the network's input in pixels, or a tuple of them to average over. flip:
    average the alphas of the image and its mirror image. refine: let edges follow the full-size
    image (refinement.py). calibration: "none" or "notebook" (calibration.py); None while validation
    data have chosen nothing.

    The defaults are for weights that come without a recipe: refinement lowered the MSE of every
    network and size it was tried with, at 20 ms an image; mirroring helps less and doubles the
    time.
    """

    predict_size: int | tuple[int, ...] = 320
    flip: bool = False
    refine: bool = True
    calibration: str | None = None

    @property
    def sizes(self):
        """The sides of the network's input, as a tuple"""
        several = isinstance(self.predict_size, tuple)
        return self.predict_size if several else (self.predict_size,)

    def __str__(self):
        return (f"size {'+'.join(map(str, self.sizes))}{', mirrored' * self.flip}"
                f"{', refined' * self.refine}, calibration {self.calibration or 'open'}")


def read_recipe(checkpoint, size):
    """The `Recipe` stored in a `Checkpoint`, with defaults for what it lacks, `size` for its size.

    Raises UserError, naming the file, when a stored value makes no sense.
    """
    stored = checkpoint.recipe if checkpoint and checkpoint.recipe else {}
    if not isinstance(stored, dict):
        raise UserError(f"{checkpoint.path}: its recipe is {stored!r}, not a dict; {WAY_OUT}")
    known = {"predict_size": size, **{item.name: stored[item.name] for item in fields(Recipe)
                                      if item.name in stored}}
    if known.get("calibration") == "fitted":  # by earlier versions
        log(f"{checkpoint.path}: its calibration curve is ignored")
        known["calibration"] = "none"
    for name, (makes_sense, wanted) in CHECKS.items():
        if name in known and not makes_sense(known[name]):
            raise UserError(f"{checkpoint.path}: its recipe has {name} "
                            f"{known[name]!r:.40} instead of {wanted}; {WAY_OUT}")
    return Recipe(**{name: tuple(value) if isinstance(value, list) else value
                     for name, value in known.items()})


def are_sizes(value):
    """Whether this is a side of the network's input, or a list of some."""
    sides = value if isinstance(value, (list, tuple)) else [value]
    return len(sides) > 0 and all(type(side) is int and side in SIZES for side in sides)


CHECKS = {  # of a stranger's recipe: whether a value makes sense, and the values that do
    "predict_size": (are_sizes, f"a whole number from {SIZES[0]} to {SIZES[-1]}"),
    "flip": (lambda value: isinstance(value, bool), "True or False"),
    "refine": (lambda value: isinstance(value, bool), "True or False"),
    "calibration": (lambda value: value in (None, *CALIBRATIONS), " or ".join(CALIBRATIONS)),
}


def stored_form(recipe):
    """The recipe as a checkpoint holds it: a dict of plain values, without those that are None."""
    return {name: value for name, value in asdict(recipe).items() if value is not None}
