"""The typed settings of a run. A recipe is a YAML file of exactly these fields.

In: nothing. Out: `RunConfig`, which `cocot train RECIPE --train.learning_rate 1e-4` fills and the run folder keeps.
Read next: `recipes/*.yaml`; `curriculum.py` for the fields under `curriculum`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from cocot.curriculum import CurriculumConfig
from cocot.errors import ConfigError


@dataclass(frozen=True)
class InitConfig:
    """A model from random weights.

    Attributes:
        architecture: Hugging Face model type: gpt2, llama, qwen3, ...
        layers: Number of decoder layers.
        width: Hidden size.
        heads: Attention heads.
        embedding_std: Standard deviation of fresh token embeddings; null for the architecture's own.
        tokens: words (what white space parts), or for tasks that reckon: digits (every sign and digit is a token) or
            numbers (the same, but a number is one token).
        settings: Further fields of the architecture's Hugging Face config.
    """

    architecture: str = "gpt2"
    layers: int = 2
    width: int = 128
    heads: int = 2
    embedding_std: float | None = None
    tokens: Literal["words", "digits", "numbers"] = "words"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoraSettings:
    """Small matrices that are trained in the place of a model's own; see `adapters.py`.

    Attributes:
        rank: Inner size of each pair of matrices.
        alpha: Scale: their product counts alpha / rank times.
        dropout: Of what goes into them.
        modules: Names of the modules that get them, or all-linear for every matrix product but the head's.
        quantize: Whether the model's own matrices are held in 4 bits (NF4) meanwhile, which takes an eighth of the
            memory (QLoRA, arXiv 2305.14314).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    modules: str | list[str] = "all-linear"
    quantize: bool = False

    def __post_init__(self) -> None:
        _check_at_least(1, "model.lora.rank", self.rank)


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


@dataclass(frozen=True)
class WarmupConfig:
    """A stage before the first: like the method's own first stage, on easier problems.

    Attributes:
        generate: Settings that replace those of `data.generate`, for example `{width: 1}`.
        epochs: Epochs at most.
        advance_at: Accuracy on easier problems at which it ends early; the epochs it leaves go to the last stage.
    """

    generate: dict[str, Any] = field(default_factory=dict)
    epochs: int = 1
    advance_at: float | None = None


@dataclass(frozen=True)
class DataConfig:
    """Problems to learn from and to validate on; never test problems.

    Attributes:
        task: Name of the task: it generates problems and grades answers.
        train: File of problems (JSON or JSONL); null to generate them.
        valid: File of problems for validation; null to set some of the train file aside, or to generate them.
        valid_share: Share of a train file that is set aside for validation, and never trained on, where valid is null;
            at most num_valid questions of it, which the seed chooses.
        num_train: Problems an epoch when generated.
        num_valid: Problems for validation when generated.
        fresh: Whether every epoch generates new problems.
        generate: Settings of the task's generator.
        valid_generate: Settings that replace those of `generate` for validation.
        warmup: An easier stage before the first, or null.
    """

    task: str = "prosqa"
    train: str | None = None
    valid: str | None = None
    valid_share: float = 0.1
    num_train: int = 1000
    num_valid: int = 200
    fresh: bool = False
    generate: dict[str, Any] = field(default_factory=dict)
    valid_generate: dict[str, Any] = field(default_factory=dict)
    warmup: WarmupConfig | None = None

    def __post_init__(self) -> None:
        for name in ("num_train", "num_valid"):
            _check_at_least(1, f"data.{name}", getattr(self, name))
        if not 0 < self.valid_share < 1:
            raise ConfigError(f"data.valid_share is {self.valid_share}; it is a share between 0 and 1.")
        if self.fresh and self.train:
            raise ConfigError("data.fresh generates problems and data.train reads a file; set one of the two.")
        if self.warmup and self.train:
            raise ConfigError("data.warmup generates easier problems; it does not go with a data.train file.")


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        learning_rate: Peak rate of AdamW.
        muon_learning_rate: Peak rate of Muon, which takes the decoder's weight matrices when optimizer is muon.
        optimizer: adamw, or muon (Muon for the decoder's matrices, AdamW for the rest).
        optimizer_reset: When the optimizer forgets: at every epoch (the released code), stage (the paper) or never.
        weight_decay: Of both optimizers.
        adam_beta2: AdamW's second moment decay.
        max_grad_norm: Gradients are scaled down to this norm; 0 for no limit.
        batch_size: Problems an optimizer step, over all devices: part of the recipe.
        device_batch_size: Problems a device takes at once; accumulation makes up the rest.
        batch_by_length: Whether problems of like lengths share a batch, which saves padding.
        gradient_checkpointing: Whether to compute activations again in place of keeping them: less memory, more time.
        lr_scheduler: Hugging Face's name of the schedule inside a stage: constant, linear, cosine, ...
        warmup_steps: Steps in which a stage's rate rises from 0.
        stage_learning_rate: Factor of the learning rate by stage name, for example `{final: 0.3}`.
        bf16: Autocast to bfloat16; null: on a GPU that has it.
        eval_max_new_tokens: Longest answer in validation, in tokens; null for what the longest expected text of the
            validation problems takes at each stage, with head room. Answers that are longer are cut, and counted.
        eval_batch_size: Questions a batch in validation.
        save_steps: Optimizer steps between checkpoints.
        logging_steps: Optimizer steps between log entries.
        report_to: Loggers beside metrics.jsonl: tensorboard, trackio, wandb.
        device: cpu, or null for the best device there is.
    """

    learning_rate: float = 1e-4
    muon_learning_rate: float = 0.02
    optimizer: Literal["adamw", "muon"] = "adamw"
    optimizer_reset: Literal["epoch", "stage", "never"] = "stage"
    weight_decay: float = 0.01
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    batch_size: int = 128
    device_batch_size: int = 32
    batch_by_length: bool = True
    gradient_checkpointing: bool = False
    lr_scheduler: str = "constant"
    warmup_steps: int = 0
    stage_learning_rate: dict[str, float] = field(default_factory=dict)
    bf16: bool | None = None
    eval_max_new_tokens: int | None = None
    eval_batch_size: int = 64
    save_steps: int = 500
    logging_steps: int = 10
    report_to: list[str] = field(default_factory=list)
    device: Literal["cpu"] | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "device_batch_size", "eval_batch_size"):
            _check_at_least(1, f"train.{name}", getattr(self, name))
        if self.eval_max_new_tokens is not None:
            _check_at_least(1, "train.eval_max_new_tokens", self.eval_max_new_tokens)
        for name in ("save_steps", "logging_steps"):
            _check_at_least(1, f"train.{name}", getattr(self, name))


def _check_at_least(low: int, name: str, value: int) -> None:
    if value < low:
        raise ConfigError(f"{name} is {value}; it must be at least {low}.")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on.

    Attributes:
        model: The model.
        data: The problems.
        curriculum: The method and its stages.
        train: The optimizer's settings.
        seed: Seeds weights, data and order.
        cost: What the recipe costs, for people.
        result: What the recipe reached, for people.
    """

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    cost: str = ""
    result: str = ""

    def __post_init__(self) -> None:
        if self.model.lora and self.train.optimizer == "muon":
            raise ConfigError("train.optimizer muon is for a model's own matrices; with model.lora take adamw.")
