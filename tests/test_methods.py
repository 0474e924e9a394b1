"""Tests of the curriculum: what each method of the paper's Table 1 reads and learns at every stage."""

from __future__ import annotations

from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from math import exp
from pathlib import Path
from random import Random

import pytest
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from cocot.cli import main
from cocot.data.encoding import encode_question, tokenize
from cocot.data.examples import IGNORED, Encoder, Example
from cocot.data.layout import ThoughtSettings
from cocot.data.word_tokenizer import build_tokenizer
from cocot.errors import ConfigError, DataError, ModelError
from cocot.methods import METHODS, CurriculumConfig, Method, Stage
from cocot.methods.tokens import ANSWER_MARK, END, LATENT, PAUSE, SPECIAL_TOKENS, START
from cocot.tasks.problem import Problem

PROBLEM = Problem("is a b ?", ("a b", "b c c", "c d"), "d !")
GOLDEN = Path(__file__).with_name("golden")
NUM_DRAWS = 2000
MAX_SHARE_ERROR = 0.05  # 4.5 standard errors of a share of a half in 2000 draws; the draws are seeded

# What is read in front of the bar, what is learned behind it. `[` `]` `*` `~` for the start, end, latent, pause token.
CASES = {
    "cot": {"stage_0": "is a b ? | a b b c c c d ### d ! ."},
    "no_cot": {"final": "is a b ? | ### d ! ."},
    "icot": {
        "stage_0": "is a b ? | a b b c c c d ### d ! .",
        "stage_1": "is a b ? | b c c c d ### d ! .",
        "stage_2": "is a b ? | c c d ### d ! .",
        "final": "is a b ? | ### d ! .",
    },
    "pause": {"final": "is a b ? [ ~ ~ ~ ~ ] | ### d ! ."},
    "coconut": {
        "stage_0": "is a b ? [ ] | a b b c c c d ### d ! .",
        "stage_1": "is a b ? [ * * ] | b c c c d ### d ! .",
        "stage_2": "is a b ? [ * * * * ] | c d ### d ! .",
        "final": "is a b ? [ * * * * ] | ### d ! .",
    },
    "coconut_no_curriculum": {"final": "is a b ? [ * * * * ] | ### d ! ."},
    "frontier": {
        "stage_0": "is a b ? [ ] | a b b c c c d ### d ! .",
        "stage_1": "is a b ? [ * * ] | b c c c d ### d ! .",
        "stage_2": "is a b ? [ * * * * ] | c d ### d ! .",
        "final": "is a b ? [ * * * * ] | ### d ! .",
    },
    "sim_cot": {
        "stage_0": "is a b ? [ ] | a b b c c c d ### d ! .",
        "stage_1": "is a b ? [ * * ] | b c c c d ### d ! .",
        "stage_2": "is a b ? [ * * * * ] | c d ### d ! .",
        "final": "is a b ? [ * * * * ] | ### d ! .",
    },
    "sim_cot_copy": {
        "stage_0": "is a b ? [ ] | a b b c c c d ### d ! .",
        "stage_1": "is a b ? [ * * ] | b c c c d ### d ! .",
        "stage_2": "is a b ? [ * * * * ] | c d ### d ! .",
        "final": "is a b ? [ * * * * ] | ### d ! .",
    },
    "sim_cot_small": {
        "stage_0": "is a b ? [ ] | a b b c c c d ### d ! .",
        "stage_1": "is a b ? [ * * ] | b c c c d ### d ! .",
        "stage_2": "is a b ? [ * * * * ] | c d ### d ! .",
        "final": "is a b ? [ * * * * ] | ### d ! .",
    },
    "codi_sim_cot": {"final": "is a b ? [ * * * * ] | ### d ! ."},
    "codi": {"final": "is a b ? [ * * * * ] | ### d ! ."},
    "codi_without_projection": {"final": "is a b ? [ * * * * ] | ### d ! ."},
    "pccot": {"final": "is a b ? [ * * * * ] | ### d ! ."},
    "soft": {"final": "is a b ? [ * * * * ] | ### d ! ."},
    "soft_own_mixtures": {"final": "is a b ? [ * * * * ] | ### d ! ."},
    "soft_adaptive": {"final": "is a b ? [ * * * * ] | ### d ! ."},
    "adaptive": {
        "stage_0": "is a b ? [ ] | a b b c c c d ### d ! .",
        "stage_1": "is a b ? [ * * ] | b c c c d ### d ! .",
        "stage_2": "is a b ? [ * * * * ] | c d ### d ! .",
        "final": "is a b ? [ * * * * ] | ### d ! .",
    },
    "no_thought": {
        "stage_0": "is a b ? | a b b c c c d ### d ! .",
        "stage_1": "is a b ? | b c c c d ### d ! .",
        "stage_2": "is a b ? | c d ### d ! .",
        "final": "is a b ? | ### d ! .",
    },
    "pause_as_thought": {
        "stage_0": "is a b ? [ ] | a b b c c c d ### d ! .",
        "stage_1": "is a b ? [ ~ ~ ] | b c c c d ### d ! .",
        "stage_2": "is a b ? [ ~ ~ ~ ~ ] | c d ### d ! .",
        "final": "is a b ? [ ~ ~ ~ ~ ] | ### d ! .",
    },
}
SHORT = {"[": START, "]": END, "*": LATENT, "~": PAUSE, ".": "<|endoftext|>"}
NO_SMOOTHING = 1e9  # P(o > 0) = exp(-1e9)


@dataclass
class NoWords:
    """A tokenizer without end of text."""

    eos_token_id: int | None = None
    unk_token_id: int | None = None

    all_special_ids: tuple[int, ...] = ()

    def __call__(self, text: list[str], **kwargs: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] for _ in text]}

    def decode(self, token_ids: list[int], **kwargs: bool) -> str:
        return "a"

    def convert_tokens_to_ids(self, tokens: object) -> int:
        return 0


def config_of(method: str = "coconut", **changes: object) -> CurriculumConfig:
    """Two stages and a final one, two thoughts a step."""
    base = CurriculumConfig(method, thoughts_per_step=2, max_stage=2, epochs_per_stage=1, final_epochs=1)
    return replace(base, icot_tokens_per_stage=2, icot_smoothing=NO_SMOOTHING, **changes)


def words(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of words; the special tokens by their short names."""
    return [tokenizer.convert_tokens_to_ids(SHORT.get(word, word)) for word in text.split()]


def encode(config: CurriculumConfig, stage: Stage, problem: Problem = PROBLEM, seed: int = 0) -> Example:
    """The problem at a stage, by the tokenizer of its own words."""
    tokenizer = build_tokenizer([PROBLEM])
    return Encoder(config, tokenizer)(tokenize(problem, tokenizer), stage, Random(seed))


def stage_of(config: CurriculumConfig, name: str) -> Stage:
    """A stage by name."""
    return next(stage for stage in config.stages if stage.name == name)


def test_every_method_has_its_cases() -> None:
    """The table below covers every row of the method table at every stage of its schedule."""
    assert CASES.keys() == METHODS.keys()
    for method, stages in CASES.items():
        assert list(stages) == [stage.name for stage in config_of(method).stages]


@pytest.mark.parametrize(("method", "stage"), [(method, stage) for method in CASES for stage in CASES[method]])
def test_tokens_and_labels_of_every_method_at_every_stage(method: str, stage: str) -> None:
    """A method reads the question and its fillers, and learns exactly the steps that are left, the answer, the end."""
    config = config_of(method)
    tokenizer = build_tokenizer([PROBLEM])
    example = encode(config, stage_of(config, stage))
    read, learned = (words(part, tokenizer) for part in CASES[method][stage].split(" | "))
    assert example.input_ids == read + learned
    assert example.labels == [IGNORED] * len(read) + learned
    assert example.prompt_length == len(read)
    filler = tokenizer.convert_tokens_to_ids(METHODS[method].filler or LATENT)
    assert example.num_thoughts == read.count(filler)


@pytest.mark.parametrize("method", METHODS)
def test_the_saved_settings_ask_as_the_last_stage_does(method: str) -> None:
    """What a trained model is asked with is, token for token, the prompt it saw at its last stage."""
    config = config_of(method)
    tokenizer = build_tokenizer([PROBLEM])
    encoder = Encoder(config, tokenizer)
    example = encode(config, config.stages[-1])
    settings = ThoughtSettings(**encoder.settings.to_json())
    asked = encode_question(PROBLEM.question, settings.num_thoughts or 0, settings, tokenizer)
    assert asked == example.input_ids[: example.prompt_length]


@pytest.mark.parametrize(
    ("start_marker", "end_marker", "text"), [(False, True, "* * ]"), (True, False, "[ * *"), (False, False, "* *")]
)
def test_without_markers_thoughts_stand_between_the_question_and_the_words(
    start_marker: bool, end_marker: bool, text: str
) -> None:
    """Each setting leaves its own marker out and nothing else; the loss begins with the first word behind them."""
    config = config_of(start_marker=start_marker, end_marker=end_marker)
    example = encode(config, stage_of(config, "stage_1"))
    tokenizer = build_tokenizer([PROBLEM])
    answer = "b c c c d ### d ! ."
    assert example.input_ids == words(f"is a b ? {text} {answer}", tokenizer)
    assert [label for label in example.labels if label != IGNORED] == words(answer, tokenizer)


def test_a_model_that_thinks_in_words_can_be_asked_with_thoughts() -> None:
    """A method without fillers gets markers only when thoughts are asked for."""
    tokenizer = build_tokenizer([PROBLEM])
    settings = ThoughtSettings(tokenizer.convert_tokens_to_ids(LATENT), filler=None, num_thoughts=0)
    assert encode_question("a b", 0, settings, tokenizer) == words("a b", tokenizer)
    assert encode_question("a b", 2, settings, tokenizer) == words("a b [ * * ]", tokenizer)


@pytest.mark.parametrize(("pads", "num_thoughts"), [(True, 4), (False, 2)])
@pytest.mark.parametrize("stage", ["stage_2", "final"])
def test_pad_thoughts_gives_short_problems_all_the_thoughts(pads: bool, num_thoughts: int, stage: str) -> None:
    """A problem of one step gets the stage's thoughts with padding, its own step's without; its text stays."""
    config = config_of(pad_thoughts=pads)
    short = replace(PROBLEM, steps=("a b",))
    example = encode(config, stage_of(config, stage), short)
    assert example.num_thoughts == num_thoughts
    learned = [label for label in example.labels if label != IGNORED]
    assert learned == words("### d ! .", build_tokenizer([PROBLEM]))


def test_a_step_beyond_the_curriculum_stays_until_the_final_stage() -> None:
    """The last indexed stage keeps the steps it does not replace; only the final stage drops them all."""
    config = replace(config_of(), max_stage=1)
    kept = encode(config, stage_of(config, "stage_1"))
    final = encode(config, stage_of(config, "final"))
    assert kept.num_thoughts == final.num_thoughts == 2
    assert len(kept.input_ids) - len(final.input_ids) == len(["b", "c", "c", "c", "d"])


@pytest.mark.parametrize(("name", "earlier"), [("stage_0", 0), ("stage_1", 1), ("stage_2", 2), ("final", 3)])
@pytest.mark.parametrize("method", ["coconut", "no_thought", "icot"])
def test_stage_mix_draws_earlier_stages_uniformly_and_never_later_ones(method: str, name: str, earlier: int) -> None:
    """A stage reads itself with probability 1 - mix, each of the earlier ones as often as another, later ones never."""
    mix = 0.6
    plain = config_of(method)
    mixed = replace(plain, stage_mix=mix)
    tokenizer = build_tokenizer([PROBLEM])
    pieces = tokenize(PROBLEM, tokenizer)
    known = {tuple(encode(plain, stage).input_ids): stage.name for stage in plain.stages}
    encoder, stage, draw = Encoder(mixed, tokenizer), stage_of(mixed, name), Random(1)
    counts = Counter(known[tuple(encoder(pieces, stage, draw).input_ids)] for _ in range(NUM_DRAWS))
    names = [stage.name for stage in plain.stages]
    assert counts.keys() == set(names[: earlier + 1])
    for other in names[:earlier]:
        assert counts[other] / NUM_DRAWS == pytest.approx(mix / earlier, abs=MAX_SHARE_ERROR)


@pytest.mark.parametrize("method", ["cot", "no_cot", "pause", "coconut_no_curriculum"])
def test_stage_mix_does_nothing_to_methods_without_a_curriculum(method: str) -> None:
    """Mixing with certainty changes no example of a method that has one stage."""
    plain = config_of(method)
    (stage,) = plain.stages
    mixed = replace(plain, stage_mix=1.0)
    assert [encode(mixed, stage, seed=seed) for seed in range(20)] == [encode(plain, stage)] * 20


def test_icot_smoothing_is_a_geometric_draw() -> None:
    """P(o further tokens) is proportional to exp(-smoothing * o), o = 0, 1, 2, ... (arXiv 2405.14838)."""
    rate = 0.7
    config = replace(config_of("icot"), icot_smoothing=rate, icot_tokens_per_stage=1)
    tokenizer = build_tokenizer([PROBLEM])
    long = tokenize(replace(PROBLEM, steps=("a b c d " * 20,)), tokenizer)
    encoder, draw = Encoder(config, tokenizer), Random(2)
    whole = len(encoder(long, stage_of(config, "stage_0"), draw).input_ids)
    stage = stage_of(config, "stage_2")
    counts = Counter(whole - 2 - len(encoder(long, stage, draw).input_ids) for _ in range(NUM_DRAWS))
    assert min(counts) == 0
    for further in range(4):
        expected = (1 - exp(-rate)) * exp(-rate * further)
        assert counts[further] / NUM_DRAWS == pytest.approx(expected, abs=MAX_SHARE_ERROR)


def test_icot_reads_the_whole_chain_at_stage_0() -> None:
    """Smoothing removes nothing before the curriculum begins."""
    config = replace(config_of("icot"), icot_smoothing=0.1)
    lengths = {len(encode(config, stage_of(config, "stage_0"), seed=seed).input_ids) for seed in range(30)}
    assert len(lengths) == 1


def test_longest_is_the_length_of_the_longest_draw() -> None:
    """The length that is checked against the context is reached, and never exceeded; nor is its quick bound."""
    tokenizer = build_tokenizer([PROBLEM])
    pieces = tokenize(PROBLEM, tokenizer)
    for method in METHODS:
        for mix in (0.0, 0.7):
            config = config_of(method, stage_mix=mix)
            encoder = Encoder(config, tokenizer)
            for stage in config.stages:
                lengths = [len(encoder(pieces, stage, Random(seed)).input_ids) for seed in range(60)]
                assert encoder.longest(pieces, stage) == max(lengths)
                num_tokens = len(pieces.question) + sum(map(len, pieces.steps)) + len(pieces.answer)
                assert encoder.longest(pieces, stage) <= num_tokens + encoder.most_added(len(pieces.steps), stage)


def test_gsm8k_schedule_of_the_paper() -> None:
    """Section 4.1: 6 epochs of stage 0, then 3 stages of 3 epochs with 2 thoughts each, then no text steps."""
    config = CurriculumConfig(
        thoughts_per_step=2, max_stage=3, epochs_per_stage=3, first_epochs=6, final_epochs=35, method="coconut"
    )
    assert config.stages == [
        Stage("stage_0", 0, False, 6),
        Stage("stage_1", 1, False, 3),
        Stage("stage_2", 2, False, 3),
        Stage("stage_3", 3, False, 3),
        Stage("final", 3, True, 35),
    ]
    assert config.num_thoughts == 6


def test_prosqa_schedule_of_the_paper() -> None:
    """Section 4.1: 5 epochs of stage 0 and of each of 6 stages with one thought, then the last stage to epoch 50."""
    config = CurriculumConfig(max_stage=6, epochs_per_stage=5, final_epochs=15)
    stages = config.stages
    assert [stage.index for stage in stages] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert [stage.num_epochs for stage in stages] == [5] * 7 + [15]
    assert [stage.is_final for stage in stages] == [False] * 7 + [True]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gets_as_many_epochs(method: str) -> None:
    """Methods are compared at equal numbers of training problems, whatever their stages."""
    config = CurriculumConfig(method, max_stage=3, epochs_per_stage=2, first_epochs=4, final_epochs=7)
    assert sum(stage.num_epochs for stage in config.stages) == 4 + 3 * 2 + 7
    assert all(stage.num_epochs > 0 for stage in config.stages)


@pytest.mark.parametrize("method", METHODS)
def test_stages_of_unequal_length_keep_the_total(method: str) -> None:
    """A list of epochs gives each stage its own; every method still gets their sum."""
    config = CurriculumConfig(method, max_stage=3, epochs_per_stage=[3, 1, 2], final_epochs=4)
    stages = config.stages
    assert sum(stage.num_epochs for stage in stages) == 3 + 3 + 1 + 2 + 4
    if len(stages) > 1:
        assert [stage.num_epochs for stage in stages] == [3, 3, 1, 2, 4]


def test_a_stage_without_epochs_is_left_out() -> None:
    """Zero epochs of the first or the final stage mean no such stage."""
    config = CurriculumConfig(max_stage=1, epochs_per_stage=2, first_epochs=0, final_epochs=0)
    assert [stage.name for stage in config.stages] == ["stage_1"]


@pytest.mark.parametrize("method", METHODS)
def test_a_problem_without_steps_is_read_as_if_all_were_gone(method: str) -> None:
    """Some of GSM8k have none: question, the stage's thoughts, answer; no empty step in between."""
    config = config_of(method)
    last = config.stages[-1]
    gone = replace(last, is_final=True) if method != "cot" else last
    bare = encode(config, gone, replace(PROBLEM, steps=()))
    for stage in (last, gone):
        assert encode(config, stage, replace(PROBLEM, steps=())) == bare
    draws = type(METHODS[method]).draw_thoughts is not Method.draw_thoughts  # from as many as the steps take
    if method != "cot" and not draws:
        asked = {"removed": bare.removed, "written": bare.written, "targets": bare.targets}
        assert bare == replace(encode(config, gone), **asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "coconuts"}, "unknown method 'coconuts'; choose one of: cot, no_cot"),
        ({"thoughts_per_step": 0}, "thoughts_per_step is 0; it must be at least 1"),
        ({"max_stage": -1}, "max_stage is -1"),
        ({"epochs_per_stage": -1}, "epochs_per_stage is -1"),
        ({"first_epochs": -1}, "first_epochs is -1"),
        ({"final_epochs": -2}, "final_epochs is -2"),
        ({"stage_mix": 1.5}, "stage_mix is 1.5; it must be at most 1"),
        ({"advance_at": 90}, "advance_at is 90; it must be at most 1"),
        ({"icot_tokens_per_stage": 0}, "icot_tokens_per_stage is 0"),
        ({"max_stage": 3, "epochs_per_stage": [1, 2]}, "a list of 3 of them"),
        ({"max_stage": 2, "epochs_per_stage": [1, -1]}, "must be at least 0"),
        ({"icot_smoothing": 0}, "icot_smoothing is 0; it must be above 0"),
        ({"max_stage": 0, "first_epochs": 0, "final_epochs": 0}, "no stage with epochs"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], message: str) -> None:
    """A setting that cannot be is refused when it is set, with its name and value."""
    with pytest.raises(ConfigError, match=message):
        CurriculumConfig(**changes)  # type: ignore[arg-type]


def test_an_unknown_word_is_named() -> None:
    """A word the vocabulary lacks is refused by name, wherever it stands; it is never read as unknown."""
    tokenizer = build_tokenizer([PROBLEM])
    for problem in (
        replace(PROBLEM, question="is a zebra ?"),
        replace(PROBLEM, steps=("a zebra",)),
        replace(PROBLEM, answer="zebra"),
    ):
        with pytest.raises(DataError, match=r"\['zebra'\]"):
            tokenize(problem, tokenizer)


def test_a_tokenizer_without_end_of_text_is_refused() -> None:
    """A model that cannot end its text cannot be trained to answer."""
    with pytest.raises(ModelError, match=r"set tokenizer\.eos_token"):
        tokenize(PROBLEM, NoWords())


def bpe(adds_ends: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's, trained here; like Llama's it may add begin and end of text."""
    trained = ByteLevelBPETokenizer()
    text = [PROBLEM.question, *PROBLEM.steps, "Every lempus is a scrompus.", ANSWER_MARK]
    trained.train_from_iterator(text * 3, vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False)
    if adds_ends:
        ids = [("<s>", trained.token_to_id("<s>")), ("</s>", trained.token_to_id("</s>"))]
        trained.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    made = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": [*SPECIAL_TOKENS, PAUSE]})
    return made


@pytest.mark.parametrize("adds_ends", [False, True])
def test_bpe_tokenizers_get_whole_lines_and_their_own_begin_of_text(adds_ends: bool) -> None:
    """Question and steps end in a newline; begin of text stands once if the tokenizer adds it; its end only last."""
    tokenizer = bpe(adds_ends)
    problem = Problem("Is a lempus a scrompus?", ("Every lempus is a scrompus.", "Zoë is one."), "yes")
    config = config_of()
    pieces = tokenize(problem, tokenizer)
    example = Encoder(config, tokenizer)(pieces, stage_of(config, "stage_1"), Random(0))
    begin = "<s>" if adds_ends else ""
    expected = f"{begin}Is a lempus a scrompus?\n{START}{LATENT * 2}{END}Zoë is one.\n### yes</s>"
    assert tokenizer.decode(example.input_ids, clean_up_tokenization_spaces=False) == expected
    assert example.input_ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(example.input_ids[example.prompt_length :]).startswith("Zoë")
    asked = encode_question(problem.question, 2, Encoder(config, tokenizer).settings, tokenizer)
    assert asked == example.input_ids[: example.prompt_length]


@pytest.mark.parametrize("method", ["coconut", "cot", "icot", "pause_as_thought"])
def test_the_dry_run_of_the_demo_is_as_it_was(method: str) -> None:
    """`cocot train demo --dry-run`: schedule, rates, sizes, one problem token by token, compared letter by letter."""
    out, err = StringIO(), StringIO()
    command = ["train", "demo", "--dry-run", "--curriculum.method", method, "--data.num_train", "320"]
    command += ["--data.num_valid", "20"]
    with redirect_stdout(out), redirect_stderr(err):
        assert main(command) == 0
    file = GOLDEN / f"{method}.txt"
    renew = f"cocot {' '.join(command)} > tests/golden/{file.name}"
    assert not err.getvalue()
    assert file.exists(), f"no golden file; look at the output, then store it: {renew}"
    assert out.getvalue() == file.read_text(), f"if the new output is meant, renew the file: {renew}"
