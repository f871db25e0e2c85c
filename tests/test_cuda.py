"""What only a graphics card runs; skipped where there is none. bench_gpu.py prints the same with
figures of speed."""

import sys

import pytest
import torch

from conftest import REAL, ROOT, load_modules

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
from bench_gpu import mask_difference, train_killed_and_resumed  # noqa: E402

pytestmark = [pytest.mark.cuda,
              pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")]


@pytest.mark.parametrize("amp", ["fp16", "bf16"])
def test_training_is_resumed_and_predicts_what_the_cpu_does(tmp_path, amp):
    text = train_killed_and_resumed(tmp_path, "cuda", amp)
    assert "Continuing out/last.pth" in text and "Epoch 2:" in text
    assert mask_difference(tmp_path, "cuda") <= 2


def test_too_large_a_batch_is_an_error_of_the_settings(tmp_path):
    kernel = load_modules()
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        assert kernel.main(["--mode", "train", "--train-batch", "8", "--train-size", "512",
                            "--workers", "0", "--gpus", "1", "--out", str(tmp_path)]) == 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_loss_scale_grows_and_shrinks_in_fp16_only():
    kernel = load_modules()
    for dtype, start in ((torch.float16, 2.0**16), (torch.bfloat16, 1.0), (None, 1.0)):
        machine = kernel.Machine(torch.device("cuda", 0), dtype)
        settings = kernel.Settings(train_batch=2, lr=1e-4, epochs=1, schedule="cosine")
        run = kernel.Run(kernel.U2NETP(), settings, machine, 1, frozen_norms=False)
        assert run.scaler.get_scale() == start
        batch = {"img": torch.full((2, 3, 64, 64), float("inf"), device="cuda"),
                 "mask": torch.zeros(2, 1, 64, 64, device="cuda")}
        kernel.train_step(run, batch)
        assert run.scaler.get_scale() == (start / 2 if dtype is torch.float16 else start)
        assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_nccl_carries_the_gradients_of_one_process(monkeypatch):
    """A group of one is enough to show that the trial all-reduce and DDP start on a card."""
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1,
                        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29511}.items():
        monkeypatch.setenv(name, str(value))
    torch.distributed.init_process_group("gloo")
    try:
        kernel = load_modules()
        group, problem = kernel.tried_group(torch.device("cuda", 0))
        assert problem == "" and torch.distributed.get_backend(group) == "nccl"
    finally:
        torch.distributed.destroy_process_group()


def test_crops_are_made_without_waiting_for_the_card(tmp_path):
    """Whatever copies a value back, or blocks until it has arrived, ends this test."""
    kernel = load_modules()
    card = torch.device("cuda", 0)
    (tmp_path / "train.csv").write_text(
        "image_path\n" + "\n".join(str(path) for path in REAL.glob("*.webp")))
    pairs = kernel.read_pairs(tmp_path / "train.csv", None, tuple(REAL.glob("val_*.jpg")))
    data = kernel.TrainingSet(pairs, kernel.JointAugment(64), 0)
    pool = kernel.PhotographPool(pairs.photographs, 0, 128, card).for_epoch(1)
    batch = kernel.collated([data[epoch, index] for epoch in range(8) for index in range(6)])
    pinned = {name: value.pin_memory() if torch.is_tensor(value) else value
              for name, value in batch.items()}
    on_cpu = data.augment.apply(batch, [each.cpu() for each in pool], torch.device("cpu"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_card = data.augment.apply(pinned, pool, card)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name in ("img", "mask"):
        assert torch.allclose(on_card[name].cpu(), on_cpu[name], atol=1e-4)
