"""The ONNX file for rembg against our own forward."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from conftest import REAL, ROOT
from src.network.checkpoint import build_network, read_checkpoint
from src.tools import export_onnx

WEIGHTS = ROOT / "kernel" / "weights" / "u2netp_alpha.pth"


def as_rembg_does(image):
    """rembg's `normalize` at the size of its u2net_custom session, retold: float32 [1,3,320,320]"""
    small = image.convert("RGB").resize((320, 320), Image.Resampling.LANCZOS)
    pixels = np.array(small) / max(np.max(np.array(small)), 1e-6)
    pixels = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


def make_session(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {session.get_inputs()[0].name: image})


@pytest.mark.parametrize("half, difference, size", [(False, 1e-4, 4.8e6), (True, 0.1, 2.5e6)])
def test_rembg_gets_what_we_predict(tmp_path, capsys, half, difference, size):
    path = tmp_path / "u2netp_alpha.onnx"
    assert export_onnx.main([str(WEIGHTS), str(path), *["--half"] * half]) == 0
    assert path.stat().st_size < size
    assert f"{path.stat().st_size:,} bytes" in capsys.readouterr().out
    assert onnx.load(str(path)).opset_import[0].version == 17
    model, run = build_network(read_checkpoint(WEIGHTS)).eval(), make_session(path)
    for name in ("val_4.jpg", "val_11.jpg"):
        with Image.open(REAL / name) as image:
            small = np.array(image.convert("RGB").resize((320, 320), Image.Resampling.LANCZOS))
            theirs = run(as_rembg_does(image))
        pixels = torch.from_numpy(small / small.max() * 2 - 1).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            ours = model(pixels)
        assert len(theirs) == 7 and theirs[0].dtype == np.float32
        for one, other in zip(ours, theirs):
            assert np.abs(one.numpy() - other).max() < difference
            assert np.abs(one.numpy() - other).mean() < difference / 100
        assert theirs[0].max() > 0.9 and theirs[0].min() < 0.1


def test_what_is_no_checkpoint_is_a_sentence(tmp_path, capsys):
    (tmp_path / "torn.pth").write_bytes(b"no weights")
    assert export_onnx.main([str(tmp_path / "torn.pth"), str(tmp_path / "x.onnx")]) == 2
    assert "torn.pth: " in capsys.readouterr().err and not (tmp_path / "x.onnx").exists()
