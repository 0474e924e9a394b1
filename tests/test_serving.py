"""Tests of `transformers serve` on an exported folder: an OpenAI client gets cocot's answers."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TOKENIZER
from runs_support import environment
from test_export import NEW_TOKENS, QUESTIONS, outputs, saved, trained_thinker

from cocot.serving.export import export

openai = pytest.importorskip("openai", reason="openai is not installed")
pytest.importorskip("fastapi", reason="fastapi is not installed")
MODEL = trained_thinker("llama")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a server in a process of its own, which the model's folder is all it knows of cocot."""
    place = tmp_path_factory.mktemp("serving")
    export(saved(MODEL, place / "model"), place / "out")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", place / "out", "--trust-remote-code"]
    command += ["--host", "localhost", "--port", str(port), "--device", "cpu"]
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, command)), stdout=log, stderr=log, env=environment() | {"HF_MODULES_CACHE": str(place)}
        )
    found = openai.OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none", max_retries=0, timeout=60)
    end = time.monotonic() + 120
    try:
        while True:
            try:
                found.get("../health", cast_to=object)
                break
            except openai.APIConnectionError:
                assert process.poll() is None, (place / "log").read_text()
                assert time.monotonic() < end, "the server did not come up"
                time.sleep(0.2)
        found.folder = str(place / "out")
        yield found
    finally:
        process.terminate()
        process.wait()


def asked(client: Any, question: str, **more: Any) -> Any:
    """One request for a chat completion."""
    chat = [{"role": "user", "content": question}]
    return client.chat.completions.create(model=client.folder, messages=chat, max_tokens=NEW_TOKENS, **more)


def test_chats_are_answered_as_by_cocot(client: Any) -> None:
    """With as many thoughts as trained, and with as many as the request says."""
    given = [asked(client, question).choices[0].message.content.strip() for question in QUESTIONS]
    assert given == outputs(MODEL, QUESTIONS)
    body = {"chat_template_kwargs": {"num_thoughts": 1}}
    fewer = [asked(client, question, extra_body=body).choices[0].message.content.strip() for question in QUESTIONS]
    assert fewer == outputs(MODEL, QUESTIONS, 1) != given


def test_a_streamed_answer_is_the_answer(client: Any) -> None:
    """Piece by piece, the thoughts not among them."""
    pieces = [chunk.choices[0].delta.content or "" for chunk in asked(client, QUESTIONS[0], stream=True)]
    assert "".join(pieces).strip() == outputs(MODEL, QUESTIONS[:1])[0]
    assert sum(map(bool, pieces)) > 1


def test_a_prompt_is_completed(client: Any) -> None:
    """The plain completions API takes the prompt as the chat template writes it."""
    chat = [{"role": "user", "content": QUESTIONS[0]}]
    template = (Path(client.folder) / "chat_template.jinja").read_text()
    prompt = TOKENIZER.apply_chat_template(chat, chat_template=template, tokenize=False)
    given = client.completions.create(model=client.folder, prompt=prompt, max_tokens=NEW_TOKENS)
    assert given.choices[0].text.strip() == outputs(MODEL, QUESTIONS[:1])[0]


def test_a_chat_of_several_messages_is_an_error_and_not_the_end(client: Any) -> None:
    """The server goes on."""
    chat = [{"role": "user", "content": "4 2"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "?"}]
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(model=client.folder, messages=chat, max_tokens=2)
    again = client.with_options(max_retries=1)  # the server closed this connection
    again.folder = client.folder
    assert asked(again, QUESTIONS[0]).choices[0].message.content
