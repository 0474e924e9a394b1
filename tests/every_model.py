"""Is a class equal to the definition, or refused? The check behind `test_every_model.py` and `docs/models.md`.

    python tests/every_model.py            # the page, to standard output

A class is *equal* when logits alone and padded, the loss of a padded batch, all gradients, and greedy generation are
those of the oracle: one row, no padding, no cache, all columns again for every thought; also where all thoughts are
refined together. It is *refused* when
`give_thoughts` says why in a ModelError. Nothing else is right.
"""

from __future__ import annotations

import random
import warnings
from contextlib import suppress
from dataclasses import dataclass, field

import reference
import torch
import transformers
from tiny_models import MODEL_TYPES, VOCABULARY, tiny_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from cocot.errors import ModelError
from cocot.modeling.latent_model import give_thoughts

START, END, LATENT, EOS = "<|start-latent|>", "<|end-latent|>", "<|latent|>", "<eos>"
LATENT_ID, EOS_ID = 60, VOCABULARY - 1
WORDS = range(5, 58)
LAYOUTS = ((5, 2, 4), (9,), (2, 1, 6), (3, 3, 2), (3,), (1, 1, 2))
"""Of each row: tokens of text, thoughts, tokens of text. The short ones begin behind the first thoughts of others."""
NEW_TOKENS = 3
ITERATIONS = 2
"""Of thoughts that are refined together: fewer than a row has, so that they are not those of the recurrence."""
TOLERANCE = 1e-5
"""Largest difference from the oracle that counts as equal, relative to the largest entry."""


class NotBuilt(Exception):
    """Transformers does not make this class from its small configuration; cocot has no part in it."""


@dataclass
class Verdict:
    """What was found of a class.

    Attributes:
        name: Name of the class.
        reason: Why it is refused; empty if it is not.
        ways: How its passes run, in training and inference.
        differences: Largest difference from the oracle, relative to the largest entry, by what was compared.
        noise: How far the oracle's gradients are from themselves once every weight is rounded otherwise, where this
            was asked.
    """

    name: str
    reason: str = ""
    ways: str = ""
    differences: dict[str, float] = field(default_factory=dict)
    noise: float = 0.0

    @property
    def worst(self):
        """The largest of the differences."""
        return max(self.differences.values(), default=0.0)

    @property
    def word(self):
        """`equal`, `refused`, or what must not be: `wrong`."""
        return "refused" if self.reason else "equal" if self.worst <= max(TOLERANCE, self.noise) else "wrong"


def make_tokenizer():
    """One token a word, as many as a tiny model has."""
    names = [f"w{index}" for index in range(VOCABULARY)]
    names[57:61] = "<<", START, END, LATENT
    names[EOS_ID] = EOS
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0", eos_token=EOS, pad_token="w1")


def make_rows(seed=0):
    """(ids, labels) of each row: thoughts have no label, nor has the first token."""
    draw, rows = random.Random(seed), []
    for before, *rest in LAYOUTS:
        thoughts, after = rest or (0, 0)
        ids = [*draw.choices(WORDS, k=before), *[LATENT_ID] * thoughts, *draw.choices(WORDS, k=after)]
        rows.append((ids, [-100, *(-100 if token == LATENT_ID else token for token in ids[1:])]))
    return rows


def pad(rows):
    """The rows in one batch, padded on the left."""
    width = max(len(ids) for ids, _ in rows)
    fill = lambda parts, value: torch.tensor([[value] * (width - len(part)) + part for part in parts])  # noqa: E731
    return {
        "input_ids": fill([ids for ids, _ in rows], 1),
        "attention_mask": fill([[1] * len(ids) for ids, _ in rows], 0),
        "labels": fill([labels for _, labels in rows], -100),
    }


def apart(got, expected):
    """Largest difference, relative to the largest entry."""
    return float((got - expected).abs().max() / expected.abs().max())


def check(model_type: str) -> Verdict:
    """The verdict on the class of a model type; where 32 bits leave a doubt between noise and error, 64 decide.

    Some classes compute in 32 bits whatever their weights are. Where those leave a doubt, too, the class's own noise
    decides: it is right if it is no further from the oracle than the oracle is from itself with other roundings.
    """
    verdict = _check(model_type, torch.float32)
    if verdict.worst > TOLERANCE:
        verdict = _check(model_type, torch.float64)
        verdict.ways += ", float64"
    if verdict.worst > TOLERANCE:
        verdict.noise = _noise(model_type)
    return verdict


def _noise(model_type):
    """Largest difference of gradients, relative to the largest entry, once every weight is a rounding up or down."""
    model, rows = tiny_model(model_type), make_rows()
    give_thoughts(model, make_tokenizer())
    _, _, gradients = reference.batch_results(model, rows, LATENT_ID)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            signs = torch.randint(0, 2, weight.shape, generator=draw) * 2 - 1
            weight.mul_(1 + torch.finfo(torch.float32).eps / 2 * signs)
    _, _, others = reference.batch_results(model, rows, LATENT_ID)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    return max(float((others[name] - gradient).abs().max() / largest) for name, gradient in gradients.items())


def _check(model_type, dtype):
    try:
        model = tiny_model(model_type, dtype=dtype)
    except Exception as error:  # of transformers, on a configuration of its own
        raise NotBuilt(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from error
    verdict = Verdict(type(model).__name__)
    try:
        give_thoughts(model, make_tokenizer())
    except ModelError as error:
        verdict.reason = str(error)
        return verdict
    verdict.ways = f"{model.thought_passes.training}, {model.thought_passes.inference}"
    rows, found = make_rows(), verdict.differences
    batch = pad(rows)
    loss, logits, gradients = reference.batch_results(model, rows, LATENT_ID)
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([ids])).logits[0] for ids, _ in rows]
        padded = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    padded = [row[kept.bool()] for row, kept in zip(padded, batch["attention_mask"], strict=True)]
    found["logits alone"] = max(map(apart, alone, logits))
    found["logits padded"] = max(map(apart, padded, logits))
    found["thoughts"] = max(_thoughts(model, ids, said) for (ids, _), said in zip(rows, logits, strict=True))
    model.zero_grad()
    own = model.train()(**batch).loss
    own.backward()
    model.eval()
    found["loss"] = apart(own.detach(), loss)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    mine = reference.gradients(model)
    found["gradients"] = max(float((mine[name] - true).abs().max() / largest) for name, true in gradients.items())
    found["generation"] = _generation(model, rows)
    found |= _refined(model, rows)
    found |= _mixed(model, rows)
    with suppress(ModelError):  # some classes cannot run with one layer; any other error is a defect
        small = model.copy_decoder(num_layers=1).train()
        embedded = model.get_input_embeddings()(batch["input_ids"])
        small(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).last_hidden_state.sum().backward()
    return verdict


def _mixed(model, rows):
    """Loss, gradients and generation with thoughts that are mixtures of words."""
    model.config.thoughts |= {"iterations": None, "mixes_words": True}
    return _compared(model, rows, "mixed", mixes_words=True)


def _refined(model, rows):
    """Loss, gradients and generation with thoughts that are refined together."""
    model.config.thoughts["iterations"] = ITERATIONS
    return _compared(model, rows, "refined", iterations=ITERATIONS)


def _compared(model, rows, name, **kind):
    """How far loss, gradients and generation are from those of the oracle."""
    loss, _, gradients = reference.batch_results(model, rows, LATENT_ID, **kind)
    model.zero_grad()
    own = model.train()(**pad(rows)).loss
    own.backward()
    model.eval()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    mine = reference.gradients(model)
    return {
        f"{name} loss": apart(own.detach(), loss),
        f"{name} gradients": max(float((mine[part] - true).abs().max() / largest) for part, true in gradients.items()),
        f"{name} generation": _generation(model, rows, **kind),
    }


def _thoughts(model, ids, logits):
    """How far what a row's thoughts say is from what the positions before them say."""
    thoughts, places = [], [place for place, token in enumerate(ids) if token == LATENT_ID]
    if not places:
        return 0.0
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), thought_hook=lambda _, thought: thoughts.append(thought) or thought)
        return apart(model.thought_logits(thoughts)[0], logits[[place - 1 for place in places]])


def _generation(model, rows, **more):
    """0 if a padded batch generates what the oracle does for each row, else 1."""
    prompts = [(ids, ids) for ids, _ in rows]
    batch = pad(prompts)
    width = batch["input_ids"].shape[1]
    written = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=EOS_ID,
        pad_token_id=1,
    )[:, width:].tolist()
    banned = [58, 59, LATENT_ID, EOS_ID]
    expected = [reference.greedy(model, ids, LATENT_ID, EOS_ID, banned, NEW_TOKENS, **more) for ids, _ in rows]
    return float(written != expected)


PAGE = """# Model classes

Made by `make models` with transformers {version}; do not edit. Every class of transformers' causal-LM mapping, small
and with random weights, against the definition: logits alone and in a padded batch, what its thoughts say, the loss,
all gradients, and greedy generation; the same once more with thoughts that are refined together and with thoughts that
are mixtures of words. *Difference* is the largest of these, relative to the largest entry; where it is above 1e-5, the
class's own gradients change by more than that once every weight is rounded otherwise. *Training*
and *inference* say how the passes of a sequence with thoughts run: `shared` is the fast path, `cached` continues the
cache of the passes before, and `recomputed` reads everything before a thought again: slower, but right where a cache
cannot be continued or not be differentiated. A refused class gets a `ModelError` with the reason, before anything is
trained.

{equal} of {total} types are equal, {refused} are refused, {absent} were not built.

| model type | class | verdict | difference | training | inference |
|---|---|---|---:|---|---|
{rows}

## Refused

{reasons}

## Not built

{missing}
"""


def page():
    """`docs/models.md`."""
    found, missing = {}, {}
    for model_type in MODEL_TYPES:
        try:
            found[model_type] = check(model_type)
        except NotBuilt as error:
            missing[model_type] = str(error)
    rows = [
        f"| {kind} | {verdict.name} | {verdict.word} | "
        + (" | | |" if verdict.reason else f"{verdict.worst:.0e} | {verdict.ways.replace(', ', ' | ', 1)} |")
        for kind, verdict in found.items()
    ]
    words = [verdict.word for verdict in found.values()]
    return PAGE.format(
        version=transformers.__version__,
        equal=words.count("equal"),
        total=len(MODEL_TYPES),
        refused=words.count("refused"),
        absent=len(missing),
        rows="\n".join(rows),
        reasons="\n".join(f"- {kind}: {verdict.reason}" for kind, verdict in found.items() if verdict.reason),
        missing="\n".join(f"- {kind}: {reason}" for kind, reason in missing.items()),
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(page(), end="")
