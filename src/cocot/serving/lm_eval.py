r"""lm-evaluation-harness with thoughts: a model class, registered as `cocot`.

In: what the harness is given. Out: its results, with the thoughts of a question before every continuation.

    pip install 'cocot[lm-eval]'
    python -m cocot.serving.lm_eval run --model cocot --model_args pretrained=runs/demo/coconut --tasks mine \
        --include_path DIR

A task's context is the question, as cocot writes one: then a line break, the thoughts, and what is scored or generated.
Log-likelihoods are those of `likelihood.continuation_log_probs`, generations those of `generation.answer`.
Read next: `data/layout.py` (how a prompt is laid out).
"""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from cocot.data.encoding import encode_question
from cocot.errors import ConfigError, DataError
from cocot.interpret.likelihood import padded
from cocot.modeling.loading import load
from cocot.modeling.thought_settings import thought_settings


@register_model("cocot")
class CocotLM(HFLM):  # type: ignore[misc]
    """A model that thinks, as lm-evaluation-harness knows models."""

    def __init__(self, pretrained: Any, tokenizer: Any = None, num_thoughts: int | None = None, **kwargs: Any) -> None:
        """Wrap a model.

        Args:
            pretrained: A run folder, a model folder, the id of a model on the Hub, or a model that was given thoughts.
            tokenizer: The model's tokenizer; needed with a model, and with nothing else.
            num_thoughts: Thoughts before each continuation; None for as many as the model was trained with.
            **kwargs: As lm-evaluation-harness's `hf` model takes them: `batch_size`, `device`, ...

        Raises:
            ModelError: there is no such model.
            ConfigError: the model was not trained to think and `num_thoughts` is None.
        """
        device = kwargs.pop("device", None)
        if isinstance(pretrained, str):
            pretrained, tokenizer = load(pretrained)
            pretrained.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        super().__init__(pretrained=pretrained, tokenizer=tokenizer, **kwargs)
        self._settings = thought_settings(pretrained)
        count = self._settings.num_thoughts if num_thoughts is None else num_thoughts
        if count is None:
            raise ConfigError("this model was not trained to think; say num_thoughts=k, 0 for words alone.")
        self._num_thoughts = count

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> str:
        """Refused: the template of an exported model writes the thoughts, and they are added here, too.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("cocot lays out a question with its thoughts by itself; leave --apply_chat_template out.")

    def _prompt(self, context: str) -> list[int]:
        return encode_question(context, self._num_thoughts, self._settings, self.tokenizer)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The question with its thoughts, and what is scored after them; cut into tokens apart, as in training.

        Raises:
            DataError: both together do not fit; the harness would cut the question's beginning off.
        """
        prompt, scored = self._prompt(context), self.tokenizer.encode(continuation, add_special_tokens=False)
        if len(prompt) + len(scored) > self.max_length + 1:  # the last token is only scored
            raise DataError(
                f"a question with its thoughts and {continuation!r} takes {len(prompt) + len(scored)} tokens, and the "
                f"model reads {self.max_length}; shorten the question, or take a model with a longer context."
            )
        return prompt, scored

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each continuation, after its question and the thoughts.

        Raises:
            DataError: there is no question to think about.
        """
        if not all(request.args[0] for request in requests):
            raise DataError("a request has no context, so there is nothing to think about; use the model class `hf`.")
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Refused: a text as a whole has no question.

        Raises:
            DataError: always.
        """
        raise DataError("the likelihood of a whole text has no question to think about; use the model class `hf`.")

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The questions with their thoughts, padded: ids and mask, both (questions, columns).

        Raises:
            DataError: a question does not fit beside what is to be generated; cutting it would ask another question.
        """
        rows = [self._prompt(text) for text in strings]
        longest = max(map(len, rows))
        if left_truncate_len is not None and longest > left_truncate_len:
            raise DataError(
                f"a question takes {longest} tokens, thoughts included, and {left_truncate_len} are left beside its "
                "answer; lower max_gen_toks, or take a model with a longer context."
            )
        return padded(rows, padding_side, self.model.device)


if __name__ == "__main__":
    cli_evaluate()
