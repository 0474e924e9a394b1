"""Tests of `generation`: what the definition would write, whatever the cache, the batch or the way of choosing."""

import random
from functools import cache, partial

import pytest
import reference
import torch
from conftest import LATENT_ID, MODELS, TOKENIZER, make_model, make_thinker
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TextStreamer
from transformers.generation.streamers import BaseStreamer

import cocot
from cocot.data.encoding import encode_question
from cocot.data.layout import ThoughtSettings
from cocot.errors import ConfigError, DataError, ModelError
from cocot.methods.tokens import SPECIAL_TOKENS
from cocot.modeling.generation import _room, answer
from cocot.modeling.thought_settings import thought_settings

EOS = TOKENIZER.eos_token_id
BANNED = TOKENIZER.convert_tokens_to_ids(list(SPECIAL_TOKENS))
SETTINGS = ThoughtSettings(LATENT_ID)
MAX_NEW = 10
# Rounding of a sum of log-probabilities. Measured, worst of the beams below: 3.3e-7.
TOLERANCE = 3e-6


def make_questions(count=5, seed=0):
    """Questions of 3 to 12 words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices("0123456789;", k=draw.randint(3, 12))) for _ in range(count)]


def prompt_of(question, num_thoughts):
    return encode_question(question, num_thoughts, SETTINGS, TOKENIZER)


@cache
def thinker(name):
    """A model that ends about half of its texts itself."""
    return raise_end(make_thinker(name))


@cache
def bare(name):
    return raise_end(make_model(name))


def raise_end(model):
    """Double the head's row of end of text, so that some texts end; tied models then read it doubled too."""
    with torch.no_grad():
        model.get_output_embeddings().weight[EOS] *= 2
    return model


@cache
def written_by_definition(name, num_thoughts):
    """What the oracle writes to each question, computing everything again for each token."""
    prompts = [prompt_of(question, num_thoughts) for question in make_questions()]
    return [reference.greedy(bare(name), ids, LATENT_ID, EOS, BANNED, MAX_NEW) for ids in prompts]


def text_of(tokens):
    return TOKENIZER.decode(tokens, skip_special_tokens=True).strip()


# Greedy


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("num_thoughts", [0, 1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_answers_are_the_definitions(name, num_thoughts, batch_size):
    """Cached answers, in batches of any size, are those of a loop without cache or padding, in the order asked."""
    answers = answer(thinker(name), TOKENIZER, make_questions(), num_thoughts, MAX_NEW, batch_size)
    expected = written_by_definition(name, num_thoughts)
    assert [given.output for given in answers] == [text_of(tokens) for tokens in expected]
    assert [given.num_tokens for given in answers] == [num_thoughts + len(tokens) for tokens in expected]
    assert [given.is_complete for given in answers] == [tokens[-1] == EOS for tokens in expected]
    assert {given.num_thoughts for given in answers} == {num_thoughts}


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_without_an_end_marker_the_last_thought_writes_the_first_word(name, batch_size, monkeypatch):
    """A prompt that ends with a thought is answered as the definition answers it."""
    model = thinker(name)
    settings = ThoughtSettings(LATENT_ID, start_marker=False, end_marker=False)
    monkeypatch.setattr(model.config, "thoughts", settings.to_json())
    questions = make_questions()
    prompts = [encode_question(question, 2, settings, TOKENIZER) for question in questions]
    assert {ids[-1] for ids in prompts} == {LATENT_ID}
    expected = [reference.greedy(bare(name), ids, LATENT_ID, EOS, BANNED, MAX_NEW) for ids in prompts]
    answers = answer(model, TOKENIZER, questions, 2, MAX_NEW, batch_size)
    assert [given.output for given in answers] == [text_of(tokens) for tokens in expected]


def test_the_tests_above_see_all_cases():
    """Their texts differ from each other, with the thoughts and in length; some end themselves and some do not."""
    texts = {(name, count): written_by_definition(name, count) for name in MODELS for count in (0, 1, 3)}
    ends = [tokens[-1] == EOS for written in texts.values() for tokens in written]
    assert 0.2 < sum(ends) / len(ends) < 0.8
    for name in MODELS:
        assert texts[name, 0] != texts[name, 1] != texts[name, 3]
        assert len({tuple(tokens) for tokens in texts[name, 3]}) > 2


def test_answers_leave_the_model_as_it_was():
    """A model in training goes on in training."""
    model = make_thinker("gpt2").train()
    answer(model, TOKENIZER, make_questions(1), 1, 2)
    assert model.training


def test_progress_and_nothing_to_ask():
    """`on_batch` hears of every question; no questions get no answers."""
    done = []
    answer(thinker("gpt2"), TOKENIZER, make_questions(), 1, 2, batch_size=2, on_batch=done.append)
    assert done == [2, 2, 1]
    assert answer(thinker("gpt2"), TOKENIZER, [], 1) == []


# All ways of `model.generate`


def generate(name, num_thoughts=2, question=0, **settings):
    """Tokens that `model.generate` writes after one prompt."""
    ids = prompt_of(make_questions()[question], num_thoughts)
    output = thinker(name).generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=MAX_NEW,
        **settings,
    )
    return ids, output


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_samples_are_the_definitions(name, use_cache):
    """Sampling, cached or not, draws what a loop over the definition draws from the same seed."""
    model, _ = bare(name), thinker(name)  # made before the seed is set
    torch.manual_seed(3)
    ids, output = generate(name, do_sample=True, top_k=0, use_cache=use_cache)
    torch.manual_seed(3)
    written = []
    while len(written) < MAX_NEW and EOS not in written:
        with torch.no_grad():
            logits = reference.row_logits(model, [*ids, *written], LATENT_ID)[-1]
        logits[BANNED] = -torch.inf
        written.append(int(torch.multinomial(logits.softmax(-1)[None], 1)))
    assert output[0, len(ids) :].tolist() == written


@pytest.mark.parametrize("name", MODELS)
def test_beams_are_the_definitions(name):
    """Beams are the same with the cache and without; their scores are the oracle's; the best one is no worse."""
    settings = {"num_beams": 3, "num_return_sequences": 3, "do_sample": False, "return_dict_in_generate": True}
    ids, cached = generate(name, output_scores=True, **settings)
    _, again = generate(name, output_scores=True, use_cache=False, **settings)
    assert torch.equal(cached.sequences, again.sequences)
    for tokens, score in zip(cached.sequences[:, len(ids) :].tolist(), cached.sequences_scores.tolist(), strict=True):
        written = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
        expected = reference.log_probability(bare(name), ids, written, LATENT_ID) / len(written)
        assert score == pytest.approx(expected, abs=TOLERANCE)
    assert cached.sequences_scores[0] == cached.sequences_scores.max()


def test_as_many_beams_as_words_find_the_best_pair():
    """With a beam for each word, the search over two tokens is exhaustive: it finds the likeliest pair there is."""
    model, vocabulary = thinker("gpt2"), len(TOKENIZER)
    ids = prompt_of(make_questions()[0], 2)
    found = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=2,
        num_beams=vocabulary, do_sample=False, eos_token_id=None,
    )  # fmt: skip
    with torch.no_grad():
        rows = [reference.row_logits(bare("gpt2"), [*ids, word], LATENT_ID)[-2:] for word in range(vocabulary)]
    scores = torch.stack([row.log_softmax(-1)[0, word] + row.log_softmax(-1)[1] for word, row in enumerate(rows)])
    scores[BANNED] = -torch.inf
    scores[:, BANNED] = -torch.inf
    assert found[0, len(ids) :].tolist() == list(divmod(int(scores.argmax()), vocabulary))


class Collector(BaseStreamer):
    """Keeps what is streamed."""

    def __init__(self):
        self.tokens, self.is_ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.is_ended = True


def test_tokens_are_streamed(capsys):
    """A streamer receives the prompt and then every token, as it is written; Hugging Face's own prints the text."""
    question, collector = make_questions()[0], Collector()
    answer(thinker("gpt2"), TOKENIZER, [question], 3, MAX_NEW, streamer=collector)
    assert collector.tokens == prompt_of(question, 3) + written_by_definition("gpt2", 3)[0]
    assert collector.is_ended
    printer = TextStreamer(TOKENIZER, skip_prompt=True, skip_special_tokens=True)
    given = answer(thinker("gpt2"), TOKENIZER, [question], 3, MAX_NEW, streamer=printer)[0]
    assert capsys.readouterr().out.strip() == given.output


def make_byte_tokenizer():
    """A tokenizer of one token a byte; Hugging Face's stop strings need one that can spell anything."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<eos>"]
    backend = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def test_stop_strings_stop():
    """Text ends with the first stop string that it holds."""
    tokenizer = make_byte_tokenizer()
    model = cocot.give_thoughts(make_model("llama", vocab_size=257, eos_token_id=256, pad_token_id=256), tokenizer)
    call = partial(
        model.generate,
        torch.tensor([encode_question("why?", 2, thought_settings(model), tokenizer)]),
        do_sample=False,
        max_new_tokens=MAX_NEW,
    )
    # printable words only: halves of a character would be written as something else
    call.keywords["suppress_tokens"] = [*range(94, 257), *tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))]
    whole = call()[0]
    length = whole.shape[0] - MAX_NEW
    stop = tokenizer.decode(whole[length + 2 : length + 4])
    stopped = call(stop_strings=[stop], tokenizer=tokenizer)[0]
    assert torch.equal(stopped, whole[: len(stopped)])
    assert tokenizer.decode(stopped[length:]).endswith(stop)
    assert tokenizer.decode(stopped[length:-1]).count(stop) == 0
    assert len(stopped) < len(whole)


# A model that says what it is told to, for what depends on the words alone


def say(model, texts):
    """Make `model` write the tokens of `texts`, one text a row, whatever it reads; returns the number of calls."""
    calls = []

    def override(_, __, logits):
        for row, tokens in enumerate(texts):
            logits[row, -1, tokens[min(len(calls), len(tokens) - 1)]] += 1e4
        calls.append(len(texts))
        return logits

    model.get_output_embeddings().register_forward_hook(override)
    return calls


def told(*texts):
    """Answers, calls and prompts of a model that writes `texts`; all questions are of one length."""
    model = make_thinker("gpt2")
    calls = say(model, [TOKENIZER.encode(text) for text in texts])
    return answer(model, TOKENIZER, ["0 1 2"] * len(texts), 2, MAX_NEW), calls


@pytest.mark.parametrize(
    ("words", "text", "output", "num_tokens"),
    [
        ("0 1 ; ### 2 <|endoftext|>", "2", "0 1 ; ### 2", 8),
        ("### 1 ### 2 3 <|endoftext|> 4 ### 5", "1 ### 2 3", "### 1 ### 2 3", 8),
        ("4 5 <|endoftext|>", "4 5", "4 5", 5),
        ("### <|endoftext|>", "", "###", 4),
        ("<|endoftext|>", "", "", 3),
    ],
)
def test_the_answer_follows_the_first_mark(words, text, output, num_tokens):
    """Text after the first `###`; tokens count thoughts and all that is written up to and with end of text."""
    [given], _ = told(words)
    assert (given.text, given.output, given.num_tokens, given.num_thoughts) == (text, output, num_tokens, 2)
    assert given.is_complete
    assert given.seconds > 0


def test_a_text_without_end_is_cut():
    """A model that never ends writes `max_new_tokens`, and the answer says that it is not complete."""
    [given], calls = told("7")
    assert (given.text, given.num_tokens, given.is_complete) == (" ".join("7" * MAX_NEW), MAX_NEW + 2, False)
    assert len(calls) == MAX_NEW


def test_generation_ends_when_all_rows_have():
    """A batch costs as many calls as its longest text has tokens, end of text included, and no more."""
    answers, calls = told("1 <|endoftext|>", "1 2 3 <|endoftext|>", "<|endoftext|>")
    assert len(calls) == 4
    assert [given.num_tokens - 2 for given in answers] == [2, 4, 1]


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_placeholders_are_never_written(token):
    """Even where a placeholder has the highest logit, a word is written."""
    [given], _ = told(token)
    model = make_thinker("gpt2")
    say(model, [TOKENIZER.encode(token)])
    output = model.generate(torch.tensor([prompt_of("0 1", 2)]), max_new_tokens=4, do_sample=False)
    assert not set(output[0, len(prompt_of("0 1", 2)) :].tolist()) & set(BANNED)
    assert given.num_tokens > 2


# Refusals and numbers


def test_bfloat16_autocast_answers():
    """Under bfloat16 autocast thoughts pass between two dtypes; loss and gradients stay near float32's."""
    model = make_thinker("llama").train()
    ids = torch.tensor([prompt_of("0 1 2", 3) + TOKENIZER.encode("### 1")])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < ids.shape[1] - 2, -100)
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = model(input_ids=ids, labels=labels).loss
            assert len(answer(model, TOKENIZER, ["0 1 2"], 3, 4)[0].output.split()) > 0
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_too_long_questions_are_counted():
    """Nothing is cut: the error counts the questions, and says how long the longest is and what the limit is."""
    long = " ".join("1" * 130)
    with pytest.raises(DataError, match=r"1 of 2 questions .* 13[0-9] tokens.* 64,.* reads 128"):
        answer(thinker("gpt2"), TOKENIZER, ["0 1", long], 3)
    fits = " ".join("1" * (128 - 10 - 5))  # and three thoughts between two markers
    assert answer(thinker("gpt2"), TOKENIZER, [fits], 3, 10)
    with pytest.raises(DataError, match="1 of 1 questions"):
        answer(thinker("gpt2"), TOKENIZER, [fits], 3, 11)


def test_unknown_words_are_named():
    """A word that the model has never seen is an error, not a guess."""
    with pytest.raises(DataError, match=r"lacks \['lempus'\]"):
        answer(thinker("gpt2"), TOKENIZER, ["0 lempus 1"], 0)


def test_the_number_of_thoughts_must_be_known():
    """An untrained model must be told how many; fewer than none is refused; a bare model cannot be asked."""
    with pytest.raises(ModelError, match="num_thoughts=k"):
        answer(thinker("gpt2"), TOKENIZER, ["0 1"])
    with pytest.raises(ConfigError, match="-1"):
        answer(thinker("gpt2"), TOKENIZER, ["0 1"], -1)
    with pytest.raises(ModelError, match="give_thoughts"):
        answer(bare("gpt2"), TOKENIZER, ["0 1"], 0)


def test_as_many_thoughts_as_trained_with():
    """A trained model thinks as often as its settings say, unless told otherwise."""
    model = make_thinker("gpt2")
    model.config.thoughts["num_thoughts"] = 3
    by_default, by_number = (answer(model, TOKENIZER, ["0 1"], count, 4)[0] for count in (None, 3))
    assert (by_default.output, by_default.num_tokens) == (by_number.output, by_number.num_tokens)
    assert by_default.num_thoughts == 3
    assert answer(model, TOKENIZER, ["0 1"], 1, 4)[0].num_thoughts == 1


def test_without_a_limit_an_answer_takes_the_room_that_is_left():
    """`max_new_tokens=None` asks for what the context has room for, so that the command line suits small contexts."""
    model, ids = thinker("llama"), prompt_of("0 1", 2)
    limit = model.config.max_position_embeddings
    assert _room([ids], None, model) == min(256, limit - len(ids))
    assert _room([ids], limit - len(ids), model) == limit - len(ids)
    with pytest.raises(DataError, match="do not fit"):
        _room([ids], limit - len(ids) + 1, model)
    with pytest.raises(DataError, match="do not fit"):
        _room([[0] * limit], None, model)
