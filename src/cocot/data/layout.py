"""How a prompt is laid out: the question, then its thoughts between markers; and what a model must know for that.

In: a question's token ids and the settings that its model carries. Out: the ids of the prompt.

Layout (arXiv 2412.06769, section 4): question, newline, `<|start-latent|>` thoughts `<|end-latent|>`, the steps that
are left, a line each, `### ` answer, end of text.
Read next: `data/encoding.py` (text -> token ids), `data/examples.py` (what follows the prompt in training).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass
from typing import Any, Protocol

from cocot.errors import ConfigError
from cocot.methods.tokens import END, LATENT, PAUSE, START
from cocot.settings.typed import check_numbers, number

_MOST = 1_000_000


@dataclass(frozen=True)
class ThoughtSettings:
    """What a model must know to be asked: saved in its `config.json` under `thoughts`.

    Attributes:
        latent_id: Token id of the placeholder `<|latent|>`.
        filler: Token that the model was trained to think with; None if it was trained to think in words or not at all.
        num_thoughts: How many of them it was trained to need before the answer; None for a model not trained here.
        start_marker: Whether `<|start-latent|>` stands before them.
        end_marker: Whether `<|end-latent|>` stands behind them.
        task: Name of the task that it was trained for, which grades its answers; None where that is not known.
        recomputes: Of an exported model: whether every thought reads all columns again (see `modeling/self_test.py`).
        modules_of: Name of the method whose modules the model keeps (`Method.keeps_modules`); None for most models.
        iterations: How often all thoughts are refined together (`Method.iterations`); None for one after the other.
        mixes_words: Whether a thought is a mixture of word embeddings (`Method.mixes_words`).
        stop_id: Token id that ends the thoughts where it is the likeliest behind one of them (`Method.stops_at_end`);
            None for most models.
    """

    latent_id: int = number(MISSING, low=0)
    filler: str | None = LATENT
    num_thoughts: int | None = number(None, low=0, high=_MOST)
    start_marker: bool = True
    end_marker: bool = True
    task: str | None = None
    recomputes: bool = False
    modules_of: str | None = None
    iterations: int | None = number(None, low=0, high=_MOST)
    mixes_words: bool = False
    stop_id: int | None = number(None, low=0)

    def __post_init__(self) -> None:
        check_numbers(self, "thoughts")
        if self.filler not in (None, LATENT, PAUSE):
            raise ConfigError(f"thoughts.filler must be {LATENT}, {PAUSE} or null, got {self.filler!r}")

    def to_json(self) -> dict[str, Any]:
        """The settings as they stand in `config.json`."""
        return asdict(self)


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer here."""

    eos_token_id: int | None
    unk_token_id: int | None

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the tokens that are no text."""

    def __call__(
        self,
        text: list[str],
        *,
        add_special_tokens: bool,
        split_special_tokens: bool,
        return_attention_mask: bool,
        return_token_type_ids: bool,
    ) -> Any:
        """`input_ids` of texts."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> Any:
        """The text of ids."""

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Id of one token, or ids of several."""

    def __hash__(self) -> int:
        """What is known of a tokenizer is kept."""


def prompt(question: Sequence[int], num_thoughts: int, settings: ThoughtSettings, tokenizer: Tokenizer) -> list[int]:
    """The question's ids, followed by the thoughts between their markers.

    A model that was not trained to think (`settings.filler` None) gets markers only when thoughts are asked for.
    """
    if settings.filler is None and num_thoughts == 0:
        return list(question)
    filler = tokenizer.convert_tokens_to_ids(settings.filler or LATENT)
    start = [tokenizer.convert_tokens_to_ids(START)] if settings.start_marker else []
    end = [tokenizer.convert_tokens_to_ids(END)] if settings.end_marker else []
    return [*question, *start, *[filler] * num_thoughts, *end]
