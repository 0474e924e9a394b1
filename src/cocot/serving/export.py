"""Out into the ecosystem: a folder that thinks without cocot, and prompts as embeddings for engines that take those.

In: a run or a model folder. Out: a plain Hugging Face folder with three files more:

    custom_generate/       thoughts in `generate`, `pipeline` and `transformers serve`, if loaded with trust_remote_code
    chat_template.jinja    a question becomes the question and its thoughts; `num_thoughts` says how many
    README.md              the model card: results, recipe, a warning about loading without trust

Read next: `modeling/custom_generate.py`, which runs in that folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from jinja2 import Environment
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from cocot.assets import locate
from cocot.data.encoding import encode_question
from cocot.data.layout import ThoughtSettings
from cocot.errors import ConfigError, ModelError, RunError
from cocot.methods.tokens import END, LATENT, START
from cocot.modeling import custom_generate, own_head, recurrence, thought_inputs
from cocot.modeling.generation import ThoughtRecorder, answer
from cocot.modeling.loading import NO_CODE, load
from cocot.modeling.method_modules import can_leave, modules_in, without_modules
from cocot.modeling.thought_settings import set_thought_settings, thought_settings
from cocot.system.files import new_folder, read_json, write_text
from cocot.tasks.files import write_problems
from cocot.tasks.problem import Problem
from cocot.training.run_folder import RunFolder

CODE = {
    "generate.py": custom_generate,
    "own_head.py": own_head,
    "recurrence.py": recurrence,
    "thought_inputs.py": thought_inputs,
}
"""What is copied into an exported folder, as it is, by the name it has there."""


def export(
    source: str | PathLike[str] | PreTrainedModel,
    folder: str | PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write the folder.

    Args:
        source: A run folder, a model folder or the id of a model on the Hub that was trained to think; or a model in
            memory, which is not changed.
        folder: Where to write; must not hold anything yet.
        tokenizer: That of a model in memory.

    Returns:
        The folder.

    Raises:
        ConfigError: a model in memory is given without its tokenizer.
        RunError: the folder is not empty, or the run is not finished.
        ModelError: the model was not trained here, it keeps modules of its method, or Hugging Face reads its tokenizer
            otherwise than cocot does.
    """
    place = _new(Path(folder))
    if isinstance(source, PreTrainedModel):
        if tokenizer is None:
            raise ConfigError("a model in memory is exported with its tokenizer: export(model, folder, tokenizer).")
        with _unchanged(source, tokenizer):
            _write(source, tokenizer, place, None)
        return place
    run = RunFolder(locate(source))
    if run.config.is_file() and not run.model.exists():
        raise RunError(f"{run.path} is not finished: its model is not there yet. Give the same `cocot train` again.")
    _write(*load(source), place, run)
    return place


@contextmanager
def _unchanged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Put back what `_write` says of a model and its tokenizer."""
    kept = thought_settings(model), model.generation_config, tokenizer.chat_template
    try:
        yield
    finally:
        settings, model.generation_config, tokenizer.chat_template = kept
        set_thought_settings(model, settings)


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, run: RunFolder | None) -> None:
    settings = thought_settings(model)
    if settings.num_thoughts is None:
        raise ModelError("this model was not trained to think, so there is nothing to export; train it first.")
    modules = modules_in(model)
    if settings.modules_of is not None and not can_leave(modules):
        raise ModelError(
            f"this model keeps modules of the method {settings.modules_of!r}, which an exported folder cannot run."
        )
    recomputes = cast(Any, model).thought_passes.inference == "recomputed"
    set_thought_settings(model, replace(settings, recomputes=recomputes))
    tokenizer.chat_template = chat_template(settings, tokenizer)
    old: Any = model.generation_config
    make: Any = GenerationConfig  # its constructor has no annotations
    model.generation_config = make(  # again: the base model's temperature and the like are for other answers
        do_sample=False,  # else `pipeline` samples
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        suppress_tokens=old.suppress_tokens,
    )
    with new_folder(folder) as place:
        model.save_pretrained(place, state_dict=without_modules(model.state_dict()) if modules else None)
        if modules:
            save_file(modules, place / custom_generate.MODULES_FILE)
        tokenizer.save_pretrained(place)
        _check_tokenizer(place, tokenizer)
        code = place / "custom_generate"
        code.mkdir()
        for name, module in CODE.items():
            shutil.copyfile(str(module.__file__), code / name)
        write_text(place / "README.md", _card(run, model, settings, folder.name))


def chat_template(settings: ThoughtSettings, tokenizer: PreTrainedTokenizerBase) -> str:
    """A Jinja template that writes the user's message as training wrote a question, thoughts included.

    `num_thoughts` says how many; by default as many as the model was trained with.
    """
    begin = "{{ bos_token }}" if tokenizer.encode("", add_special_tokens=True)[:1] == [tokenizer.bos_token_id] else ""
    question = "{{ messages[0]['content'] }}{{ '\\n' }}"
    thoughts = ""
    if settings.filler is not None:
        start, end = START if settings.start_marker else "", END if settings.end_marker else ""
        loop = f"{{% for _ in range(num_thoughts | default({settings.num_thoughts})) %}}"
        thoughts = f"{start}{loop}{settings.filler}{{% endfor %}}{end}"
    check = (
        "{% if messages | length != 1 or messages[0]['role'] != 'user' %}"
        "{{ raise_exception('this model answers one question at a time: give one message, of the user') }}{% endif %}"
    )
    return f"{check}{begin}{question}{thoughts}"


def prompt_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    num_thoughts: int | None = None,
    batch_size: int = 32,
) -> list[Tensor]:
    """Questions with their thoughts as embeddings: what vLLM calls `prompt_embeds` and SGLang `input_embeds`.

    Args:
        model: A model that was given thoughts.
        tokenizer: Its tokenizer.
        questions: Any number of questions.
        num_thoughts: Thoughts before the text; None for as many as the model was trained with.
        batch_size: Questions a batch.

    Returns:
        For each question, (columns, width), in the model's dtype.

    Raises:
        ModelError: the model was not trained to think and `num_thoughts` is None.
    """
    recorder = ThoughtRecorder(len(questions))
    answer(model, tokenizer, questions, num_thoughts, 1, batch_size, thought_hook=recorder)
    settings = thought_settings(model)
    count = settings.num_thoughts if num_thoughts is None else num_thoughts
    table: Any = model.get_input_embeddings()
    prompts = []
    with torch.inference_mode():
        for text, thoughts in zip(questions, recorder.thoughts, strict=True):
            ids = torch.tensor(encode_question(text, count or 0, settings, tokenizer), device=model.device)
            embeddings = table(ids)
            is_latent = ids == settings.latent_id
            if thoughts.numel():
                embeddings[is_latent] = thoughts[: int(is_latent.sum())].to(embeddings)
            prompts.append(embeddings.cpu())
    return prompts


def write_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    folder: str | PathLike[str],
    num_thoughts: int | None = None,
) -> Path:
    """Write `prompt_embeds.safetensors`, a tensor a problem under its number, and the `problems.jsonl` they are of.

    Returns:
        The folder.

    Raises:
        RunError: the folder is not empty.
        ModelError: the model was not trained to think and `num_thoughts` is None.
    """
    new = _new(Path(folder))
    prompts = prompt_embeddings(model, tokenizer, [problem.question for problem in problems], num_thoughts)
    with new_folder(new) as place:
        save_file({str(index): prompt for index, prompt in enumerate(prompts)}, place / "prompt_embeds.safetensors")
        write_problems(place / "problems.jsonl", problems)
    return new


def _new(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty; choose another folder to export to.")
    return folder.resolve()


def _check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Others load with AutoTokenizer, which for some model types puts its own rules in the place of the file's."""
    sample = " ".join(list(tokenizer.get_vocab())[:200])
    theirs: Any = AutoTokenizer.from_pretrained(folder, **NO_CODE)
    if theirs.encode(sample) != tokenizer.encode(sample):
        raise ModelError(
            f"AutoTokenizer reads this tokenizer as {type(theirs).__name__}, which cuts texts otherwise than in "
            "training; give model.path a tokenizer that Hugging Face knows for this model type, and train again."
        )


def _card(run: RunFolder | None, model: PreTrainedModel, settings: ThoughtSettings, name: str) -> str:
    recipe = run.config.read_text(encoding="utf-8") if run and run.config.is_file() else ""
    template = files("cocot.serving").joinpath("model_card.md").read_text(encoding="utf-8")
    return (
        Environment(keep_trailing_newline=True)
        .from_string(template)
        .render(
            name=name,
            architecture=type(model).__name__,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            settings=settings,
            latent=LATENT,
            stages=_results(run) if run else [],
            recipe=recipe,
            about=read_json(run.about, "versions") if run and run.about.is_file() else None,
        )
    )


def _results(run: RunFolder) -> list[dict[str, Any]]:
    """The stages with their accuracies; the last one with that of its best model, which is what is exported."""
    stages = run.finished_stages()
    if stages:
        stages[-1]["accuracy"] = run.validation_accuracy()
    return stages
