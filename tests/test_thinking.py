"""Promises of `thinking`: equal to the definition, gradients included, whatever the batch, the mask or the cache."""

import random
from functools import cache, partial

import pytest
import reference
import torch
from conftest import LATENT_ID, MODELS, TOKENIZER, make_model, make_thinker
from transformers import DynamicCache

# Largest difference from the oracle, relative to the largest entry of the tensor compared.
# Measured over all models, attentions, batches and alignments of this file (`pytest -s -k noise` prints it):
NOISE = 1.0
TOLERANCE = 1.0
NOISE64 = 1.0
TOLERANCE64 = 1.0

# Layouts of rows: a word is text of so many tokens, a number so many thoughts. Each row of a batch is one layout.
LAYOUTS = {
    "ragged": ((5, "t2", 4), (9,), (2, "t1", 6), (3, "t3", 2)),
    "two_places": ((3, "t1", 3, "t2", 4), (1, "t3", 7), (12,), (6, "t1", 1, "t1", 1)),
    "one_row": ((4, "t2", 5),),
    "no_thoughts": ((4,), (7,)),
    "all_equal": ((6, "t4", 3), (6, "t4", 3)),
}


def make_row(layout, draw):
    """Token ids and labels of one row; about two in three texts have a label, thoughts never."""
    words = range(LATENT_ID + 1, len(TOKENIZER))
    ids = []
    for part in layout:
        ids += [LATENT_ID] * int(part[1:]) if isinstance(part, str) else draw.choices(words, k=part)
    labels = [-100 if token == LATENT_ID or draw.random() < 0.3 else token for token in ids]
    return ids, [*labels[:-1], ids[-1]]


@cache
def make_rows(name):
    draw = random.Random(name)
    return [make_row(layout, draw) for layout in LAYOUTS[name]]


def offsets(rows, align):
    """Column at which each row begins."""
    if align == "right_padded":
        return [0] * len(rows)
    ends = [len(ids) - (ids[::-1].index(LATENT_ID) if align == "end_aligned" and LATENT_ID in ids else 0) for ids, _ in rows]
    return [max(ends) - end for end in ends]


def pad(rows, align, extra=0):
    """`input_ids`, `attention_mask` and `labels` of a batch, with `extra` columns of padding on both sides."""
    starts = [start + extra for start in offsets(rows, align)]
    width = max(start + len(ids) for start, (ids, _) in zip(starts, rows, strict=True)) + extra
    batch = {"input_ids": TOKENIZER.pad_token_id, "attention_mask": 0, "labels": -100}
    batch = {name: torch.full((len(rows), width), fill) for name, fill in batch.items()}
    for row, (start, (ids, labels)) in enumerate(zip(starts, rows, strict=True)):
        columns = slice(start, start + len(ids))
        for name, values in {"input_ids": ids, "attention_mask": 1, "labels": labels}.items():
            batch[name][row, columns] = torch.as_tensor(values)
    return batch


def real(tensor, batch):
    """The parts of each row that are not padding."""
    return [row[kept.bool()] for row, kept in zip(tensor, batch["attention_mask"], strict=True)]


def cocot_results(model, batch):
    """Loss and gradients in training mode, logits and loss in eval mode."""
    model.train().zero_grad()
    loss = model(**batch).loss
    loss.backward()
    with torch.no_grad():
        output = model.eval()(**batch)
    return (loss.detach(), output.loss), real(output.logits, batch), reference.gradients(model)


def error(got, expected, scale=0.0):
    """Largest difference, relative to the largest entry expected (or to `scale` if that is larger)."""
    return float((got - expected).abs().max() / max(float(expected.abs().max()), scale))


def worst(got, expected):
    """Largest relative error over losses, logits and gradients."""
    (losses, logits, grads), (loss, true_logits, true_grads) = got, expected
    assert grads.keys() == true_grads.keys()
    floor = 1e-3 * max(float(grad.abs().max()) for grad in true_grads.values())
    errors = {f"loss {mode}": error(value, loss) for mode, value in zip(("train", "eval"), losses, strict=True)}
    errors |= {f"logits {row}": error(*pair) for row, pair in enumerate(zip(logits, true_logits, strict=True))}
    errors |= {name: error(grads[name], true_grads[name], floor) for name in true_grads}
    return max(errors.values()), max(errors, key=errors.get)


@cache
def truth(name, layouts, dtype=torch.float32):
    return reference.batch_results(make_model(name, attn_implementation="eager", dtype=dtype), make_rows(layouts), LATENT_ID)


ALIGNMENTS = ("left_padded", "right_padded", "end_aligned")


@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_definition(name, attention, layouts):
    model = make_thinker(name, attn_implementation=attention)
    for align in ALIGNMENTS:
        value, where = worst(cocot_results(model, pad(make_rows(layouts), align)), truth(name, layouts))
        print("ERR", value, name, attention, layouts, align, where)
