"""What a method is: how it trains a model to reason before it answers. The interface, its settings, the registry.

A method is one object of a subclass of `Method`, in one file, and a branch nowhere else. It says what stands in the
place of a written step, how a stage removes steps, which terms the loss has and from which forward passes, which
modules of its own it trains and whether they stay, and how many thoughts an answer takes. Every answer has a default:
that of Coconut.

    @register
    class Mine(Method):
        name, summary, filler = "mine", "Coconut with a term of my own in the loss", LATENT

        def losses(self, run, model, batch):
            ...

A method outside of this package is registered by the same decorator; an installed package can also name such a class
as an entry point of the group `cocot.methods`.
Read next: `methods/coconut.py`; `data/examples.py` (a method's problems in tokens), `training/trainer.py` (its loss).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import chain
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from cocot.errors import ConfigError
from cocot.methods.phases import Phase
from cocot.registry import Registry
from cocot.settings.typed import check_numbers, choose, number

if TYPE_CHECKING:
    from torch import Tensor, nn

_MOST = 1_000_000
CROSS_ENTROPY = "cross_entropy"
"""The name of the term that every method has: minus the log of the probability of the text after the thoughts."""
PROJECTION = "projection"
"""A part of this name, of a method's modules, is applied to every thought before it is fed back."""
STOP = "stop"
"""A part of this name decides after every thought whether it was the last; also the name of the term it learns by."""


class Asked(Enum):
    """What a method's loss can ask of a problem, beyond its text."""

    FRONTIERS = "the words that are right after each thought, in the batch as `thought_targets`"
    STEPS = "the written step that each thought stands for: `removed_steps` and `removed_thoughts`"
    STOPS = "after which thoughts to stop: `stop_targets`"
    SOLUTIONS = "the problem written out in words: `written`, and in both batches `answer_prompts`"


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of training with a fixed amount of removed reasoning.

    Attributes:
        name: Name of the stage's folder and of its log entries.
        index: The paper's k: steps (icot: portions of tokens) removed, and thoughts divided by thoughts_per_step.
        is_final: Whether no text steps are left, however many a problem has.
        num_epochs: Epochs at most.
        mixture: Stages that its examples are drawn from, each with its weight; empty for the stage itself.
    """

    name: str
    index: int
    is_final: bool
    num_epochs: int
    mixture: tuple[tuple[Stage, float], ...] = ()


class Method:
    """How a model is trained to reason. Subclass it, say what differs from Coconut, and `register` the class.

    Attributes:
        name: By which recipes and the command line know it.
        summary: One line for readers.
        filler: Token in the place of removed reasoning; None for nothing. `<|latent|>` is fed by the thought before it,
            `<|pause|>` by its own embedding.
        has_stages: Whether stages follow one another, each of which may read earlier ones (`stage_mix`).
        needs_steps: Whether there is nothing to learn where no problem has written steps.
        keeps_modules: Whether the result keeps the method's own modules; else they serve in training alone.
        shares_first_stage: Whether a stage that removes nothing is the same training as that of the other methods
            that say so and that agree on having a filler: `cocot compare` then trains it once. Each class says so for
            itself: a subclass, which may change anything, does not inherit it.
        takes_shared_readings: Whether `losses`, where a method has its own, takes batches in which a row holds several
            questions about one text.
        mixes_words: Whether a thought is a mixture of word embeddings and not a hidden state.
        stops_at_end: Whether the thoughts of an answer end with the first behind which the token that follows them is
            the likeliest.
        asks: What `losses` finds in its batch besides what every method reads.
        terms: Names of the terms of its loss besides the cross-entropy: `train.loss_weights` may weigh them.
    """

    name: str = ""
    summary: str = ""
    filler: str | None = None
    has_stages: bool = True
    needs_steps: bool = True
    keeps_modules: bool = False
    shares_first_stage: bool = False
    takes_shared_readings: bool = False
    mixes_words: bool = False
    stops_at_end: bool = False
    asks: frozenset[Asked] = frozenset()
    terms: tuple[str, ...] = ()

    def stages(self, config: CurriculumConfig) -> list[Stage]:
        """The stages of a run, in order: words, then one more step removed at each, then no words at all."""
        later = [Stage(f"stage_{index}", index, False, epochs) for index, epochs in enumerate(config.stage_epochs, 1)]
        first = Stage("stage_0", 0, False, config.num_first_epochs)
        final = Stage("final", config.max_stage, True, config.final_epochs)
        return [stage for stage in (first, *later, final) if stage.num_epochs > 0]

    def stage_for(self, stage: Stage, config: CurriculumConfig) -> Stage:
        """What the method does in a phase for which the recipe names `stage`: all methods see a phase's problems."""
        return stage

    def steps_left(
        self, steps: Sequence[Sequence[int]], index: int, config: CurriculumConfig, chance: Random
    ) -> list[int]:
        """The token ids of the written chain that a stage which is not final leaves.

        Args:
            steps: Token ids of each step.
            index: The stage's.
            config: The curriculum.
            chance: The only source of chance to use.
        """
        return list(chain.from_iterable(steps[index:]))

    def describe_left(self, stage: Stage, config: CurriculumConfig) -> str:
        """What a stage leaves of the written chain, for the printed schedule."""
        if stage.is_final:
            return "none"
        return f"all but {stage.index}" if stage.index else "all"

    def num_thoughts(self, num_steps: int, index: int, config: CurriculumConfig) -> int:
        """Thoughts (or pauses) of a problem with `num_steps` written steps at a stage."""
        if self.filler is None:
            return 0
        return (index if config.pad_thoughts else min(index, num_steps)) * config.thoughts_per_step

    def draw_thoughts(self, num_steps: int, index: int, config: CurriculumConfig, chance: Random) -> int:
        """`num_thoughts` of a training example, where a method draws it."""
        return self.num_thoughts(num_steps, index, config)

    def targets(self, said: tuple[int, ...], step: Sequence[int], follows: int, tokenizer: Any) -> tuple[int, ...]:
        """The ids that are right after a thought, where the loss asks for `FRONTIERS`: by default what the task says.

        Args:
            said: What the task says (`Task.frontiers`); empty where it says nothing.
            step: Token ids of the step that the thought stands for; empty beyond the problem's last.
            follows: The id of the token behind all thoughts, if no text is left.
            tokenizer: The model's.
        """
        return said

    def num_answer_thoughts(self, config: CurriculumConfig) -> int:
        """Thoughts (or pauses) before an answer once training is over."""
        return config.max_stage * config.thoughts_per_step if self.filler else 0

    def iterations(self, config: CurriculumConfig) -> int | None:
        """How often all thoughts are refined together; None where each follows from the one before it."""
        return None

    def modules(self, model: Any) -> nn.Module | None:
        """Modules that are trained beside the model, newly made; afterwards they are `model.method_modules`.

        Their part `PROJECTION`, if there is one, is a part of what a thought is; their part `STOP` ends the thoughts.

        Args:
            model: The model, with thoughts; not to be changed.
        """
        return None

    def check(self, model: Any) -> None:
        """Refuse a model that the losses cannot train, before anything is trained; by default none.

        Args:
            model: The model, with thoughts, as the run begins with it.

        Raises:
            ModelError: with the reason.
        """

    def losses(self, run: Callable[..., Any], model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The terms of the loss of one batch, by name; their sum, weighed by `train.loss_weights`, is minimised.

        Args:
            run: `run(**more)` is the model's forward pass over the batch, with further arguments of it such as
                `thought_hook`; what it returns has the cross-entropy as `loss`, to be passed on as it is.
            model: The model, to run further passes of it; its `method_modules` are those of `modules`.
            batch: As `data.collator.collate` makes it, on the model's device.

        Returns:
            `cross_entropy` as `run` gives it, and any other terms: each a mean over the rows of this batch.
        """
        return {CROSS_ENTROPY: run().loss}


def draw_enough_thoughts(num_steps: int, index: int, config: CurriculumConfig, chance: Random) -> int:
    """A number drawn evenly from as many as the problem's steps take to as many as the stage has.

    So the answer is learned behind each number of thoughts that is enough.
    """
    return chance.randint(min(num_steps, index), index) * config.thoughts_per_step


def with_thoughts(run: Callable[..., Any]) -> tuple[Any, list[Tensor]]:
    """A forward pass as `Method.losses` is given it, or what makes one, and its thoughts as they are fed back.

    Returns:
        What `run` returns; the thoughts in order, each (rows, examples of a row, width).
    """
    thoughts: list[Tensor] = []

    def keep(number: int, thought: Tensor) -> Tensor:
        thoughts.append(thought)
        return thought

    return run(thought_hook=keep), thoughts


class OneStage(Method):
    """A method without a curriculum: all epochs in one stage, which leaves no written step."""

    has_stages = False
    needs_steps = False

    def stages(self, config: CurriculumConfig) -> list[Stage]:
        """The final stage alone."""
        return [Stage("final", config.max_stage, True, config.num_epochs)]

    def stage_for(self, stage: Stage, config: CurriculumConfig) -> Stage:
        """The final stage in every phase."""
        return replace(stage, index=config.max_stage, is_final=True, mixture=())


METHODS: Registry[Method] = Registry("method", "cocot.methods")
MethodClass = TypeVar("MethodClass", bound=type[Method])


def register(kind: MethodClass) -> MethodClass:
    """Make a method known by its name; a decorator for its class, which raises as `Registry.register_class`."""
    METHODS.register_class(kind)
    return kind


@dataclass(frozen=True)
class CurriculumConfig:
    """How reasoning is replaced over the course of training.

    Attributes:
        method: Name of a method: cot, no_cot, icot, pause, coconut, coconut_no_curriculum, no_thought,
            pause_as_thought, or one that was registered.
        thoughts_per_step: Thoughts that replace one step (the paper's c).
        max_stage: Last stage that removes one step more than the stage before it.
        epochs_per_stage: Epochs of each of the stages 1 to max_stage, or a list of them, one a stage; 0 for no stage.
        first_epochs: Epochs of stage 0, the chain of thought in words; null for as many as stage 1.
        final_epochs: Epochs of the final stage, which keeps no text steps; 0 for no such stage.
        pad_thoughts: Whether a problem with fewer steps than the stage still gets all the stage's thoughts.
        stage_mix: Probability that an example is encoded at an earlier stage, drawn uniformly.
        advance_at: Validation accuracy at which a stage ends early; the epochs it leaves go to the last stage, so every
            method sees the same number of problems. null: stages end by epochs alone.
        phases: Phases before the stages, in order: on easier problems, at any stage or mixture of stages.
        start_marker: Whether `<|start-latent|>` stands before the thoughts. A very small model learns sooner when
            the first thought follows the last token of the question directly.
        end_marker: Whether `<|end-latent|>` stands behind the thoughts. Without both markers a thought stands exactly
            where the next word of the chain would stand, and the state that becomes the next thought is the one that
            would write that word: what a model has learned in words serves its thoughts.
        icot_tokens_per_stage: Tokens that each stage of icot removes.
        pccot_iterations: How often pccot refines all its thoughts together.
        icot_smoothing: icot removes o further tokens with probability proportional to exp(-icot_smoothing * o).
    """

    method: str = "coconut"
    thoughts_per_step: int = number(1, low=1, high=_MOST)
    max_stage: int = number(6, low=0, high=10_000)
    epochs_per_stage: int | list[int] = number(5, low=0, high=_MOST)
    first_epochs: int | None = number(None, low=0, high=_MOST)
    final_epochs: int = number(0, low=0, high=_MOST)
    pad_thoughts: bool = True
    stage_mix: float = number(0.0, low=0, high=1)
    advance_at: float | None = number(None, low=0, high=1)
    phases: list[Phase] = field(default_factory=list)
    start_marker: bool = True
    end_marker: bool = True
    icot_tokens_per_stage: int = number(8, low=1, high=_MOST)
    pccot_iterations: int = number(3, low=0, high=_MOST)
    icot_smoothing: float = number(4.0, above=0, high=1e12)

    def __post_init__(self) -> None:
        method = METHODS[self.method]
        check_numbers(self, "curriculum")
        if len(self.stage_epochs) != self.max_stage:
            raise ConfigError(
                f"curriculum.epochs_per_stage is {self.epochs_per_stage}; it must be a whole number, or a list of "
                f"{self.max_stage} of them, one for each of the stages 1 to max_stage."
            )
        if not any(stage.num_epochs for stage in method.stages(self)):
            raise ConfigError(
                "the curriculum has no stage with epochs after its phases; set epochs_per_stage, first_epochs or "
                "final_epochs above 0."
            )
        names = list(self._stages_by_name)
        for index, phase in enumerate(self.phases):
            self._check_phase(phase, f"curriculum.phases[{index}]", names)
            names.append(phase.name)

    def _check_phase(self, phase: Phase, where: str, taken: Sequence[str]) -> None:
        if phase.name in taken:
            raise ConfigError(f"{where}.name is {phase.name!r}, as another phase or stage is called; choose another.")
        known = self._stages_by_name
        if unknown := [name for name in phase.stages if name not in known]:
            raise ConfigError(f"{where}.stages names {unknown[0]!r}; {choose(unknown[0], known)}")
        other = METHODS[phase.method or self.method]
        ways = [(method.filler, method.mixes_words, method.iterations(self)) for method in (other, self.chosen)]
        if ways[0] != ways[1] or (phase.method and type(other).modules is not Method.modules):
            raise ConfigError(
                f"{where}.method is {phase.method!r}, which does not think as {self.method!r} does; name a method with "
                f"the same token in the place of a thought ({self.chosen.filler}), fed in the same way, and without "
                "modules of its own."
            )

    @property
    def _stages_by_name(self) -> dict[str, Stage]:
        """Every stage that a phase can name; without epochs."""
        stages = [Stage(f"stage_{index}", index, False, 0) for index in range(self.max_stage + 1)]
        return {stage.name: stage for stage in (*stages, Stage("final", self.max_stage, True, 0))}

    def stage_of(self, phase: Phase) -> Stage:
        """A phase as a stage of the method: it is asked to answer as at the last of the stages that it mixes."""
        known = self._stages_by_name
        parts = tuple((known[name], weight) for name, weight in phase.stages.items())
        mixture = tuple((self.chosen.stage_for(stage, self), weight) for stage, weight in parts)
        last = max(parts, key=lambda part: (part[0].is_final, part[0].index))[0]
        whole = replace(last, name=phase.name, num_epochs=phase.epochs, mixture=mixture if len(mixture) > 1 else ())
        return self.chosen.stage_for(whole, self)

    @property
    def chosen(self) -> Method:
        """The method itself."""
        return METHODS[self.method]

    @property
    def stages(self) -> list[Stage]:
        """The stages of a run, in order."""
        return self.chosen.stages(self)

    @property
    def stage_epochs(self) -> list[int]:
        """Epochs of the stages 1 to max_stage."""
        epochs = self.epochs_per_stage
        return epochs if isinstance(epochs, list) else [epochs] * self.max_stage

    @property
    def num_first_epochs(self) -> int:
        """Epochs of stage 0."""
        return next(iter(self.stage_epochs), 1) if self.first_epochs is None else self.first_epochs

    @property
    def num_epochs(self) -> int:
        """Epochs of all stages after the phases: as many for every method."""
        return self.num_first_epochs + sum(self.stage_epochs) + self.final_epochs

    @property
    def num_thoughts(self) -> int:
        """Thoughts (or pauses) before the answer once training is over."""
        return self.chosen.num_answer_thoughts(self)
