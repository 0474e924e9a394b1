"""How many thoughts a question takes, where the model decides so itself.

A thought does not depend on those behind it. So the model thinks as many thoughts as it may, its decisions say which
was the last, and the answer is made with that many: exactly what a model gives that stops there. It costs the passes of
the thoughts twice. It is exact where no position sees a later one, which the self-test asks of every class.

In: a model with a part that decides, prompts. Out: for each prompt how many thoughts to keep.
Read next: `methods/adaptive.py`, `modeling/generation.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cocot.methods.base import STOP
from cocot.modeling.method_modules import NAME
from cocot.modeling.recurrence import ThoughtHook


def decides(model: Any) -> bool:
    """Whether the model decides how many thoughts it takes."""
    return hasattr(getattr(model, NAME, None), STOP)


def num_needed(model: Any, batch: dict[str, Tensor], hook: ThoughtHook | None) -> list[int]:
    """For each row, the number of the first thought behind which the model stops; all of them if it never does.

    Args:
        model: One that `decides`.
        batch: `input_ids` and `attention_mask`, (batch, columns), padded on the left, as many thoughts in each row,
            one at least.
        hook: What becomes of the thoughts before they are fed back; as in answering.
    """
    stops: list[Tensor] = []

    def decide(number: int, thought: Tensor) -> Tensor:
        fed = thought if hook is None else hook(number, thought)
        stops.append(getattr(model, NAME).stop(fed).argmax(dim=-1))
        return fed

    model(**batch, thought_hook=decide, logits_to_keep=1)
    stopped = torch.cat(stops, dim=1)
    stopped[:, -1] = 1
    needed: list[int] = (stopped.argmax(dim=1) + 1).tolist()
    return needed
