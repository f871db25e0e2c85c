"""The tool that makes training pairs of photographs."""

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT
from src.data.demo import draw_pair
from src.data.pairs import read_pairs
from src.tools import label_photographs

WEIGHTS = ROOT / "kernel" / "weights" / "u2netp_alpha.pth"


class Fixed:
    """A predictor that has the same alpha, in levels, for each image."""

    def __init__(self, levels):
        self.levels = np.array(levels)

    def alpha(self, image):
        return self.levels / 255


def photographs(tmp_path, *sizes):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number, size in enumerate(sizes):
        draw_pair(np.random.default_rng(number))[0].resize(size).save(folder / f"{number}.png")
    return folder


def test_the_alpha_is_the_mean_and_agreement_the_common_part(tmp_path):
    (path,) = photographs(tmp_path, (32, 32)).iterdir()
    (row,) = label_photographs.labelled([path], [Fixed([[255, 0]]), Fixed([[155, 100]])])
    assert row[0] == path and row[1].tolist() == [[205, 50]]
    assert row[2] == pytest.approx(155 / 355)


def test_nothing_at_all_is_not_agreed_on(tmp_path):
    almost_nothing = Fixed([[0.4, 0.4]])
    (row,) = label_photographs.labelled(
        photographs(tmp_path, (32, 32)).iterdir(), [almost_nothing, almost_nothing])
    assert row[2] == 0 < label_photographs.LEAST_AGREEMENT


def test_a_photograph_that_cannot_be_read_is_left_out(tmp_path, capsys):
    folder = photographs(tmp_path, (32, 32), (32, 32))
    (folder / "0.png").write_bytes(b"no picture")
    (row,) = label_photographs.labelled(sorted(folder.iterdir()), [Fixed([[0, 255]])])
    assert row[0] == folder / "1.png" and row[2] == 1
    assert "0.png: cannot be read as an image" in capsys.readouterr().out


def test_a_photograph_that_is_no_square_is_there_stretched_too(tmp_path):
    folder = photographs(tmp_path, (150, 100), (104, 100), (3000, 1500))
    (tmp_path / "out" / "photographs").mkdir(parents=True)
    sizes = []
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            alpha = np.zeros((image.height, image.width), np.uint8)
        sizes.append([tuple(Image.open(tmp_path / "out" / name).size for name in row)
                      for row in label_photographs.write_pairs(path, alpha, tmp_path / "out")])
    assert sizes == [[((150, 100),) * 2, ((150, 150),) * 2], [((104, 100),) * 2],
                     [((1024, 512),) * 2, ((1024, 1024),) * 2]]


def test_the_pairs_can_be_learned_from(tmp_path, capsys):
    folder = photographs(tmp_path, (96, 64))
    arguments = [str(tmp_path / "out"), str(folder), "--networks", str(WEIGHTS), str(WEIGHTS)]
    assert label_photographs.main(arguments) == 0
    assert "Labelled 1 photographs; on 1 the networks agree" in capsys.readouterr().out
    pairs = read_pairs(tmp_path / "out" / "train.csv")
    assert len(pairs) == 2
    with Image.open(pairs[0][1]) as alpha:
        assert alpha.mode == "L" and alpha.size == (96, 64) and alpha.getextrema()[1] > 200


def test_an_onnx_network_gets_its_own_range_and_its_first_output_counts(tmp_path):
    class Network(torch.nn.Module):
        def forward(self, image):
            return image.mean(dim=1, keepdim=True) + 0.5, image[:, :1]

    torch.onnx.export(Network(), (torch.zeros(1, 3, 32, 32),), str(tmp_path / "a.onnx"),
                      dynamo=False)
    predictor = label_photographs.predictor_of(tmp_path / "a.onnx")
    assert predictor.sizes == (32,)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.allclose(predictor.views[0].network.matte(images),
                          images.mean(dim=1, keepdim=True) / 2 + 0.5, atol=1e-6)
    image = Image.new("RGB", (32, 32), (255, 0, 51))
    assert np.allclose(predictor.alpha(image), 0.4, atol=1e-3)


@pytest.mark.parametrize("network, count, said", [
    (WEIGHTS, 0, "there is no image in this folder"),
    ("none.onnx", 1, "error: none.onnx: cannot be read as an ONNX file"),
    ("none.pth", 1, "error: [Errno 2] No such file or directory: 'none.pth'"),
])
def test_what_cannot_be_used_is_a_sentence(tmp_path, capsys, network, count, said):
    folder = photographs(tmp_path, *[(32, 32)] * count)
    arguments = [str(tmp_path / "out"), str(folder), "--networks", str(network)]
    assert label_photographs.main(arguments) == 2
    assert said in capsys.readouterr().err
