"""Tests of `cocot serve`: OpenAI's client gets cocot's answers, in batches, and clear errors for what is not served."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TOKENIZER
from runs_support import environment
from test_export import NEW_TOKENS, NUM_THOUGHTS, QUESTIONS, outputs, saved, trained_thinker

from cocot.data.encoding import encode_question
from cocot.methods.tokens import LATENT
from cocot.modeling.decoding import greedy
from cocot.modeling.generation import answer, write
from cocot.modeling.thought_settings import thought_settings
from cocot.serving.batches import Batches, Decoding, QueueFullError, Request
from cocot.serving.export import chat_template
from cocot.serving.server import Limits, Server, make_app

openai = pytest.importorskip("openai", reason="openai is not installed")
MODEL = trained_thinker("llama")
NAME, KEY = "mine", "secret"


class Served:
    """A server in a process of its own, and a client of it."""

    def __init__(self, folder: Path, *options: str, key: str | None = None) -> None:
        command = [sys.executable, "-m", "cocot", "serve", str(folder), "--name", NAME, "--port", "0", *options]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment() | ({"COCOT_API_KEY": key} if key else {})
        )
        assert self.process.stderr is not None
        self.lines = [self.process.stderr.readline()]
        assert "http" in self.lines[0], self.lines[0] + self.process.stderr.read()
        self.url = next(word for word in self.lines[0].split() if word.startswith("http"))
        self.client: Any = openai.OpenAI(base_url=self.url, api_key=key or "none", max_retries=0, timeout=60)

    def chat(self, question: str, **more: Any) -> Any:
        """One request for a chat completion."""
        more = {"model": NAME, "messages": [{"role": "user", "content": question}], "max_tokens": NEW_TOKENS} | more
        return self.client.chat.completions.create(**more)

    def metrics(self) -> dict[str, float]:
        """What it shows to Prometheus."""
        with urllib.request.urlopen(self.url.replace("/v1", "/metrics")) as page:
            lines = page.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    def stop(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that thinks."""
    return saved(MODEL, tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    """A server of it, with a key."""
    found = Served(folder, "--max-new-tokens", "100", "--max-thoughts", "20", "--batch-size", "8", key=KEY)
    yield found
    found.stop()


def text(completion: Any) -> str:
    """What a chat completion holds."""
    return str(completion.choices[0].message.content)


def test_clients_at_once_get_the_answers_of_cocot(served: Served) -> None:
    """With as many thoughts as trained and with numbers of their own, which share batches."""
    counts = [None, 1, 5, 0]
    requests = [(question, count) for question in QUESTIONS for count in counts]
    bodies = [{"chat_template_kwargs": {} if count is None else {"num_thoughts": count}} for _, count in requests]
    before = served.metrics()
    with ThreadPoolExecutor(16) as clients:
        given = list(clients.map(lambda one, body: served.chat(one[0], extra_body=body), requests, bodies))
    assert [text(one) for one in given] == [outputs(MODEL, [question], count)[0] for question, count in requests]
    after = served.metrics()
    answered = after["cocot_batch_size_sum"] - before["cocot_batch_size_sum"]
    assert answered == len(requests)
    assert after["cocot_batch_size_count"] - before["cocot_batch_size_count"] < answered, "nothing was batched"
    name = 'cocot_requests_total{status="200"}'
    assert after[name] - before.get(name, 0) == len(requests)


def test_usage_counts_the_thoughts_as_prompt(served: Served) -> None:
    """A thought is a token of the prompt; end of text is a token of the answer."""
    settings = thought_settings(MODEL)
    given = served.chat(QUESTIONS[0])
    assert given.usage.prompt_tokens == len(encode_question(QUESTIONS[0], NUM_THOUGHTS, settings, TOKENIZER))
    assert 0 < given.usage.completion_tokens <= NEW_TOKENS
    assert given.usage.total_tokens == given.usage.prompt_tokens + given.usage.completion_tokens


@pytest.mark.parametrize("count", [None, 5])
def test_a_streamed_answer_is_the_answer(served: Served, count: int | None) -> None:
    """Piece by piece, its usage at the end."""
    body = {"chat_template_kwargs": {} if count is None else {"num_thoughts": count}}
    chunks = list(served.chat(QUESTIONS[0], stream=True, stream_options={"include_usage": True}, extra_body=body))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(pieces) == outputs(MODEL, QUESTIONS[:1], count)[0]
    assert chunks[-1].usage.completion_tokens > 0
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")


def test_stop_strings_end_the_answer(served: Served) -> None:
    """Before the first of them, streamed or not, and a part of one that comes to nothing is still sent."""
    body = {"chat_template_kwargs": {"num_thoughts": 5}}
    (whole,) = outputs(MODEL, QUESTIONS[:1], 5)
    assert len(whole.split()) > 2
    stop = whole[-3:]
    expected = whole[: whole.index(stop)]
    for stream in (False, True):
        given = served.chat(QUESTIONS[0], stop=[stop, whole[:3] + "never"], stream=stream, extra_body=body)
        written = "".join(chunk.choices[0].delta.content for chunk in given) if stream else text(given)
        assert written.strip() == expected.strip()


def test_several_answers_are_drawn(served: Served) -> None:
    """Samples differ; without a temperature all of them are the answer."""
    sampled = served.chat(QUESTIONS[0], n=6, temperature=1.5)
    assert len({choice.message.content for choice in sampled.choices}) > 1
    same = served.chat(QUESTIONS[0], n=2)
    assert [choice.message.content for choice in same.choices] == outputs(MODEL, QUESTIONS[:1]) * 2


def test_a_prompt_is_completed(served: Served) -> None:
    """The plain completions API takes the prompt as a chat template writes it."""
    chat = [{"role": "user", "content": QUESTIONS[0]}]
    template = chat_template(thought_settings(MODEL), TOKENIZER)
    prompt = TOKENIZER.apply_chat_template(chat, chat_template=template, tokenize=False, num_thoughts=5)
    given = served.client.completions.create(model=NAME, prompt=prompt, max_tokens=NEW_TOKENS)
    assert given.choices[0].text == outputs(MODEL, QUESTIONS[:1], 5)[0]
    assert served.client.models.list().data[0].id == NAME


CHAT = [{"role": "user", "content": "4 2"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "?"}]
WRONG: dict[str, tuple[dict[str, Any], int, str]] = {
    "several messages": ({"messages": CHAT}, 400, "one question at a time"),
    "no message": ({"messages": []}, 400, "one question at a time"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages"),
    "unknown words": ({"messages": [{"role": "user", "content": "Voltaire"}]}, 400, "Voltaire"),
    "a placeholder in the question": ({"messages": [{"role": "user", "content": f"4 {LATENT}"}]}, 400, "latent"),
    "no such model": ({"model": "other"}, 404, "there is no model 'other'"),
    "too many thoughts": ({"extra_body": {"num_thoughts": 21}}, 400, "from 0 to 20"),
    "half a thought": ({"extra_body": {"num_thoughts": 1.5}}, 400, "num_thoughts"),
    "too long an answer": ({"max_tokens": 101}, 400, "at most 100"),
    "no answer": ({"max_tokens": 0}, 400, "max_tokens"),
    "too long a question": ({"messages": [{"role": "user", "content": "4 2 ; " * 60}]}, 400, "the model reads 128"),
    "a seed": ({"seed": 1, "temperature": 1.0}, 400, "seed"),
    "log-probabilities": ({"logprobs": True}, 400, "logprobs is not served"),
    "a penalty": ({"frequency_penalty": 0.5}, 400, "frequency_penalty is not served"),
    "another engine's field": ({"extra_body": {"top_k": 5}}, 400, "top_k is not served"),
    "a misspelt setting": ({"extra_body": {"chat_template_kwargs": {"thoughts": 1}}}, 400, "num_thoughts alone"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools is not served"),
    "a form": ({"response_format": {"type": "json_object"}}, 400, "response_format is not served"),
    "too many answers": ({"n": 17}, 400, "n must be at most 16"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_served_is_refused_in_words(served: Served, what: str) -> None:
    """In OpenAI's form; the server goes on."""
    given, status, message = WRONG[what]
    with pytest.raises(openai.APIStatusError) as raised:
        served.chat(QUESTIONS[0], **given)
    assert raised.value.status_code == status
    assert message in raised.value.body["message"]


def test_a_prompt_that_begins_with_a_thought_is_refused(served: Served) -> None:
    """It has no hidden state before it."""
    with pytest.raises(openai.BadRequestError, match="the token before it"):
        served.client.completions.create(model=NAME, prompt=f"{LATENT} {QUESTIONS[0]}")


def test_fields_that_change_nothing_are_taken(served: Served) -> None:
    """As clients send them without being asked."""
    more = {"frequency_penalty": 0, "logprobs": False, "user": "me", "tools": None, "n": None, "stream": None}
    assert text(served.chat(QUESTIONS[0], **more)) == outputs(MODEL, QUESTIONS[:1])[0]


def test_other_addresses_are_errors_in_openais_form(served: Served) -> None:
    """As all others are."""
    with pytest.raises(openai.NotFoundError) as raised:
        served.client.post("/nothing", cast_to=object)
    assert "/v1/nothing" in raised.value.body["message"]


def test_the_key_is_asked_for(served: Served) -> None:
    """By what answers questions, not by what watches the server."""
    stranger = openai.OpenAI(base_url=served.url, api_key="guess", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="the key is wrong"):
        stranger.models.list()
    with urllib.request.urlopen(served.url.replace("/v1", "/health")) as page:
        assert json.load(page) == {"status": "ok"}


def test_a_client_that_hangs_up_costs_nothing(served: Served) -> None:
    """Its answer, of sixty tokens, ends at the next one."""
    (whole,) = answer(MODEL, TOKENIZER, QUESTIONS[1:2], 1, 60)
    assert whole.num_tokens == 61, "this answer would end by itself"
    before = served.metrics()["cocot_generated_tokens_total"]
    stream = served.chat(QUESTIONS[1], stream=True, max_tokens=60, extra_body={"num_thoughts": 1})
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 20
    while (after := served.metrics()["cocot_generated_tokens_total"]) == before:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert after - before < 60
    assert text(served.chat(QUESTIONS[0])) == outputs(MODEL, QUESTIONS[:1])[0]


def test_an_answer_that_nobody_waits_for_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server sees that a client hung up, although nothing is sent to it before the end."""
    server = Server(MODEL, TOKENIZER, NAME, Limits())
    begun, seen, end = threading.Event(), list[bool](), time.monotonic() + 10

    def wait(self: Batches, batch: list[Request]) -> None:
        begun.set()
        while not batch[0].is_cancelled and time.monotonic() < end:
            time.sleep(0.01)
        seen.append(batch[0].is_cancelled)
        batch[0].end("stop")

    monkeypatch.setattr(Batches, "_answer", wait)
    body = json.dumps({"messages": [{"role": "user", "content": QUESTIONS[0]}]}).encode()

    async def talk() -> None:
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            given = next(messages, None)
            if given is None:
                while not begun.is_set():
                    await asyncio.sleep(0.01)
                return {"type": "http.disconnect"}
            return given

        async def send(message: Any) -> None:
            pass

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        scope |= {"query_string": b"", "root_path": "", "scheme": "http", "server": ("here", 80), "http_version": "1.1"}
        await asyncio.wait_for(make_app(server)(scope, receive, send), 20)  # type: ignore[arg-type]

    asyncio.run(talk())
    server.batches.close()
    assert seen == [True]


def test_a_full_queue_is_said(folder: Path) -> None:
    """With status 429 and when to come again; who was let in is answered, also after a signal to end."""
    served = Served(folder, "--queue", "2", "--batch-size", "1")

    def ask(question: str) -> str:
        try:
            return text(served.chat(question))
        except openai.RateLimitError as error:
            return f"full, again in {error.response.headers['retry-after']} s"

    with ThreadPoolExecutor(16) as clients:
        given = list(clients.map(ask, QUESTIONS * 4))
    expected = outputs(MODEL, QUESTIONS) * 4
    full = "full, again in 1 s"
    assert full in given
    assert all(one in (right, full) for one, right in zip(given, expected, strict=True))
    with ThreadPoolExecutor(2) as clients:
        last = [clients.submit(ask, question) for question in QUESTIONS[:2]]
        while served.metrics()["cocot_batch_size_count"] == 0:
            time.sleep(0.01)
        time.sleep(0.05)
        served.process.send_signal(signal.SIGTERM)
        assert {one.result() for one in last} <= {*expected}
    assert served.process.wait(timeout=30) == 128 + signal.SIGTERM
    served.stop()


def test_a_taken_port_is_said(served: Served, folder: Path) -> None:
    """In one line, with what to do."""
    port = served.url.split(":")[-1].split("/")[0]
    command = [sys.executable, "-m", "cocot", "serve", str(folder), "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), timeout=60)
    assert done.returncode == 2
    assert f"cannot listen at 127.0.0.1:{port}" in done.stderr
    assert done.stderr.count("\n") == 1


def prompts(*counts: int) -> list[list[int]]:
    """Prompts with so many thoughts."""
    settings = thought_settings(MODEL)
    return [encode_question(QUESTIONS[0], count, settings, TOKENIZER) for count in counts]


def test_prompts_of_one_batch_may_differ_in_their_thoughts() -> None:
    """Each gets the tokens that it gets alone."""
    config = greedy(TOKENIZER, NEW_TOKENS)
    together = write(MODEL, TOKENIZER, prompts(0, 1, 3, 5), config)
    assert [count for count, _ in together] == [0, 1, 3, 5]
    alone = [write(MODEL, TOKENIZER, [one], config)[0] for one in prompts(0, 1, 3, 5)]
    end = TOKENIZER.eos_token_id
    cut = [[ids[: ids.index(end)] if end in ids else ids for _, ids in side] for side in (together, alone)]
    assert cut[0] == cut[1]


def test_a_batch_that_fails_ends_its_requests_and_no_others() -> None:
    """They are told the error; what comes later is answered."""
    told: list[Any] = []
    batches = Batches(MODEL, TOKENIZER, most_waiting=2, batch_size=2)
    failed = threading.Event()
    batches.put([Request([10**6], 3, Decoding(), lambda event: (told.append(event), failed.set()))])
    failed.wait()
    batches.put([Request(prompts(1)[0], 3, Decoding(), told.append)])
    batches.close()
    assert isinstance(told[0], Exception)
    assert told[-1] in ("stop", "length")
    with pytest.raises(QueueFullError):
        batches.put([Request(prompts(1)[0], 3, Decoding(), told.append)])


def test_requests_that_do_not_fit_together_wait() -> None:
    """A long prompt beside a long answer would need more columns than the model has."""
    seen: list[int] = []
    told = [[], [], []]  # type: list[list[Any]]
    long = prompts(20)[0]
    begun, hold = threading.Event(), threading.Event()

    def on_batch(size: int) -> None:
        begun.set()
        hold.wait()
        seen.append(size)

    batches = Batches(MODEL, TOKENIZER, most_waiting=9, batch_size=8, on_batch=on_batch)
    first = Request(prompts(1)[0], 1, Decoding(), lambda event: None)
    batches.put([first])
    assert begun.wait(60)  # else those below could join its batch
    batches.put(
        [
            Request(long, 2, Decoding(), told[0].append),
            Request(prompts(0)[0], 128 - len(long) + 10, Decoding(), told[1].append),
            Request(prompts(0)[0], 2, Decoding(temperature=1.0), told[2].append),
        ]
    )
    hold.set()
    batches.close()
    assert seen == [1, 1, 1, 1]
    assert all(events[-1] in ("stop", "length") for events in told)


def test_a_cancelled_request_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it begins it costs nothing; later it ends at the next token."""
    torch.manual_seed(0)
    told: list[Any] = []
    batches = Batches(MODEL, TOKENIZER, most_waiting=9, batch_size=8)
    request = Request(prompts(1)[0], 60, Decoding(), told.append)
    request.tell = lambda event: (told.append(event), setattr(request, "is_cancelled", True))  # type: ignore[assignment]
    gone = Request(prompts(1)[0], 60, Decoding(), told.append, is_cancelled=True)
    batches.put([request, gone])
    batches.close()
    assert request.num_tokens <= 2
    assert gone.num_tokens == 0
    assert gone.has_ended
