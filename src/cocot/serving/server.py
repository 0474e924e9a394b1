"""`cocot serve`: a model that thinks behind OpenAI's API, on one machine, without another engine.

In: a model and its tokenizer. Out: an application of FastAPI, which uvicorn runs.

    POST /v1/chat/completions, /v1/completions     GET /v1/models, /health, /metrics

Read next: `batches.py`, which runs the model; `docs/serving.md`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import Any, Literal

import prometheus_client
import uvicorn
from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cocot.data.encoding import decode, encode_question
from cocot.errors import CocotError, ConfigError
from cocot.modeling.latent_model import context_length
from cocot.modeling.thought_settings import thought_settings
from cocot.serving.batches import Batches, Decoding, Event, QueueFullError, Request

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
DEFAULT_NEW_TOKENS = 64
"""The most tokens of an answer where a request does not say, as of `cocot.answer`."""
_POLL = 0.5
"""Seconds between looks at whether a client still waits."""


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        new_tokens: The most tokens of an answer.
        thoughts: The most thoughts before it.
        waiting: Requests that may wait; one more gets the answer 429.
        batch_size: Requests that are answered together.
        answers: Answers to one request (`n`).
    """

    new_tokens: int = 256
    thoughts: int = 64
    waiting: int = 256
    batch_size: int = 32
    answers: int = 16


class ApiError(Exception):
    """An answer that is an error, in OpenAI's form."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind


class _Asked(BaseModel):
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


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    role: str
    content: str | list[_Part]


class _Chat(_Asked):
    messages: list[_Message]
    max_completion_tokens: int | None = Field(None, ge=1)
    chat_template_kwargs: dict[str, Any] = {}
    num_thoughts: int | None = None


class _Completion(_Asked):
    prompt: str


@dataclass
class _Text:
    """An answer as text, token by token; ends at a stop string."""

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


class Server:
    """The model, its queue, and what is counted."""

    def __init__(self, model: Any, tokenizer: Any, name: str, limits: Limits, key: str | None = None) -> None:
        """Begin to take requests.

        Args:
            model: A model that was trained to think, or in words.
            tokenizer: Its tokenizer.
            name: What clients call it.
            limits: What they may ask for.
            key: What they must send as `Authorization: Bearer KEY`; None for nothing.

        Raises:
            ConfigError: the model was trained with more thoughts than a client may ask for.
        """
        self.model, self.tokenizer, self.name, self.limits, self.key = model, tokenizer, name, limits, key
        self.began = int(time.time())
        self.settings, self.context = thought_settings(model), context_length(model)
        if (self.settings.num_thoughts or 0) > limits.thoughts:
            own = self.settings.num_thoughts
            raise ConfigError(f"this model has {own} thoughts, more than {limits.thoughts}: raise --max-thoughts.")
        registry = self.registry = prometheus_client.CollectorRegistry()
        self.requests = prometheus_client.Counter(
            "cocot_requests", "Requests, by the status of their answer", ["status"], registry=registry
        )
        self.tokens = prometheus_client.Counter(
            "cocot_generated_tokens", "Tokens that were written, without thoughts", registry=registry
        )
        self.seconds = prometheus_client.Histogram(
            "cocot_request_seconds", "Seconds from a request to the end of its answer", registry=registry
        )
        sizes = [2.0**power for power in range(10)]
        batch = prometheus_client.Histogram(
            "cocot_batch_size", "Requests that were answered together", buckets=sizes, registry=registry
        )
        self.batches = Batches(
            model, tokenizer, most_waiting=limits.waiting, batch_size=limits.batch_size, on_batch=batch.observe
        )
        waiting = prometheus_client.Gauge("cocot_waiting_requests", "Requests that wait", registry=registry)
        waiting.set_function(lambda: self.batches.num_waiting)

    def prompt_of_chat(self, asked: _Chat) -> list[int]:
        """The question of a chat with its thoughts, as training wrote it."""
        if len(asked.messages) != 1 or asked.messages[0].role != "user":
            raise ApiError(400, "this model answers one question at a time: give one message, of the user.")
        content = asked.messages[0].content
        question = content if isinstance(content, str) else "".join(part.text for part in content)
        if unknown := asked.chat_template_kwargs.keys() - {"num_thoughts"}:
            raise ApiError(400, f"chat_template_kwargs knows num_thoughts alone, not {', '.join(sorted(unknown))}.")
        count = asked.chat_template_kwargs.get("num_thoughts", asked.num_thoughts)
        count = self.settings.num_thoughts if count is None else count
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= self.limits.thoughts:
            raise ApiError(400, f"num_thoughts must be a whole number from 0 to {self.limits.thoughts}, got {count!r}.")
        return self._encoded(lambda: encode_question(question, count, self.settings, self.tokenizer))

    def prompt_of_text(self, text: str) -> list[int]:
        """A prompt as a chat template writes it."""
        ids = self._encoded(lambda: self.tokenizer.encode(text, add_special_tokens=False))
        latent_id = self.settings.latent_id
        if not ids or ids[0] == latent_id:
            raise ApiError(400, "a thought is the hidden state of the token before it: begin the prompt with a token.")
        if ids.count(latent_id) > self.limits.thoughts:
            raise ApiError(400, f"the prompt has {ids.count(latent_id)} thoughts, more than {self.limits.thoughts}.")
        return ids

    def _encoded(self, encode: Callable[[], list[int]]) -> list[int]:
        try:
            return encode()
        except CocotError as error:
            raise ApiError(400, str(error)) from error

    def check(self, asked: _Asked) -> None:
        """Refuse what this server cannot do."""
        if asked.model not in (None, self.name):
            raise ApiError(404, f"there is no model {asked.model!r} here; there is {self.name!r}.", "not_found_error")
        for name, value in (asked.model_extra or {}).items():
            is_neutral = any(type(value) is type(one) and value == one for one in _NEUTRAL.get(name, ()))
            if value is not None and name not in _SILENT and not is_neutral:
                raise ApiError(400, f"{name} is not served here; leave it out.")
        if asked.number > min(self.limits.answers, self.limits.waiting):
            raise ApiError(400, f"n must be at most {min(self.limits.answers, self.limits.waiting)}.")
        if asked.seed is not None and asked.temperature:
            raise ApiError(400, "samples are drawn in batches, so a seed cannot repeat them; leave it out.")

    def room(self, prompt: list[int], asked: int | None) -> int:
        """How many tokens an answer may have."""
        if asked is not None and asked > self.limits.new_tokens:
            raise ApiError(400, f"max_tokens must be at most {self.limits.new_tokens}.")
        left = self.limits.new_tokens if self.context is None else self.context - len(prompt)
        if left < (asked or 1):
            what = f"the question and its thoughts have {len(prompt)} tokens, the answer may have {asked or 1}"
            raise ApiError(400, f"{what}, and the model reads {self.context}.")
        return min(DEFAULT_NEW_TOKENS, left, self.limits.new_tokens) if asked is None else asked


class _Answers:
    """The answers to one request, while they are written.

    Attributes:
        requests: One for each answer.
        num_tokens: Tokens that were written and used.
    """

    def __init__(self, server: Server, asked: _Asked, prompt: list[int], max_tokens: int | None) -> None:
        self._server, self.num_tokens = server, 0
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._texts = [_Text(server.tokenizer, asked.stops) for _ in range(asked.number)]
        decoding = Decoding(asked.temperature or 0.0, (asked.top_p or 1.0) if asked.temperature else 1.0)
        room = server.room(prompt, max_tokens)

        def tell(number: int) -> Callable[[Event], Any]:
            return lambda event: loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        self.requests = [Request(prompt, room, decoding, tell(number)) for number in range(asked.number)]
        try:
            server.batches.put(self.requests)
        except QueueFullError as error:
            raise ApiError(429, "too many requests wait; try again in a moment.", "rate_limit_error") from error

    async def pieces(self) -> AsyncIterator[tuple[int, str, str | None]]:
        """What is written: which answer, new text, and the reason of its end or None."""
        try:
            left = set(range(len(self.requests)))
            while left:
                number, event = await self._events.get()
                if number not in left:
                    continue
                text = self._texts[number]
                if isinstance(event, Exception):
                    raise ApiError(500, "the model failed; the server's log says how.", "server_error") from event
                self.num_tokens += event != "length"  # end of text is a token, too
                if isinstance(event, int):
                    piece = text.add(event)
                    if text.is_stopped:
                        self.requests[number].is_cancelled = True
                    yield number, piece, "stop" if text.is_stopped else None
                else:
                    yield number, text.rest(), event
                if text.is_stopped or isinstance(event, str):
                    left.discard(number)
        finally:  # also where the client is gone
            for request in self.requests:
                request.is_cancelled = True
            self._server.tokens.inc(self.num_tokens)


class _Gate:
    """Asks for the key, and counts answers by their status.

    Not one of Starlette's `BaseHTTPMiddleware`, behind which nobody sees that a client has hung up.
    """

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["method"] == "POST":
                self._server.requests.labels(str(message["status"])).inc()
            await send(message)

        request, key = HttpRequest(scope), self._server.key
        given = request.headers.get("authorization", "").encode()
        if (
            key
            and request.url.path not in ("/health", "/metrics")
            and not compare_digest(given, f"Bearer {key}".encode())
        ):
            answer = _as_response(HttpRequest(scope), ApiError(401, "the key is wrong.", "authentication_error"))
            await answer(scope, receive, counted)
        else:
            await self._app(scope, receive, counted)


def make_app(server: Server) -> FastAPI:
    """The application; closing it answers what waits and ends the thread of the batches."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.batches.close)

    app = FastAPI(title="cocot", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_exception_handler(ApiError, _as_response)
    app.add_exception_handler(RequestValidationError, _as_response)

    app.add_exception_handler(HTTPException, _as_response)
    app.add_middleware(_Gate, server=server)

    @app.get("/health")
    async def _health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def _metrics() -> Response:
        return Response(prometheus_client.generate_latest(server.registry), media_type="text/plain")

    @app.get("/v1/models")
    async def _models() -> dict[str, Any]:
        only = {"id": server.name, "object": "model", "created": server.began, "owned_by": "cocot"}
        return {"object": "list", "data": [only]}

    @app.post("/v1/chat/completions")
    async def _chat(asked: _Chat, http: HttpRequest) -> Response:
        server.check(asked)
        prompt = server.prompt_of_chat(asked)
        most = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
        return await _respond(server, asked, prompt, most, http, is_chat=True)

    @app.post("/v1/completions")
    async def _complete(asked: _Completion, http: HttpRequest) -> Response:
        server.check(asked)
        return await _respond(server, asked, server.prompt_of_text(asked.prompt), asked.max_tokens, http, is_chat=False)

    return app


def _as_response(request: HttpRequest, error: Exception) -> JSONResponse:
    if isinstance(error, ApiError):
        status, message, kind = error.status, error.message, error.kind
    elif isinstance(error, HTTPException):
        status, message, kind = error.status_code, f"{request.url.path}: {error.detail}", "not_found_error"
    else:
        status, kind = 400, "invalid_request_error"
        found = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": str(error)}
        message = f"{'.'.join(map(str, found['loc'][1:]))}: {found['msg']}"
    content = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return JSONResponse(content, status, headers={"Retry-After": "1"} if status == 429 else None)


async def _respond(
    server: Server, asked: _Asked, prompt: list[int], max_tokens: int | None, http: HttpRequest, *, is_chat: bool
) -> Response:
    began = time.monotonic()
    answers = _Answers(server, asked, prompt, max_tokens)
    frame = {"id": f"cocot-{uuid.uuid4().hex}", "created": int(time.time()), "model": server.name}
    if asked.stream:
        return StreamingResponse(
            _stream(server, answers, asked, prompt, frame, is_chat, began), media_type="text/event-stream"
        )
    texts, reasons = [""] * asked.number, ["length"] * asked.number
    leaving = asyncio.create_task(_cancel_when_gone(http, answers))
    try:
        async for number, piece, reason in answers.pieces():
            texts[number] += piece
            reasons[number] = reason or reasons[number]
    finally:
        leaving.cancel()
    choices = [
        {"index": number, "finish_reason": reason, "logprobs": None}
        | ({"message": {"role": "assistant", "content": text.strip()}} if is_chat else {"text": text})
        for number, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    server.seconds.observe(time.monotonic() - began)
    kind = "chat.completion" if is_chat else "text_completion"
    return JSONResponse({**frame, "object": kind, "choices": choices, "usage": _usage(prompt, answers)})


async def _stream(
    server: Server,
    answers: _Answers,
    asked: _Asked,
    prompt: list[int],
    frame: dict[str, Any],
    is_chat: bool,
    began: float,
) -> AsyncIterator[str]:
    """Server-sent events, as OpenAI sends them."""
    kind = "chat.completion.chunk" if is_chat else "text_completion"

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**frame, 'object': kind, 'choices': choices, **more})}\n\n"

    is_first = [True] * asked.number
    try:
        async for number, piece, reason in answers.pieces():
            role = {"role": "assistant"} if is_first[number] else {}
            is_first[number] = False
            content = {"delta": {**role, "content": piece}} if is_chat else {"text": piece}
            yield event([{"index": number, "finish_reason": reason, **content}])
    except ApiError as error:  # the status was sent long ago
        yield f"data: {json.dumps({'error': {'message': error.message, 'type': error.kind}})}\n\n"
    if (asked.stream_options or {}).get("include_usage"):
        yield event([], usage=_usage(prompt, answers))
    server.seconds.observe(time.monotonic() - began)
    yield "data: [DONE]\n\n"


async def _cancel_when_gone(http: HttpRequest, answers: _Answers) -> None:
    """End answers that nobody waits for."""
    while not await http.is_disconnected():
        await asyncio.sleep(_POLL)
    for request in answers.requests:
        request.is_cancelled = True


def _usage(prompt: list[int], answers: _Answers) -> dict[str, int]:
    written = answers.num_tokens
    return {"prompt_tokens": len(prompt), "completion_tokens": written, "total_tokens": len(prompt) + written}


def run(server: Server, host: str, port: int) -> None:
    """Serve until a signal: what was asked before it is still answered.

    Args:
        server: The model and its queue.
        host: Address to listen at.
        port: Port to listen at; 0 for a free one.

    Raises:
        ConfigError: nothing can listen there.
    """
    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen at {host}:{port} ({error}); give another --host or --port.") from error
    with listener:
        where = f"http://{host}:{listener.getsockname()[1]}/v1"
        logging.getLogger("cocot").info("serving %s at %s (Ctrl+C ends)", server.name, where)
        uvicorn.Server(uvicorn.Config(make_app(server), log_level="warning")).run(sockets=[listener])
