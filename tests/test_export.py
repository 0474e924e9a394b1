"""Tests of an exported folder: it thinks without cocot, as cocot does; its template and card say what is true."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import PROBLEMS, TOKENIZER, let_a_word_stop, make_model, make_thinker
from runs_support import environment, tiny_config
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from cocot.cli import main
from cocot.data.encoding import encode_question
from cocot.data.layout import ThoughtSettings
from cocot.errors import ModelError, RunError
from cocot.methods import METHODS
from cocot.methods.tokens import LATENT, PAUSE
from cocot.modeling import custom_generate
from cocot.modeling.generation import answer
from cocot.modeling.method_modules import add_modules, modules_in, without_modules
from cocot.serving.export import CODE, chat_template, export, prompt_embeddings
from cocot.training.run import train

QUESTIONS = [problem.question for problem in (*PROBLEMS[:5], *sorted(PROBLEMS, key=lambda p: len(p.question))[:2])]
NUM_THOUGHTS, NEW_TOKENS = 3, 6
STRANGER = """
import json, sys
sys.modules["cocot"] = None  # an import of it fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
torch.set_num_threads(1)
folder, questions, tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
chats = [[{"role": "user", "content": question}] for question in questions]
def written(chats, num_thoughts=None, **settings):
    more = {} if num_thoughts is None else {"num_thoughts": num_thoughts}
    inputs = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True, **more)
    output = model.generate(**inputs, max_new_tokens=tokens, **settings)
    return [tokenizer.decode(row, skip_special_tokens=True) for row in output[:, inputs["input_ids"].shape[1]:]]
class Streamer:
    def __init__(self): self.parts = []
    def put(self, value): self.parts.append(value.tolist())
    def end(self): self.parts.append("end")
streamer = Streamer()
found = {
    "batched": written(chats),
    "single": [written([chat])[0] for chat in chats],
    "fewer": written(chats, num_thoughts=1),
    "beams": written(chats, num_beams=3),
    "samples": len(written(chats, do_sample=True, num_return_sequences=2)),
    "streamed": written(chats[:1], streamer=streamer),
    "parts": len(streamer.parts[1:-1]),
}
pipe = pipeline("text-generation", folder, trust_remote_code=True)
given = pipe(chats[0], max_new_tokens=tokens, tokenizer_encode_kwargs={"num_thoughts": 2})
found["pipeline"] = given[0]["generated_text"][-1]["content"]
print(json.dumps(found))
"""


def trained_thinker(name: str, **settings: Any) -> Any:
    """A thinker of random weights that says it was trained to have three thoughts."""
    model = make_thinker(name)
    latent_id = model.config.thoughts["latent_id"]
    model.config.thoughts = ThoughtSettings(latent_id, num_thoughts=NUM_THOUGHTS, **settings).to_json()
    return model


def saved(model: Any, folder: Path) -> Path:
    """The model and its tokenizer in a folder."""
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def thinker_with_modules(method: str) -> Any:
    """One that keeps modules of its method: thoughts are projected, or end by themselves."""
    model = trained_thinker("llama", modules_of=method)
    torch.manual_seed(0)
    add_modules(model, METHODS[method])
    return model


def word_stopper() -> Any:
    """One whose thoughts are mixtures and end where a word is the likeliest."""
    bare = make_model("llama", attn_implementation="eager")
    return let_a_word_stop(trained_thinker("llama", mixes_words=True), bare, NUM_THOUGHTS)


MAKERS = {
    "llama": partial(trained_thinker, "llama"),
    "gpt2": partial(trained_thinker, "gpt2"),
    "codi": partial(thinker_with_modules, "codi"),
    "adaptive": partial(thinker_with_modules, "adaptive"),
    "pccot": partial(trained_thinker, "llama", iterations=2),
    "soft": partial(trained_thinker, "llama", mixes_words=True),
    "soft_adaptive": word_stopper,
}


@pytest.fixture(scope="module", params=MAKERS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model and the folder it was exported to; read them, do not change them."""
    place = tmp_path_factory.mktemp("export")
    export(saved(MAKERS[request.param](), place / "model"), place / "out")
    return MAKERS[request.param](), place / "out"


def outputs(model: Any, questions: list[str], num_thoughts: int | None = None) -> list[str]:
    """What cocot lets the model write."""
    return [given.output for given in answer(model, TOKENIZER, questions, num_thoughts, NEW_TOKENS)]


@pytest.mark.parametrize("form", ["absolute", "relative"])
def test_a_stranger_gets_the_same_answers(exported: tuple[Any, Path], form: str) -> None:
    """In a process where cocot cannot be imported: batched, single, beams, streamed, by pipeline; any thoughts."""
    model, folder = exported
    path = str(folder) if form == "absolute" else folder.name
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, path, json.dumps(QUESTIONS), str(NEW_TOKENS)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder.parent,
        env=environment() | {"HF_MODULES_CACHE": str(folder.parent / f"modules_{form}")},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ours = outputs(model, QUESTIONS)
    assert len(set(ours)) > 2
    assert [text.strip() for text in found["batched"]] == ours
    assert [text.strip() for text in found["single"]] == ours
    assert [text.strip() for text in found["fewer"]] == outputs(model, QUESTIONS, 1) != ours
    assert [text.strip() for text in found["beams"]] == beams(model, QUESTIONS)
    assert found["samples"] == 2 * len(QUESTIONS)
    assert found["streamed"][0].strip() == ours[0]
    (first,) = answer(model, TOKENIZER, QUESTIONS[:1], None, NEW_TOKENS)
    assert found["parts"] == first.num_tokens - first.num_thoughts
    assert found["pipeline"].strip() == outputs(model, QUESTIONS[:1], 2)[0]


def test_the_code_is_what_is_tested_here(exported: tuple[Any, Path]) -> None:
    """The folder's code is a copy of ours, byte for byte: nothing is rewritten on the way out."""
    assert {path.name for path in (exported[1] / "custom_generate").glob("*.py")} == set(CODE)
    for name, module in CODE.items():
        assert (exported[1] / "custom_generate" / name).read_bytes() == Path(str(module.__file__)).read_bytes()


def beams(model: Any, questions: list[str]) -> list[str]:
    """Beam search through cocot's own forward."""
    return [written_alone(model, question, num_beams=3) for question in questions]


def written_alone(model: Any, question: str, **settings: Any) -> str:
    """What a model's own `generate` writes after one prompt with thoughts."""
    (given,) = answer(model, TOKENIZER, [question], NUM_THOUGHTS, 1)
    prompt = encode_question(question, given.num_thoughts, ThoughtSettings(**model.config.thoughts), TOKENIZER)
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, **settings)
    return str(TOKENIZER.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def test_without_trust_it_does_not_think(exported: tuple[Any, Path]) -> None:
    """What the card warns of: no error, other answers."""
    model, folder = exported
    bare = AutoModelForCausalLM.from_pretrained(folder)
    assert [written_alone(bare, question) for question in QUESTIONS] != outputs(model, QUESTIONS)


def test_the_folder_names_the_class_of_transformers(exported: tuple[Any, Path]) -> None:
    """`transformers serve` looks the name up in transformers, and ends where it is not there."""
    model, folder = exported
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    assert name == type(model).__name__
    assert hasattr(transformers, name)


@pytest.mark.parametrize("kind", ["llama", "codi", "pccot", "soft"])
def test_a_thought_at_the_end_of_a_prompt(kind: str) -> None:
    """Without an end marker the last column is a thought itself; the numbers are those of cocot's forward."""
    model, bare = MAKERS[kind](), make_model("llama")
    bare.resize_token_embeddings(len(TOKENIZER))
    bare.load_state_dict(without_modules(model.state_dict()))
    bare._method_modules = modules_in(model)  # what `from_pretrained` would find in the folder
    bare.config.thoughts, bare.generation_config = model.config.thoughts, model.generation_config
    ids = torch.tensor([[20, 21, 22, *[model.config.thoughts["latent_id"]] * 3]])
    mask = torch.ones_like(ids)
    ours = model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
    assert torch.equal(custom_generate.generate(ids, model=bare, max_new_tokens=NEW_TOKENS, do_sample=False), ours)
    words = ids[:, :3]
    assert torch.equal(
        custom_generate.generate(input_ids=words, model=bare, max_new_tokens=2, do_sample=False),
        bare.generate(words, attention_mask=mask[:, :3], max_new_tokens=2, do_sample=False),
    )


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([["latent", 21]], {}, "a thought is the hidden state of the token before it"),
        ([["pad", "latent", 21], [20, "latent", 21]], {"mask": [[0, 1, 1], [1, 1, 1]]}, "put one before the first"),
        ([["pad", 20, "latent", 21], [20, 21, "latent", 21]], {}, "these prompts are padded; pass the attention_mask"),
        ([[20, "latent", 21]], {"prompt_lookup_num_tokens": 2}, "does not go with prompt_lookup_num_tokens"),
        ([[20, "latent", 21]], {"prefill_chunk_size": 2}, "does not go with prefill_chunk_size"),
        (
            [[20, "latent", 21]],
            {"generation_config": GenerationConfig(prompt_lookup_num_tokens=3)},
            "does not go with prompt_lookup_num_tokens",
        ),
        ([[20, "latent", 21]], {"inputs_embeds": torch.zeros(1, 3, 32)}, "does not go with inputs_embeds"),
    ],
)
def test_what_would_be_wrong_in_silence_is_refused(rows: Any, settings: dict[str, Any], message: str) -> None:
    """In the exported folder errors are ValueErrors, since cocot is not there."""
    model = trained_thinker("llama")
    names = {"latent": model.config.thoughts["latent_id"], "pad": TOKENIZER.pad_token_id}
    model.generation_config.pad_token_id = TOKENIZER.pad_token_id
    ids = torch.tensor([[names.get(token, token) for token in row] for row in rows])
    mask = settings.pop("mask", None)
    if mask is not None:
        settings["attention_mask"] = torch.tensor(mask)
    with pytest.raises(ValueError, match=message):
        custom_generate.generate(ids, model=model, max_new_tokens=2, **settings)


@pytest.mark.parametrize("filler", [LATENT, PAUSE, None])
@pytest.mark.parametrize("start_marker", [True, False])
@pytest.mark.parametrize("end_marker", [True, False])
@pytest.mark.parametrize("bos", [True, False])
def test_the_template_writes_what_training_wrote(
    filler: str | None, start_marker: bool, end_marker: bool, bos: bool
) -> None:
    """The same ids, for every kind of method and tokenizer; more than one message is refused."""
    tokenizer = with_bos() if bos else TOKENIZER
    latent_id: Any = tokenizer.convert_tokens_to_ids(LATENT)
    settings = ThoughtSettings(latent_id, filler, NUM_THOUGHTS if filler else 0, start_marker, end_marker)
    template = chat_template(settings, tokenizer)
    for question in QUESTIONS[:2]:
        chat = [{"role": "user", "content": question}]
        for count in (None, 1) if filler else (None,):
            more = {} if count is None else {"num_thoughts": count}
            ids = tokenizer.apply_chat_template(chat, chat_template=template, return_dict=False, **more)
            expected = settings.num_thoughts if count is None else count
            assert ids == encode_question(question, expected or 0, settings, tokenizer)
            assert (ids[0] == tokenizer.bos_token_id) == bos
    with pytest.raises(Exception, match="one question at a time"):
        tokenizer.apply_chat_template([*chat, *chat], chat_template=template)


def with_bos() -> PreTrainedTokenizerBase:
    """The tests' tokenizer, made to begin every text with `<|end|>`-like token, as Llama's does."""
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = deepcopy(TOKENIZER)
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_prompt_embeddings_lead_to_the_same_tokens(name: str, tmp_path: Path) -> None:
    """Plain Hugging Face, given the embeddings alone, writes what cocot writes; and so does the file."""
    model = trained_thinker(name)
    bare = make_model(name)
    bare.resize_token_embeddings(len(TOKENIZER))
    bare.load_state_dict(model.state_dict())
    bare.generation_config = model.generation_config
    ours = outputs(model, QUESTIONS)
    for prompts in (prompt_embeddings(model, TOKENIZER, QUESTIONS, batch_size=3), from_file(model, tmp_path)):
        written = []
        for prompt in prompts:
            output = bare.generate(inputs_embeds=prompt[None], max_new_tokens=NEW_TOKENS, do_sample=False)
            written.append(TOKENIZER.decode(output[0], skip_special_tokens=True).strip())
        assert written == ours


@pytest.mark.parametrize(("filler", "count"), [(PAUSE, None), (PAUSE, 1), (None, 0), (LATENT, 0)])
def test_prompt_embeddings_without_thoughts(filler: str | None, count: int | None) -> None:
    """Pause tokens, or nothing at all before the text: the embeddings are those of the tokens."""
    model = trained_thinker("llama", filler=filler)
    settings = ThoughtSettings(**model.config.thoughts)
    for question, prompt in zip(QUESTIONS, prompt_embeddings(model, TOKENIZER, QUESTIONS, count), strict=True):
        ids = encode_question(question, NUM_THOUGHTS if count is None else count, settings, TOKENIZER)
        assert torch.equal(prompt, model.get_input_embeddings()(torch.tensor(ids)).detach())


def test_a_base_that_samples_is_exported_greedy(tmp_path: Path) -> None:
    """Many chat models come with a temperature; what is exported answers as cocot does, and bans the placeholders."""
    model = trained_thinker("llama")
    banned = model.generation_config.suppress_tokens
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.6
    model.generation_config.top_p = 0.9
    export(saved(model, tmp_path / "model"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert config["do_sample"] is False
    assert config["suppress_tokens"] == banned
    assert not {"temperature", "top_p"} & config.keys()


def from_file(model: Any, place: Path) -> list[torch.Tensor]:
    """The same by the command line."""
    data = place / "questions.jsonl"
    rows = ({"question": question, "steps": ["a"], "answer": "b"} for question in QUESTIONS)
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert (
        main(["export", str(saved(model, place / "model")), str(place / "out"), "--embeds", "--data", str(data)]) == 0
    )
    tensors = load_file(place / "out" / "prompt_embeds.safetensors")
    lines = (place / "out" / "problems.jsonl").read_text().splitlines()
    assert [json.loads(line)["question"] for line in lines] == QUESTIONS
    return [tensors[str(index)] for index in range(len(QUESTIONS))]


def test_a_run_is_exported_with_its_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The card has the recipe, the results, the versions and the warning; a second export overwrites nothing."""
    run = train(tiny_config(curriculum={"final_epochs": 2}), tmp_path / "run")
    best = [entry for entry in run.read_log() if entry.get("eval_accuracy") is not None][-2]
    assert best["stage"] == "final"
    run.log({**best, "eval_accuracy": 0.987})  # as if the last epoch had been worse than the best
    assert main(["export", str(run.path), str(tmp_path / "out")]) == 0
    assert "transformers serve" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("trust_remote_code=True", "learning_rate: 0.003", "| final | 2 | 98.7% |", "torch 2"):
        assert part in card
    assert "{{" not in card
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template
    assert main(["export", str(run.path), str(tmp_path / "out")]) == 2
    assert "is not empty; choose another folder" in capsys.readouterr().err
    assert main(["export", str(run.path), str(tmp_path / "other"), "--thoughts", "1"]) == 2
    assert "--thoughts and problems go with --embeds" in capsys.readouterr().err


def test_what_cannot_be_exported_says_so(tmp_path: Path) -> None:
    """A model that was never trained here; a run that is not finished."""
    with pytest.raises(ModelError, match="was not trained to think, so there is nothing to export"):
        export(saved(make_thinker("llama"), tmp_path / "model"), tmp_path / "out")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(RunError, match="is not finished: its model is not there yet"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["codi", "adaptive"])
def test_a_model_of_the_hub_keeps_its_modules(kind: str, tmp_path: Path) -> None:
    """By its id, from what was fetched before: an exported folder, loaded by cocot again."""
    export(saved(MAKERS[kind](), tmp_path / "model"), tmp_path / "out")
    fetched = tmp_path / "hub" / "models--somebody--theirs"
    shutil.copytree(tmp_path / "out", fetched / "snapshots" / ("a" * 40))
    (fetched / "refs").mkdir()
    (fetched / "refs" / "main").write_text("a" * 40)
    code = "import cocot; model, _ = cocot.load('somebody/theirs'); print(*model.method_modules.state_dict())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment() | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [*MAKERS[kind]().method_modules.state_dict()]
