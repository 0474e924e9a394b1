"""The checkpoints of a stage: which are whole, which is the newest, which may go.

A checkpoint folder counts only once it has its manifest (`system/manifest.py`); a corrupted one is never loaded.
"""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from cocot.system.manifest import corrupted_files, has_manifest

_LOGGER = logging.getLogger("cocot")


_CHECKPOINT = re.compile(r"checkpoint-[0-9]+")


def complete_checkpoints(stage: Path) -> list[Path]:
    """The checkpoints of a stage that were written to the end, oldest first."""
    return sorted(filter(has_manifest, _checkpoints(stage)), key=step_of)


def _checkpoints(stage: Path) -> list[Path]:
    """All of a stage's checkpoints; what a user put beside them under other names is none."""
    return [path for path in stage.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_checkpoint(stage: Path) -> Path | None:
    """The newest checkpoint of a stage that is as it was written. Corrupted ones are named, and passed over."""
    for folder in reversed(complete_checkpoints(stage)):
        corrupted = corrupted_files(folder)
        if not corrupted:
            return folder
        _LOGGER.warning(
            "%s is corrupted (%s is not what was written there); resuming from what was saved before it.",
            folder,
            ", ".join(corrupted),
        )
    return None


def prune_checkpoints(newest: Path, keep: int) -> None:
    """Remove all of a stage's checkpoints but `newest` and the whole ones before it, `keep` in all.

    Later ones are corrupted: the run did not resume from them.
    """
    kept = [folder for folder in complete_checkpoints(newest.parent) if step_of(folder) <= step_of(newest)][-keep:]
    for folder in _checkpoints(newest.parent):
        if folder not in kept:
            shutil.rmtree(folder)
