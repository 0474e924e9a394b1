"""Where a model comes from: from a folder or the Hub, from random weights, with an adapter or without.

Read next: `modeling/loading.py`, `modeling/from_scratch.py`, `modeling/lora.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from cocot.errors import ConfigError
from cocot.settings.typed import check_numbers, number

RESULT = "model"
"""The folder in a run folder that holds the result of the training."""


@dataclass(frozen=True)
class InitConfig:
    """A model from random weights.

    Attributes:
        architecture: Hugging Face model type: gpt2, llama, qwen3, ...
        layers: Number of decoder layers.
        width: Hidden size.
        heads: Attention heads.
        embedding_std: Standard deviation of fresh token embeddings; null for the architecture's own.
        tokens: words (what white space parts), or for tasks that compute: digits (every sign and digit is a token) or
            numbers (the same, but a number is one token).
        settings: Further fields of the architecture's Hugging Face config.
    """

    architecture: str = "gpt2"
    layers: int = number(2, low=1, high=1024)
    width: int = number(128, low=1, high=131_072)
    heads: int = number(2, low=1, high=4096)
    embedding_std: float | None = number(None, low=0, high=1000)
    tokens: Literal["words", "digits", "numbers"] = "words"
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_numbers(self, "model.init")


@dataclass(frozen=True)
class LoraSettings:
    """Small matrices that are trained in the place of a model's own; see `modeling/lora.py`.

    Attributes:
        rank: Inner size of each pair of matrices.
        alpha: Scale: their product counts alpha / rank times.
        dropout: Of what goes into them.
        modules: Names of the modules that get them, or all-linear for every matrix product but the head's.
        quantize: Whether the model's own matrices are held in 4 bits (NF4) meanwhile, which takes an eighth of the
            memory (QLoRA, arXiv 2305.14314).
    """

    rank: int = number(16, low=1, high=65_536)
    alpha: float = number(32.0, above=0, high=1_000_000)
    dropout: float = number(0.0, low=0, high=1)
    modules: str | list[str] = "all-linear"
    quantize: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "model.lora")


@dataclass(frozen=True)
class ModelConfig:
    """Where the model comes from: exactly one of path and init.

    Attributes:
        path: Hub id or local folder of a causal language model.
        init: Shape of a model from scratch; it gets a word-level tokenizer of the task.
        lora: Train an adapter of this shape and not the model's own weights; null to train all weights.
    """

    path: str | None = None
    init: InitConfig | None = None
    lora: LoraSettings | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.init is None):
            raise ConfigError("set exactly one of model.path (hub id or folder) and model.init (from scratch).")
        if self.lora and self.init:
            raise ConfigError("model.lora adapts a trained model, and model.init is not; leave one of the two out.")
