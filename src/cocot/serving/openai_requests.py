"""What clients ask of `cocot serve`: OpenAI's requests, as far as they are served.

In: the JSON of a request. Out: its fields, checked, and the name of one that is not served.
Read next: `server.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "logit_bias": ({},),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}
"""Fields of OpenAI's requests that are not served, with the values at which they change nothing."""
_SILENT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
"""Fields that change no answer."""


class Asked(BaseModel):
    """What both ways of asking share."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None

    @property
    def number(self) -> int:
        """How many answers."""
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        """The strings that end an answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]

    def unserved(self) -> str | None:
        """The name of a field that would change the answer and is not served; None if there is none."""
        for name, value in (self.model_extra or {}).items():
            is_neutral = any(type(value) is type(one) and value == one for one in _NEUTRAL.get(name, ()))
            if value is not None and name not in _SILENT and not is_neutral:
                return name
        return None


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    role: str
    content: str | list[_Part]


class Chat(Asked):
    """A request to `/v1/chat/completions`."""

    messages: list[_Message]
    max_completion_tokens: int | None = Field(None, ge=1)
    chat_template_kwargs: dict[str, Any] = {}
    num_thoughts: int | None = None


class Completion(Asked):
    """A request to `/v1/completions`."""

    prompt: str
