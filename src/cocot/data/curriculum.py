"""Method x stage x problem -> token ids, labels and placeholders.

Every method of the paper's Table 1 is one row of `METHODS` and a branch nowhere else. A row says two things: what
stands in the place of removed reasoning (`filler`) and how reasoning is removed (`removal`).

In: a problem in token ids, a tokenizer, a stage. Out: an `Example`, ready for `batching.collate`.

    config = CurriculumConfig(method="coconut", max_stage=3, epochs_per_stage=5, final_epochs=10)
    encoder = Encoder(config, tokenizer)
    example = encoder(tokenize(problem, tokenizer), schedule(config)[2], Random(0))

Layout (arXiv 2412.06769, section 4): question, newline, `<|start-latent|>` thoughts `<|end-latent|>`, the steps that
are left, a line each, `### ` answer, end of text. Loss falls only on the text after the thoughts.
Read next: `data/encoding.py` (text -> token ids), `data/batching.py` (examples -> tensors), `training/config.py` (a whole run's settings).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field
from itertools import chain
from random import Random
from typing import Any, Literal, Protocol

from cocot.errors import ConfigError
from cocot.settings.typed import check_numbers, choose, number

_MOST = 1_000_000
LATENT = "<|latent|>"
START = "<|start-latent|>"
END = "<|end-latent|>"
PAUSE = "<|pause|>"
SPECIAL_TOKENS = (START, END, LATENT)
ANSWER_MARK = "###"
IGNORED = -100
"""The label that PyTorch's cross-entropy leaves out."""

Removal = Literal["none", "all", "steps", "tokens"]


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the paper's Table 1.

    Attributes:
        filler: Token that stands for removed reasoning; None for nothing. `<|latent|>` is fed by the thought before it,
            `<|pause|>` by its own embedding.
        removal: What a stage removes from the written chain: nothing, everything, the first steps, the first tokens.
        summary: One line for people.
    """

    filler: str | None
    removal: Removal
    summary: str


METHODS: dict[str, Method] = {
    "cot": Method(None, "none", "chain of thought in words"),
    "no_cot": Method(None, "all", "the answer at once"),
    "icot": Method(None, "tokens", "internalised chain of thought: tokens removed little by little"),
    "pause": Method(PAUSE, "all", "pause tokens before the answer, no curriculum"),
    "coconut": Method(LATENT, "steps", "thoughts replace the steps, stage by stage"),
    "coconut_no_curriculum": Method(LATENT, "all", "thoughts before the answer, no curriculum"),
    "no_thought": Method(None, "steps", "the curriculum of coconut with nothing in the place of the steps"),
    "pause_as_thought": Method(PAUSE, "steps", "the curriculum of coconut with pause tokens for thoughts"),
}


@dataclass(frozen=True)
class CurriculumConfig:
    """How reasoning is replaced over the course of training.

    Attributes:
        method: Row of the table: cot, no_cot, icot, pause, coconut, coconut_no_curriculum, no_thought,
            pause_as_thought.
        thoughts_per_step: Thoughts that replace one step (the paper's c).
        max_stage: Last stage that removes one step more than the stage before it.
        epochs_per_stage: Epochs of each of the stages 1 to max_stage; or a list of them, one a stage.
        first_epochs: Epochs of stage 0, the chain of thought in words; null for as many as stage 1.
        final_epochs: Epochs of the final stage, which keeps no text steps; 0 for no such stage.
        pad_thoughts: Whether a problem with fewer steps than the stage still gets all the stage's thoughts.
        stage_mix: Probability that an example is encoded at an earlier stage, drawn uniformly.
        advance_at: Validation accuracy at which a stage ends early; the epochs it leaves go to the last stage, so every
            method sees the same number of problems. null: stages end by the clock.
        start_marker: Whether `<|start-latent|>` stands before the thoughts. A very small model learns sooner when
            the first thought follows the last token of the question directly.
        icot_tokens_per_stage: Tokens that each stage of icot removes.
        icot_smoothing: icot removes o further tokens with probability proportional to exp(-icot_smoothing * o).
    """

    method: str = "coconut"
    thoughts_per_step: int = number(1, low=1, high=_MOST)
    max_stage: int = number(6, low=0, high=10_000)
    epochs_per_stage: int | list[int] = number(5, low=1, high=_MOST)
    first_epochs: int | None = number(None, low=0, high=_MOST)
    final_epochs: int = number(0, low=0, high=_MOST)
    pad_thoughts: bool = True
    stage_mix: float = number(0.0, low=0, high=1)
    advance_at: float | None = number(None, low=0, high=1)
    start_marker: bool = True
    icot_tokens_per_stage: int = number(8, low=1, high=_MOST)
    icot_smoothing: float = number(4.0, above=0, high=1e12)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"unknown method {self.method!r}; {choose(self.method, METHODS)}")
        check_numbers(self, "curriculum")
        if len(self.stage_epochs) != self.max_stage:
            raise ConfigError(
                f"curriculum.epochs_per_stage is {self.epochs_per_stage}; it must be a whole number, or a list of "
                f"{self.max_stage} of them, one for each of the stages 1 to max_stage."
            )
        if not schedule(self):
            raise ConfigError("the curriculum has no epochs; set max_stage, first_epochs or final_epochs above 0.")

    @property
    def stage_epochs(self) -> list[int]:
        """Epochs of the stages 1 to max_stage."""
        epochs = self.epochs_per_stage
        return epochs if isinstance(epochs, list) else [epochs] * self.max_stage

    @property
    def row(self) -> Method:
        """The method's row of the table."""
        return METHODS[self.method]

    @property
    def num_thoughts(self) -> int:
        """Thoughts (or pauses) before the answer once training is over."""
        return self.max_stage * self.thoughts_per_step if self.row.filler else 0


@dataclass(frozen=True, slots=True)
class Stage:
    """One stretch of training with a fixed amount of removed reasoning.

    Attributes:
        name: Name of the stage's folder and of its log entries.
        index: The paper's k: steps (icot: portions of tokens) removed, and thoughts divided by thoughts_per_step.
        is_final: Whether no text steps are left, however many a problem has.
        num_epochs: Epochs by the clock.
    """

    name: str
    index: int
    is_final: bool
    num_epochs: int


def schedule(config: CurriculumConfig) -> list[Stage]:
    """The stages of a run, in order. Methods without a curriculum get all epochs in one stage."""
    later = config.stage_epochs
    first = next(iter(later), 1) if config.first_epochs is None else config.first_epochs
    total = first + sum(later) + config.final_epochs
    if config.row.removal == "none":
        return [Stage("stage_0", 0, False, total)]
    if config.row.removal == "all":
        return [Stage("final", config.max_stage, True, total)]
    stages = [Stage("stage_0", 0, False, first)]
    stages += [Stage(f"stage_{index}", index, False, epochs) for index, epochs in enumerate(later, start=1)]
    stages.append(Stage("final", config.max_stage, True, config.final_epochs))
    return [stage for stage in stages if stage.num_epochs > 0]


@dataclass(frozen=True)
class ThoughtSettings:
    """What a model must know to be asked: saved in its `config.json` under `thoughts`.

    Attributes:
        latent_id: Token id of the placeholder `<|latent|>`.
        filler: Token that the model was trained to think with; None if it was trained to think in words or not at all.
        num_thoughts: How many of them it was trained to need before the answer; None for a model not trained here.
        start_marker: Whether `<|start-latent|>` stands before them.
        task: Name of the task that it was trained for, which grades its answers; None where that is not known.
        recomputes: Of an exported model: whether every thought reads all columns anew (see `modeling/self_test.py`).
    """

    latent_id: int = number(MISSING, low=0)
    filler: str | None = LATENT
    num_thoughts: int | None = number(None, low=0, high=_MOST)
    start_marker: bool = True
    task: str | None = None
    recomputes: bool = False

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

    def __call__(self, text: list[str], *, add_special_tokens: bool, split_special_tokens: bool) -> Any:
        """`input_ids` of texts."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> Any:
        """The text of ids."""

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Id of one token, or ids of several."""

    def __hash__(self) -> int:
        """What is known of a tokenizer is kept."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A problem's pieces as token ids: cut once, put together anew at every stage."""

    question: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A problem as the model reads it at one stage.

    Attributes:
        input_ids: Prompt (question, thoughts, markers), then the text that is learned.
        labels: `input_ids` where there is loss, -100 elsewhere; same length.
        prompt_length: Tokens before the text that is learned: the column at which batches are aligned.
        num_thoughts: Thoughts or pauses in the prompt.
    """

    input_ids: list[int]
    labels: list[int]
    prompt_length: int
    num_thoughts: int


def prompt(question: Sequence[int], num_thoughts: int, settings: ThoughtSettings, tokenizer: Tokenizer) -> list[int]:
    """The question's ids, followed by the thoughts between their markers.

    A model that was not trained to think (`settings.filler` None) gets markers only when thoughts are asked for.
    """
    if settings.filler is None and num_thoughts == 0:
        return list(question)
    filler = tokenizer.convert_tokens_to_ids(settings.filler or LATENT)
    start = [tokenizer.convert_tokens_to_ids(START)] if settings.start_marker else []
    return [*question, *start, *[filler] * num_thoughts, tokenizer.convert_tokens_to_ids(END)]


@dataclass(frozen=True)
class Encoder:
    """Puts tokenized problems together at a stage of one curriculum.

    Attributes:
        config: The curriculum.
        tokenizer: Knows the special tokens.
        settings: How prompts are laid out; follows from config and tokenizer.
    """

    config: CurriculumConfig
    tokenizer: Tokenizer
    settings: ThoughtSettings = field(init=False)

    def __post_init__(self) -> None:
        settings = ThoughtSettings(
            latent_id=self.tokenizer.convert_tokens_to_ids(LATENT),
            filler=self.config.row.filler,
            num_thoughts=self.config.num_thoughts,
            start_marker=self.config.start_marker,
        )
        object.__setattr__(self, "settings", settings)

    def __call__(self, problem: Tokenized, stage: Stage, draw: Random) -> Example:
        """Encode a problem at `stage`, or at an earlier one with probability `stage_mix`.

        Args:
            problem: The problem's pieces.
            stage: Stage of the schedule.
            draw: Source of chance, for mixing and for icot's smoothing.
        """
        index, is_final = stage.index, stage.is_final
        if self.mixes and draw.random() < self.config.stage_mix:
            num_earlier = index + 1 if is_final else index
            if num_earlier:
                index, is_final = draw.randrange(num_earlier), False
        return self._encode(problem, index, is_final, draw)

    @property
    def mixes(self) -> bool:
        """Whether a stage may read earlier ones."""
        return self.config.stage_mix > 0 and self.config.row.removal in ("steps", "tokens")

    def longest(self, problem: Tokenized, stage: Stage) -> int:
        """Most tokens that a problem can take at `stage`."""
        earlier = range(stage.index + stage.is_final) if self.mixes else ()
        lengths = [len(self._encode(problem, index, False, Random(0)).input_ids) for index in earlier]
        return max(*lengths, len(self._encode(problem, stage.index, stage.is_final, Random(0)).input_ids), 0)

    def _encode(self, problem: Tokenized, index: int, is_final: bool, draw: Random) -> Example:
        num_thoughts = self._num_thoughts(len(problem.steps), index)
        start = prompt(problem.question, num_thoughts, self.settings, self.tokenizer)
        text = [*self._steps_left(problem, index, is_final, draw), *problem.answer]
        return Example([*start, *text], [*[IGNORED] * len(start), *text], len(start), num_thoughts)

    def _num_thoughts(self, num_steps: int, index: int) -> int:
        if self.config.row.filler is None:
            return 0
        replaced = index if self.config.pad_thoughts else min(index, num_steps)
        return replaced * self.config.thoughts_per_step

    def _steps_left(self, problem: Tokenized, index: int, is_final: bool, draw: Random) -> list[int]:
        if is_final:
            return []
        if self.config.row.removal == "tokens":
            tokens = list(chain.from_iterable(problem.steps))
            return tokens[index * self.config.icot_tokens_per_stage + self._smoothing(index, draw) :]
        num_removed = index if self.config.row.removal == "steps" else 0
        return list(chain.from_iterable(problem.steps[num_removed:]))

    def _smoothing(self, index: int, draw: Random) -> int:
        """Further tokens that icot removes: a geometric draw (arXiv 2405.14838, section 3)."""
        if index == 0:
            return 0
        return int(draw.expovariate(self.config.icot_smoothing))
