"""A prompt is read up to its next thought and no further: the thought needs the hidden state of what is before it.

So each thought is a step of one token, in a batch with whatever other requests do in that step. A request that is
preempted and read again, or that finds its first blocks in the prefix cache, goes the same way.

A model that decides how many thoughts it takes reads a prompt up to its first thought, and writes the others itself:
tokens that clients do not see, and that `max_tokens` does not count.
Read next: `models.py`, which feeds the hidden states back; `budget.py`.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingType
from vllm.tokenizers.registry import cached_tokenizer_from_config
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from cocot.methods.tokens import END
from cocot.serving.vllm.budget import MOST
from cocot.serving.vllm.plugin import decides_itself, settings_of

_logger = init_logger("vllm.cocot")


class ThoughtScheduler(AsyncScheduler):
    """vLLM's scheduler, but for where a chunk of a prompt ends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ending: set[str] = set()
        model = self.vllm_config.model_config
        settings = settings_of(model)
        self._latent_id, self._decides = settings.latent_id, decides_itself(settings)
        end = [cached_tokenizer_from_config(model).convert_tokens_to_ids(END)]
        self._behind_thoughts: list[int] = end if settings.end_marker else []
        self._thinking: set[str] = set()
        self._unseen: set[str] = set()  # whose newest token clients do not see
        self._held: dict[str, tuple[Any, list[Any]]] = {}  # what was to be said with tokens that they do not see
        _logger.info("cocot: <|latent|> in a prompt (token %d) is a continuous thought.", self._latent_id)

    def add_request(self, request: Any) -> None:
        """Take a request, or let it end with an error if it cannot be answered."""
        refused = self._leave_thoughts_to_the_model(request) if self._decides else None
        super().add_request(request)
        if refused is not None:
            self._end(request, refused)
        elif request.all_token_ids[0] == self._latent_id:
            self._end(request, "a thought is the hidden state of the token before it; put one before the first.")
        elif current_platform.is_cpu() and request.sampling_params.sampling_type == SamplingType.RANDOM_SEED:
            # vLLM 0.32 would end itself: it turns a generator back after each part of a prompt, which a CPU's cannot do
            self._end(request, "samples with a seed cannot be drawn on a CPU.")

    def _leave_thoughts_to_the_model(self, request: Any) -> str | None:
        """Cut a prompt behind its first thought; its number of thoughts is the most that the model may take.

        Returns:
            Why it cannot be answered, or None.
        """
        ids = list(request.prompt_token_ids)
        most = ids.count(self._latent_id)
        if not most or ids[0] == self._latent_id:
            return None
        end = ids.index(self._latent_id) + 1
        if ids[end - 1 :] != [self._latent_id] * most + self._behind_thoughts:
            return "the model decides how many thoughts it takes; end the prompt with them, as the chat template does."
        asked = request.sampling_params
        refusals = {
            "min_tokens": asked.min_tokens,
            "allowed_token_ids": asked.allowed_token_ids,
            "prompt_logprobs": asked.prompt_logprobs is not None,
            "structured outputs": request.use_structured_output,
            "repetition_detection": asked.repetition_detection,
            # the model is told that it may take no more after vLLM has read these off its logits
            "logprobs without an end marker": asked.logprobs is not None and not self._behind_thoughts,
        }
        if refused := [name for name, is_asked in refusals.items() if is_asked]:
            return f"a model that decides how many thoughts it takes does not go with {', '.join(refused)}."
        # Copies: within one process the lists are those of the front end, which counts the prompt as it was given.
        request.prompt_token_ids, request.num_prompt_tokens = ids[:end], end
        del request._all_token_ids[end:]
        request.block_hashes.clear()
        request.update_block_hashes()
        request.sampling_params = copy(asked)
        request.sampling_params.extra_args = {**(asked.extra_args or {}), MOST: most}
        self._thinking.add(request.request_id)
        return None

    def _update_request_with_output(self, request: Any, new_token_ids: list[int], *args: Any, **kwargs: Any) -> Any:
        """Append what was sampled; thoughts are no tokens of the answer."""
        name = request.request_id
        if name in self._thinking and new_token_ids:
            (token,) = new_token_ids
            if token != self._latent_id:
                self._thinking.discard(name)
            if token in (self._latent_id, *self._behind_thoughts):
                request.max_tokens += 1
                self._unseen.add(name)
        return super()._update_request_with_output(request, new_token_ids, *args, **kwargs)

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """What clients are told after a step: nothing of a request whose newest token they do not see."""
        told = super().update_from_output(*args, **kwargs)
        for outputs in told.values() if self._decides else ():
            outputs.outputs = [one for one in outputs.outputs if self._tell_or_hold(one)]
        self._unseen.clear()
        for name in self._held.keys() - self.requests.keys():  # its client hung up
            del self._held[name]
        return told

    def _tell_or_hold(self, output: Any) -> bool:
        """Whether clients are told of an output; one that they do not see is held, and said with the next."""
        name = output.request_id
        statistics, events = self._held.pop(name, (None, []))
        output.prefill_stats = statistics or output.prefill_stats
        output.events = [*events, *(output.events or [])] or None
        if name not in self._unseen:
            return True
        output.new_token_ids, output.new_logprobs = [], None
        if output.finish_reason is not None:  # the context is full of thoughts
            return True
        self._held[name] = output.prefill_stats, output.events or []
        return False

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
        self._thinking.discard(request.request_id)
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
