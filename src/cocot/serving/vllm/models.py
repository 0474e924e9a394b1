"""vLLM's model classes, each with thoughts: `<|latent|>` is read as the hidden state of the position before it.

The hidden states after the final norm are kept beside the paged cache, one for each of its blocks: that of the last
position which was written there. That is enough, because a step ends before the next thought (`scheduler.py`), and a
prefix that is found in the cache ends where a block ends. They are found as keys and values are, through the block
table of the request.

In: a batch of vLLM. Out: what the class itself would return.
Read next: `modeling/recurrence.py`, the definition of thoughts; `tests/test_vllm.py`, which compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils.hub import cached_file
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.gpt2 import GPT2LMHeadModel
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.tokenizers.registry import cached_tokenizer_from_config

from cocot.methods import METHODS
from cocot.methods.tokens import END
from cocot.modeling.custom_generate import MODULES_FILE
from cocot.modeling.method_modules import NAME, is_of_method, projection_of
from cocot.serving.vllm.plugin import decides_itself, settings_of

_WANTED, _NEXT = 2e4, 1e4
"""Logits that no word has, of what a model that decides samples after a thought: another one; else the end marker."""
BACKENDS = {"CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN"}
"""Kinds of attention that say in the same words where the tokens of a step stand; the last two were not run."""


class _Thoughts:
    """In front of a model class of vLLM: thoughts in its inputs, and no special token of theirs in its outputs."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        model = vllm_config.model_config
        self._settings, self._cache, self._folder = settings_of(model), vllm_config.cache_config, model.model
        suppressed = (model.try_get_generation_config() or {}).get("suppress_tokens") or []
        self._suppressed = sorted({*suppressed, self._settings.latent_id})
        self._states: Tensor | None = None
        self._words: Tensor | None = None  # the embeddings of all words, (vocabulary, width), for mixtures of them
        self._knows_addresses = False
        # of one address for ever, where a graph that was captured looks for it
        most = vllm_config.scheduler_config.max_num_batched_tokens
        self._inputs = torch.zeros(most, model.get_hidden_size(), dtype=model.dtype)
        _check_backends(vllm_config)
        if self._settings.modules_of is not None:
            made = METHODS[self._settings.modules_of].modules(SimpleNamespace(config=model.hf_config))
            self.add_module(NAME, made)  # type: ignore[attr-defined]
        self._end_id: int | None = None  # of what stands behind the thoughts, if anything does
        self._decides = decides_itself(self._settings)
        if self._decides and self._settings.end_marker:
            self._end_id = cached_tokenizer_from_config(model).convert_tokens_to_ids(END)
        # of a model that decides, of each request in the step: its last input, and whether that is a thought
        self._last_inputs: tuple[Tensor, Tensor] | None = None

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Those of the class, which may rename them, and those of the method's modules.

        Args:
            weights: By their names in the folder.

        Returns:
            The names of what was loaded.
        """
        others = ((name, weight) for name, weight in weights if not is_of_method(name))
        loaded: set[str] = super().load_weights(others)  # type: ignore[misc]
        if self._settings.modules_of is not None:
            own = load_file(str(cached_file(self._folder, MODULES_FILE)))
            self.load_state_dict(own, strict=False)  # type: ignore[attr-defined]
            loaded |= own.keys()
        if self._settings.mixes_words:
            device = next(self.parameters()).device  # type: ignore[attr-defined]
            ids = torch.arange(self.config.get_text_config().vocab_size, device=device)  # type: ignore[attr-defined]
            self._words = self.embed_input_ids(ids).float()  # type: ignore[attr-defined]
        return loaded

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Any:
        """Read the tokens of a step, with thoughts in the places of `<|latent|>`.

        Args:
            input_ids: The tokens of all requests in the step, one after the other, (tokens,).
            positions: Where each stands in its request, (tokens,).
            intermediate_tensors: Of pipeline parallelism, which is refused.
            inputs_embeds: Of prompts as embeddings, which are refused.

        Returns:
            Hidden states after the final norm, (tokens, width).
        """
        embeddings = self._inputs[: len(input_ids)]
        embeddings.copy_(self.embed_input_ids(input_ids))  # type: ignore[attr-defined]
        # Always embeddings, also where vLLM measures memory: what it compiles there is run ever after.
        read: Any = super().forward  # type: ignore[misc]
        attention = get_forward_context().attn_metadata
        if not attention:
            return read(None, positions, intermediate_tensors, embeddings)
        step = _Step(next(iter(attention.values())), positions, self._cache.block_size)
        states = self._states_beside_the_cache(embeddings)
        is_latent = input_ids[: step.num_tokens] == self._settings.latent_id
        if not self._knows_addresses and bool(is_latent.any()):
            step.check(is_latent)
            self._knows_addresses = True
        self._feed_back(embeddings[: step.num_tokens], is_latent, states[step.blocks_before])
        if self._decides:
            self._last_inputs = embeddings[step.last], is_latent[step.last]
        hidden = read(None, positions, intermediate_tensors, embeddings)
        # Rows that are not the last of their block go into a place that nobody reads: a choice of rows would wait.
        states[torch.where(step.is_last, step.blocks, len(states) - 1)] = hidden[: step.num_tokens]
        return hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """The class's own logits, but for `<|latent|>` and what the folder's `generation_config.json` suppresses.

        Args:
            hidden_states: (rows, width).

        Returns:
            (rows, vocabulary).
        """
        logits: Tensor | None = super().compute_logits(hidden_states)  # type: ignore[misc]
        if logits is not None:
            stop_id = self._settings.stop_id
            # before any token is suppressed, as `stop_id` may be
            stops = None if stop_id is None or self._last_inputs is None else logits.argmax(dim=-1).eq(stop_id)
            logits[:, self._suppressed] = -torch.inf
            # vLLM asks for the logits of what it samples first, and then for those of prompts, if a request wants them.
            if self._last_inputs is not None:
                inputs, is_thought = (rows[: len(logits)] for rows in self._last_inputs)
                latent_id, self._last_inputs = self._settings.latent_id, None
                if stops is None:
                    stops = getattr(self, NAME).stop(inputs).argmax(dim=-1) == 1
                logits[:, latent_id] = logits[:, latent_id].masked_fill(is_thought & ~stops, _WANTED)
                if self._end_id is not None:
                    logits[:, self._end_id] = logits[:, self._end_id].masked_fill(is_thought, _NEXT)
        return logits

    def _feed_back(self, embeddings: Tensor, is_latent: Tensor, states: Tensor) -> None:
        """Write thoughts in the places of placeholders.

        Args:
            embeddings: Of the tokens, (tokens, width); changed in place.
            is_latent: Where a thought is the input, (tokens,).
            states: Of the position before each token, (tokens, width).
        """
        project = projection_of(self)
        if project is None and self._words is None:
            embeddings.copy_(torch.where(is_latent[:, None], states, embeddings))
            return
        thoughts = states[is_latent]
        if not len(thoughts):
            return
        if project is not None:
            thoughts = project(thoughts)
        if self._words is not None:
            logits = super().compute_logits(thoughts)  # type: ignore[misc]
            thoughts = (logits.float().softmax(dim=-1) @ self._words[: logits.shape[-1]]).to(thoughts)
        embeddings[is_latent] = thoughts

    def _states_beside_the_cache(self, like: Tensor) -> Tensor:
        """One hidden state for each block of the cache, and one that nobody reads; new with a new cache."""
        size = self._cache.num_gpu_blocks + 1
        if self._states is None or len(self._states) != size:
            self._states = like.new_zeros(size, like.shape[-1])
        return self._states


def _check_backends(vllm_config: Any) -> None:
    """Refuse attention whose block table cannot be read from here, before any weight is."""
    layers = vllm_config.compilation_config.static_forward_context.values()
    names = {layer.get_attn_backend().get_name() for layer in layers if hasattr(layer, "get_attn_backend")}
    if unknown := names - BACKENDS:
        raise ValueError(
            "cocot: continuous thoughts inside vLLM do not go with the attention backend "
            f"{', '.join(sorted(unknown))}; choose another with --attention-backend, such as FLASH_ATTN."
        )


class _Step:
    """Where the tokens of a step stand in the paged cache.

    Attributes:
        num_tokens: How many there are; behind them may be padding.
        last: Which of them is the last of each request, (requests,).
        blocks: The block that each is written to, (tokens,).
        blocks_before: The block that the position before each was written to, (tokens,).
        is_last: Whether the next token is of another block, (tokens,).
    """

    def __init__(self, attention: Any, positions: Tensor, block_size: int) -> None:
        self.num_tokens = attention.num_actual_tokens
        self.last = attention.query_start_loc[1:].long() - 1
        positions = positions[: self.num_tokens]
        numbers = torch.arange(self.num_tokens, device=positions.device)
        self._rows = torch.searchsorted(attention.query_start_loc[1:].long(), numbers, right=True)
        self._table, self._columns = attention.block_table, positions // block_size
        self.blocks = attention.slot_mapping[: self.num_tokens].long() // block_size
        before = (positions - 1).clamp(min=0) // block_size
        self.blocks_before = self._table[self._rows, before].long()
        self.is_last = torch.ones_like(self.blocks, dtype=torch.bool)
        self.is_last[:-1] = self.blocks[1:] != self.blocks[:-1]

    def check(self, is_latent: Tensor) -> None:
        """Raise an error if vLLM's block table is not what this file takes it for; looked at once, at thoughts."""
        expected = self._table[self._rows, self._columns].long()
        if not torch.equal(expected[is_latent], self.blocks[is_latent]):
            raise RuntimeError("cocot: this attention backend cuts the cache into other blocks than --block-size says.")


class ThinkingGPT2LMHeadModel(_Thoughts, GPT2LMHeadModel):
    """GPT-2 with thoughts."""


class ThinkingLlamaForCausalLM(_Thoughts, LlamaForCausalLM):
    """Llama with thoughts; SmolLM2 is one, too."""


class ThinkingMistralForCausalLM(_Thoughts, MistralForCausalLM):
    """Mistral with thoughts."""


class ThinkingQwen2ForCausalLM(_Thoughts, Qwen2ForCausalLM):
    """Qwen 2 with thoughts."""


class ThinkingQwen3ForCausalLM(_Thoughts, Qwen3ForCausalLM):
    """Qwen 3 with thoughts."""
