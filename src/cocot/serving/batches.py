"""Requests that wait together are answered together: a bounded queue, and one thread that runs the model.

In: prompts as token ids, each with what it wants. Out: for each its tokens, one by one, as the model writes them.

The thread takes the request that waits longest, and with it all others that are decoded in the same way and fit into
the context together. A request gets its tokens while the batch goes on; what comes meanwhile waits for the next batch.
Read next: `server.py`, which puts requests in.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from cocot.modeling.decoding import greedy, sampled
from cocot.modeling.generation import write
from cocot.modeling.latent_model import context_length

Event = int | str | Exception
"""What a request is told: the id of a token, the reason of its end (`stop`, `length`), or the error that ended it."""


class QueueFullError(Exception):
    """As many requests wait as may."""


@dataclass(frozen=True)
class Decoding:
    """How the tokens of an answer are chosen: requests of one batch have the same.

    Attributes:
        temperature: 0 for the likeliest token at every place.
        top_p: Tokens are drawn of the likeliest that have so much of the probability.
    """

    temperature: float = 0.0
    top_p: float = 1.0


@dataclass
class Request:
    """One answer that is wanted.

    Attributes:
        prompt: Token ids, placeholders included.
        max_tokens: The most that may follow.
        decoding: How they are chosen.
        tell: Called with each `Event`, from the thread of the batches.
        is_cancelled: Nobody waits for it any more: it ends at the next token, or never begins.
        num_tokens: How many were written.
        has_ended: Whether its end was told.
    """

    prompt: list[int]
    max_tokens: int
    decoding: Decoding
    tell: Callable[[Event], Any]
    is_cancelled: bool = False
    num_tokens: int = field(default=0, init=False)
    has_ended: bool = field(default=False, init=False)

    def end(self, event: Event) -> None:
        """Tell the end, once."""
        if not self.has_ended:
            self.has_ended = True
            self.tell(event)


class Batches:
    """A queue and the thread that empties it."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        most_waiting: int,
        batch_size: int,
        on_batch: Callable[[int], Any] = lambda size: None,
    ) -> None:
        """Begin; nothing runs until a request comes.

        Args:
            model: A model that was given thoughts.
            tokenizer: Its tokenizer.
            most_waiting: Requests that may wait.
            batch_size: Requests that are answered together.
            on_batch: Called with the size of every batch.
        """
        self._model, self._tokenizer = model, tokenizer
        self._most_waiting, self._batch_size, self._on_batch = most_waiting, batch_size, on_batch
        self._context = context_length(model)
        self._waiting: deque[Request] = deque()
        self._changed, self._is_closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def put(self, requests: Sequence[Request]) -> None:
        """Let requests wait, all or none.

        Raises:
            QueueFullError: more would wait than may.
        """
        with self._changed:
            self._drop_cancelled()
            if self._is_closed or len(self._waiting) + len(requests) > self._most_waiting:
                raise QueueFullError
            self._waiting.extend(requests)
            self._changed.notify()

    def close(self) -> None:
        """Answer what waits, take nothing more, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._on_batch(len(batch))
            try:
                self._answer(batch)
            except Exception as error:  # of this batch alone: the next one may be answered
                logging.getLogger("cocot").exception("a batch of %d requests failed", len(batch))
                for request in batch:
                    request.end(error)

    def _next(self) -> list[Request]:
        """The requests of the next batch, once there are any; none when nothing more will come."""
        with self._changed:
            while True:
                self._drop_cancelled()
                if self._waiting or self._is_closed:
                    break
                self._changed.wait()
            batch: list[Request] = []
            for request in self._waiting:
                if len(batch) < self._batch_size and self._fits(batch, request):
                    batch.append(request)
            chosen = {id(request) for request in batch}
            self._waiting = deque(request for request in self._waiting if id(request) not in chosen)
            return batch

    def _drop_cancelled(self) -> None:
        """End those that wait and that nobody waits for."""
        for request in self._waiting:
            if request.is_cancelled:
                request.end("stop")
        self._waiting = deque(request for request in self._waiting if not request.has_ended)

    def _fits(self, batch: Sequence[Request], request: Request) -> bool:
        """Whether a request can be answered in one batch with others: every row has as many columns as the longest."""
        together = [*batch, request]
        if request.decoding != together[0].decoding:
            return False
        columns = max(len(one.prompt) for one in together) + max(one.max_tokens for one in together)
        return self._context is None or columns <= self._context

    def _answer(self, batch: Sequence[Request]) -> None:
        most, decoding = max(request.max_tokens for request in batch), batch[0].decoding
        config = greedy(self._tokenizer, most)
        if decoding.temperature > 0:
            config = sampled(self._tokenizer, most, decoding.temperature, decoding.top_p)

        def tell(rows: Sequence[int], tokens: list[int]) -> list[bool]:
            for row, token in zip(rows, tokens, strict=True):
                self._tell(batch[row], token)
            return [batch[row].has_ended for row in rows]

        prompts = [request.prompt for request in batch]
        write(self._model, self._tokenizer, prompts, config, on_tokens=tell)
        for request in batch:
            request.end("length")

    def _tell(self, request: Request, token: int) -> None:
        """Tell a request its next token, and its end if that is the last."""
        if request.has_ended:
            return
        request.num_tokens += 1
        if request.is_cancelled or token == self._tokenizer.eos_token_id:
            request.end("stop")
            return
        request.tell(token)
        if request.num_tokens == request.max_tokens:
            request.end("length")
