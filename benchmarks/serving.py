"""Many clients at once against `transformers serve` on an exported model: wrong answers, dropped requests, memory.

    python -m venv clean && clean/bin/pip install torch 'transformers[serving]'      # no cocot in there
    python benchmarks/serving.py runs/demo/coconut --server clean/bin/transformers --clients 32 --minutes 5

Every answer is compared with cocot's own to the same question with as many thoughts.
"""

from __future__ import annotations

import argparse
import random
import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import openai

from cocot import answer, load, tasks
from cocot.serving.export import export
from cocot.training.recipes import read_recipe
from cocot.training.run_folder import RunFolder

QUESTIONS = 100


def expected_answers(run: RunFolder) -> dict[tuple[str, int], str]:
    """What cocot writes after each question, with each number of thoughts up to those trained with."""
    data = read_recipe(str(run.config)).data
    settings = {**data.generate, **data.valid_generate}
    questions = [problem.question for problem in tasks.get(data.task).generate(QUESTIONS, seed=10**6, **settings)]
    model, tokenizer = load(run.path)
    trained = model.config.thoughts["num_thoughts"]
    return {
        (question, count): given.output
        for count in range(trained + 1)
        for question, given in zip(questions, answer(model, tokenizer, questions, count), strict=True)
    }


def resident_mib(pid: int) -> float:
    """Resident memory of a process; 0 once it is dead."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0) / 1024


def main() -> None:
    """Serve, ask, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--server", default="transformers", help="the command `transformers` of the server's environment"
    )
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=5.0)
    args = parser.parse_args()
    expected = expected_answers(RunFolder(args.run))
    with TemporaryDirectory() as place, socket.socket() as free:
        folder = str(Path(place) / "model")
        export(args.run, Path(folder))
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        free.close()
        command = [args.server, "serve", folder, "--trust-remote-code", "--device", "cpu"]
        command += ["--host", "localhost", "--port", str(port), "--log-level", "warning"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=place)
        try:
            _load(f"http://localhost:{port}/v1", folder, expected, args.clients, 60 * args.minutes, server.pid)
        finally:
            server.terminate()
            server.wait()


def _load(
    url: str, folder: str, expected: dict[tuple[str, int], str], num_clients: int, seconds: float, pid: int
) -> None:
    verdicts: list[str] = []  # appending is safe from many threads
    latencies: list[float] = []
    keys = sorted(expected)

    def ask(client: openai.OpenAI, key: tuple[str, int], stream: bool) -> str:
        request = {
            "model": folder,
            "messages": [{"role": "user", "content": key[0]}],
            "max_tokens": 32,
            "extra_body": {"chat_template_kwargs": {"num_thoughts": key[1]}},
        }
        if stream:
            chunks = client.chat.completions.create(stream=True, **request)
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).strip()
        return (client.chat.completions.create(**request).choices[0].message.content or "").strip()

    first = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
    end = time.monotonic() + 120
    while True:
        try:
            ask(first, keys[0], False)
            break
        except openai.APIConnectionError:
            assert time.monotonic() < end, "the server did not come up"
            time.sleep(0.5)
    end = time.monotonic() + seconds

    def client_loop(number: int) -> None:
        draw, client = random.Random(number), openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
        while time.monotonic() < end:
            key, began = draw.choice(keys), time.monotonic()
            try:
                given = ask(client, key, draw.random() < 0.5)
            except openai.OpenAIError as error:
                verdicts.append(f"dropped ({type(error).__name__})")
                continue
            latencies.append(time.monotonic() - began)
            verdicts.append("right" if given == expected[key] else "wrong")

    threads = [threading.Thread(target=client_loop, args=[number]) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(resident_mib(pid))
        print(f"{len(verdicts):,} requests, {memory[-1]:.0f} MiB", flush=True)
        time.sleep(seconds / 10)
    print(f"{num_clients} clients, {seconds / 60:.1f} minutes: {dict(Counter(verdicts))}")
    assert latencies, "no request was answered"
    print(f"median {median(latencies):.2f} s, worst {max(latencies):.2f} s; {memory[1]:.0f} to {memory[-1]:.0f} MiB")


if __name__ == "__main__":
    main()
