"""Every form a checkpoint comes in; atomic, verified writes."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch

from src.runtime.console import UserError
from src.runtime.files import digest, replacing
from src.network.safetensors import read_safetensors
from src.network.u2net import NETWORKS

WRAPPERS = ("model_state", "state_dict", "model")  # keys under which a state_dict may lie
PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile
MIDDLE = "stage1.rebnconv1.conv_s1.weight"  # 16 channels out in U2-NetP, 32 in U2-Net


@dataclass(frozen=True)
class Checkpoint:
    """Weights in float32, the name in NETWORKS of the network that they fit, and the inference
    recipe that was stored with them.

    recipe is None for weights that this project has not trained.
    """

    path: Path
    network: str
    model_state: dict[str, torch.Tensor]
    recipe: dict | None


def read_checkpoint(path):
    """The `Checkpoint` in a file: a bare state_dict or one under a usual key, with any of the
    usual prefixes, in any float type.

    The file is read with `weights_only=True`, so nothing in it is run. Raises UserError, naming
    the file and what is wrong with it, for anything but U2-Net or U2-NetP with finite weights.
    """
    content = unpickled(Path(path))
    recipe = content.get("recipe") if isinstance(content, dict) else None
    state = unwrapped(content)
    network = "u2net" if len(state.get(MIDDLE, ())) == 32 else "u2netp"
    check_architecture(path, network, state)
    for key, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {key} holds NaN or infinite values; take another checkpoint")
    floats = {k: t.float() if t.is_floating_point() else t for k, t in state.items()}
    return Checkpoint(Path(path), network, floats, recipe)


def unpickled(path):
    """The content of the file, by torch.load. Raises UserError, naming the kind of any other."""
    if path.suffix.lower() == ".safetensors":
        return read_safetensors(path)
    if path.suffix.lower() == ".onnx":
        raise UserError(f"{path}: is an ONNX file; make a checkpoint of it with `python -m "
                        f"src.tools.import_onnx {path} {path.stem}.pth`")
    with open(path, "rb") as file:
        start = file.read(200).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a Git LFS pointer, not the weights; run `git lfs pull`")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: is a web page, not weights; download the file itself")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():
            raise UserError(
                f"{path}: holds more than weights and would have to run code to be loaded, which "
                "is refused; save its state_dict alone"
            ) from None
        raise UserError(f"{path}: is not a PyTorch checkpoint") from None
    except Exception as error:  # which one, for a damaged file, depends on where the damage is
        reason = str(error).split("\n")[0].split(". ")[0]
        raise UserError(
            f"{path}: is cut off or damaged ({reason}); download it again") from None


def unwrapped(content):
    """The state_dict in a loaded object, without wrappers and prefixes."""
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        return {}
    state = {}
    for key, tensor in content.items():
        if isinstance(tensor, torch.Tensor):
            while str(key).startswith(PREFIXES):
                key = key.split(".", 1)[1]
            state[str(key)] = tensor
    return state


def check_architecture(path, network, state):
    """Raise UserError with the first differing keys unless the state_dict fits the network.

    The counters of batches seen, which very old checkpoints lack, are filled in.
    """
    with torch.device("meta"):  # shapes alone
        expected = NETWORKS[network]().state_dict()
    for key in expected:
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.tensor(0))
    missing_keys = [key for key in expected if key not in state]
    unknown_keys = [key for key in state if key not in expected]
    reshaped = [
        f"{key} {list(state[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected if key in state and state[key].shape != expected[key].shape
    ]
    if not (missing_keys or unknown_keys or reshaped):
        return
    first = [f"{title} {', '.join(keys[:3])}" for title, keys in
             (("missing", missing_keys), ("unknown", unknown_keys), ("shape", reshaped)) if keys]
    raise UserError(f"{path}: is not a {network} state_dict: {'; '.join(first)}")


def build_network(checkpoint):
    """The checkpoint's network with its weights"""
    model = NETWORKS[checkpoint.network]()
    model.load_state_dict(checkpoint.model_state)
    return model


def weights_digest(model_state):
    """A short text that tells one state_dict's values from another's"""
    return digest(tensor.cpu().numpy() for tensor in model_state.values())


def write_checkpoint(path, model_state, **more):
    """Write {"model_state": ..., **more} so that the path always holds a whole checkpoint.

    The file is read back before it replaces an older one. `more` holds plain values and
    tensors only, so that `torch.load(weights_only=True)` accepts them.
    """
    state = {key: tensor.detach().cpu() for key, tensor in model_state.items()}
    content = io.BytesIO()  # saved to a file, the archive would hold its temporary name
    torch.save({"model_state": state, **more}, content)
    with replacing(path) as part:
        part.write_bytes(content.getbuffer())
        if part.read_bytes() != content.getbuffer():
            raise OSError(f"{path}: the written file differs from the checkpoint in memory")
