"""How many thoughts a question takes, where the model decides so itself.

A thought does not depend on those behind it. So the model thinks as many thoughts as it may, its decisions say which
was the last, and the answer is made with that many: exactly what a model gives that stops there. It costs the passes of
the thoughts twice. It is exact where no position sees a later one, which the self-test asks of every class.

The decision is that of a part of the model which reads the thought, or falls where the token that follows the thoughts
is the likeliest behind one.

In: a model that decides, prompts. Out: for each prompt how many thoughts to keep.
Read next: `methods/adaptive.py` and `methods/soft.py`, `modeling/generation.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cocot.methods.base import STOP
from cocot.modeling.method_modules import NAME
from cocot.modeling.recurrence import ThoughtHook
from cocot.modeling.thought_settings import latent_id, stop_id


def decides(model: Any) -> bool:
    """Whether the model decides how many thoughts it takes."""
    return stop_id(model) is not None or hasattr(getattr(model, NAME, None), STOP)


def num_needed(model: Any, batch: dict[str, Tensor], hook: ThoughtHook | None) -> list[int]:
    """For each row, the number of the first thought behind which the model stops; all of them if it never does.

    Args:
        model: One that `decides`.
        batch: `input_ids` and `attention_mask`, (batch, columns), padded on the left, as many thoughts in each row,
            one at least.
        hook: What becomes of the thoughts before they are fed back; as in answering.
    """
    stopped = _by_part(model, batch, hook) if stop_id(model) is None else _by_word(model, batch, hook)
    stopped[:, -1] = 1
    needed: list[int] = (stopped.argmax(dim=1) + 1).tolist()
    return needed


def _by_part(model: Any, batch: dict[str, Tensor], hook: ThoughtHook | None) -> Tensor:
    """What the model's part decides after each thought, 1 for stop: (batch, thoughts), int64."""
    stops: list[Tensor] = []

    def decide(number: int, thought: Tensor) -> Tensor:
        fed = thought if hook is None else hook(number, thought)
        stops.append(getattr(model, NAME).stop(fed).argmax(dim=-1))
        return fed

    model(**batch, thought_hook=decide, logits_to_keep=1)
    return torch.cat(stops, dim=1)


def _by_word(model: Any, batch: dict[str, Tensor], hook: ThoughtHook | None) -> Tensor:
    """Whether the token that follows the thoughts is the likeliest behind each: (batch, thoughts), int64."""
    is_thought = batch["input_ids"] == latent_id(model)
    num_kept = is_thought.shape[1] - int(is_thought.any(dim=0).int().argmax())  # columns from the first thought on
    likeliest = model(**batch, thought_hook=hook, logits_to_keep=num_kept).logits.argmax(dim=-1)
    stopped: Tensor = likeliest[is_thought[:, -num_kept:]].view(len(is_thought), -1) == stop_id(model)
    return stopped.long()
