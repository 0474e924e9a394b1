"""Which process of a launch this is, as `torchrun` and `accelerate launch` say in the environment.

Of a process that was started by itself: the first of one.
"""

from __future__ import annotations

import os


def rank() -> int:
    """The number of this process among all of the launch; 0 is the one that writes and speaks."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Its number among those on the same machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many processes the launch has."""
    return int(os.environ.get("WORLD_SIZE", "1"))
