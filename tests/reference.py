"""The slow oracle: continuous thoughts written straight from the paper's definition, with nothing of cocot.

One row, no padding, no mask, no cache. For n thoughts, n + 1 full forwards of the bare Hugging Face decoder, in which
the placeholders found so far are replaced by the last hidden state of the position before (arXiv 2412.06769,
section 3).
"""

import torch
from torch.nn.functional import cross_entropy


def embeddings(model, ids, latent_id, detach=False, shift=0.0, project=None, iterations=None, mixes_words=False):
    """The input embedding of every position of one row, thoughts included, (columns, width).

    `project` is what becomes of a thought before it is fed back. With `iterations` all thoughts are placeholders at
    first, and so many times each becomes the last hidden state of the position before (arXiv 2506.18582).
    With `mixes_words` a thought is the mean of all word embeddings, weighed by their probabilities (arXiv 2505.23648).
    `detach` and `shift` are wrong on purpose: thoughts without a gradient; a first thought whose entries are off.
    """
    ids = torch.as_tensor(ids)
    embeds = list(model.get_input_embeddings()(ids))
    decoder = model.get_decoder()
    if decoder is model or isinstance(decoder, torch.nn.Linear):  # of classes without a `get_decoder` of their own
        decoder = model.model
    places = (ids == latent_id).nonzero().flatten().tolist()
    for _ in range(iterations or 0):
        hidden = decoder(inputs_embeds=torch.stack(embeds)[None], use_cache=False).last_hidden_state[0]
        embeds = [hidden[place - 1] if place in places else embed for place, embed in enumerate(embeds)]
    if iterations is not None:
        return torch.stack(embeds)
    for number, position in enumerate(places):
        thought = decoder(inputs_embeds=torch.stack(embeds)[None], use_cache=False).last_hidden_state[0, position - 1]
        thought = thought.detach() if detach else thought
        if shift and number == 0:
            thought = thought + shift * (-1) ** torch.arange(len(thought))
        if mixes_words:
            table = model.get_input_embeddings()
            said = model(inputs_embeds=torch.stack(embeds)[None], use_cache=False).logits[0, position - 1].softmax(-1)
            thought = said @ table(torch.arange(table.weight.shape[0]))[: len(said)]
        embeds[position] = thought if project is None else project(thought)
    return torch.stack(embeds)


def row_logits(model, ids, latent_id, **wrong):
    """Logits of every position of one row, (columns, vocabulary): what the bare class makes of the embeddings."""
    return model(inputs_embeds=embeddings(model, ids, latent_id, **wrong)[None], use_cache=False).logits[0]


def row_loss(logits, labels):
    """Cross-entropy summed over one row's labelled positions; -100 marks the others."""
    return cross_entropy(logits[:-1], torch.as_tensor(labels)[1:], ignore_index=-100, reduction="sum")


def batch_results(model, rows, latent_id, **wrong):
    """Loss, logits of each row and gradient of each parameter, for rows of (ids, labels).

    The loss is the sum over rows divided by the number of labels in all rows.
    """
    model.zero_grad()
    logits = [row_logits(model, ids, latent_id, **wrong) for ids, _ in rows]
    num_labels = sum(label != -100 for _, labels in rows for label in labels[1:])
    loss = sum(row_loss(row, labels) for row, (_, labels) in zip(logits, rows, strict=True)) / num_labels
    loss.backward()
    return loss.detach(), [row.detach() for row in logits], gradients(model)


def gradients(model):
    """Gradient of each parameter by name; zeros where none arrived."""
    zeros = torch.zeros_like
    return {name: zeros(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def greedy(model, ids, latent_id, eos_id, banned, max_new_tokens, **wrong):
    """The tokens that follow one prompt: the likeliest each time, everything computed again for each."""
    written = []
    while len(written) < max_new_tokens and (not written or written[-1] != eos_id):
        with torch.no_grad():
            logits = row_logits(model, [*ids, *written], latent_id, **wrong)[-1]
        logits[banned] = -torch.inf
        written.append(int(logits.argmax()))
    return written


def log_probability(model, ids, written, latent_id):
    """Sum of the log-probabilities of `written` after the prompt `ids`."""
    with torch.no_grad():
        logits = row_logits(model, [*ids, *written], latent_id)[len(ids) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(written)), written].sum())
