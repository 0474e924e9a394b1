"""The most thoughts that a request may take, of a model that decides how many it takes (`adaptive`, `soft_adaptive`).

The prompt of such a model has its first thought alone as vLLM reads it (`scheduler.py`). After each thought the model's
logits say whether it wants another (`models.py`), and vLLM samples the placeholder or what stands behind the thoughts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, inf
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from cocot.serving.vllm.plugin import settings_of

MOST = "cocot_most_thoughts"
"""Name of the number in the `extra_args` of a request's sampling parameters."""


class ThoughtBudget(AdapterLogitsProcessor):
    """Forbids a thought more than a request may take."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._latent_id = settings_of(vllm_config.model_config).latent_id

    def is_argmax_invariant(self) -> bool:
        """No: it changes what is sampled."""
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        """That of a request; None for one without thoughts."""
        most = (params.extra_args or {}).get(MOST)
        return None if most is None else partial(self._forbid, most)

    def _forbid(self, most: int, output_ids: list[int], logits: Tensor) -> Tensor:
        """One thought is in the prompt, and until the last all that was written are thoughts."""
        if len(output_ids) >= most - 1:
            logits[self._latent_id] = -inf
        return logits
