"""Safetensors files: read to the bit, or refused in a sentence."""

import json

import numpy as np
import pytest
import torch

from src.network.safetensors import read_safetensors
from src.runtime.console import UserError

STATE = {
    "kernel": torch.randn(3, 2, 5, 5), "half": torch.randn(7).half(),
    "brain": torch.randn(2, 3).bfloat16(), "double": torch.randn(4).double(),
    "count": torch.tensor(12345678901), "small": torch.tensor([-1, 2], dtype=torch.int8),
    "flags": torch.tensor([True, False]), "none": torch.empty(0, 3), "naïve": torch.ones(1),
}
NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
         torch.int64: "I64", torch.int8: "I8", torch.bool: "BOOL"}


def entry(tensor, begin):
    return {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape),
            "data_offsets": [begin, begin + tensor.nbytes]}


def written(path, state, metadata=None, **changes):
    """The file that the format's own library writes; changes: what one entry says instead."""
    header, body = {"__metadata__": metadata or {"format": "pt"}}, b""
    for name, tensor in state.items():
        header[name] = entry(tensor, len(body)) | changes.pop(name, {})
        body += tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def test_every_type_comes_out_as_it_went_in(tmp_path):
    found = read_safetensors(written(tmp_path / "a.safetensors", STATE))
    assert list(found) == list(STATE)
    for name, tensor in STATE.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        assert found[name].is_contiguous()


@pytest.mark.parametrize("changes, says", [
    ({"dtype": "F8_E4M3"}, "has the type F8_E4M3"), ({"shape": [3, 2, 5, 6]}, "needs 720"),
    ({"shape": [3, 2, -5, -5]}, "has the shape"), ({"shape": 7}, ""), ({"shape": ["3"]}, ""),
    ({"data_offsets": [-8, 592]}, "at"), ({"data_offsets": [0, 10**9]}, "lies at"),
    ({"data_offsets": [0]}, ""), ({"more": 1}, ""), ({"shape": [2**40, 2**40]}, "needs"),
    ({"shape": [True, 150]}, "has the shape"), ({"data_offsets": [10**6, 10**6 + 600]}, "lies at"),
])
def test_an_entry_that_does_not_fit_is_refused(tmp_path, changes, says):
    path = written(tmp_path / "a.safetensors", STATE, kernel=changes)
    with pytest.raises(UserError, match=f"a.safetensors: is cut off or damaged.*{says}"):
        read_safetensors(path)


@pytest.mark.parametrize("content", [
    b"", b"\x08", b"\x02\0\0\0\0\0\0\0{", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b"PK\x03\x04" * 20,
    b"\x08\0\0\0\0\0\0\0nonsense", b'\x07\0\0\0\0\0\0\0{"a":1}', b"\x02\0\0\0\0\0\0\0\xff\xfe",
    (50_000).to_bytes(8, "little") + b"[" * 50_000])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="a.safetensors: is cut off or damaged"):
        read_safetensors(tmp_path / "a.safetensors")


def test_every_cut_is_noticed(tmp_path):
    path = written(tmp_path / "a.safetensors", STATE)
    data = path.read_bytes()
    for length in np.linspace(0, len(data) - 1, 200).astype(int):
        path.write_bytes(data[:length])
        with pytest.raises(UserError):
            read_safetensors(path)
