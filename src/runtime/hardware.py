"""The machine: device, precision, shared memory, memory allocator, random seeds."""

import ctypes
import os
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch

from src.runtime.console import UserError, log
from src.runtime.distributed import NoGroup, any_rank, join_group
from src.runtime.processes import local_rank, local_world_size

SHARED_MEMORY = Path("/dev/shm")
STEPS_PER_CHECK = 16  # on a card, where looking at a loss waits for all work before it


@dataclass(frozen=True)
class Machine:
    """The device and number format that a run computes with.

    device: torch.device; dtype: autocast's in training, None for plain float32, in which all
    validation and prediction is done; workers: decoding processes; check_every: steps after which
    a training looks at its losses and the time.
    """

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype | None = None
    workers: int = 0
    check_every: int = 1

    def autocast(self):
        """Autocast to `dtype`, or a context that does nothing when that is None."""
        return torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16,
                              enabled=self.dtype is not None)

    def to_device(self, images):
        """float32 [B,3,H,W] -> the same on the device, channels last"""
        return images.to(self.device, non_blocking=True, memory_format=torch.channels_last)


def take_machine(settings):
    """The `Machine` of this process: generators seeded, the others joined, its device chosen.

    Raises NoGroup when the processes cannot work together.
    """
    prepare_machine(settings.seed)
    join_group()
    device = choose_device(settings.device)
    if all(any_rank(device.type == "cpu", device.type != "cpu")):
        raise NoGroup("a card does not work in one of the processes")
    log(describe_machine(device))
    return machine_for(device, settings.amp, settings.workers)


def machine_for(device, amp, workers):
    """The Machine for `--amp` and `--workers` on a device."""
    return Machine(device, amp_dtype(amp, device), worker_count(workers),
                   STEPS_PER_CHECK if device.type == "cuda" else 1)


def choose_device(name):
    """torch.device for `--device`; 'auto' is a CUDA card that works, else the CPU.

    Of several processes each takes its own card, and makes it the current one first: whatever
    touches CUDA before that opens a context on card 0. A card is tried with a real kernel, because
    PyTorch also lists cards for which it has none. Raises UserError when a device that was named
    does not work.
    """
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if wanted == "cuda":
        wanted = f"cuda:{local_rank()}"
    try:
        device = torch.device(wanted)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.ones(1, device=device).add_(1).item()
        return device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0].split(". ")[0].rstrip(".")
    if name != "auto":
        raise UserError(f"--device {name}: does not work on this machine ({reason}); try auto")
    log(f"WARNING: {wanted} cannot be used by torch {torch.__version__} ({reason}); computing on "
        "the CPU instead. On Kaggle choose the accelerator GPU T4 x2.")
    return torch.device("cpu")


def describe_machine(device):
    """A line with the versions of Python and its packages, and one with the device."""
    versions = ", ".join(
        f"{module.__name__} {module.__version__}" for module in (torch, np, PIL))
    python = sys.version.split()[0]
    computes = f"{os.cpu_count()} CPU cores"
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        computes += f", {card.name} with {card.total_memory / 2**30:.0f} GiB"
    return f"Python {python}, {versions}\nDevice: {device} ({computes})"


def amp_dtype(amp, device):
    """The autocast dtype for `--amp` on this device, None for plain float32.

    'auto' takes bf16 from Ampere (compute capability 8) on, fp16 on older cards such as Kaggle's
    T4, bf16 on a CPU with instructions for it (1.7 times as fast), and float32 on others. Raises
    UserError for fp16 on a CPU.
    """
    if amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if amp == "auto":
        amp = "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "off"
    if amp == "off":
        return None
    if amp == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16: a CPU computes in float32 or bf16; take --amp off or bf16")
    return {"fp16": torch.float16, "bf16": torch.bfloat16}[amp]


def prepare_machine(seed):
    """Seed every generator, compute float32 in full precision, and keep glibc from returning memory
    to the system."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # TF32, cuDNN's default from Ampere on, has the 10 bits of fp16; training takes bf16 there.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # inputs keep their size
    keep_freed_memory()


def keep_freed_memory():
    """Make glibc reuse the memory of large activations instead of unmapping each one.

    Every unmapped activation is paged in again, zeroed, at the next step. M_MMAP_MAX 0 keeps them
    on the heap, M_TRIM_THRESHOLD keeps the heap, M_ARENA_MAX gives all threads one heap, so that
    each reuses what others have freed (mallopt(3)); elsewhere than glibc this does nothing.
    """
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            libc.mallopt(m_mmap_max, 0)
            libc.mallopt(m_arena_max, 1)
            libc.mallopt(m_trim_threshold, 2**31 - 1)


def worker_count(workers):
    """Decoding processes for `--workers`: as asked, else this process's share of the machine's
    cores, at most 4."""
    if workers is not None:
        return workers
    return max(1, min(4, (os.cpu_count() or 1) // local_world_size()))


def fitting_loader(workers, batch_bytes, shared_memory=SHARED_MEMORY):
    """(workers, batches each prepares ahead) whose batches fit into half of the free shared memory.

    Workers hand batches over in /dev/shm, which containers keep small; a worker that finds it full
    is killed with a bus error. Two batches ahead is PyTorch's default; 0 workers need none.
    """
    if not workers or not shared_memory.is_dir():
        return workers, 2
    room = shutil.disk_usage(shared_memory).free / 2 / local_world_size() // batch_bytes
    ahead = 2 if 2 * workers <= room else 1
    fitting = int(min(workers, room // ahead))
    if (fitting, ahead) != (workers, 2):
        log(f"{shared_memory} is small: {fitting} of {workers} workers decode, {ahead} batch "
            "ahead each" if fitting else f"{shared_memory} has no room for a batch: decoding in "
            "the main process")
    return fitting, ahead
