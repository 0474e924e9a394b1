"""Tests of `model`: the bare model where nothing is thought, a plain Hugging Face folder, plain refusals."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from conftest import CONFIGS, LATENT_ID, MODELS, PROBLEMS, TOKENIZER, make_model, make_thinker
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, StaticCache

import cocot
from cocot.data.layout import ThoughtSettings
from cocot.errors import ModelError
from cocot.modeling.recurrence import CACHE
from cocot.modeling.thought_settings import thought_settings

# Largest difference allowed, relative to the largest entry of the tensor. Measured, worst of this file: 5.0e-7.
TOLERANCE = 1e-5
WORDS = range(LATENT_ID + 1, len(TOKENIZER))


def make_ids(rows=3, columns=12, thoughts=()):
    """Token ids of text, with thoughts in the columns `thoughts`."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(WORDS.start, WORDS.stop, (rows, columns), generator=draw)
    ids[:, list(thoughts)] = LATENT_ID
    return ids


def labels_of(ids, first=6):
    """Labels for the columns from `first` on."""
    return ids.masked_fill((torch.arange(ids.shape[1]) < first) | (ids == LATENT_ID), -100)


def close(got, expected):
    """Whether two tensors are equal but for rounding."""
    return bool((got - expected).abs().max() <= TOLERANCE * expected.abs().max())


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step(model, **batch):
    """Loss and gradients of one training step."""
    model.train().zero_grad(set_to_none=True)
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), grads(model)


# Without thoughts


@pytest.mark.parametrize("name", MODELS)
def test_no_thoughts_is_the_bare_model_bit_for_bit(name):
    """Text without placeholders gets the bare model's logits, loss and tokens, to the last bit."""
    bare, model, ids = make_model(name), make_thinker(name), make_ids()
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected, got = (m(input_ids=ids, attention_mask=mask, labels=labels_of(ids)) for m in (bare, model))
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(got.loss, expected.loss)
    mask[0, :4] = 0
    bare.generation_config.suppress_tokens = model.generation_config.suppress_tokens
    settings = {"do_sample": False, "max_new_tokens": 12, "output_logits": True, "return_dict_in_generate": True}
    expected, got = (m.generate(ids, attention_mask=mask, **settings) for m in (bare, model))
    assert torch.equal(got.sequences, expected.sequences)
    assert torch.equal(torch.stack(got.logits), torch.stack(expected.logits))


@pytest.mark.parametrize("num_items", [None, 50])
@pytest.mark.parametrize("name", MODELS)
def test_training_without_thoughts_is_the_bare_models(name, num_items):
    """The loss that is taken at labelled positions alone, and its gradients, are Hugging Face's."""
    ids = make_ids()
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels_of(ids)}
    batch |= {} if num_items is None else {"num_items_in_batch": num_items}
    (expected, true_grads), (got, model_grads) = step(make_model(name), **batch), step(make_thinker(name), **batch)
    assert close(got, expected)
    assert model_grads.keys() == true_grads.keys()
    assert all(close(model_grads[key], true_grads[key]) for key in true_grads)


@pytest.mark.parametrize("name", MODELS)
def test_padding_on_the_left_does_not_shift_positions(name):
    """A padded row without thoughts has the logits that it has alone, as a row with thoughts has."""
    ids, model = make_ids(rows=1), make_thinker(name)
    padded = torch.cat([torch.full((1, 5), TOKENIZER.pad_token_id), ids], dim=1)
    mask = (torch.arange(17) >= 5).long()[None]
    with torch.no_grad():
        assert close(model(input_ids=padded, attention_mask=mask).logits[:, 5:], model(input_ids=ids).logits)


# Training


@pytest.mark.parametrize("thoughts", [(), (3, 4)], ids=["text", "thoughts"])
def test_accumulated_is_one_big_batch(thoughts):
    """Micro-batches whose losses share `num_items_in_batch` add up to the loss and gradients of one batch."""
    ids = make_ids(rows=4, thoughts=thoughts)
    labels = labels_of(ids)
    labels[0, :9] = -100  # so that rows weigh differently
    num_items = int((labels != -100).sum())
    model = make_thinker("gpt2")
    loss, expected = step(model, input_ids=ids, labels=labels)
    parts = [step(model, input_ids=ids[at], labels=labels[at], num_items_in_batch=num_items) for at in ([0], [1, 2, 3])]
    assert close(sum(part for part, _ in parts), loss)
    assert all(close(sum(part[key] for _, part in parts), expected[key]) for key in expected)
    with torch.no_grad():
        assert close(model.eval()(input_ids=ids, labels=labels, num_items_in_batch=2 * num_items).loss, loss / 2)


@pytest.mark.parametrize("thoughts", [(), (3, 4)], ids=["text", "thoughts"])
def test_the_head_runs_where_a_label_is(thoughts):
    """In training, logits are made for labelled positions alone; in `eval()` mode for all."""
    model, ids, rows = make_thinker("llama").train(), make_ids(thoughts=thoughts), []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: rows.append(inputs[0][..., 0].numel()))
    labels = labels_of(ids)
    assert model(input_ids=ids, labels=labels).logits is None
    assert model.eval()(input_ids=ids, labels=labels).logits.shape == (*ids.shape, len(TOKENIZER))
    assert rows == [int((labels[:, 1:] != -100).sum()), ids.numel()]


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([2, 7])], ids=["last", "last_three", "which"])
def test_logits_to_keep(keep):
    """With thoughts as without, `logits_to_keep` picks positions as Hugging Face does."""
    model, ids = make_thinker("gpt2"), make_ids(thoughts=(3, 4))
    with torch.no_grad():
        every, some = model(input_ids=ids).logits, model(input_ids=ids, logits_to_keep=keep).logits
    assert close(some, every[:, -keep:] if isinstance(keep, int) else every[:, keep])


def test_the_cache_is_returned_when_asked_for():
    """Sliding layers keep their window alone; training without `use_cache` returns no cache."""
    model, ids = make_thinker("qwen2"), make_ids(thoughts=(3, 4))
    layers = model(input_ids=ids, use_cache=True)[CACHE].layers
    assert [layer.keys.shape[-2] for layer in layers] == [CONFIGS["qwen2"]["sliding_window"] - 1, ids.shape[1]]
    assert model.train()(input_ids=ids, labels=labels_of(ids)).get(CACHE) is None


# The object


@pytest.mark.parametrize("name", MODELS)
def test_the_model_stays_what_it_was(name):
    """Same object, same keys, an instance of its old class with its name; a second gift changes nothing."""
    bare = make_model(name)
    kind, keys = type(bare), list(bare.state_dict())
    model = cocot.give_thoughts(bare, TOKENIZER)
    assert model is bare
    assert isinstance(model, kind)
    assert type(model).__name__ == kind.__name__
    assert list(model.state_dict()) == keys
    before = (type(model), model.config.to_dict(), model.generation_config.to_dict(), len(TOKENIZER))
    assert cocot.give_thoughts(model, TOKENIZER) is model
    assert (type(model), model.config.to_dict(), model.generation_config.to_dict(), len(TOKENIZER)) == before
    assert type(make_thinker(name)) is type(model)


def test_a_copy_thinks_alike_and_apart():
    """`deepcopy` gives a model of the same class and numbers that shares no weights."""
    model, ids = make_thinker("qwen3"), make_ids(thoughts=(3, 4))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(twin(input_ids=ids).logits, model(input_ids=ids).logits)
        twin.get_input_embeddings().weight.zero_()
        assert not torch.equal(twin(input_ids=ids).logits, model(input_ids=ids).logits)
    assert type(twin) is type(model)


_FRESH = """
import pickle, sys, warnings
import torch
torch.set_num_threads(1)
by_pickle = pickle.load(open(sys.argv[1], "rb"))
by_torch = torch.load(sys.argv[2], weights_only=False)
ids, expected = torch.load(sys.argv[3])
for model in (by_pickle, by_torch):
    assert type(model).__name__ == "GPT2LMHeadModel", type(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, expected)
"""


def test_pickles_into_a_fresh_process(tmp_path):
    """A model sent to another process, which never called `give_thoughts`, thinks the same there."""
    model, ids = make_thinker("gpt2"), make_ids(thoughts=(3, 4))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    files = [tmp_path / name for name in ("pickle", "torch", "expected")]
    files[0].write_bytes(pickle.dumps(model))
    torch.save(model, files[1])
    torch.save((ids, expected), files[2])
    subprocess.run([sys.executable, "-c", _FRESH, *map(str, files)], check=True)


# Tokens


def make_foreign_tokenizer():
    """A tokenizer that knows nothing of thoughts, with `<<` in its vocabulary."""
    words = ["<unk>", "<eos>", *"abcde", "<<"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>")


@pytest.mark.parametrize("tied", [True, False])
def test_missing_tokens_are_added(tied):
    """New tokens begin as copies of the token of `<<`, head included, for a second model too; old rows stay."""
    tokenizer = make_foreign_tokenizer()
    settings = {"vocab_size": len(tokenizer), "eos_token_id": 1, "pad_token_id": None, "tie_word_embeddings": tied}
    for seed in (0, 1):
        model = make_model("llama", seed, **settings)
        tables = (model.get_input_embeddings, model.get_output_embeddings)
        before = [table().weight.detach().clone() for table in tables]
        cocot.give_thoughts(model, tokenizer)
        assert model.config.vocab_size == len(tokenizer) == 11
        for table, old in zip(tables, before, strict=True):
            assert torch.equal(table().weight[:8], old)
            assert torch.equal(table().weight[8:], old[tokenizer.convert_tokens_to_ids("<<")].expand(3, -1))
        assert thought_settings(model).latent_id == tokenizer.convert_tokens_to_ids("<|latent|>") == 10
    assert tokenizer.decode([2, 8, 10, 9, 3], skip_special_tokens=True) == "a b"


def test_untrained_settings():
    """A model not trained here says so: its number of thoughts is unknown, and a bare model has no settings."""
    assert thought_settings(make_thinker("gpt2")) == ThoughtSettings(LATENT_ID)
    with pytest.raises(ModelError, match="give_thoughts"):
        thought_settings(make_model("gpt2"))


# Folders


@pytest.fixture
def folder(tmp_path):
    """A saved GPT-2 that thinks."""
    make_thinker("gpt2").save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_is_a_plain_folder(name, tmp_path):
    """Same keys, same `architectures`, safetensors only; plain Hugging Face loads it; cocot reads back the same."""
    bare, model, ids = make_model(name), make_thinker(name), make_ids(thoughts=(3, 4))
    for saved, kind in ((bare, "bare"), (model, "thinking")):
        saved.save_pretrained(tmp_path / kind)
        TOKENIZER.save_pretrained(tmp_path / kind)
    names = [{file.name for file in (tmp_path / kind).iterdir()} for kind in ("bare", "thinking")]
    assert names[0] == names[1]
    assert not [file for file in names[1] if file.endswith((".bin", ".pt", ".pkl", ".pth", ".py"))]
    weights = [(tmp_path / kind / "model.safetensors").read_bytes() for kind in ("bare", "thinking")]
    assert weights[0] == weights[1]
    configs = [json.loads((tmp_path / kind / "config.json").read_text()) for kind in ("bare", "thinking")]
    assert configs[1].pop("thoughts") == ThoughtSettings(LATENT_ID).to_json()
    assert configs[1].pop("cocot_version") == cocot.__version__
    assert configs[0] == configs[1]

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "thinking")
    assert type(plain) is type(bare)
    loaded, tokenizer = cocot.load(tmp_path / "thinking")
    assert not loaded.training
    assert tokenizer(PROBLEMS[0].question) == TOKENIZER(PROBLEMS[0].question)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
        text = make_ids()
        assert torch.equal(plain(input_ids=text).logits, bare(input_ids=text).logits)


def test_a_run_folder_holds_a_model(folder):
    """`load` takes the folder of a run as well as that of its model."""
    expected, got = (cocot.load(path)[0].state_dict() for path in (folder, folder.parent))
    assert all(torch.equal(got[key], value) for key, value in expected.items())


def test_weights_are_float32_unless_asked(folder):
    """Half-precision checkpoints load as float32, fit for training; `dtype` says otherwise."""
    make_thinker("gpt2").to(torch.bfloat16).save_pretrained(folder)
    assert cocot.load(folder)[0].dtype == torch.float32
    assert cocot.load(folder, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


class _Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("is_bomb", [True, False])
def test_nothing_is_ever_unpickled(folder, is_bomb):
    """Pickled weights are refused, even honest ones."""
    (folder / "model.safetensors").unlink()
    weights = _Bomb(folder / "exploded") if is_bomb else make_model("gpt2").state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        cocot.load(folder)
    assert not (folder / "exploded").exists()


def _truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


DAMAGE = {
    "truncated weights": _truncate,
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "torn config": lambda folder: (folder / "config.json").write_text("{"),
    "unknown architecture": lambda folder: (folder / "config.json").write_text('{"model_type": "abacus"}'),
    "no tokenizer": lambda folder: [file.unlink() for file in folder.glob("tokenizer*")],
    "torn tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{"),
    "missing": lambda folder: folder.rename(folder.with_name("elsewhere")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_named(folder, damage):
    """Whatever is wrong with a folder, the error is ours, one line, and names the folder."""
    DAMAGE[damage](folder)
    with pytest.raises(ModelError) as caught:
        cocot.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_in_the_file_are_an_error(folder):
    """A file that lacks weights is refused; Hugging Face would fill them in at random."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"h\.1\.mlp\.c_fc\.weight"):
        cocot.load(folder)


def test_a_thinker_with_another_tokenizer_is_refused(folder):
    """A model that was trained to think is useless with a tokenizer that lacks its tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ModelError, match=r"lacks <\|start-latent\|>"):
        cocot.give_thoughts(model, make_foreign_tokenizer())
    assert len(AutoTokenizer.from_pretrained(folder)) == len(TOKENIZER)


# Refusals


def test_a_thought_needs_a_token_before_it():
    """A thought in the first column, or right behind the padding on the left, has nothing to be the state of."""
    model, ids = make_thinker("gpt2"), make_ids(thoughts=(0,))
    with pytest.raises(ModelError, match="stands first"):
        model(input_ids=ids)
    ids, mask = make_ids(thoughts=(3,)), torch.ones(3, 12, dtype=torch.long)
    model(input_ids=ids, attention_mask=mask)
    mask[1, :3] = 0
    with pytest.raises(ModelError, match="stands first"):
        model(input_ids=ids, attention_mask=mask)
    cache = model(input_ids=ids[:, :3], use_cache=True)[CACHE]
    with pytest.raises(ModelError, match="stands first"):
        model(input_ids=ids[:, 3:], cache=cache)


def test_gradient_checkpointing_is_refused():
    """It would drop the cache and with it the thoughts; text alone may use it."""
    model = make_thinker("llama").train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    with pytest.raises(ModelError, match="gradient_checkpointing_disable"):
        model(input_ids=make_ids(thoughts=(3,)))
    model.eval()(input_ids=make_ids(thoughts=(3,)))


def test_a_static_cache_is_refused():
    """Thoughts need a cache that grows."""
    model = make_thinker("llama")
    cache = StaticCache(config=model.config, max_cache_len=32)
    with pytest.raises(ModelError, match="StaticCache"):
        model(input_ids=make_ids(thoughts=(3,)), cache=cache)


@pytest.mark.parametrize("thoughts", [(), (3, 4)], ids=["text", "thoughts"])
def test_a_head_of_more_than_a_product_is_the_classs_own(thoughts):
    """Logits that a class caps are capped, where the head runs on labelled positions only, too."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        "gemma2", vocab_size=len(TOKENIZER), head_dim=8, final_logit_softcapping=2.0, **CONFIGS["llama"]
    )
    model = AutoModelForCausalLM.from_config(config)
    cocot.give_thoughts(model, TOKENIZER)
    ids = make_ids(thoughts=thoughts)
    labels = labels_of(ids)
    with torch.no_grad():
        output = model.eval()(input_ids=ids, labels=labels)
        gathered = model.train()(input_ids=ids, labels=labels).loss
    assert output.logits.abs().max() < 2.0
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert close(output.loss, expected)
    assert close(gathered, expected)


def test_unknown_names_of_the_module_are_errors():
    """Only classes of Hugging Face are made up on demand."""
    import cocot.modeling.latent_model

    with pytest.raises(AttributeError, match="ThinkingAbacus"):
        _ = cocot.modeling.latent_model.ThinkingAbacus


def test_a_model_over_several_places_thinks(folder, tmp_path):
    """With layers on disk, accelerate's hook replaces the object's `forward`; thoughts are thoughts all the same."""
    places = {
        "transformer.h.1": "disk",
        **dict.fromkeys(("transformer.wte", "transformer.wpe", "transformer.h.0"), "cpu"),
    }
    places |= {"transformer.drop": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
    model, _ = cocot.load(folder, device_map=places, offload_folder=str(tmp_path / "disk"))
    assert "forward" in vars(model)
    ids = make_ids(thoughts=(3, 4))
    with torch.no_grad():
        assert close(model(input_ids=ids).logits, make_thinker("gpt2")(input_ids=ids).logits)


def test_a_replaced_forward_is_refused():
    """A `forward` set on the object would go on reading `<|latent|>` as a word."""
    model = make_model("gpt2")
    model.forward = model.forward
    with pytest.raises(ModelError, match="GPT2LMHeadModel was replaced"):
        cocot.give_thoughts(model, TOKENIZER)


@pytest.mark.parametrize("in_config", [False, True], ids=["argument", "config"])
@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions", "output_router_logits"])
def test_outputs_of_the_last_pass_alone_are_refused(name, in_config):
    """What could only come back in part is an error, with thoughts and in training; text alone has it."""
    model, ids = make_thinker("gpt2", attn_implementation="eager"), make_ids(thoughts=(3,))
    if in_config:
        setattr(model.config, name, True)
    asked = {} if in_config else {name: True}
    with pytest.raises(ModelError, match=name):
        model(input_ids=ids, **asked)
    with pytest.raises(ModelError, match=name):
        model.train()(input_ids=make_ids(), labels=labels_of(make_ids()), **asked)
    if name == "output_hidden_states":
        assert len(model.eval()(input_ids=make_ids(), **asked).hidden_states) == 3


@pytest.mark.parametrize("in_config", [False, True], ids=["argument", "config"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_tuple_is_returned_where_one_is_asked_for(mode, in_config):
    """`return_dict=False` holds with thoughts and in training, also when it stands in the config."""
    model, ids = make_thinker("gpt2"), make_ids(thoughts=(3,))
    expected = getattr(model, mode)()(input_ids=ids, labels=labels_of(ids))
    model.config.return_dict = not in_config
    got = model(input_ids=ids, labels=labels_of(ids), **({} if in_config else {"return_dict": False}))
    assert isinstance(got, tuple)
    assert torch.equal(got[0], expected.loss)
    if mode == "eval":
        assert torch.equal(got[1], expected.logits)


VARIANTS = {
    "gpt2": (
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"scale_attn_weights": False},
    ),
    "llama": ({"attention_bias": True}, {"mlp_bias": True}, {"head_dim": 16}),
    "gpt_neox": ({"use_parallel_residual": False}, {"attention_bias": False}),
    "mistral": ({"head_dim": 16}, {"sliding_window": None}),
    "qwen3": ({"attention_bias": True},),
}


@pytest.mark.parametrize(("name", "settings"), [(name, one) for name, all_ in VARIANTS.items() for one in all_])
def test_a_variant_of_a_class_shares_passes_only_where_its_gradients_are_right(name, settings):
    """Settings that change what attention computes: loss and gradients are the oracle's by the way that was found."""
    import reference

    model = make_thinker(name, **settings)
    ids = make_ids(thoughts=(3, 4))
    labels = labels_of(ids)
    loss, got = step(model, input_ids=ids, labels=labels)
    rows = list(zip(ids.tolist(), labels.tolist(), strict=True))
    expected, _, gradients = reference.batch_results(model.eval(), rows, LATENT_ID)
    assert close(loss, expected)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    assert all((got[key] - gradients[key]).abs().max() <= TOLERANCE * largest for key in got)


def test_a_tokenizer_without_a_token_to_copy_is_refused():
    """New tokens begin as copies; where nothing stands for `<<`, the message says so."""
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(ModelError, match="`<<`"):
        cocot.give_thoughts(make_model("llama"), tokenizer)
