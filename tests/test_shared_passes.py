"""Tests of `passes`: the numbers of the plain way, for less memory, without waiting, and nothing left behind."""

import gc
import random
from functools import cache
from itertools import pairwise

import pytest
import reference
import torch
from conftest import CONFIGS, LATENT_ID, TOKENIZER, make_model
from test_recurrence import error, make_row
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

import cocot.modeling.forward_call
from cocot.data.collator import collate
from cocot.data.examples import Example
from cocot.modeling.deferred_gradients import DeferredMatrix
from cocot.modeling.latent_model import give_thoughts
from cocot.modeling.recurrence import CACHE
from cocot.modeling.shared_passes import MODEL_TYPES, PassCache, Pieces, attend, can_share, enable_checkpointing

# Largest difference allowed between a loss or gradient and the oracle's, or the plain way's, relative to the largest
# entry of the tensor (for gradients, of 0.001 of the largest gradient if that is more: some are zero but for noise).
# Measured, worst of all cases below: 2.8e-6 against the oracle, 1.6e-6 against the plain way.
TOLERANCE = 1e-5
# The same of `attend` in float64. Measured, worst: 8.6e-16.
TOLERANCE64 = 1e-13
# The same under bfloat16 autocast against float32, relative to the largest entry of all gradients. Measured, worst:
# 0.064 for a gradient (0.041 the plain way), 0.0011 for a loss.
AUTOCAST_TOLERANCE = 0.1
AUTOCAST_LOSS_TOLERANCE = 0.02

PAD = TOKENIZER.pad_token_id
ALL_CONFIGS = {
    **CONFIGS,
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "rotary_pct": 0.5,
        "initializer_range": 0.15,
    },
    "smollm3": {  # the second layer slides and has no rotary positions
        **CONFIGS["llama"],
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 4,
    },
    "olmo2": CONFIGS["llama"],  # of no type that shares
}

# As in `test_thinking`: a word is text of so many tokens, a number so many thoughts. Some rows are so short that all of
# them stands behind the thoughts of others: then a later pass reads padding, which may see no key.
LAYOUTS = {
    "ragged": ((5, "t2", 4), (9,), (2, "t1", 6), (3, "t3", 2), (3,)),
    "two_places": ((3, "t1", 3, "t2", 4), (1, "t3", 7), (2,), (6, "t1", 1, "t1", 1)),
    "no_thoughts": ((4,), (7,)),
    "all_equal": ((6, "t4", 3), (6, "t4", 3)),
}


def make_bare(name, attention="sdpa", seed=0, **settings):
    """As `conftest.make_model`, for the model types that only these tests need too."""
    if name in CONFIGS:
        return make_model(name, seed, attention, **settings)
    ids = {"eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": PAD, "bos_token_id": None}
    config = AutoConfig.for_model(name, **{"vocab_size": len(TOKENIZER), **ids, **ALL_CONFIGS[name], **settings})
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def make(name, attention="sdpa", checkpointing=False, **settings):
    """A model that thinks, in `train()` mode."""
    model = give_thoughts(make_bare(name, attention, **settings), TOKENIZER).train()
    if checkpointing:
        enable_checkpointing(model)
    return model


@cache
def make_rows(name):
    """Rows of (ids, labels)."""
    draw = random.Random(name)
    return [make_row(layout, draw) for layout in LAYOUTS[name]]


def to_batch(rows, align="end_aligned", has_plan=True):
    """What `collate` makes of rows of (ids, labels), with or without the places of thoughts and labels."""
    examples = []
    for ids, labels in rows:
        after = ids[::-1].index(LATENT_ID) if LATENT_ID in ids else len(ids) // 2
        prompt_length = len(ids) if align == "left_padded" else len(ids) - after
        examples.append(Example(ids, labels, prompt_length, ids.count(LATENT_ID)))
    batch = collate(examples, PAD, LATENT_ID)
    return batch if has_plan else {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}


def step(model, batch, dtype=None):
    """Loss and gradients of a training step, forward under autocast to `dtype` if there is one."""
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = model(**batch).loss
    loss.backward()
    return loss.detach(), reference.gradients(model)


@cache
def truth(name, layouts, **wrong):
    """What the oracle says; `wrong` makes it lie."""
    loss, _, grads = reference.batch_results(make_bare(name, "eager"), make_rows(layouts), LATENT_ID, **wrong)
    return loss, grads


def largest(grads):
    """The largest entry of all gradients."""
    return max(float(grad.abs().max()) for grad in grads.values())


def worst(got, expected):
    """Largest relative error of a loss and of each gradient."""
    (loss, grads), (true_loss, true_grads) = got, expected
    assert grads.keys() == true_grads.keys()
    floor = 1e-3 * largest(true_grads)
    return max(error(loss, true_loss), *(error(grads[name], true_grads[name], floor) for name in true_grads))


def worst_entry(grads, true_grads):
    """Largest error of any gradient, relative to the largest entry of all."""
    return max(error(grads[name], true_grads[name], largest(true_grads)) for name in true_grads)


def is_same(got, expected):
    """Whether a loss and all gradients are the same to the last bit."""
    (loss, grads), (true_loss, true_grads) = got, expected
    return torch.equal(loss, true_loss) and all(torch.equal(grads[name], true_grads[name]) for name in true_grads)


@pytest.fixture
def updates(monkeypatch):
    """Pass, layer and columns of every call of `PassCache.update`: empty unless passes share."""
    seen, update = [], PassCache.update

    def spy(self, key_states, value_states, layer_idx, *args, **kwargs):
        seen.append((self.number, layer_idx, key_states.shape[-2]))
        return update(self, key_states, value_states, layer_idx, *args, **kwargs)

    monkeypatch.setattr(PassCache, "update", spy)
    return seen


@pytest.fixture
def plain_way(monkeypatch):
    """A switch that makes all passes from then on run the plain way."""
    return lambda: monkeypatch.setattr(cocot.modeling.forward_call, "can_share", lambda model: False)


def expected_updates(batch):
    """What `updates` sees of one step without checkpointing, of a model of two layers."""
    columns = (batch["input_ids"] == LATENT_ID).any(0).nonzero().flatten().tolist()
    widths = [end - start for start, end in pairwise([0, *columns, batch["input_ids"].shape[1]])]
    return [(number, layer, width) for number, width in enumerate(widths) for layer in (0, 1)]


# Numbers


@pytest.mark.parametrize("layouts", ["ragged", "two_places", "no_thoughts"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_equals_the_definition(name, attention, layouts, updates):
    """Loss and every gradient are those of the paper's definition, with the plan of a batch and without it."""
    model, rows = make(name, attention), make_rows(layouts)
    for align, has_plan in (("left_padded", False), ("end_aligned", True)):
        batch = to_batch(rows, align, has_plan)
        updates.clear()
        value = worst(step(model, batch), truth(name, layouts))
        assert value < TOLERANCE, f"off by {value:.1e}, {align}"
        assert updates == expected_updates(batch)


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_a_wrong_thought_is_noticed(name):
    """The comparison fails if thoughts carry no gradient, or if one is off by ten times the tolerance."""
    got = step(make(name), to_batch(make_rows("ragged")))
    assert worst(got, truth(name, "ragged", detach=True)) > 1000 * TOLERANCE
    assert worst(got, truth(name, "ragged", shift=10 * TOLERANCE)) > TOLERANCE


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_a_wrong_gradient_is_noticed(name):
    """The comparison fails if any one gradient is off by ten times the tolerance."""
    loss, grads = step(make(name), to_batch(make_rows("ragged")))
    for key, grad in grads.items():
        changed = {**grads, key: grad + 10 * TOLERANCE * max(float(grad.abs().max()), 1e-3 * largest(grads))}
        assert worst((loss, changed), truth(name, "ragged")) > TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_equals_the_plain_way(name, attention, updates, plain_way):
    """A step has the numbers that it has where passes share nothing."""
    model, batch = make(name, attention), to_batch(make_rows("two_places"))
    got = step(model, batch)
    assert updates
    updates.clear()
    plain_way()
    assert worst(got, step(model, batch)) < TOLERANCE
    assert not updates


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_a_mask_is_not_needed(name, updates):
    """Rows of equal length have the same numbers without a mask."""
    batch = to_batch(make_rows("all_equal"))
    del batch["attention_mask"]
    assert worst(step(make(name), batch), truth(name, "all_equal")) < TOLERANCE
    assert updates


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_frozen_weights_change_no_other_gradient(name, checkpointing):
    """What trains beside frozen weights gets the gradient that it gets when all train; they get none."""
    _, grads = truth(name, "ragged")
    batch = to_batch(make_rows("ragged"))
    names = list(grads)
    for trained in (names[1::2], names[::2], names[:1], names[len(names) // 2 : len(names) // 2 + 1]):
        model = make(name, checkpointing=checkpointing)
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(key in trained)
        model(**batch).loss.backward()
        got = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
        assert set(got) == set(trained)
        assert max(error(got[key], grads[key], 1e-3 * largest(grads)) for key in got) < TOLERANCE


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_backward_may_run_twice_and_over_two_steps(checkpointing):
    """A retained graph gives its gradient again, and two steps that wait for one backward do not mix."""
    model = make("gpt2", checkpointing=checkpointing)
    batches = [to_batch(make_rows(layouts)) for layouts in ("ragged", "two_places")]
    expected = [step(model, batch)[1] for batch in batches]
    model.zero_grad()
    losses = [model(**batch).loss for batch in batches]
    sum(losses).backward(retain_graph=True)
    losses[1].backward()
    for key, grad in reference.gradients(model).items():
        true_grad = expected[0][key] + 2 * expected[1][key]
        assert error(grad, true_grad, 1e-3 * largest(expected[0])) < TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_other_dtypes(dtype, attention):
    """Weights of another dtype have the same numbers but for its rounding, also where padding sees nothing."""
    batch = to_batch(make_rows("ragged"), "left_padded")
    loss, grads = step(make("gpt2", attention).to(dtype), batch)
    assert {grad.dtype for grad in grads.values()} == {dtype}
    got = (loss.float(), {name: grad.float() for name, grad in grads.items()})
    true_loss, true_grads = truth("gpt2", "ragged")
    if dtype == torch.float64:
        assert worst(got, (true_loss, true_grads)) < TOLERANCE
    else:
        assert error(got[0], true_loss) < AUTOCAST_LOSS_TOLERANCE
        assert worst_entry(got[1], true_grads) < AUTOCAST_TOLERANCE


# Attention


def make_attention(num_first=5, num_later=3, num_queries=2, num_heads=4, num_shared=2, width=8):
    """Queries, and the keys and values of a first pass and of later ones, in float64."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, num_heads, num_queries, width)] + 2 * [(2, num_shared, n, width) for n in (num_first, num_later)]
    return [torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True) for shape in shapes]


def attend_to(query, keys, more_keys, values, more_values, mask, module=None, **settings):
    """`attend` to keys and values in two pieces."""
    key = Pieces(DeferredMatrix(keys.transpose(-1, -2)), more_keys)
    value = Pieces(DeferredMatrix(values), more_values)
    return attend(torch.nn.Module() if module is None else module, query, key, value, mask, **settings)[0]


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("kind", ["bool", "float", "none"])
@pytest.mark.parametrize("num_shared", [4, 2, 1])
def test_attention_is_pytorchs(num_shared, kind, scaling):
    """Value and gradients are those of scaled dot product attention over the pieces put together."""
    tensors = make_attention(num_shared=num_shared)
    seen = torch.ones(2, 1, 2, 8, dtype=torch.bool).tril(6)
    if kind != "none":
        seen[0, :, :, :3] = False
    mask = {"bool": seen, "float": torch.zeros(seen.shape).double().masked_fill(~seen, -1e30), "none": None}[kind]
    got = attend_to(*tensors, mask, scaling=scaling)
    query, *pieces = tensors
    keys, values = (torch.cat(pair, 2).repeat_interleave(4 // num_shared, 1) for pair in (pieces[:2], pieces[2:]))
    expected = functional.scaled_dot_product_attention(query, keys, values, seen, scale=scaling).transpose(1, 2)
    results = [[out, *torch.autograd.grad(out.sin().sum(), tensors)] for out in (got, expected)]
    assert max(map(error, *results)) < TOLERANCE64
    assert error(got.roll(1, 1), expected) > 1000 * TOLERANCE


def test_a_query_that_sees_nothing_has_numbers():
    """Padding has no key to see: whatever it gets, no infinity or NaN reaches the gradients of others."""
    tensors = make_attention()
    seen = torch.ones(2, 1, 2, 8, dtype=torch.bool)
    seen[0] = False
    for mask in (seen, torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)):
        got = attend_to(*tensors, mask)
        assert all(grad.isfinite().all() for grad in (got, *torch.autograd.grad(got.pow(2).sum(), tensors)))


def test_dropout_is_dropout():
    """While training, a weight is left out with the probability asked for, and the others are scaled up for it."""
    query, keys, more_keys, *_ = make_attention(num_shared=4)
    eye = torch.eye(8, dtype=torch.float64).expand(2, 4, 8, 8)
    pieces = [query, keys, more_keys, eye[..., :5, :], eye[..., 5:, :]]  # the output is the weights
    pieces = [piece.detach().repeat(100, 1, 1, 1) for piece in pieces]
    module = torch.nn.Module()
    weights = attend_to(*pieces, None, module.eval(), dropout=0.25)
    assert error(weights, attend_to(*pieces, None, module)) == 0
    module.train()
    torch.manual_seed(0)
    got = attend_to(*pieces, None, module, dropout=0.25)
    kept = got != 0
    could = weights != 0
    assert error(got[kept], weights[kept] / 0.75) < TOLERANCE
    for part in (slice(0, 5), slice(5, 8)):
        share = float(kept[..., part].sum() / could[..., part].sum())
        assert share == pytest.approx(0.75, abs=0.03)
    torch.manual_seed(0)
    assert torch.equal(attend_to(*pieces, None, module, dropout=0.25), got)
    assert not torch.equal(attend_to(*pieces, None, module, dropout=0.25), got)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_a_thoughts_attention_drops_out(name, attention, plain_way):
    """The model's rate reaches the passes of thoughts: at one, where chance has no say, numbers are the plain way's."""
    setting = "attn_pdrop" if name == "gpt2" else "attention_dropout"
    model, batch = make(name, attention, **{setting: 1.0}), to_batch(make_rows("all_equal"))
    got = step(model, batch)
    assert worst(got, truth(name, "all_equal")) > 1000 * TOLERANCE
    plain_way()
    assert worst(got, step(model, batch)) < TOLERANCE


# Checkpointing


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_checkpointing_changes_no_number(name, attention, updates):
    """With gradient checkpointing loss and gradients are the same to the last bit."""
    model = make(name, attention)
    batch = to_batch(make_rows("two_places"))
    expected = step(model, batch)
    enable_checkpointing(model)
    updates.clear()
    assert is_same(step(model, batch), expected)
    assert len(updates) > len(expected_updates(batch)), "no layer was computed again"
    assert worst(expected, truth(name, "two_places")) < TOLERANCE


@pytest.mark.parametrize("rates", ["attn_pdrop", "resid_pdrop", "all"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_checkpointing_drops_the_same_out(attention, rates, updates):
    """A layer that is computed again drops out what it dropped the first time."""
    names = ("attn_pdrop", "resid_pdrop", "embd_pdrop") if rates == "all" else (rates,)
    model, batch = make("gpt2", attention, **dict.fromkeys(names, 0.1)), to_batch(make_rows("two_places"))
    results = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        results.append(step(model, batch))
        enable_checkpointing(model)
    assert is_same(results[0], results[2])
    assert updates
    assert worst(results[1], results[0]) > 1000 * TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_checkpointing_keeps_little(name, attention):
    """A layer of a long pass keeps little but its input."""
    batch = to_batch([long_row(before=100, thoughts=2, after=10)] * 2)
    model = make(name, attention)
    without = kept_bytes(model, batch)
    enable_checkpointing(model)
    assert kept_bytes(model, batch) < 0.5 * without


# Memory


def long_row(before, thoughts, after):
    """One row of text with thoughts inside."""
    draw = random.Random(0)
    words = range(LATENT_ID + 1, len(TOKENIZER))
    ids = draw.choices(words, k=before) + [LATENT_ID] * thoughts + draw.choices(words, k=after)
    return ids, [-100] * (len(ids) - after) + ids[-after:]


class Storages(TorchDispatchMode):
    """Remembers, without keeping them alive, where all tensors lie that are made in it."""

    def __init__(self):
        super().__init__()
        self._made = WeakIdKeyDictionary()
        self.num_bytes_ever = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self._made:
                self._made[tensor.untyped_storage()] = None
                self.num_bytes_ever += tensor.untyped_storage().nbytes()
        return output

    def num_bytes(self, others):
        """Bytes of what is still alive, but for what `others` lie in."""
        own = {tensor.untyped_storage().data_ptr() for tensor in others}
        return sum(storage.nbytes() for storage in self._made if storage.data_ptr() not in own)


def kept_bytes(model, batch):
    """Bytes that wait for the backward pass of one step."""
    with Storages() as storages:
        loss = model(**batch).loss
    num_bytes = storages.num_bytes(model.parameters())
    loss.backward()
    return num_bytes


def test_keys_and_values_exist_once(plain_way):
    """A thought keeps much less than a copy of the keys and values before it; the plain way keeps more than one."""
    model, before = make("gpt2", n_embd=64, n_head=2), 100
    copy_bytes = 2 * 2 * 64 * before * 4  # keys and values, layers, width, columns, bytes

    def bytes_of_a_thought():
        few, many = (kept_bytes(model, to_batch([long_row(before, count, 5)])) for count in (2, 10))
        return (many - few) / 8

    assert bytes_of_a_thought() < 0.3 * copy_bytes
    plain_way()
    assert bytes_of_a_thought() > copy_bytes


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_large_gradients_are_made_once(name, plain_way):
    """Backward through a thought writes much less than the gradients of weights, keys and values; the plain way all."""
    width, num_layers, before = 128, 4, 100
    settings = {"n_embd": width, "n_head": 2, "n_layer": num_layers}
    if name == "llama":
        settings = {"hidden_size": width, "intermediate_size": 512, "num_hidden_layers": num_layers}
    model = make(name, **settings)
    layers = model.transformer.h if name == "gpt2" else model.model.layers
    num_weights = sum(parameter.numel() for parameter in layers.parameters())
    num_bytes = 4 * (num_weights + 2 * num_layers * width * before)

    def share_of_a_thought():
        made = []
        for count in (2, 10):
            loss = model(**to_batch([long_row(before, count, 5)])).loss
            with Storages() as storages:
                loss.backward()
            made.append(storages.num_bytes_ever)
        return (made[1] - made[0]) / 8 / num_bytes

    assert share_of_a_thought() < 0.3
    plain_way()
    assert share_of_a_thought() > 1


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("ends", ["backward", "given up"])
def test_a_step_leaves_no_memory_behind(ends, checkpointing):
    """Nothing of a step is alive after it, whether its backward pass ran or its loss was dropped."""
    model, batch = make("gpt2", checkpointing=checkpointing), to_batch(make_rows("ragged"))
    step(model, batch)  # gradients and lazy tables exist from now on
    with Storages() as storages:
        loss = model(**batch).loss
        if ends == "backward":
            loss.backward()
        del loss
    gc.collect()
    gradients = (parameter.grad for parameter in model.parameters())
    tensors = [*model.parameters(), *gradients, *(value for value in batch.values() if isinstance(value, torch.Tensor))]
    assert storages.num_bytes(tensors) == 0


# Autocast


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_autocast_is_within_its_noise(name, attention, plain_way, updates):
    """Under bfloat16 autocast loss and gradients are near float32's, checkpointed or not, and gradients are float32."""
    model, batch = make(name, attention), to_batch(make_rows("ragged"))
    loss, grads = step(model, batch)
    got = step(model, batch, torch.bfloat16)
    assert updates
    assert {grad.dtype for grad in got[1].values()} == {torch.float32}
    assert error(got[0], loss) < AUTOCAST_LOSS_TOLERANCE
    assert worst_entry(got[1], grads) < AUTOCAST_TOLERANCE
    assert worst_entry(got[1], grads) > 1e-4, "nothing was bfloat16"
    enable_checkpointing(model)
    assert is_same(step(model, batch, torch.bfloat16), got)


# Waiting for the device

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal")


class Waits(TorchDispatchMode):
    """Notes the calls for which a device would have to be waited."""

    def __init__(self):
        super().__init__()
        self.calls, self.num_calls = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num_calls += 1
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        has_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        if name in WAITING or has_mask:
            self.calls.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("attention", "checkpointing"), [("sdpa", False), ("eager", True)])
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_a_step_never_asks_the_device(name, attention, checkpointing):
    """A training step on a batch with its plan has no call that waits; without the plan it has."""
    model = make(name, attention, checkpointing)
    for has_plan in (True, False):
        batch = to_batch(make_rows("ragged"), has_plan=has_plan)
        with Waits() as waits:
            model(**batch).loss.backward()
        assert waits.num_calls > 100
        assert bool(waits.calls) != has_plan, waits.calls


# Surroundings


def state(model):
    """All that a step could leave switched: attributes of all modules, the config, the layers' own functions."""
    parts = {name: dict(vars(part)) for name, part in model.named_modules()}
    settings = {**model.config.to_dict(), "attention": model.config._attn_implementation}
    leaf = torch.ones(2, 2, requires_grad=True)
    return parts, settings, functional.linear(leaf, leaf).grad_fn.name()


def assert_untouched(model, before):
    """The model is switched as it was."""
    (parts, *others), (parts_before, *others_before) = state(model), before
    assert others == others_before
    for name, attributes in parts_before.items():
        assert parts[name].keys() == attributes.keys(), name
        assert all(parts[name][key] is value for key, value in attributes.items()), name


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_a_step_leaves_nothing_switched(name, checkpointing):
    """After forward, and after backward, the model is as it was before."""
    model = make(name, checkpointing=checkpointing)
    before = state(model)
    loss = model(**to_batch(make_rows("ragged"))).loss
    assert_untouched(model, before)
    loss.backward()
    assert_untouched(model, before)


def fail_in(model, layer, number):
    """Make `layer` raise when it runs for time `number`, from 0."""
    calls = []

    def hook(*_):
        calls.append(None)
        if len(calls) == number + 1:
            raise KeyboardInterrupt("half way")

    return layer.mlp.register_forward_pre_hook(hook)


@pytest.mark.parametrize(
    ("checkpointing", "when"), [*((way, number) for way in (False, True) for number in (0, 2, 3)), (True, "backward")]
)
def test_an_exception_half_way_leaves_nothing_switched(checkpointing, when):
    """A step that raises in any pass, or while a layer is computed again, is as if it had never been."""
    model, batch = make("llama", checkpointing=checkpointing), to_batch(make_rows("ragged"))
    expected, before = step(model, batch), state(model)
    num_passes = len(batch["latent_columns"]) + 1
    handle = fail_in(model, model.model.layers[1], num_passes if when == "backward" else when)
    with pytest.raises(KeyboardInterrupt, match="half way"):
        step(model, batch)
    handle.remove()
    assert_untouched(model, before)
    assert is_same(step(model, batch), expected)
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert logits.isfinite().all()


PLAIN_CALLS = {
    "eval": lambda model, batch: model.eval()(**batch),
    "inference": lambda model, batch: torch.no_grad()(model)(**batch),
    "no labels": lambda model, batch: model(**{key: batch[key] for key in ("input_ids", "attention_mask")}),
    "use_cache": lambda model, batch: model(**batch, use_cache=True),
    "cache": lambda model, batch: model(**batch, cache=DynamicCache(config=model.config)),
    "past_key_values": lambda model, batch: model(**batch, past_key_values=DynamicCache(config=model.config)),
    "flash": lambda model, batch: _with_attention(model, "cocot_test_flash", batch),
}


def _with_attention(model, implementation, batch):
    """A forward of `model` with attention that is called by another name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(implementation, sdpa_attention_forward)
    AttentionMaskInterface.register(implementation, sdpa_mask)
    model.config._attn_implementation = implementation
    output = model(**batch)
    model.config._attn_implementation = "sdpa"
    return output


@pytest.mark.parametrize("call", PLAIN_CALLS)
def test_other_calls_run_the_plain_way(call, updates):
    """Outside of a training step with labels, or with a cache or an attention not ours, no pass shares."""
    model, batch = make("llama"), to_batch(make_rows("ragged"))
    before = state(model)
    updates.clear()  # the self-test's
    output = PLAIN_CALLS[call](model, batch)
    assert not updates
    assert_untouched(model.train(), before)
    if output.loss is not None:
        assert error(output.loss, truth("llama", "ragged")[0]) < TOLERANCE
    has_cache = call in ("use_cache", "cache", "past_key_values")
    assert isinstance(output.get(CACHE), DynamicCache) == has_cache


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_known_models_share(name, attention):
    """The model types that are named do share."""
    assert can_share(make_bare(name, attention))


def test_what_is_not_known_does_not_share(updates):
    """Other attention, and model types that are not named, run the plain way, with the same promise."""
    model = make("llama")
    updates.clear()  # the self-test's
    for implementation in ("flash_attention_2", "flash_attention_3", "flex_attention", "paged|sdpa", "cocot"):
        model.config._attn_implementation = implementation
        assert not can_share(model)
    model.config._attn_implementation = "sdpa"
    assert can_share(model)
    other = make("olmo2")
    assert not can_share(other)
    assert worst(step(other, to_batch(make_rows("ragged"))), truth("olmo2", "ragged")) < TOLERANCE
    assert not updates


# The cache


def test_the_cache_knows_its_columns():
    """A pass counts the columns of the passes before it, also when it is computed again, and drops none."""
    cache, width = PassCache(), {0: 5, 1: 1, 2: 3}
    assert cache.get_seq_length() == 0
    made = {number: torch.randn(2, 4, columns, 8) for number, columns in width.items()}
    for number in (0, 1, 2, 2, 1, 0):
        cache.number = number
        past = sum(width[earlier] for earlier in range(number))
        for layer in (0, 1):
            assert cache.get_seq_length(layer) == past
            keys, values = cache.update(made[number], -made[number], layer)
            assert cache.get_seq_length(layer) == past
            assert cache.get_mask_sizes(width[number], layer) == (past + width[number], 0)
            if number == 0:
                assert keys is made[0]
                continue
            later = torch.cat([made[n] for n in range(1, number + 1)], dim=2)
            assert torch.equal(keys.later, later)
            assert torch.equal(values.later, -later)
            one_hot = torch.eye(8).expand(2, 4, 8, 8)
            assert torch.equal(keys.first.times(one_hot), made[0].transpose(-1, -2))
            assert torch.equal(values.first.times(torch.eye(5).expand(2, 4, 5, 5)), -made[0])
    assert cache.get_seq_length(7) == 0
