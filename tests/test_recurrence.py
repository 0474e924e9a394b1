"""Tests of `thinking`: equal to the definition, gradients included, whatever the batch, the mask or the cache."""

import random
from functools import cache, partial
from itertools import pairwise

import pytest
import reference
import torch
from conftest import LATENT_ID, MODELS, TOKENIZER, make_model, make_thinker
from transformers import DynamicCache

# Largest difference allowed between a loss, logits or gradient and the oracle's, relative to the largest entry of the
# tensor (for gradients, of 0.001 of the largest gradient if that is more: some are zero but for noise).
# Measured, worst of all cases below: 2.8e-6 in float32 (Mistral, sdpa, ragged, a gradient), 1.1e-15 in float64.
TOLERANCE = 1e-5
TOLERANCE64 = 1e-13
ALIGNMENTS = ("left_padded", "right_padded", "end_aligned")

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
    return ids, [-100, *labels[1:-1], ids[-1]]  # nothing comes before the first token


@cache
def make_rows(name):
    draw = random.Random(name)
    return [make_row(layout, draw) for layout in LAYOUTS[name]]


def offsets(rows, align):
    """Column at which each row begins."""
    if align == "right_padded":
        return [0] * len(rows)
    ends = [len(ids) for ids, _ in rows]
    if align == "end_aligned":  # the last thoughts of all rows stand in one column
        ends = [len(ids) - (ids[::-1].index(LATENT_ID) if LATENT_ID in ids else 0) for ids, _ in rows]
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
    return float((got - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=scale))


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
def truth(name, layouts, **wrong):
    """What the oracle says; `wrong` makes it lie."""
    bare = make_model(name, attn_implementation="eager")
    return reference.batch_results(bare, make_rows(layouts), LATENT_ID, **wrong)


@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_definition(name, attention, layouts):
    """Loss, logits and every gradient are those of the paper's definition, for any rows and any padding."""
    model = make_thinker(name, attn_implementation=attention)
    for align in ALIGNMENTS:
        value, where = worst(cocot_results(model, pad(make_rows(layouts), align)), truth(name, layouts))
        assert value < TOLERANCE, f"{where} is off by {value:.1e}, {align}"


@pytest.mark.parametrize("layouts", ["ragged", "two_places"])
@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_thought_is_noticed(name, layouts):
    """The comparison fails if thoughts carry no gradient, or if one is off by ten times the tolerance."""
    got = cocot_results(make_thinker(name), pad(make_rows(layouts), "end_aligned"))
    assert worst(got, truth(name, layouts))[0] < TOLERANCE
    assert worst(got, truth(name, layouts, detach=True))[0] > 1000 * TOLERANCE
    assert worst(got, truth(name, layouts, shift=10 * TOLERANCE))[0] > TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_gradient_is_noticed(name):
    """The comparison fails if any one gradient is off by ten times the tolerance."""
    losses, logits, grads = cocot_results(make_thinker(name), pad(make_rows("ragged"), "end_aligned"))
    largest = max(grad.abs().max() for grad in grads.values())
    for key, grad in grads.items():
        changed = {**grads, key: grad + 10 * TOLERANCE * max(grad.abs().max(), 1e-3 * largest)}
        value, where = worst((losses, logits, changed), truth(name, "ragged"))
        assert value > TOLERANCE
        assert where == key


@pytest.mark.parametrize("layouts", LAYOUTS)
def test_equals_the_definition_in_float64(layouts):
    """What differs in float32 is rounding: in float64 logits and their gradients agree to its rounding.

    GPT-2 with sdpa alone, because the other models compute norms in float32 whatever the weights are.
    """
    rows = make_rows(layouts)
    bare, model = (make("gpt2", dtype=torch.float64) for make in (make_model, make_thinker))
    batch = pad(rows, "end_aligned")
    got = real(model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch)
    expected = [reference.row_logits(bare, ids, LATENT_ID) for ids, _ in rows]
    for logits in (got, expected):
        sum(row.pow(2).mean() for row in logits).backward()
    assert max(map(error, got, expected)) < TOLERANCE64
    true_grads = reference.gradients(bare)
    errors = {name: error(grad, true_grads[name]) for name, grad in reference.gradients(model).items()}
    assert max(errors.values()) < TOLERANCE64


def row_results(model, rows, index, align, extra=0):
    """Logits of row `index` in a batch of `rows`, and the gradients of its own loss."""
    batch = pad(rows, align, extra)
    del batch["labels"]
    model.zero_grad()
    logits = real(model(**batch).logits, pad(rows, align, extra))[index]
    reference.row_loss(logits, rows[index][1]).backward()
    return logits.detach(), reference.gradients(model)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_does_not_depend_on_its_batch_mates(name):
    """A row has the same logits and gradients alone, among others, in another order and with more padding."""
    rows = make_rows("ragged") + make_rows("two_places")
    model = make_thinker(name)
    for index in (0, 1, 4):
        logits, grads = row_results(model, rows[index : index + 1], 0, "right_padded")
        for align, extra in zip(ALIGNMENTS, (0, 3, 2), strict=True):
            for mates, place in ((rows, index), (rows[::-1], len(rows) - 1 - index), (rows[: index + 1], index)):
                other_logits, other_grads = row_results(model, mates, place, align, extra)
                assert error(other_logits, logits) < TOLERANCE
                floor = 1e-3 * max(float(grad.abs().max()) for grad in grads.values())
                assert max(error(other_grads[key], grads[key], floor) for key in grads) < TOLERANCE


def full_masks(mask, config):
    """What `mask`, (batch, columns), comes to for each type of layer: (batch, 1, columns, columns), to be added."""
    columns = torch.arange(mask.shape[1])
    distance = columns[:, None] - columns
    windows = {"full_attention": mask.shape[1], "sliding_attention": getattr(config, "sliding_window", None) or 0}
    seen = {kind: (distance >= 0) & (distance < window) for kind, window in windows.items()}
    hidden = torch.finfo(torch.float32).min
    return {
        kind: torch.zeros(mask.shape[0], 1, *distance.shape).masked_fill(~(part & mask.bool()[:, None, None]), hidden)
        for kind, part in seen.items()
    }


@pytest.mark.parametrize("align", ALIGNMENTS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_every_form_of_mask_is_read(name, attention, align):
    """A mask of four dimensions, or one for each type of layer, gives what the mask of two dimensions gives."""
    rows, model = make_rows("ragged"), make_thinker(name, attn_implementation=attention)
    batch = pad(rows, align)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    masks = full_masks(mask, model.config)
    kind = "sliding_attention" if name == "mistral" else "full_attention"
    call = partial(model, input_ids=ids, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    with torch.no_grad():
        expected = real(model(input_ids=ids, attention_mask=mask).logits, batch)
        mixes = name in ("qwen2", "gemma3_text")  # layers of both types: one mask cannot serve both
        forms = [] if mixes else [masks[kind]]
        forms += [masks] if mixes or name == "qwen3" else []
        for form in forms:
            got = real(call(attention_mask=form).logits, batch)
            assert max(map(error, got, expected)) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_no_mask_is_a_mask_of_ones(name):
    """Rows of one length need no mask."""
    batch, model = pad(make_rows("all_equal"), "left_padded"), make_thinker(name)
    del batch["labels"]
    with torch.no_grad():
        assert error(model(input_ids=batch["input_ids"]).logits, model(**batch).logits) < TOLERANCE


@pytest.mark.parametrize("align", ["left_padded", "end_aligned"])
@pytest.mark.parametrize("name", MODELS)
def test_a_text_in_two_calls_is_the_text_in_one(name, align):
    """Text before the thoughts may be in the cache already, and text after them may follow in a call of its own."""
    batch, model = pad(make_rows("ragged"), align), make_thinker(name)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    latent = (ids == LATENT_ID).any(0).nonzero().flatten()
    cuts = (0, int(latent[0]) - 1, int(latent[-1]) + 1, ids.shape[1])
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        expected = real(model(input_ids=ids, attention_mask=mask).logits, batch)
        parts = [
            model(input_ids=ids[:, start:end], attention_mask=mask[:, :end], cache=cache).logits
            for start, end in pairwise(cuts)
            if start < end
        ]
    assert len(parts) > 1
    assert max(map(error, real(torch.cat(parts, 1), batch), expected)) < TOLERANCE
