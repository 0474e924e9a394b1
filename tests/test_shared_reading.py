"""Tests of `shared_reading`: questions about one text have the numbers of rows of their own, and lie side by side."""

import random
from dataclasses import replace

import pytest
import torch
from conftest import LATENT_ID, TOKENIZER
from runs_support import tiny_config
from test_batches import make_data
from test_recurrence import error
from test_shared_passes import (
    AUTOCAST_LOSS_TOLERANCE,
    AUTOCAST_TOLERANCE,
    MODEL_TYPES,
    PAD,
    TOLERANCE,
    Waits,
    is_same,
    make,
    step,
    worst,
    worst_entry,
)

import cocot.training.trainer as trainer_module
from cocot.data.collator import collate
from cocot.data.examples import IGNORED, Example
from cocot.data.sampler import EpochSampler
from cocot.errors import ModelError
from cocot.methods.coconut import Coconut
from cocot.modeling.shared_passes import enable_checkpointing
from cocot.tasks.files import write_problems
from cocot.tasks.problem import Problem
from cocot.training.run import train

WORDS = range(LATENT_ID + 1, len(TOKENIZER))

# Texts of so many tokens, and the questions about each: own tokens, thoughts, tokens that are learned.
GROUPS = [(9, [(2, 0, 3), (4, 3, 1), (1, 2, 5)]), (14, [(3, 1, 2), (2, 2, 2), (1, 0, 4)])]


def make_examples(groups=GROUPS, seed=0):
    """Examples whose texts differ from group to group."""
    draw = random.Random(seed)
    examples = []
    for number, (length, questions) in enumerate(groups):
        text = [WORDS[number], *draw.choices(WORDS, k=length - 1)]
        for position, (own, thoughts, after) in enumerate(questions):
            question = [WORDS[position], *draw.choices(WORDS, k=own - 1)]  # no token more in common than the text
            prompt = [*text, *question, *[LATENT_ID] * thoughts, draw.choice(WORDS)]
            learned = draw.choices(WORDS, k=after)
            labels = [*[IGNORED] * len(prompt), *learned]
            examples.append(Example([*prompt, *learned], labels, len(prompt), thoughts))
    return examples


def shared(examples):
    """A batch in which questions share rows."""
    batch = collate(examples, PAD, LATENT_ID, shares_reading=True)
    assert "shared_reading" in batch
    return batch


def separate(examples):
    """The same examples, each in a row of its own."""
    return collate(examples, PAD, LATENT_ID)


# Batches


def test_questions_lie_interleaved_behind_their_text():
    """The text once, padded in front; then the first own token of each question, the second, and so on."""
    first, second = range(11, 19), range(12, 21)
    rows = [
        Example([*first, 20, LATENT_ID, 30], [IGNORED] * 10 + [30], 10, 1),
        Example([*first, 21, 22, 31, 32], [IGNORED] * 10 + [31, 32], 10, 0),
        Example([*second, 23, 33], [IGNORED] * 10 + [33], 10, 0),
        Example([*second, 24, 34], [IGNORED] * 10 + [34], 10, 0),
    ]
    batch = shared(rows)
    assert batch["input_ids"].tolist() == [
        [PAD, *first, 20, 21, LATENT_ID, 22, 30, 31, PAD, 32],
        [*second, PAD, PAD, 23, 24, 33, 34, PAD, PAD],
    ]
    assert batch["attention_mask"].tolist() == [[0] + [1] * 14 + [0, 1], [1] * 9 + [0, 0] + [1] * 4 + [0, 0]]
    assert batch["labels"].tolist() == [
        [IGNORED] * 13 + [30, 31, IGNORED, 32],
        [IGNORED] * 13 + [33, 34, IGNORED, IGNORED],
    ]
    assert batch["shared_reading"] == (9, 2)
    assert batch["latent_columns"] == [11]
    assert batch["loss_positions"].tolist() == [2, 3, 5, 8 + 2, 8 + 3]


@pytest.mark.parametrize(
    "groups",
    [
        [(9, [(2, 0, 3)]), (9, [(2, 1, 3)])],
        [(9, [(2, 0, 3), (2, 1, 1)]), (9, [(2, 0, 3)]), (8, [(2, 0, 3)])],
        [(2, [(9, 1, 9), (9, 0, 9)]), (2, [(9, 1, 9), (9, 0, 9)])],
    ],
    ids=["nothing shared", "groups of several sizes", "too little shared"],
)
def test_other_batches_are_what_they_are_without(groups):
    """Where sharing is not possible or saves little, a batch is the same to the last bit."""
    examples = make_examples(groups)
    got, expected = collate(examples, PAD, LATENT_ID, shares_reading=True), separate(examples)
    assert got.keys() == expected.keys()
    assert all(torch.equal(torch.as_tensor(got[key]), torch.as_tensor(expected[key])) for key in expected)


def test_labels_and_thoughts_are_never_shared():
    """Equal prompts share up to the last token before a thought or a label in them."""
    prompt = [*WORDS[:12], LATENT_ID, WORDS[12]]
    thinking = [Example([*prompt, learned], [IGNORED] * 14 + [learned], 14, 1) for learned in WORDS[:4]]
    assert shared(thinking)["shared_reading"][0] == 11
    labelled = [replace(row, labels=[*[IGNORED] * 10, WORDS[3], *row.labels[11:]]) for row in thinking]
    assert shared(labelled)["shared_reading"][0] == 9
    assert worst(step(make("gpt2"), shared(labelled)), step(make("gpt2"), separate(labelled))) < TOLERANCE


# Numbers


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_equals_rows_of_their_own(name, attention):
    """Loss and every gradient, with texts, questions, thoughts and answers of several lengths; checkpointed, too."""
    model, batch = make(name, attention), shared(make_examples())
    assert batch["shared_reading"] == (14, 3)
    got = step(model, batch)
    assert worst(got, step(model, separate(make_examples()))) < TOLERANCE
    enable_checkpointing(model)
    assert is_same(step(model, batch), got)


@pytest.mark.parametrize("own", [1, 2])
def test_no_thoughts_and_short_texts_are_equal_too(own):
    """Without thoughts, and with a text of fewer tokens than there are questions."""
    examples = make_examples([(3, [(own, 0, 1)] * 4), (3, [(1, 0, 1)] * 4)])
    model, batch = make("llama"), shared(examples)
    assert batch["shared_reading"] == (4, 4)
    assert worst(step(model, batch), step(model, separate(examples))) < TOLERANCE


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_a_question_does_not_see_the_others(name):
    """Other questions about the text, of the same lengths, change nothing about a question's loss and gradients."""
    model, results = make(name), []
    for seed in (1, 2):
        examples = make_examples()
        draw = random.Random(seed)
        for index in (0, 1, 3, 5):
            ids, start = list(examples[index].input_ids), (9 if index < 3 else 14) + 1
            own = [token if token == LATENT_ID else draw.choice(WORDS) for token in ids[start:]]
            examples[index] = Example([*ids[:start], *own], [IGNORED] * len(ids), examples[index].prompt_length, 0)
        results.append(step(model, shared(examples)))
    assert worst(*results) < TOLERANCE


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_autocast_is_within_its_noise(name):
    """Under bfloat16 autocast loss and gradients are near float32's."""
    model, batch = make(name), shared(make_examples())
    (loss, grads), (true_loss, true_grads) = step(model, batch, torch.bfloat16), step(model, batch)
    assert error(loss, true_loss) < AUTOCAST_LOSS_TOLERANCE
    assert 1e-4 < worst_entry(grads, true_grads) < AUTOCAST_TOLERANCE


def test_a_hook_gets_one_thought_of_each_question():
    """Numbers and shapes are as promised, and what it returns is what is fed back."""
    model, seen = make("llama"), []

    def hook(number, thoughts):
        seen.append((number, tuple(thoughts.shape)))
        return 0.5 * thoughts

    got = step(model, {**shared(make_examples()), "thought_hook": hook})
    assert seen == [(1, (2, 3, 32)), (2, (2, 3, 32)), (3, (2, 3, 32))]
    rows = {**separate(make_examples()), "thought_hook": hook}
    assert worst(got, step(model, rows)) < TOLERANCE
    assert worst(got, step(model, shared(make_examples()))) > 1000 * TOLERANCE


def test_accumulated_batches_are_one():
    """Batches that share `num_items_in_batch` add up to one batch of all rows."""
    examples, model = make_examples(), make("gpt2")
    count = sum(label != IGNORED for example in examples for label in example.labels)
    expected = step(model, separate(examples))
    parts = [step(model, {**shared(part), "num_items_in_batch": count}) for part in (examples[:3], examples[3:])]
    loss = sum(part[0] for part in parts)
    assert worst((loss, {name: sum(part[1][name] for part in parts) for name in parts[0][1]}), expected) < TOLERANCE


def test_a_step_never_asks_the_device():
    """A training step on such a batch has no call that waits."""
    model, batch = make("mistral"), shared(make_examples())
    with Waits() as waits:
        model(**batch).loss.backward()
    assert waits.num_calls > 100
    assert not waits.calls


@pytest.mark.parametrize("change", [{"labels": None}, {"use_cache": True}, {"latent_columns": None}])
def test_all_but_training_is_refused(change):
    """Without labels, with a cache, in `eval()` mode or without gradients a shared row has no numbers."""
    model, batch = make("gpt2"), shared(make_examples())
    with pytest.raises(ModelError, match=r"shared_reading \(14, 3\)"):
        model(**{**batch, **change})
    with torch.no_grad(), pytest.raises(ModelError, match="works while training"):
        model(**batch)
    with pytest.raises(ModelError, match="works while training"):
        model.eval()(**batch)


def test_a_model_whose_passes_share_nothing_is_refused():
    """A type that is not known to share reads a row a question."""
    with pytest.raises(ModelError, match="give every question its row"):
        make("olmo2")(**shared(make_examples()))


# Order


def about(text, size):
    """Problems that ask `size` questions about one text."""
    start = " ".join(map(str, random.Random(text).choices(range(16), k=12)))
    return [Problem(f"{start} ; {index}", ("1",), "2") for index in range(size)]


def order_of(sizes, epoch=0, device_batch_size=8, batch_size=16):
    """The order in which problems about texts are read, and the size of their groups."""
    data = make_data(problems=lambda _: [problem for text, size in enumerate(sizes) for problem in about(text, size)])
    data.set_epoch(epoch)
    return list(EpochSampler(data, "a", batch_size, True, device_batch_size)), data.group_size


def test_questions_about_a_text_are_read_side_by_side():
    """Groups stay whole and in one batch of a device; which epoch, and nothing else, says in which order."""
    order, size = order_of([4] * 20)
    assert size == 4
    groups = [order[start : start + 4] for start in range(0, len(order), 4)]
    assert all(group == list(range(group[0], group[0] + 4)) and group[0] % 4 == 0 for group in groups)
    assert len(order) == len(set(order)) == 80
    assert [group[0] for group in groups] != sorted(group[0] for group in groups)
    assert order_of([4] * 20)[0] == order
    assert order_of([4] * 20, epoch=1)[0] != order


@pytest.mark.parametrize(
    ("sizes", "device_batch_size"), [([4] * 20, 6), ([4] * 19 + [2, 2], 8), ([1] * 80, 8), ([4] * 20, 1)]
)
def test_other_problems_are_read_in_the_order_of_before(sizes, device_batch_size):
    """Where groups differ in size or do not fit a batch, the order is that of single problems."""
    data = make_data(problems=lambda _: [problem for text, size in enumerate(sizes) for problem in about(text, size)])
    expected = list(EpochSampler(data, "a", 16, True))
    assert order_of(sizes, device_batch_size=device_batch_size)[0] == expected
    assert len({index // 4 for index in expected[:4]}) > 1


# Training


def test_a_run_shares_what_its_problems_share(tmp_path, monkeypatch):
    """A run on a file whose problems come in groups reads every batch shared, over accumulated batches; a method with a
    loss of its own gets a row a question.
    """
    write_problems(tmp_path / "train.jsonl", [problem for text in range(8) for problem in about(text, 4)])
    write_problems(tmp_path / "valid.jsonl", about(8, 2))
    files = {
        "fresh": False,
        "generate": {},
        "train": str(tmp_path / "train.jsonl"),
        "valid": str(tmp_path / "valid.jsonl"),
    }
    batches = []

    def collate_and_note(*args, **settings):
        batches.append(collate(*args, **settings))
        return batches[-1]

    monkeypatch.setattr(trainer_module, "collate", collate_and_note)
    config = tiny_config(data=files, train={"batch_size": 16, "device_batch_size": 8})
    train(config, tmp_path / "shared")
    assert len(batches) == 3 * 4
    assert {batch.get("shared_reading", (0, 0))[1] for batch in batches} == {4}
    batches.clear()
    monkeypatch.setattr(Coconut, "losses", lambda self, run, model, batch: {"cross_entropy": run().loss})
    train(config, tmp_path / "separate")
    assert batches
    assert not any("shared_reading" in batch for batch in batches)
