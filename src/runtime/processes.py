"""Which of several processes this one is, by the environment that torchrun sets."""

import os


def rank():
    """Number of this process among all, 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def world_size():
    """How many processes share the work, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank():
    """Number of this process among those of this machine, which is also that of its card."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size():
    """How many processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
