"""Several processes, one a graphics card: an environment fact that torchrun sets, not a mode."""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from src.console import rank

GROUP_TIMEOUT = timedelta(minutes=30)  # a rank may validate or decode while another waits


def world_size():
    """How many processes share the work, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def relaunch(gpus, device):
    """Run the same command under torchrun, a process a card, where nobody has done it.

    gpus: how many to use, None for all. On the CPU it counts processes, and None is one. Returns
    the exit status, of the first process that failed; None where this process is to do the work.
    """
    wanted = gpus or (torch.cuda.device_count() if device in ("auto", "cuda") else 1)
    if wanted < 2 or "RANK" in os.environ:
        return None
    started_as = sys.modules["__main__"].__spec__
    program = ["-m", started_as.name] if started_as else [sys.argv[0]]
    try:
        torchrun.main(["--standalone", f"--nproc-per-node={wanted}", *program, *sys.argv[1:]])
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status > 0 else 128 - status  # a negative one is a signal's number
    except SignalException as error:  # which the processes have had too, and saved
        return 128 + error.sigval
    return 0


def join_group(device):
    """Join the other processes under torchrun; returns this process's own device."""
    if world_size() == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=GROUP_TIMEOUT)
    return device


def leave_group():
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(items):
    """This process's share of a sequence: every world_size-th item."""
    return items[rank()::world_size()]


def merged(items):
    """The shards of all processes put together again in the order of the whole sequence."""
    if world_size() == 1:
        return items
    shards = [None] * world_size()
    dist.all_gather_object(shards, items)
    whole = [None] * sum(map(len, shards))
    for number, part in enumerate(shards):
        whole[number::world_size()] = part
    return whole


def agree(*flags):
    """For each flag, whether it is set in any process."""
    return [any(each) for each in zip(*merged([flags]))]


def wait_for_all():
    if world_size() > 1:
        dist.barrier()


def average_buffers(model):
    """Give all processes the same batch-norm statistics, the mean of their own."""
    if world_size() == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            sum_over_processes(buffer).div_(world_size())


def sum_over_processes(tensor):
    """The tensor summed over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor
