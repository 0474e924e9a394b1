"""Asks vLLM, offline, in a process of its own: `python ask_vllm.py WANTED FOUND`, one engine after the other.

In: a JSON file of what is wanted, by name: an exported folder, settings of the engine, prompts as token ids, how often
to ask all of them, settings of the sampling. Out: a JSON file of what was written, by name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def ask(folder: str, engine: dict[str, Any], prompts: list[list[int]], times: int, sampling: dict[str, Any]) -> Any:
    """The tokens that are written for each prompt, each time, and what the engine counted meanwhile."""
    from vllm import LLM

    llm = LLM(folder, disable_log_stats=False, **engine)
    settings = llm.get_default_sampling_params()
    for name, value in sampling.items():
        setattr(settings, name, value)
    given = [{"prompt_token_ids": ids} for ids in prompts]
    written = []
    for _ in range(times):
        written.append([list(one.outputs[0].token_ids) for one in llm.generate(given, settings, use_tqdm=False)])
    counted = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    names = {"preemptions": "vllm:num_preemptions", "hits": "vllm:prefix_cache_hits"}
    return {"written": written, **{name: counted[full] for name, full in names.items()}}


if __name__ == "__main__":
    wanted, place = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    found = {}
    for name, job in wanted.items():
        found[name] = ask(**job)
        place.write_text(json.dumps(found))
