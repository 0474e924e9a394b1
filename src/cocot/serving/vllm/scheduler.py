"""A prompt is read up to its next thought and no further: the thought needs the hidden state of what is before it.

So each thought is a step of one token, in a batch with whatever other requests do in that step. A request that is
preempted and read again, or that finds its first blocks in the prefix cache, goes the same way.
Read next: `models.py`, which feeds the hidden states back.
"""

from __future__ import annotations

from typing import Any

from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingType
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from cocot.serving.vllm.plugin import settings_of

_logger = init_logger("vllm.cocot")


class ThoughtScheduler(AsyncScheduler):
    """vLLM's scheduler, but for where a chunk of a prompt ends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ending: set[str] = set()
        self._latent_id = settings_of(self.vllm_config.model_config).latent_id
        _logger.info("cocot: <|latent|> in a prompt (token %d) is a continuous thought.", self._latent_id)

    def add_request(self, request: Any) -> None:
        """Take a request, or let it end with an error if it cannot be answered."""
        super().add_request(request)
        if request.all_token_ids[0] == self._latent_id:
            self._end(request, "a thought is the hidden state of the token before it; put one before the first.")
        elif current_platform.is_cpu() and request.sampling_params.sampling_type == SamplingType.RANDOM_SEED:
            # vLLM 0.32 would end itself: it turns a generator back after each part of a prompt, which a CPU's cannot do
            self._end(request, "samples with a seed cannot be drawn on a CPU.")

    def _end(self, request: Any, reason: str) -> None:
        """Let a request end with an error in this step, as vLLM lets those end whose grammar it cannot read."""
        _logger.error("cocot: request %s ends with an error: %s", request.request_id, reason)
        self._ending.add(request.request_id)
        self.grammar_compile_error_reqs.add(request.request_id)

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        """Whether a request that waits may begin: one that ends with an error may not."""
        if request.request_id in self._ending:
            return False
        may_begin: bool = super()._handle_blocked_waiting_request(request)
        return may_begin

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self._ending.discard(request.request_id)
        return super()._free_request(request, *args, **kwargs)

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        """What a new request finds in the cache: never all that is before a thought.

        vLLM says that a block is there as soon as a step is to compute it. Its keys and values are there when another
        request of the same step reads them; its last hidden state is there after the step. So the block before a
        thought is computed again, and one is enough: a step has a thought as the first of its tokens alone.
        """
        blocks, num_found, *rest = super()._get_local_prefix_cache_hit(request)
        ids = request.all_token_ids
        if 0 < num_found < len(ids) and ids[num_found] == self._latent_id:
            num_found -= self.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, num_found)
        return (blocks, num_found, *rest)

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        """How many tokens of a request the next step reads: vLLM asks this for every request in every step.

        Returns:
            What vLLM would read, or what is before the next `<|latent|>` behind the first of these tokens.
        """
        most: int = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        first, end = num_computed_tokens + 1, num_computed_tokens + most
        try:
            following: int = request.all_token_ids.index(self._latent_id, first, end)
        except ValueError:
            return most
        return following - num_computed_tokens
