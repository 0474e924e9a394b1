"""Tests of the ablations: what is fed is what each says, and nothing else differs."""

from dataclasses import replace

import pytest
import torch
from conftest import LATENT_ID, PROBLEMS, TOKENIZER, make_thinker
from test_recurrence import error

from cocot.data.encoding import encode_question
from cocot.data.layout import ThoughtSettings
from cocot.errors import ConfigError, DataError
from cocot.evaluation import ablations
from cocot.evaluation.ablations import ABLATIONS, AS_TRAINED, run_ablations
from cocot.evaluation.evaluate import evaluate
from cocot.methods.tokens import PAUSE
from cocot.modeling.generation import answer
from cocot.tasks.prosqa import ProsQA

SETTINGS = {"max_new_tokens": 5, "batch_size": 4}
TASK = ProsQA()
# A thought fed as an embedding, with a cache against without: largest difference relative to the largest logit.
# Measured, worst: 3.2e-7.
TOLERANCE = 1e-5


def make_trained(num_thoughts=3, filler="<|latent|>"):
    """A model that says it was trained to think so many thoughts; its answers depend on them."""
    model = make_thinker("gpt2")
    model.config.thoughts = ThoughtSettings(LATENT_ID, filler, num_thoughts).to_json()
    return model


def outputs(records):
    """What was said, without the time it took."""
    return [replace(record, seconds=0.0) for record in records]


@pytest.fixture
def fed(monkeypatch):
    """All that stands in the place of thoughts, by control: rows, which thought, and its value."""
    seen = {}

    def spy(model, tokenizer, task, problems, **settings):
        edit, calls = settings.pop("thought_hook", None), []
        seen[len(seen)] = calls

        def noted(rows, number, thought):
            result = edit(rows, number, thought)
            calls.extend((row, number, value[0].clone()) for row, value in zip(rows, result, strict=True))
            return result

        return evaluate(model, tokenizer, task, problems, thought_hook=edit and noted, **settings)

    monkeypatch.setattr(ablations, "evaluate", spy)
    return seen


def table(calls):
    """(problems, thoughts, width)."""
    values = {(row, number): value for row, number, value in calls}
    assert len(values) == len(calls)
    rows, numbers = (sorted({key[side] for key in values}) for side in (0, 1))
    assert numbers == [1, 2, 3]
    return torch.stack([torch.stack([values[row, number] for number in numbers]) for row in rows])


def test_what_is_fed_is_what_the_control_says(fed):
    """Zeros; the same length in another direction; another problem's; the mean: for every thought of every problem."""
    model, problems = make_trained(), PROBLEMS[:10]
    results = dict(run_ablations(model, TOKENIZER, TASK, problems, **SETTINGS))
    assert list(results) == [AS_TRAINED, *ABLATIONS, "k=0", "k=1", "k=2"]
    own, zeros, noise, shuffled, mean = (table(fed[index]) for index in range(5))
    assert own.shape[0] == 10
    assert not zeros.any()
    assert torch.allclose(noise.norm(dim=-1), own.norm(dim=-1), rtol=1e-5)
    assert torch.cosine_similarity(noise, own, dim=-1).abs().max() < 0.7
    assert torch.equal(shuffled, own[[9, *range(9)]])
    assert torch.allclose(mean, own.mean(0).expand_as(own), atol=1e-6)
    assert all(not fed[index] for index in range(5, 8))


def test_each_problem_keeps_its_own_record():
    """As trained is plain evaluation; fewer thoughts are plain evaluation with fewer; others change what is said."""
    model, problems = make_trained(), PROBLEMS[:10]
    results = {name: outputs(records) for name, records in run_ablations(model, TOKENIZER, TASK, problems, **SETTINGS)}
    assert results[AS_TRAINED] == outputs(evaluate(model, TOKENIZER, TASK, problems, **SETTINGS))
    for count in range(3):
        plain = outputs(evaluate(model, TOKENIZER, TASK, problems, num_thoughts=count, **SETTINGS))
        assert results[f"k={count}"] == plain
    assert all(results[name] != results[AS_TRAINED] for name in ABLATIONS)
    assert all(record.num_thoughts == 3 for name in ABLATIONS for record in results[name])


def test_its_own_thoughts_change_nothing(monkeypatch):
    """A control that gives every problem its own thoughts back is the undisturbed run, in batches of any size."""
    monkeypatch.setattr(ablations, "ABLATIONS", {"own": lambda thoughts: thoughts})
    for batch_size in (3, 10):
        settings = {**SETTINGS, "batch_size": batch_size}
        results = dict(run_ablations(make_trained(), TOKENIZER, TASK, PROBLEMS[:10], **settings))
        assert outputs(results["own"]) == outputs(results[AS_TRAINED])


def test_equal_problems_have_equal_thoughts():
    """Where all problems are the same, another's thoughts and the mean thought are one's own."""
    changed = []
    for problem in PROBLEMS[:5]:
        found = run_ablations(make_trained(), TOKENIZER, TASK, [problem] * 4, **SETTINGS)
        results = {name: outputs(records) for name, records in found}
        assert results["shuffled"] == results[AS_TRAINED]
        assert results["mean"] == results[AS_TRAINED]
        changed.append(results["zeros"] != results[AS_TRAINED])
    assert any(changed), "thoughts change nothing: the test proves nothing"


def test_an_edited_thought_is_what_the_model_reads():
    """The logits are the bare decoder's over embeddings that hold the edited values; numbers count from 1."""
    model, numbers = make_trained(), []
    ids = torch.tensor([encode_question(PROBLEMS[0].question, 2, ThoughtSettings(LATENT_ID), TOKENIZER)])
    values = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))

    def edit(number, thought):
        numbers.append(number)
        return values[number - 1].expand_as(thought)

    embeds = model.get_input_embeddings()(ids).detach().clone()
    embeds[ids == LATENT_ID] = values
    with torch.no_grad():
        got = model(ids, thought_hook=edit).logits
        expected = model.get_output_embeddings()(model.get_decoder()(inputs_embeds=embeds).last_hidden_state)
        assert error(got, expected) < TOLERANCE
        assert error(model(ids).logits, expected) > 1000 * TOLERANCE
    assert numbers == [1, 2]


def test_edits_know_their_questions():
    """Indices are those of the questions as given, though batches are sorted by length."""
    model, seen = make_trained(), {}

    def edit(rows, number, thought):
        seen.update({(row, number): value.clone() for row, value in zip(rows, thought[:, 0], strict=True)})
        return thought

    questions = [problem.question for problem in PROBLEMS[:7]] + [PROBLEMS[0].question[8:]]
    answer(model, TOKENIZER, questions, 2, 1, 3, thought_hook=edit)
    assert set(seen) == {(row, number) for row in range(8) for number in (1, 2)}
    together = dict(seen)
    for index, question in enumerate(questions):
        seen.clear()
        answer(model, TOKENIZER, [question], 2, 1, thought_hook=edit)
        for number in (1, 2):
            assert error(together[index, number], seen[0, number]) < TOLERANCE


@pytest.mark.parametrize(("num_thoughts", "filler"), [(3, PAUSE), (0, None), (None, "<|latent|>")])
def test_models_without_thoughts_are_refused(num_thoughts, filler):
    """Pauses and words have no thoughts to replace."""
    model = make_trained(num_thoughts, filler)
    with pytest.raises(ConfigError, match="this model was not trained to have any"):
        next(run_ablations(model, TOKENIZER, TASK, PROBLEMS[:4]))


def test_one_problem_is_refused():
    """It would get its own thoughts for another's."""
    with pytest.raises(DataError, match="at least two problems"):
        next(run_ablations(make_trained(), TOKENIZER, TASK, PROBLEMS[:1]))
