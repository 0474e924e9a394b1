"""One stage of training: a `transformers.Trainer` that validates by answering, and never loses its last good state.

In: a model, the stage's data, validation problems. Out: checkpoints in the stage's folder, log entries, the best model.
Read next: `training/run.py`, which makes one of these a stage.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from cocot.data.collator import collate
from cocot.data.sampler import EpochSampler
from cocot.data.thought_targets import FOR_METHODS
from cocot.errors import ConfigError, RunError
from cocot.evaluation.evaluate import Prediction, compute_metrics, evaluate_together
from cocot.methods import CROSS_ENTROPY, Method
from cocot.methods.tokens import LATENT
from cocot.modeling.loading import load
from cocot.modeling.lora import adapter_weights, is_adapted
from cocot.modeling.method_modules import NAME as MODULES
from cocot.modeling.method_modules import without_modules
from cocot.modeling.shared_passes import can_share, enable_checkpointing
from cocot.modeling.thought_settings import thought_settings
from cocot.settings.typed import choose, short
from cocot.system.files import explained, new_folder
from cocot.system.manifest import write_manifest
from cocot.system.processes import largest
from cocot.training.callbacks import ACCURACY, CUT, MetricsCallback, StageCallback
from cocot.training.checkpoints import prune_checkpoints
from cocot.training.compatibility import check_overrides
from cocot.training.config import TrainConfig
from cocot.training.optimizers import build_optimizer, load_moments, load_whole_state, whole_state
from cocot.training.stage_job import StageJob

_KEPT_CHECKPOINTS = 2
OVERRIDDEN = (
    *("compute_loss", "create_optimizer", "create_scheduler", "evaluate", "log", "save_model"),
    *("_get_train_sampler", "_save_checkpoint", "_save_optimizer_and_scheduler"),
    *("_load_from_checkpoint", "_load_optimizer_and_scheduler"),
)
"""What `StageTrainer` replaces in transformers' Trainer."""
CALLED = {"_save": ("output_dir", "state_dict")}
"""What it calls there that is no promise of transformers, with the parameters that it passes."""


def check_trainer(base: type = Trainer) -> None:
    """Find out before any work whether `StageTrainer` fits the installed transformers.

    Raises:
        ConfigError: it does not; a method is gone, is not called any more, or takes other parameters.
    """
    check_overrides(StageTrainer, base, OVERRIDDEN, CALLED)


class StageTrainer(Trainer):
    """The Trainer of one stage.

    Validation generates answers; the optimizer is the recipe's; a checkpoint is written at the end of an epoch after
    its validation, every `save_steps`, and on an interrupt.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, job: StageJob) -> None:
        """Prepare the stage.

        Args:
            model: A model that was given thoughts.
            tokenizer: Its tokenizer.
            job: The stage, and all that belongs to it.
        """
        self.job, self._tokenizer = job, tokenizer
        self._terms: dict[str, Any] = {}  # of the loss, summed since the last log entry
        self._num_batches = 0  # as many were summed
        settings = thought_settings(model)
        super().__init__(
            model=model,
            args=_arguments(job, has_modules=hasattr(model, MODULES)),
            train_dataset=job.data,
            data_collator=partial(collate, pad_id=_pad_id(tokenizer), latent_id=settings.latent_id),
            processing_class=tokenizer,
        )
        self._shares_reading = not self.is_fsdp_enabled and _may_share_reading(model, job)
        if self._shares_reading:
            self.data_collator = partial(cast(Any, self.data_collator), shares_reading=True)
        if self.is_fsdp_enabled:
            num_splits = job.validation.num_thoughts if settings.filler == LATENT else 0
            self.data_collator = partial(cast(Any, self.data_collator), num_splits=num_splits)
        if job.config.gradient_checkpointing:
            enable_checkpointing(model)
        self.metrics_callback = MetricsCallback(job.run, job.planned.stage.name)
        self.add_callback(self.metrics_callback)
        self.remove_callback(PrinterCallback)
        self.stage_callback = StageCallback(job, self.accelerator.device, lambda: self.bare_optimizer)
        self.add_callback(self.stage_callback)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The sum of the terms that the method has; the cross-entropy is Hugging Face's, over all rows of a step."""
        output: Any = None

        def run(**more: Any) -> Any:
            nonlocal output
            forward: Any = super(StageTrainer, self).compute_loss
            read = {name: value for name, value in inputs.items() if name not in FOR_METHODS}
            loss, output = forward(model, {**read, **more}, True, num_items_in_batch)
            output["loss"] = loss
            return output

        bare: Any = self.accelerator.unwrap_model(model)
        terms = self.job.method.losses(run, bare, inputs)
        # Hugging Face sums the cross-entropy over the batches of a step; of all other terms their mean counts.
        share = 1 if num_items_in_batch is None else self.args.gradient_accumulation_steps
        weights = self.job.config.loss_weights
        terms = {
            name: term if name == CROSS_ENTROPY else weights.get(name, 1.0) / share * term
            for name, term in terms.items()
        }
        if len(terms) > 1:
            self._num_batches += 1
            for name, term in terms.items():
                self._terms[name] = self._terms.get(name, 0.0) + term.detach()
        total = sum(terms.values())
        if hasattr(bare, MODULES):  # processes wait for each other's gradients, of what a batch does not use, too
            total = total + 0.0 * sum(part.sum() for part in bare.method_modules.parameters())
        return (total, output) if return_outputs else total

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The recipe's optimizer at this stage's rates."""
        if self.optimizer is None:
            own = build_optimizer(cast(Any, self.model), self.job.config, self.job.planned.learning_rate_factor)
            self.optimizer = self.bare_optimizer = own
        return self.optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Hugging Face's, once the optimizer knows its weights and has the moments of the stage before."""
        if self.job.earlier_moments is not None:
            load_moments(self.bare_optimizer, _read(self.job.earlier_moments, maps=self.is_fsdp_enabled))
        return super().create_scheduler(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        config = self.job.config
        together = self.job.batches.per_device if self._shares_reading else 1
        return EpochSampler(self.job.data, str(self.args.seed), config.batch_size, config.batch_by_length, together)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Hugging Face's log; stops at a loss that is not a number. Looking at every step would make a device wait."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise self._diverged(f"the loss is {logs['loss']}", self.state.global_step)
        if "loss" in logs and self._terms:
            logs |= self._mean_terms()
        super().log(logs, *args, **kwargs)

    def _mean_terms(self) -> dict[str, float]:
        """Each term of the loss, its mean over the steps since they were last logged."""
        num_steps = self._num_batches / self.args.gradient_accumulation_steps
        names = [f"loss_{name}" for name in self._terms]
        sums = torch.stack([*self._terms.values()])
        self._terms, self._num_batches = {}, 0
        means: Any = self.accelerator.reduce(sums / num_steps, "mean")
        return dict(zip(names, means.tolist(), strict=True))

    def _diverged(self, what: str, step: int) -> RunError:
        return RunError(
            f"{what} in {self.job.planned.stage.name} by step {step}; what was saved before is kept in "
            f"{self.job.run.path}. Lower train.learning_rate or train.max_grad_norm, in another --out folder."
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Answer the validation questions; keep the model if it is the last stage's best, end the stage if it may."""
        began = time.perf_counter()
        summary = compute_metrics(self._validate())
        is_trained = self.state.global_step > 0
        best_before = max((entry[ACCURACY] for entry in self._validations()), default=-1.0)
        if self.job.keeps_best and is_trained and summary.accuracy > best_before:
            self._save_best()
        metrics = {
            ACCURACY: summary.accuracy,
            CUT: summary.cut,
            "eval_tokens": summary.tokens,
            "eval_seconds": time.perf_counter() - began,
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if is_trained and self.job.planned.is_over(self.state.epoch, summary.accuracy):
            self.control.should_training_stop = True
        return metrics

    def _validations(self) -> list[dict[str, float]]:
        """The validations of this stage, but for one before its first step."""
        return [entry for entry in self.state.log_history if ACCURACY in entry and entry["step"] > 0]

    def _save_best(self) -> None:
        """The model to the run's `best/`; not by Trainer.save_model, which adds a pickle."""
        weights = self._whole_weights() if self.is_fsdp_enabled else None
        if not self.is_world_process_zero():
            return
        model: Any = self.accelerator.unwrap_model(self.model)
        if hasattr(model, MODULES) and not self.job.method.keeps_modules:
            weights = without_modules(model.state_dict())
        with new_folder(self.job.run.best) as folder:
            model.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))
            self._tokenizer.save_pretrained(folder)
            write_manifest(folder)

    def _validate(self) -> list[Prediction]:
        return evaluate_together(
            self.accelerator.unwrap_model(self.model),
            self._tokenizer,
            self.job.validation.task,
            self.job.validation.problems,
            num_thoughts=self.job.validation.num_thoughts,
            batch_size=self.job.config.eval_batch_size,
            max_new_tokens=self.job.validation.max_new_tokens,
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Hugging Face's checkpoint, declared whole once it is; the ones before it go only then."""
        trained = (part for part in model.parameters() if part.requires_grad)
        if largest(self.accelerator.device, not _are_finite(trained))[0]:
            raise self._diverged("the weights are no longer numbers", self.state.global_step)
        self.job.run.must_be_in_place()
        folder = self.job.folder / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)  # half-written, before a kill
        self.accelerator.wait_for_everyone()
        try:
            with explained(folder):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # every process adds its random state
                if self.is_world_process_zero():
                    write_manifest(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if self.is_world_process_zero():
            prune_checkpoints(folder, keep=_KEPT_CHECKPOINTS)

    # What processes share (FSDP) is written as one process would write it: any number of them can resume from there.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Hugging Face's folder."""
        if self.is_fsdp_enabled:
            self._save(output_dir, state_dict=self._whole_weights())
        else:
            super().save_model(output_dir, _internal_call)

    def _whole_weights(self) -> dict[str, torch.Tensor]:
        """The weights, gathered in the first process; all must ask."""
        if is_adapted(self.model):  # what is frozen stays where it is
            trained = {name: part for name, part in cast(Any, self.model).named_parameters() if part.requires_grad}
            return whole_state(trained, keeps=self.is_world_process_zero())
        state: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.model)
        names = dict(cast(Any, self.model).named_parameters(remove_duplicate=False))
        tied = names.keys() - dict(cast(Any, self.model).named_parameters())
        return {name: weight for name, weight in state.items() if name not in tied}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_state(self.bare_optimizer.state_dict(), keeps=self.is_world_process_zero())
        if self.is_world_process_zero():
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            load_whole_state(self.bare_optimizer, _read(Path(checkpoint) / OPTIMIZER_NAME, maps=True))
            cast(Any, self.lr_scheduler).load_state_dict(_read(Path(checkpoint) / SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        state = self._saved_weights(Path(resume_from_checkpoint)) if self.is_world_process_zero() else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=not is_adapted(self.model))
        set_model_state_dict(cast(Any, self.model), cast(Any, state), options=options)

    def _saved_weights(self, checkpoint: Path) -> dict[str, torch.Tensor]:
        """What a checkpoint holds, by the model's names: all weights, or those of an adapter."""
        if is_adapted(self.model):
            return adapter_weights(self.model, checkpoint)
        return dict(load(checkpoint)[0].state_dict())


def _arguments(job: StageJob, has_modules: bool) -> TrainingArguments:
    config = job.config
    arguments = TrainingArguments(
        output_dir=str(job.folder),
        num_train_epochs=job.planned.stage.num_epochs,
        per_device_train_batch_size=job.batches.per_device,
        gradient_accumulation_steps=job.batches.accumulation,
        learning_rate=config.learning_rate * job.planned.learning_rate_factor,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        bf16=uses_bf16(config),
        use_cpu=config.device == "cpu" or not torch.accelerator.is_available(),
        eval_on_start=job.validates_first,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=config.report_to or "none",
        remove_unused_columns=False,
        disable_tqdm=True,
        # The modules of a method are used outside of `forward`, where DDP does not look for what is unused.
        ddp_find_unused_parameters=False if has_modules else None,
        seed=job.seed,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else Trainer splits batches over all GPUs in one process: DataParallel
    if arguments.n_gpu > 1:
        raise ConfigError(f"this process sees {arguments.n_gpu} GPUs and trains on one; set CUDA_VISIBLE_DEVICES=0.")
    return arguments


def _may_share_reading(model: Any, job: StageJob) -> bool:
    """Whether the model can read a text once for several questions, and the loss needs no batch of a row a question."""
    takes_any = type(job.method).losses is Method.losses or job.method.takes_shared_readings
    return can_share(model) and model.thought_passes.training == "shared" and takes_any


def check_reporters(config: TrainConfig) -> None:
    """Refuse loggers that are not there, before anything is trained.

    Raises:
        ConfigError: `train.report_to` names one that is not installed, or that Hugging Face does not know.
    """
    available: Any = get_available_reporting_integrations  # has no annotations
    for name in config.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ConfigError(f"train.report_to names {short(name)}; {choose(name, INTEGRATION_TO_CALLBACK)}")
        if name not in available():
            raise ConfigError(f"train.report_to names {name}, which is not installed; pip install it.")


def uses_bf16(config: TrainConfig) -> bool:
    """Whether to autocast: as the recipe says, by default on a GPU that has bfloat16."""
    if config.bf16 is not None:
        return config.bf16
    return config.device != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def _are_finite(parameters: Iterable[torch.Tensor]) -> bool:
    """Whether all numbers of this process's share are; the device is waited for once."""
    found = [_local(part).isfinite().all() for part in parameters]
    return bool(torch.stack(found).all())


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """This process's share of a parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _read(file: Path, maps: bool = False) -> Any:
    """What `torch.save` wrote; `maps` reads from the file only what is used: of shares, the first process's."""
    return torch.load(file, map_location="cpu", weights_only=True, mmap=maps)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
