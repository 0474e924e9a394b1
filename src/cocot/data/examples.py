"""Method x stage x problem -> token ids and labels.

In: a problem in token ids, a tokenizer, a stage. Out: an `Example`, ready for `collate`.

    config = CurriculumConfig(method="coconut", max_stage=3, epochs_per_stage=5, final_epochs=10)
    encoder = Encoder(config, tokenizer)
    example = encoder(tokenize(problem, tokenizer), config.stages[2], Random(0))

Loss falls only on the text after the thoughts.
Read next: `data/collator.py` (examples -> tensors).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from random import Random
from typing import Any

from cocot.data.encoding import Tokenized, encode_texts
from cocot.data.layout import ThoughtSettings, Tokenizer, prompt
from cocot.errors import DataError
from cocot.methods import Asked, CurriculumConfig, Method, Stage
from cocot.methods.tokens import ANSWER_MARK, END, LATENT

IGNORED = -100
"""The label that PyTorch's cross-entropy leaves out."""
_NUM_MARKERS = 2
"""Tokens that may stand around the thoughts."""


@dataclass(frozen=True, slots=True)
class Example:
    """A problem as the model reads it at one stage.

    Attributes:
        input_ids: Prompt (question, thoughts, markers), then the text that is learned.
        labels: `input_ids` where there is loss, -100 elsewhere; same length.
        prompt_length: Tokens before the text that is learned: the column at which batches are aligned.
        num_thoughts: Thoughts or pauses in the prompt.
        targets: For each thought, the token ids that are right after it; empty where nothing is said of them.
        removed: For each step's thoughts, the token ids of the text that they stand for and the end of text, where the
            method asks for it; empty for thoughts beyond the last step.
        stops: For each thought whether the problem's steps take no more, where the method asks for it.
        answer_prompt: Position from which the answer's first token is predicted: the last of the answer mark.
        written: The problem in words, the last step left out, where the method asks for it.
    """

    input_ids: list[int]
    labels: list[int]
    prompt_length: int
    num_thoughts: int = 0
    targets: tuple[tuple[int, ...], ...] = ()
    removed: tuple[tuple[int, ...], ...] = ()
    stops: tuple[int, ...] = ()
    answer_prompt: int = 0
    written: Example | None = None


@dataclass(frozen=True)
class Encoder:
    """Puts tokenized problems together at a stage of one curriculum.

    Attributes:
        config: The curriculum.
        tokenizer: Knows the special tokens.
        losses_of: The method whose loss reads the examples; None for the curriculum's.
        settings: How prompts are laid out; follows from config and tokenizer.
    """

    config: CurriculumConfig
    tokenizer: Tokenizer
    losses_of: Method | None = None
    settings: ThoughtSettings = field(init=False)

    def __post_init__(self) -> None:
        settings = ThoughtSettings(
            latent_id=self.tokenizer.convert_tokens_to_ids(LATENT),
            filler=self.config.chosen.filler,
            num_thoughts=self.config.num_thoughts,
            start_marker=self.config.start_marker,
            end_marker=self.config.end_marker,
            iterations=self.config.chosen.iterations(self.config),
            mixes_words=self.config.chosen.mixes_words,
            stop_id=self._stop_id if self.config.chosen.stops_at_end else None,
        )
        object.__setattr__(self, "settings", settings)

    def __call__(self, problem: Tokenized, stage: Stage, draw: Random) -> Example:
        """Encode a problem at `stage`, at one of its mixture, or at an earlier one with probability `stage_mix`.

        Args:
            problem: The problem's pieces.
            stage: Stage of the schedule.
            draw: Source of chance, for mixing and for icot's smoothing.
        """
        if stage.mixture:
            stages, weights = zip(*stage.mixture, strict=True)
            (stage,) = draw.choices(stages, weights)
            return self._encode(problem, stage.index, stage.is_final, draw)
        index, is_final = stage.index, stage.is_final
        if self.mixes and draw.random() < self.config.stage_mix:
            num_earlier = index + 1 if is_final else index
            if num_earlier:
                index, is_final = draw.randrange(num_earlier), False
        return self._encode(problem, index, is_final, draw)

    @property
    def mixes(self) -> bool:
        """Whether a stage may read earlier ones."""
        return self.config.stage_mix > 0 and self.config.chosen.has_stages

    def longest(self, problem: Tokenized, stage: Stage) -> int:
        """Most tokens that a problem can take at `stage`."""
        return max(self._most(problem, *part) for part in self._parts(stage))

    def most_added(self, num_steps: int, stage: Stage) -> int:
        """Tokens that `stage` adds to the pieces of a problem of so many steps, at most: thoughts and their markers."""
        method = self.config.chosen
        return max(method.num_thoughts(num_steps, index, self.config) for index, _ in self._parts(stage)) + _NUM_MARKERS

    def _parts(self, stage: Stage) -> list[tuple[int, bool]]:
        """The stages, with whether they are final, at which a problem of `stage` may be encoded."""
        parts = [(part.index, part.is_final) for part, _ in stage.mixture] or [(stage.index, stage.is_final)]
        if self.mixes and not stage.mixture:
            parts += [(index, False) for index in range(stage.index + stage.is_final)]
        return parts

    def _most(self, problem: Tokenized, index: int, is_final: bool) -> int:
        """Most tokens of a problem at one stage: a method that draws the number of thoughts may draw the most."""
        example = self._encode(problem, index, is_final, Random(0))
        most = self.config.chosen.num_thoughts(len(problem.steps), index, self.config)
        return _length(example) + most - example.num_thoughts

    def _encode(self, problem: Tokenized, index: int, is_final: bool, draw: Random) -> Example:
        method = self.config.chosen
        num_thoughts = method.draw_thoughts(len(problem.steps), index, self.config, draw)
        start = prompt(problem.question, num_thoughts, self.settings, self.tokenizer)
        steps = [] if is_final else method.steps_left(problem.steps, index, self.config, draw)
        text = [*steps, *problem.answer]
        step_of = [number // self.config.thoughts_per_step for number in range(num_thoughts)]
        asked: dict[str, Any] = {}
        losses = self.losses_of or method
        if Asked.FRONTIERS in losses.asks:
            follows = self._follows(problem)
            said, steps_of = ([*pieces, *[()] * num_thoughts] for pieces in (problem.frontiers, problem.steps))
            asked["targets"] = tuple(
                losses.targets(said[step], steps_of[step], follows, self.tokenizer) for step in step_of
            )
        if Asked.STEPS in losses.asks:
            num_groups = num_thoughts // self.config.thoughts_per_step
            removed = _removed(problem.steps, num_groups, is_final)
            asked["removed"] = tuple((*step, self.tokenizer.eos_token_id) if step else () for step in removed)
        if Asked.STOPS in losses.asks:
            needed = len(problem.steps) * self.config.thoughts_per_step
            asked["stops"] = tuple(int(number >= needed) for number in range(1, num_thoughts + 1))
        if Asked.SOLUTIONS in losses.asks:
            asked["written"] = self._written(problem)
        return self._example(start, text, len(problem.answer), num_thoughts=num_thoughts, **asked)

    def _written(self, problem: Tokenized) -> Example:
        """The question and its written solution but for the last step, which gives the answer away."""
        text = [*chain.from_iterable(problem.steps[:-1]), *problem.answer]
        self._check_mark(problem)
        return self._example(problem.question, text, len(problem.answer))

    def _example(self, start: Sequence[int], text: Sequence[int], num_answer: int, **asked: Any) -> Example:
        """An example that reads `start` and learns `text`, which ends in an answer of `num_answer` tokens."""
        labels = [*[IGNORED] * len(start), *text]
        before_answer = len(labels) - num_answer + len(self._mark) - 1
        return Example([*start, *text], labels, len(start), answer_prompt=before_answer, **asked)

    def _check_mark(self, problem: Tokenized) -> None:
        """Refuse a problem whose answer does not begin with the tokens of the answer mark."""
        if problem.answer[: len(self._mark)] != self._mark:
            raise DataError(
                f"the tokenizer cuts the answer mark {ANSWER_MARK!r} together with the answer behind it, so that no "
                f"position predicts the answer alone; {self.config.method} needs a tokenizer that does not."
            )

    def _follows(self, problem: Tokenized) -> int:
        """The id of the token behind all thoughts, if no text is left."""
        if self.config.end_marker:
            return self._stop_id
        if self.config.chosen.stops_at_end:
            self._check_mark(problem)
        return problem.answer[0]

    @cached_property
    def _stop_id(self) -> int:
        """The same of every problem, as long as the answer mark is cut apart from the answer."""
        return int(self.tokenizer.convert_tokens_to_ids(END)) if self.config.end_marker else self._mark[0]

    @cached_property
    def _mark(self) -> tuple[int, ...]:
        """The answer mark."""
        return tuple(encode_texts([ANSWER_MARK], self.tokenizer)[0])


def _length(example: Example) -> int:
    """Tokens of the longest sequence that the model reads of an example."""
    return max(len(example.input_ids), len(example.written.input_ids) if example.written else 0)


def _removed(steps: Sequence[tuple[int, ...]], num_groups: int, is_final: bool) -> tuple[tuple[int, ...], ...]:
    """One step for each group of thoughts; where no text is left, the last group has all that remain."""
    removed = [*steps[:num_groups], *[()] * (num_groups - len(steps))]
    if is_final and removed:
        removed[-1] = tuple(chain(removed[-1], *steps[num_groups:]))
    return tuple(removed)
