"""Thoughts inside vLLM: a plugin for an unmodified vLLM, which then thinks with an exported folder.

An exported folder's chat template writes `<|latent|>` into the prompt, one a thought. Four parts make vLLM think:

    plugin.py      what vLLM calls when it starts: which models think, and what does not go with thoughts
    scheduler.py   a prompt is read up to the next thought and no further, so each thought is a step of its own
    budget.py      the most thoughts of a request whose model decides how many it takes
    models.py      where the input is `<|latent|>`, the hidden state of the position before it is read instead

All else is vLLM's: batches that requests join and leave at any step, the paged cache, preemption, prefixes that
are shared. Nothing here is imported unless vLLM is.
Read next: `plugin.py`.
"""
