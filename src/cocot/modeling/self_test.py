"""Before a model is given thoughts: does its class compute what the definition says? A self-test on the model itself.

A dozen passes over two rows of eight tokens, milliseconds on a small model, find out whether

- the logits are those of the decoder on embeddings, and the class's own head;
- no position sees a later one;
- a row that is padded on the left has the numbers that it has alone;
- the cache can be continued: by one token, as generation does, and in the middle of a sequence, as thoughts do;
- gradients through continued caches are those of passes that read everything again.

In: a model. Out: the ways in which its passes may run (`Passes`), or a `ModelError` that names the class and why.
Read next: `modeling/recurrence.py` (the passes), `modeling/latent_model.py` (who asks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from cocot.errors import ModelError
from cocot.modeling.own_head import run_head
from cocot.modeling.recurrence import decoder_of, takes_positions, think
from cocot.modeling.shared_passes import TrainingPasses, can_share

_LENGTH, _PADDING = 8, 3
_SPLITS = (1, 2, 5, 6)
"""Latent columns. The padded row begins behind two of them: whole passes of one and more columns read its padding."""

_NOISE = 1e-4
"""Largest difference, relative to the largest entry, for weights of 32 bits and more. Classes that are right differ
from the oracle by at most 9e-6 (`docs/models.md`)."""
_NOISE_OF_HALVES = 0.1
"""The same for 16 bits and fewer; not measured over all classes."""


@dataclass(frozen=True)
class Passes:
    """How the passes over a sequence with thoughts may run.

    Attributes:
        training: `shared` (passes share work, see `shared_passes.py`), `cached` (each continues the cache of the
            ones before) or `recomputed` (each reads everything before it again: slower, and right for every class).
        inference: `cached` or `recomputed`.
    """

    training: Literal["shared", "cached", "recomputed"]
    inference: Literal["cached", "recomputed"]


def find_passes(model: Any) -> Passes:
    """Test `model`, as it is, and tell how its passes may run; the model and the random state are left as they were.

    Raises:
        ModelError: the class computes something else than the definition.
    """
    name = type(model).__name__
    with _undisturbed(model):
        try:
            return _SelfTest(model).run()
        except ModelError as error:
            raise ModelError(f"{name} cannot be given thoughts: {error}") from error
        except Exception as error:  # whatever a class raises on inputs that the recurrence needs
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ModelError(
                f"{name} cannot be given thoughts: its decoder cannot read a sequence as embeddings "
                f"({type(error).__name__}: {reason[:200]})."
            ) from error


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    was_training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)


class _SelfTest:
    """The tests of one model, on one row alone and on the same row padded on the left beside it."""

    def __init__(self, model: Any) -> None:
        self.model, self.decoder = model, decoder_of(model)
        if self.decoder is model or model.get_output_embeddings() is None:
            raise ModelError("it has no decoder apart from its head.")
        self.table = model.get_input_embeddings()
        size = self.table.num_embeddings
        # Spread over the vocabulary, far from its ends: special tokens stand there.
        self.ids = torch.linspace(size // 3, size - 1 - size // 4, _LENGTH, device=model.device).long()[None]
        with torch.no_grad():
            row: Tensor = self.table(self.ids)
        padded = torch.cat([row[:, :_PADDING], row[:, :-_PADDING]], dim=1)
        self.alone, self.both = row, torch.cat([row, padded])
        self.mask = torch.ones(2, _LENGTH, dtype=torch.long, device=model.device)
        self.mask[1, :_PADDING] = 0
        self.positions = None
        if takes_positions(self.decoder):
            self.positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)

    def run(self) -> Passes:
        with torch.no_grad():
            whole = self.decoder(inputs_embeds=self.alone, use_cache=False, return_dict=True)
            self._expect(whole.last_hidden_state.isfinite().all(), "its hidden states are not numbers.")
            self._check_head(whole)
            first = self.decoder(inputs_embeds=self.alone[:, :-2], use_cache=False, return_dict=True).last_hidden_state
            self._expect(
                self._same(whole.last_hidden_state[:, :-2], first), "its positions see later ones (it is not causal)."
            )
            expected = self._rows_alone()
            both = self._think(self.both, recomputes=True, cache=None, use_cache=False)
            self._expect(
                self._same(both[self.mask.bool()], expected), "a row padded on its left gets other numbers than alone."
            )
            self._check_generation()
            inference = self._succeeds(lambda: self._same(self._think(self.both)[self.mask.bool()], expected))
            inference = inference and self._succeeds(self._continues_alone)
        return Passes(self._training(), "cached" if inference else "recomputed")

    def _check_head(self, whole: Any) -> None:
        logits = self.model(input_ids=self.ids, use_cache=False, return_dict=True).logits
        own = run_head(self.model, type(self.model).forward, whole).logits
        self._expect(
            logits.shape == own.shape and self._same(logits, own),
            "its logits for token ids are not those for their embeddings.",
        )

    def _rows_alone(self) -> Tensor:
        """The definition: each row alone, no padding, no mask, no cache; the states of both rows, (tokens, width)."""
        states = []
        for row, start in ((0, 0), (1, _PADDING)):
            splits = [split - start for split in _SPLITS if split > start]
            embeddings = self.both[row : row + 1, start:]
            is_latent = torch.zeros(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
            is_latent[:, splits] = True
            output = think(
                self.decoder, embeddings, is_latent, cache=None, columns=splits, recomputes=True, use_cache=False
            )
            states.append(output.last_hidden_state[0])
        return torch.cat(states)

    def _think(self, embeddings: Tensor, **settings: Any) -> Tensor:
        """The hidden states of both rows, with thoughts, by default by a cache that is continued."""
        is_latent = torch.zeros(2, _LENGTH, dtype=torch.bool, device=embeddings.device)
        is_latent[:, list(_SPLITS)] = True
        is_latent &= self.mask.bool()
        settings = {"cache": self._new_cache(), "attention_mask": self.mask, **settings}
        output = think(self.decoder, embeddings, is_latent, columns=_SPLITS, position_ids=self.positions, **settings)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _continues_alone(self) -> bool:
        """Whether a row without mask and positions, as `model(input_ids)` has it, may be split, too."""
        is_latent = torch.zeros(1, _LENGTH, dtype=torch.bool, device=self.alone.device)
        is_latent[:, list(_SPLITS)] = True
        settings = {"columns": list(_SPLITS)}
        cached = think(self.decoder, self.alone, is_latent, cache=self._new_cache(), **settings)  # type: ignore[arg-type]
        again = think(self.decoder, self.alone, is_latent, cache=None, recomputes=True, use_cache=False, **settings)  # type: ignore[arg-type]
        return self._same(cached.last_hidden_state, again.last_hidden_state)

    def _check_generation(self) -> None:
        """`generate` reads a token from the cache of those before it; the numbers must be those of one pass."""
        ids = torch.cat([self.ids, self.ids])
        make: Any = GenerationConfig  # its constructor has no annotations
        own, self.model.generation_config = self.model.generation_config, make(pad_token_id=int(ids[0, 0]))
        try:
            written = self.model.generate(
                input_ids=ids,
                attention_mask=self.mask,
                min_new_tokens=2,
                max_new_tokens=2,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        finally:
            self.model.generation_config = own
        read = written.sequences[:, :-1]
        mask = torch.cat([self.mask, self.mask.new_ones(2, 1)], dim=1)
        positions = {} if self.positions is None else {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
        whole = self.model(input_ids=read, attention_mask=mask, use_cache=False, return_dict=True, **positions).logits
        self._expect(
            self._same(written.logits[1], whole[:, -1]),
            "a token that it reads from its cache gets other numbers than in one pass.",
        )

    def _training(self) -> Literal["shared", "cached", "recomputed"]:
        """The fastest way of training whose gradients are those of passes that read everything again."""
        with torch.enable_grad():
            expected = self._gradient(lambda row: self._think(row, recomputes=True, cache=None, use_cache=False))
            if can_share(self.model) and self._succeeds(lambda: self._same(self._gradient(self._shared), expected)):
                return "shared"
            if self._succeeds(lambda: self._same(self._gradient(self._think), expected)):
                return "cached"
        return "recomputed"

    def _shared(self, embeddings: Tensor) -> Tensor:
        passes = TrainingPasses(self.model)
        mask = passes.masks(self.mask, _LENGTH, embeddings.device)
        return self._think(embeddings, cache=passes.cache, pass_context=passes.pass_context, attention_mask=mask)

    def _gradient(self, hidden_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Hidden states and, for a fixed function of them, its gradient with respect to the embeddings."""
        embeddings = self.both.detach().clone().requires_grad_()
        hidden = hidden_of(embeddings)[self.mask.bool()].double()
        weights = torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype, device=hidden.device).cos()
        (gradient,) = torch.autograd.grad((hidden * weights.view_as(hidden)).sum(), embeddings)
        return torch.cat([part.detach().flatten() / part.detach().abs().max() for part in (hidden, gradient)])

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config)

    def _same(self, first: Tensor, second: Tensor) -> bool:
        noise = _NOISE_OF_HALVES if torch.finfo(self.alone.dtype).bits < 32 else _NOISE
        return bool((first - second).abs().max() <= noise * second.abs().max())

    def _succeeds(self, test: Callable[[], bool]) -> bool:
        """Whether a way that is not needed gives the right numbers; what it raises counts as no."""
        try:
            return test()
        except Exception:
            return False

    def _expect(self, holds: Any, reason: str) -> None:
        if not holds:
            raise ModelError(reason)
