"""Tests of the batches: end-aligned batches, and epochs that depend on the seed and their number alone."""

import random
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
from conftest import LATENT_ID, PROBLEMS, TOKENIZER

from cocot.data.collator import collate
from cocot.data.dataset import Portion, StageData
from cocot.data.encoding import tokenize
from cocot.data.examples import IGNORED, Encoder, Example
from cocot.data.sampler import EpochSampler, bucketed
from cocot.errors import DataError
from cocot.methods import CurriculumConfig
from cocot.tasks.problem import Problem

PAD = TOKENIZER.pad_token_id
ENCODER = Encoder(CurriculumConfig(max_stage=2, epochs_per_stage=1, stage_mix=0.5), TOKENIZER)
STAGES = ENCODER.config.stages


def same_problems(_epoch):
    """The same problems every epoch."""
    return PROBLEMS


def make_data(seed="seed", problems=same_problems, max_length=None, stage=STAGES[2]):
    return StageData(ENCODER, seed, lambda epoch: [Portion(stage, problems(epoch))], max_length)


def without_steps(problems):
    return [replace(problem, steps=()) for problem in problems]


def test_problems_without_any_steps_are_refused():
    """All of them are a mistake, some are part of real data."""
    with pytest.raises(DataError, match=r"coconut.*no problem has any.*no_cot"):
        make_data(problems=lambda epoch: without_steps(PROBLEMS))
    mixed = [PROBLEMS[0], *without_steps(PROBLEMS[1:])]
    assert len(make_data(problems=lambda epoch: mixed)) == len(mixed)
    later = make_data(problems=lambda epoch: without_steps(PROBLEMS) if epoch else PROBLEMS)
    with pytest.raises(DataError, match="no problem has any"):
        later.set_epoch(1)


def test_processes_that_run_layers_together_split_equally_often():
    """Further splits stand at columns without thoughts, until there are as many as asked for."""
    examples = [make_data()[index] for index in range(len(PROBLEMS))]
    batch = collate(examples, PAD, LATENT_ID)
    for num_splits in range(len(batch["latent_columns"]) + 4):
        more = collate(examples, PAD, LATENT_ID, num_splits)["latent_columns"]
        assert set(batch["latent_columns"]) <= set(more)
        assert len(more) == max(num_splits, len(batch["latent_columns"]))
        assert more == sorted(set(more))
        assert 0 < more[0] <= more[-1] < batch["input_ids"].shape[1]


def test_a_short_batch_has_room_for_the_splits_of_others():
    """Columns of padding are added where there are fewer than the splits take."""
    batch = collate([Example([5, 6, 7], [IGNORED, IGNORED, 7], 2, 0)], PAD, LATENT_ID, num_splits=6)
    assert batch["latent_columns"] == [1, 2, 3, 4, 5, 6]
    assert batch["input_ids"].tolist() == [[PAD] * 4 + [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[0] * 4 + [1] * 3]


def read(data, epoch):
    """All that `data` holds in an epoch."""
    data.set_epoch(epoch)
    return [data[index] for index in range(len(data))]


# Batches


def make_example(before, after):
    """A prompt of `before` tokens and a text of `after`; every token is its own number, from 1."""
    ids = list(range(1, before + after + 1))
    return Example(ids, [IGNORED] * before + ids[before:], before, 0)


def test_a_batch_is_end_aligned():
    """Texts begin in one column; padding left and right is masked and has no label."""
    batch = collate([make_example(2, 1), make_example(4, 2), make_example(1, 3)], pad_id=99, latent_id=LATENT_ID)
    assert batch["input_ids"].tolist() == [
        [99, 99, 1, 2, 3, 99, 99],
        [1, 2, 3, 4, 5, 6, 99],
        [99, 99, 99, 1, 2, 3, 4],
    ]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [
        [IGNORED] * 4 + [3, IGNORED, IGNORED],
        [IGNORED] * 4 + [5, 6, IGNORED],
        [IGNORED] * 4 + [2, 3, 4],
    ]


def test_thoughts_of_all_rows_end_in_one_column():
    """Rows of real problems, at several stages: every first label stands in the column of the others."""
    examples = [
        ENCODER(tokenize(problem, TOKENIZER), STAGES[index % len(STAGES)], random.Random(index))
        for index, problem in enumerate(PROBLEMS)
    ]
    batch = collate(examples, PAD, LATENT_ID)
    firsts = {(row != IGNORED).nonzero()[0].item() for row in batch["labels"]}
    assert len({example.num_thoughts for example in examples}) > 1
    assert firsts == {max(example.prompt_length for example in examples)}
    for row, mask, labels, example in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], examples, strict=True
    ):
        assert row[mask.bool()].tolist() == example.input_ids
        assert labels[mask.bool()].tolist() == example.labels
        assert set(row[~mask.bool()].tolist()) <= {PAD}
        assert set(labels[~mask.bool()].tolist()) <= {IGNORED}


def test_one_row_has_no_padding():
    """A batch of one is the row."""
    batch = collate([make_example(3, 2)], PAD, LATENT_ID)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert batch["attention_mask"].all()


def test_a_batch_says_where_its_thoughts_and_labels_are():
    """The plan of a batch is what its tensors say; the label of a row's first token, which nothing predicts, is not."""
    late = Example([50, LATENT_ID, LATENT_ID, 60, 70], [IGNORED] * 4 + [70], 3, 2)
    early = Example([50, 80, LATENT_ID, 60], [50, IGNORED, IGNORED, 60], 3, 1)
    batch = collate([late, early, Example([90, 90], [IGNORED, IGNORED], 1, 0)], PAD, LATENT_ID)
    assert batch["latent_columns"] == [1, 2]
    assert batch["loss_positions"].tolist() == [3, 5 + 2]  # the token before the label, rows of five columns


# Padding


def make_lengths(count, seed=0):
    """Prompts and texts of lengths that have nothing to do with each other."""
    draw = random.Random(seed)
    return [(draw.randint(5, 90), draw.randint(1, 40)) for _ in range(count)]


def share_padded(batches, lengths):
    """Tokens with padding to tokens without, less one."""
    padded = sum(len(batch) * sum(max(lengths[i][side] for i in batch) for side in (0, 1)) for batch in batches)
    return padded / sum(sum(lengths[i]) for batch in batches for i in batch) - 1


@pytest.mark.parametrize("num_batches", [1, 2, 3, 7, 64])
def test_buckets_hold_every_index_once(num_batches):
    """Whatever the lengths: whole batches, and every index in one of them."""
    for lengths in (make_lengths(num_batches * 8), [(4, 4)] * num_batches * 8):
        batches = bucketed(list(range(len(lengths))), lengths, 8)
        assert [len(batch) for batch in batches] == [8] * num_batches
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))


def test_buckets_have_little_padding():
    """Much less than by chance, and than sorted by the sum of both lengths."""
    lengths = make_lengths(64 * 16)
    order = list(range(len(lengths)))
    by_sum = sorted(order, key=lambda index: sum(lengths[index]))
    chance, summed = (share_padded([way[at : at + 16] for at in range(0, len(way), 16)], lengths)
                      for way in (order, by_sum))  # fmt: skip
    share = share_padded(bucketed(order, lengths, 16), lengths)
    assert share < 0.2 * chance
    assert share < 0.5 * summed


def test_an_epoch_has_its_like_lengths_in_no_order():
    """The sampler cuts real problems into batches of like lengths, which come in an order of chance."""
    problems = [Problem(" ".join("0" * (1 + 7 * index % 60)), ("1",), "2") for index in range(240)]
    data = make_data(problems=lambda _: problems, stage=STAGES[0])
    lengths = data.lengths(range(len(data)))
    assert [sum(length) for length in lengths] == [len(example.input_ids) for example in read(data, 0)]

    def batches_of(by_length):
        order = list(EpochSampler(data, "a", 8, by_length))
        return [order[at : at + 8] for at in range(0, len(order), 8)]

    assert share_padded(batches_of(True), lengths) < 0.2 * share_padded(batches_of(False), lengths)
    longest = [max(lengths[index][0] for index in batch) for batch in batches_of(True)]
    rises = sum(a < b for a, b in pairwise(longest))
    assert 8 < rises < 22, "batches come sorted by length"


# Epochs


def test_an_epoch_depends_on_seed_and_number_alone():
    """Same seed and epoch, same examples, whatever was read before; another epoch or seed mixes otherwise."""
    data = make_data()
    first, second = read(data, 0), read(data, 1)
    assert read(data, 0) == first
    assert read(make_data(), 1) == second
    assert make_data()[5] == first[5]
    assert first != second
    assert read(make_data("another"), 0) != first


def test_the_order_depends_on_seed_and_epoch_alone():
    """Same seed and epoch, same order; another epoch or seed, another; each in whole batches without repeats."""
    data = make_data()
    orders = {}
    for seed in ("a", "b"):
        for epoch in (0, 1):
            data.set_epoch(epoch)
            sampler = EpochSampler(data, seed, batch_size=7, by_length=True)
            orders[seed, epoch] = list(sampler)
            assert list(sampler) == orders[seed, epoch]
            assert len(sampler) == len(orders[seed, epoch]) == 21
            assert len(set(orders[seed, epoch])) == 21
            assert set(orders[seed, epoch]) <= set(range(len(PROBLEMS)))
    assert len(set(map(tuple, orders.values()))) == 4
    fresh = make_data()
    fresh.set_epoch(1)
    assert list(EpochSampler(fresh, "a", 7, True)) == orders["a", 1]
    assert set(orders["a", 0]) != set(orders["a", 1]), "the same problems are left out every epoch"


def test_one_sampler_follows_the_epoch():
    """A sampler made once gives each epoch the order of that epoch."""
    data = make_data()
    sampler = EpochSampler(data, "a", 4, True)
    first = list(sampler)
    data.set_epoch(1)
    assert list(sampler) != first
    data.set_epoch(0)
    assert list(sampler) == first


def test_fewer_problems_than_a_batch_are_no_batch():
    """Whole batches only."""
    assert list(EpochSampler(make_data(), "a", len(PROBLEMS) + 1, True)) == []


def test_an_epoch_may_have_problems_of_its_own():
    """Problems that change from epoch to epoch are read again."""
    data = make_data(problems=lambda epoch: PROBLEMS[epoch * 4 : epoch * 4 + 4], stage=STAGES[0])
    for epoch in (0, 2, 0):
        expected = [ENCODER(tokenize(problem, TOKENIZER), STAGES[0], random.Random(0)) for problem in
                    PROBLEMS[epoch * 4 : epoch * 4 + 4]]  # fmt: skip
        assert read(data, epoch) == expected


# Lengths


def test_too_long_problems_are_counted():
    """Nothing is cut: the error says how many are too long, how long the longest is, and what the limit is."""
    short = Problem("0 1", ("1 ; 2",), "2")
    long = Problem(" ".join("0" * 30), ("1 ; 2", "2 ; 3"), "2")
    make = partial(make_data, problems=lambda _: [short, long, short], stage=STAGES[0])
    length = len(make()[1].input_ids)
    make(max_length=length)
    with pytest.raises(DataError, match=rf"1 of 3 problems .* context of {length - 1} tokens .* takes {length}, "):
        make(max_length=length - 1)
    with pytest.raises(DataError, match="3 of 3 problems"):
        make(max_length=3)


def test_lengths_count_what_mixing_may_read():
    """A stage that mixes in earlier ones needs room for their longest text; what fits is never longer than said."""
    long = Problem("0", (" ".join("1" * 40), "2 ; 3"), "2")
    data = make_data(problems=lambda _: [long], stage=STAGES[2])
    longest = max(len(read(data, epoch)[0].input_ids) for epoch in range(20))
    assert longest > 40
    make_data(problems=lambda _: [long], stage=STAGES[2], max_length=longest)
    with pytest.raises(DataError, match=f"takes {longest}, "):
        make_data(problems=lambda _: [long], stage=STAGES[2], max_length=longest - 1)


def test_later_epochs_are_measured_too():
    """A problem that is too long is found in whichever epoch it comes."""
    short, long = Problem("0", ("1",), "2"), Problem(" ".join("0" * 50), ("1 ; 2",), "2")
    data = make_data(problems=lambda epoch: [long] if epoch else [short], max_length=40, stage=STAGES[0])
    with pytest.raises(DataError, match="context of 40"):
        data.set_epoch(1)
