"""Every form a checkpoint comes in, and what is refused."""

import os
from pathlib import Path
import zipfile

import pytest
import torch


@pytest.fixture(scope="module")
def state(kernel):
    torch.manual_seed(0)
    return kernel.U2NETP().state_dict()


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


FORMS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model_state": lambda state: {"model_state": state},
    "model": lambda state: {"model": state, "optimizer": {}},
    "parallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: {"model_state": prefixed(state, "_orig_mod.")},
    "both": lambda state: {"state_dict": prefixed(state, "module._orig_mod.")},
    "without counters": lambda state: {
        k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads_strictly(kernel, tmp_path, state, form):
    path = tmp_path / "weights.pth"
    torch.save(FORMS[form](state), path)
    checkpoint = kernel.read_checkpoint(path)
    model = kernel.U2NETP()
    model.load_state_dict(checkpoint.model_state, strict=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    assert checkpoint.recipe is None


def test_the_file_says_which_network_it_holds(kernel, tmp_path, state):
    """As the authors' u2net.pth comes: a bare state_dict of the same names, other widths."""
    torch.manual_seed(0)
    large = kernel.U2NET()
    for name, model_state in (("u2netp", state), ("u2net", large.state_dict())):
        torch.save(model_state, tmp_path / f"{name}.pth")
        checkpoint = kernel.read_checkpoint(tmp_path / f"{name}.pth")
        assert checkpoint.network == name
        loaded = kernel.build_network(checkpoint)
        assert type(loaded) is kernel.NETWORKS[name]
    assert torch.equal(loaded.side6.weight, large.side6.weight)


def test_the_old_file_format_loads(kernel, tmp_path, state):
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert kernel.read_checkpoint(tmp_path / "old.pth").model_state.keys() == state.keys()


def test_half_precision_is_stored_and_computed_in_float32(kernel, tmp_path, state):
    path = tmp_path / "half.pth"
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    loaded = kernel.read_checkpoint(path).model_state
    assert all(v.dtype in (torch.float32, torch.int64) for v in loaded.values())
    key = "stage3.rebnconv2.conv_s1.weight"
    assert torch.equal(loaded[key], state[key].half().float())


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def refused_files(folder, kernel, state):
    """{case: (path, what the sentence must say)}"""
    def save(name, content):
        torch.save(content, folder / name)
        return folder / name

    def write(name, content):
        (folder / name).write_bytes(content)
        return folder / name

    whole = save("whole.pth", state).read_bytes()
    key = "stage4.rebnconv2.conv_s1.weight"
    wide = dict(state)
    wide["stage1.rebnconv1.conv_s1.weight"] = torch.zeros(32, 64, 3, 3)
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    return {
        "half U2-Net": (save("u2net.pth", wide), r"not a u2net state_dict: shape stage1\.rebnconv"),
        "another network": (save("other.pth", {"fc.weight": torch.zeros(1)}),
                            r"missing stage1\.rebnconvin\.conv_s1\.weight.*unknown fc\.weight"),
        "other shape": (save("shape.pth", {**state, key: torch.zeros(1)}), f"shape {key}"),
        "no dict": (save("tensor.pth", torch.zeros(3)), "missing stage1"),
        "numbers": (save("numbers.pth", {1: 2, "epoch": 3}), "missing stage1"),
        "truncated": (write("cut.pth", whole[:len(whole) // 2]), "cut off or damaged"),
        "empty": (write("empty.pth", b""), "cut off or damaged"),
        "LFS": (write("lfs.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
                "Git LFS pointer"),
        "web page": (write("page.pth", b"\n<!DOCTYPE html><html>Sign in</html>"), "web page"),
        "text": (write("text.pth", b"these are my weights"), "damaged|not a PyTorch"),
        "zip": (folder / "photos.zip", "damaged|not a PyTorch checkpoint"),
        "code": (save("code.pth", {"state_dict": state, "x": Payload(folder / "ran")}), "run code"),
        "NaN": (save("nan.pth", {**state, key: state[key] * float("nan")}), f"{key} holds NaN"),
    }


@pytest.mark.parametrize("case", [
    "half U2-Net", "another network", "other shape", "no dict", "numbers", "truncated", "empty",
    "LFS", "web page", "text", "zip", "code", "NaN"])
def test_what_cannot_be_used_is_refused_in_one_sentence(kernel, tmp_path, state, case):
    path, says = refused_files(tmp_path, kernel, state)[case]
    with pytest.raises(kernel.UserError, match=says) as refusal:
        kernel.read_checkpoint(path)
    assert str(refusal.value).startswith(str(path)) and "\n" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


def test_the_payload_would_have_run(tmp_path, state):
    """The test above means something only if an unguarded load does run the payload."""
    torch.save({"x": Payload(tmp_path / "ran")}, tmp_path / "code.pth")
    torch.load(tmp_path / "code.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_written_checkpoints_load_here_and_in_the_notebook(kernel, tmp_path, state):
    path = tmp_path / "deep" / "u2netp_best.pth"
    kernel.write_checkpoint(path, state, recipe={"predict_size": 320}, val_mse=0.5)
    checkpoint = kernel.read_checkpoint(path)
    assert checkpoint.recipe == {"predict_size": 320}
    model, device = kernel.U2NETP(), torch.device("cpu")
    model.load_state_dict(torch.load(path, map_location=device)["model_state"])
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


def test_a_failed_write_leaves_the_older_checkpoint(kernel, tmp_path, state, monkeypatch):
    path = tmp_path / "u2netp_best.pth"
    kernel.write_checkpoint(path, state, recipe={})
    before = path.read_bytes()
    real = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda part, content: real(part, content[:-9]))
    with pytest.raises(OSError, match="u2netp_best.pth: the written file differs"):
        kernel.write_checkpoint(path, state, recipe={})
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
