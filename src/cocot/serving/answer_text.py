"""An answer as text while its tokens come: what can be sent already, and where a stop string ends it.

In: tokens, one by one. Out: for each the text that it adds.
Read next: `server.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cocot.data.encoding import decode


@dataclass
class AnswerText:
    """An answer as text, token by token; ends at a stop string.

    Attributes:
        tokenizer: Makes text of tokens.
        stops: Strings that end the answer; they are not part of it.
        ids: The tokens so far.
        sent: How many characters were handed out.
        is_stopped: Whether a stop string came.
    """

    tokenizer: Any
    stops: list[str]
    ids: list[int] = field(default_factory=list)
    sent: int = 0
    is_stopped: bool = False

    def add(self, token: int) -> str:
        """What a token adds that can be sent; text that may become a stop string waits."""
        self.ids.append(token)
        return self._cut(is_end=False)

    def rest(self) -> str:
        """What waited, at the end."""
        return "" if self.is_stopped else self._cut(is_end=True)

    def _cut(self, is_end: bool) -> str:
        text = decode(self.ids, self.tokenizer)
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        self.is_stopped = bool(places)
        if places:
            end = min(places)
        elif is_end:
            end = len(text)
        else:
            # half a character, or the beginning of a stop string, may become something else
            end = len(text.rstrip("\ufffd"))
            held = max((_overlap(text[:end], stop) for stop in self.stops), default=0)
            end -= held
        new = text[self.sent : end]
        self.sent = max(self.sent, end)
        return new


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop string."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
