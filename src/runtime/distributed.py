"""Several processes, one for each graphics card. The only module that speaks to torch.distributed.

NCCL carries the gradients of `data_parallel` and nothing else, because it refuses tensors in the
host's memory. Metrics, flags, lists and barriers go over the default group, which is gloo on every
machine and sees nothing but the host's memory.
"""

import os
import signal
import subprocess
import sys
import tempfile
from datetime import timedelta
from inspect import signature
from pathlib import Path
from threading import Thread

import torch
import torch.distributed as dist
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from src.runtime.console import UserError, log
from src.runtime.processes import local_world_size, rank, world_size
from src.runtime.stopping import STARTED, STARTED_VARIABLE

TIMEOUT = timedelta(minutes=10)  # a process that answers no sooner is presumed dead
TRIAL_SECONDS = 90  # for the first all-reduce of the gradients' group
NO_ANSWER = f"no answer within {TRIAL_SECONDS} s"
GRADIENTS = 1_200_000  # of U2-NetP: NCCL may send so many in another way than a few
REASON_VARIABLE = "MAGICK_ALPHA_REASON"  # a folder in which a process notes why it failed
FAILURE_VARIABLE = "MAGICK_ALPHA_FAILURE"  # why the run before this one failed
NO_GROUP_STATUS = 75  # exit status of a process that cannot join the others
_store = None  # in which the processes note how they ended
_asked = []  # signals that this process had while others did the work


class NoGroup(Exception):
    """The processes cannot work together; args[0] says why."""


# ---------------------------------------------------------------- starting and ending


def relaunch(gpus, device, guarded=False):
    """Run the same command under torchrun, one process per card, unless this already is one.

    gpus: how many to use, None for all. On the CPU it counts processes, and None is one. guarded:
    a single process is started as well, so that this one outlives it. Returns the exit status, of
    the first process that failed; None where this process is to do the work, because one is enough
    or because several cannot form a group. Raises UserError for more cards than there are.
    """
    if is_launched():
        return None
    if guarded:
        os.environ[REASON_VARIABLE] = tempfile.mkdtemp()
    cards = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    wanted = gpus or cards or 1
    if cards and wanted > cards:
        raise UserError(f"--gpus {gpus}: this machine has {cards}; leave it out to use all")
    if wanted > 1 and device.startswith("cuda:"):
        raise UserError(f"--gpus {gpus}: --device {device} is one card; take --device cuda")
    if wanted < 2 and not guarded:
        return None
    os.environ.setdefault(STARTED_VARIABLE, str(STARTED))
    # Each process gets its share of the cores; torchrun would give it a single one.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // wanted)))
    if wanted < 2:
        return child_status(os.environ)
    try:
        # Without an address torchrun asks for this machine's full name, which an offline one waits
        # for.
        torchrun.main(["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={wanted}",
                       *own_command()])
    except ChildFailedError as error:
        status = first_exit(error.failures.values())
        if status != NO_GROUP_STATUS:
            return status
    except SignalException as error:  # which the processes have had too, and saved
        _asked.append(error.sigval)
        return 128 + error.sigval
    except (RendezvousError, RuntimeError, OSError) as error:
        log(f"WARNING: torchrun does not work here ({first_line(error)})")
    else:
        return 0
    log("WARNING: going on with one process" + (" and one card" if cards else ""))
    return child_status(os.environ) if guarded else None


def run_after(failure):
    """The exit status of the same command in a process that is told why the run before failed"""
    environment = {**os.environ, FAILURE_VARIABLE: failure[:1000].replace("\0", "")}
    environment.pop("OMP_NUM_THREADS", None)  # of several processes
    return child_status(environment)


def own_command():
    started_as = sys.modules["__main__"].__spec__
    return [*(["-m", started_as.name] if started_as else [sys.argv[0]]), *sys.argv[1:]]


def is_launched():
    """Whether another process of this script has started this one"""
    return "RANK" in os.environ or is_guarded()


def is_guarded():
    """Whether another run follows, should this one fail"""
    return REASON_VARIABLE in os.environ


def was_asked_to_end():
    """Whether a signal came while other processes did the work"""
    return bool(_asked)


def child_status(environment):
    """The exit status of this command, run to its end in another process; SIGTERM is passed on to
    it."""
    child = subprocess.Popen([sys.executable, *own_command()], env=environment)

    def note(number, frame):
        _asked.append(number)
        if number == signal.SIGTERM:  # SIGINT the child has had too
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    try:
        return exit_status(child.wait())
    finally:
        child.kill()  # which does nothing to one that has ended


def exit_status(code):
    """128 + the signal's number for subprocess's negative code of a process that a signal ended"""
    return code if code >= 0 else 128 - code


def first_exit(failures):
    """The exit status of torchrun's first failure; of several in one second, of a process that was
    killed: the others fail for want of it. SIGTERM is torchrun's own."""
    return exit_status(min(failures, key=lambda each: (
        each.timestamp, each.exitcode >= 0 or each.exitcode == -signal.SIGTERM)).exitcode)


def join_group():
    """Join the other processes under torchrun, over gloo. Raises NoGroup."""
    global _store
    if world_size() == 1:
        return
    # Gloo, like torchrun, may ask for this machine's name; on one machine the loopback is enough.
    if sys.platform == "linux" and local_world_size() == world_size():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        _store, number, count = next(rendezvous("env://", timeout=TIMEOUT))
        dist.init_process_group("gloo", store=dist.PrefixStore("group", _store), rank=number,
                                world_size=count, timeout=TIMEOUT)
    except (RuntimeError, ValueError, OSError) as error:
        raise NoGroup(first_line(error)) from error


def end_process(status):
    """End this process with a status; with several processes, skip interpreter shutdown.

    Threads of gloo may still hold tensors, and letting these go without an interpreter aborts the
    process, with a status of its own (pytorch/pytorch#179291). The groups are left as they are:
    NCCL's waits for the other processes when it is destroyed.
    """
    if world_size() == 1:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def first_to_end(status, reason):
    """Note that this process ends with an error, and why; whether it is the first, and so reports
    it."""
    first = _store is None or _store.add("ended", 1) == 1
    if first and _store is not None:
        _store.set("status", str(status))
    if first and reason and is_guarded():
        Path(os.environ[REASON_VARIABLE], "reason").write_text(reason, "utf-8", "replace")
    return first


def noted_reason(status):
    """Why the launched processes ended with a status: the signal, and their own words if they had
    time for any. What follows is no longer guarded."""
    path = Path(os.environ.pop(REASON_VARIABLE, ""), "reason")
    words = path.read_text("utf-8", "replace") if path.is_file() else ""
    if status - 128 not in set(signal.Signals):
        return words or f"a process ended with status {status}"
    by_system = ", as the system does when memory runs out" * (status == 128 + signal.SIGKILL)
    return (f"a process was ended by {signal.Signals(status - 128).name}{by_system}"
            + f" ({words})" * bool(words))


def status_from_another(error):
    """The exit status after an error that came from the exchange with other processes, which may
    have ended; None for any other."""
    if world_size() == 1:
        return None
    try:
        if _store is not None and _store.check(["status"]):
            return int(_store.get("status"))
    except RuntimeError:  # torchrun itself, which keeps the store, is gone
        pass
    lost = isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("gloo", "NCCL", "Connection", "Socket", "Timed out"))
    if not lost:
        return None
    sentence = (f"process {rank()}: another process of this run was killed or cannot be reached "
                f"({first_line(error)})")
    first_to_end(1, sentence)
    way_on = "" if is_guarded() else "; the same command goes on from the last save"
    print(f"error: {sentence}{way_on}", file=sys.stderr)
    return 1


def first_line(error):
    return str(error).split("\n")[0].rstrip(".")


# ---------------------------------------------------------------- gradients: NCCL on cards


def data_parallel(model, device):
    """The model such that backward averages its gradients over all processes; alone, the model.

    Raises NoGroup, in all processes, when they cannot exchange gradients in any of them.
    """
    if world_size() == 1:
        return model
    group, problem = tried_group(device)
    problems = [each for each in all_gather([problem]) if each]
    if problems:  # the others may have waited in vain
        raise NoGroup(min(problems, key=lambda each: each == NO_ANSWER))
    # Batch norms see their own card's crops only: synchronising 112 of them in every step costs
    # more than it gives at these batch sizes. Their statistics meet where an epoch ends.
    new = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # torch 2.13
    return DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, process_group=group,
        **{"forward_sync_buffers" if new else "broadcast_buffers": False})


def tried_group(device):
    """(the gradients' group, "") after one all-reduce on it, or (None, why there is none).

    In a thread, because NCCL waits without end where cards cannot reach each other.
    """
    result = []

    def attempt():
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # a thread starts on card 0
            backend = "nccl" if device.type == "cuda" else "gloo"
            group = dist.new_group(backend=backend, timeout=TIMEOUT)
            ones = torch.ones(GRADIENTS, device=device)
            dist.all_reduce(ones, group=group)
            whole = bool((ones == world_size()).all())
            result.append((group, "" if whole else "gradients do not add up"))
        except (RuntimeError, ValueError) as error:
            result.append((None, first_line(error)))

    thread = Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(TRIAL_SECONDS)
    return result[0] if result else (None, NO_ANSWER)


# ---------------------------------------------------------------- all else: gloo


def shard(items):
    """This process's share of a sequence: every world_size-th item."""
    return items[rank()::world_size()]


def all_gather(items):
    """The shards of all processes put together again in the order of the whole sequence.

    The items are Python objects, numpy arrays, or tensors in the host's memory.
    """
    if world_size() == 1:
        return items
    shards = [None] * world_size()
    dist.all_gather_object(shards, items)
    whole = [None] * sum(map(len, shards))
    for number, part in enumerate(shards):
        whole[number::world_size()] = part
    return whole


def any_rank(*flags):
    """For each flag, whether it is set in any process."""
    return [any(each) for each in zip(*all_gather([flags]))]


def barrier():
    """Wait until all processes have come here."""
    all_gather([None])


def all_reduce(array):
    """A numpy array summed over all processes, in the order of their ranks."""
    return sum(all_gather([array]))


def average_tensors(tensors):
    """Give all processes the mean of their own float32 tensors, in place, on any device; others
    stay as they are."""
    tensors = [tensor for tensor in tensors if tensor.is_floating_point()]
    if world_size() == 1 or not tensors:
        return
    own = torch.cat([tensor.detach().cpu().flatten() for tensor in tensors])
    mean = torch.from_numpy(all_reduce(own.double().numpy()) / world_size()).float()
    for tensor, part in zip(tensors, mean.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))
