"""Examples that begin with the same tokens -> a batch that holds those once.

Several questions about one text stand in one row: the text, padded on the left, and behind it the questions' own tokens
*interleaved by column*, the first of every question, then the second of every question, and so on. The own parts are
end-aligned as rows are, so the thoughts of all questions of all rows end together.

In: `Example`s. Out: `input_ids`, `attention_mask` and `labels` of fewer, longer rows, and how these are laid out.
Read next: `data/collator.py`, which decides; `modeling/shared_reading.py`, which reads such rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import torch
from torch import Tensor

from cocot.data.examples import IGNORED, Example

_WORTH_IT = 0.75
"""Most positions, of those of separate rows, padding included: what saves less does not pay for one more pass."""


@dataclass(frozen=True)
class Layout:
    """How examples share readings.

    Attributes:
        num_questions: Consecutive examples that share a reading.
        shared: Tokens that each such group shares.
        before: Own columns before the text that is learned.
        after: Columns of that text.
    """

    num_questions: int
    shared: Sequence[int]
    before: int
    after: int

    @property
    def num_shared(self) -> int:
        """Columns of what is shared; as many at least as one thought of each question takes."""
        return max(*self.shared, self.num_questions)

    @property
    def size(self) -> int:
        """Positions of all rows, padding included."""
        return len(self.shared) * (self.num_shared + self.num_questions * (self.before + self.after))


def find_layout(examples: Sequence[Example], latent_id: int) -> Layout | None:
    """The layout with the fewest positions; None where separate rows are nearly as few."""
    limits = [_limit(example, latent_id) for example in examples]
    common = [
        num_common(first.input_ids, second.input_ids, min(pair))
        for (first, second), pair in zip(pairwise(examples), pairwise(limits), strict=True)
    ]
    sizes = (count for count in range(2, len(examples) + 1) if len(examples) % count == 0)
    layouts = [layout for count in sizes if (layout := _layout(examples, common, count))]
    best = min(layouts, key=lambda layout: layout.size, default=None)
    separate = len(examples) * (max(e.prompt_length for e in examples) + max(map(_num_after, examples)))
    return best if best is not None and best.size <= _WORTH_IT * separate else None


def shared_tensors(examples: Sequence[Example], layout: Layout, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """`input_ids`, `attention_mask` and `labels`, (rows, columns), of examples laid out in that way."""
    prompts = [example.prompt_length for example in examples]

    def laid_out(tokens: list[list[int]], fill: int) -> Tensor:
        rows = []
        for number, shared in enumerate(layout.shared):
            members = range(number * layout.num_questions, (number + 1) * layout.num_questions)
            own = [_own(tokens[member][shared:], prompts[member] - shared, layout, fill) for member in members]
            text = [fill] * (layout.num_shared - shared) + tokens[members[0]][:shared]
            rows.append([*text, *chain.from_iterable(zip(*own, strict=True))])
        return torch.from_numpy(np.array(rows))

    input_ids = laid_out([example.input_ids for example in examples], pad_id)
    attention_mask = laid_out([[1] * len(example.input_ids) for example in examples], 0)
    return input_ids, attention_mask, laid_out([example.labels for example in examples], IGNORED)


def _own(row: list[int], before: int, layout: Layout, fill: int) -> list[int]:
    padded = [fill] * (layout.before - before) + row
    return padded + [fill] * (layout.before + layout.after - len(padded))


def _layout(examples: Sequence[Example], common: Sequence[int], count: int) -> Layout | None:
    """Groups of `count`, if the members of each share tokens; `common` are those of neighbours."""
    starts = range(0, len(examples), count)
    shared = [min(common[start : start + count - 1]) for start in starts]
    if min(shared) == 0:
        return None
    before = max(example.prompt_length - shared[index // count] for index, example in enumerate(examples))
    return Layout(count, shared, before, max(map(_num_after, examples)))


def _num_after(example: Example) -> int:
    return len(example.input_ids) - example.prompt_length


def _limit(example: Example, latent_id: int) -> int:
    """Tokens that may be shared: before what is learned, a thought or a label there is one token of the own part."""
    stop = example.prompt_length
    if latent_id in (tokens := example.input_ids[:stop]):
        stop = tokens.index(latent_id)
    if (labels := example.labels[:stop]).count(IGNORED) < stop:
        stop = next(index for index, label in enumerate(labels) if label != IGNORED)
    return max(stop - 1, 0)


def num_common(first: Sequence[int], second: Sequence[int], limit: int) -> int:
    """How many tokens two sequences begin with in common, at most `limit`."""
    return bisect_left(range(1, limit + 1), True, key=lambda end: first[:end] != second[:end])
