"""The typed settings of a run. A recipe is a YAML file of exactly these fields.

In: nothing. Out: `RunConfig`, which `cocot train RECIPE --train.learning_rate 1e-4` fills and the run folder keeps.
Read next: `recipes/*.yaml`; `methods/base.py` for the fields under `curriculum`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from cocot.errors import ConfigError
from cocot.methods import METHODS, CurriculumConfig
from cocot.modeling.config import ModelConfig
from cocot.settings.typed import check_numbers, choose, number

_MOST = 1_000_000_000
"""The most of anything that is counted in problems, tokens, steps or epochs."""


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
    """

    task: str = "prosqa"
    train: str | None = None
    valid: str | None = None
    valid_share: float = number(0.1, low=0.001, high=0.999)
    num_train: int = number(1000, low=1, high=_MOST)
    num_valid: int = number(200, low=1, high=_MOST)
    fresh: bool = False
    generate: dict[str, Any] = field(default_factory=dict)
    valid_generate: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_numbers(self, "data")
        _check_generate("data.generate", self.generate)
        _check_generate("data.valid_generate", self.valid_generate)
        if self.fresh and self.train:
            raise ConfigError("data.fresh generates problems and data.train reads a file; set one of the two.")


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
        lr_scheduler: Hugging Face's name of the schedule inside a stage.
        warmup_steps: Steps in which a stage's rate rises from 0.
        stage_learning_rate: Factor of the learning rate by stage name, for example `{final: 0.3}`.
        loss_weights: Weights of the terms of the method's loss besides the cross-entropy, for example
            `{distillation: 20}`; 1 where nothing is said. Terms of other methods may be named, too.
        bf16: Autocast to bfloat16; null: on a GPU that has it.
        eval_max_new_tokens: Longest answer in validation, in tokens; null for what the longest expected text of the
            validation problems takes at each stage, with head room. Answers that are longer are cut, and counted.
        eval_batch_size: Questions a batch in validation.
        save_steps: Optimizer steps between checkpoints.
        logging_steps: Optimizer steps between log entries.
        report_to: Loggers beside metrics.jsonl: tensorboard, trackio, wandb.
        device: cpu, or null for the best device there is.
    """

    learning_rate: float = number(1e-4, above=0, high=1000)
    muon_learning_rate: float = number(0.02, above=0, high=1000)
    optimizer: Literal["adamw", "muon"] = "adamw"
    optimizer_reset: Literal["epoch", "stage", "never"] = "stage"
    weight_decay: float = number(0.01, low=0, high=1000)
    adam_beta2: float = number(0.999, low=0, high=0.9999999)
    max_grad_norm: float = number(1.0, low=0, high=_MOST)
    batch_size: int = number(128, low=1, high=_MOST)
    device_batch_size: int = number(32, low=1, high=_MOST)
    batch_by_length: bool = True
    gradient_checkpointing: bool = False
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "inverse_sqrt"
    ] = "constant"
    warmup_steps: int = number(0, low=0, high=_MOST)
    stage_learning_rate: dict[str, float] = number(dict, low=0, high=1e30)
    loss_weights: dict[str, float] = number(dict, low=0, high=1e30)
    bf16: bool | None = None
    eval_max_new_tokens: int | None = number(None, low=1, high=_MOST)
    eval_batch_size: int = number(64, low=1, high=_MOST)
    save_steps: int = number(500, low=1, high=_MOST)
    logging_steps: int = number(10, low=1, high=_MOST)
    report_to: list[str] = field(default_factory=list)
    device: Literal["cpu"] | None = None

    def __post_init__(self) -> None:
        check_numbers(self, "train")
        known = sorted({term for method in METHODS.values() for term in method.terms})
        if unknown := [name for name in self.loss_weights if name not in known]:
            raise ConfigError(f"train.loss_weights names {unknown[0]!r}; {choose(unknown[0], known)}")


def _check_generate(name: str, settings: dict[str, Any]) -> None:
    """Refuse what is not the generator's to set: `count` and `seed` follow from the run."""
    if taken := sorted({"count", "seed"} & settings.keys()):
        raise ConfigError(f"{name} sets {', '.join(taken)}; set data.num_train, data.num_valid or seed instead.")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on.

    Attributes:
        model: The model.
        data: The problems.
        curriculum: The method and its stages.
        train: The optimizer's settings.
        seed: Seeds weights, data and order.
        cost: What the recipe costs, human-readable.
        result: What the recipe reached, human-readable.
    """

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = number(0, low=0, high=2**31 - 1)
    cost: str = ""
    result: str = ""

    def __post_init__(self) -> None:
        check_numbers(self, "")
        generating = [phase.name for phase in self.curriculum.phases if phase.generate or phase.earlier]
        if generating and self.data.train:
            raise ConfigError(
                f"the phase {generating[0]} generates problems or reads earlier ones, and data.train reads a file; set "
                "data.train null, or leave generate and earlier out of curriculum.phases."
            )
        if self.model.lora and self.train.optimizer == "muon":
            raise ConfigError("train.optimizer muon is for a model's own matrices; with model.lora take adamw.")
