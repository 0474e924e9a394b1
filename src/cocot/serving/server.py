"""`cocot serve`: a model that thinks behind OpenAI's API, on one machine, without another engine.

In: a model and its tokenizer. Out: an application of FastAPI, which uvicorn runs.

    POST /v1/chat/completions, /v1/completions     GET /v1/models, /health, /metrics

Read next: `openai_requests.py` (what is asked), `batches.py` (what runs the model), `answer_text.py`.
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
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any

import prometheus_client
import uvicorn
from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cocot.data.encoding import encode_question
from cocot.errors import CocotError, ConfigError
from cocot.modeling.latent_model import context_length
from cocot.modeling.thought_settings import thought_settings
from cocot.serving.answer_text import AnswerText
from cocot.serving.batches import Batches, Decoding, Event, QueueFullError, Request
from cocot.serving.openai_requests import Asked, Chat, Completion

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

    def prompt_of_chat(self, asked: Chat) -> list[int]:
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

    def check(self, asked: Asked) -> None:
        """Refuse what this server cannot do."""
        if asked.model not in (None, self.name):
            raise ApiError(404, f"there is no model {asked.model!r} here; there is {self.name!r}.", "not_found_error")
        if unserved := asked.unserved():
            raise ApiError(400, f"{unserved} is not served here; leave it out.")
        most = min(self.limits.answers, self.limits.waiting)
        if asked.number > most:
            raise ApiError(400, f"n must be at most {most}.")
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

    def __init__(self, server: Server, asked: Asked, prompt: list[int], max_tokens: int | None) -> None:
        self._server, self.num_tokens = server, 0
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._texts = [AnswerText(server.tokenizer, asked.stops) for _ in range(asked.number)]
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
        given = request.headers.get("authorization", "")
        is_open = not key or request.url.path in ("/health", "/metrics")
        if not is_open and not compare_digest(given.encode(), f"Bearer {key}".encode()):
            answer = _as_response(request, ApiError(401, "the key is wrong.", "authentication_error"))
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
    for kind in (ApiError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _as_response)
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
    async def _chat(asked: Chat, http: HttpRequest) -> Response:
        server.check(asked)
        prompt = server.prompt_of_chat(asked)
        most = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
        return await _respond(server, asked, prompt, most, http, is_chat=True)

    @app.post("/v1/completions")
    async def _complete(asked: Completion, http: HttpRequest) -> Response:
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
    server: Server, asked: Asked, prompt: list[int], max_tokens: int | None, http: HttpRequest, *, is_chat: bool
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
    asked: Asked,
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
