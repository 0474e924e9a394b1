"""The tokens that mark thoughts and answers, by name. Every model and tokenizer of cocot has them.

In a prompt `<|latent|>` holds the place of a thought, between `<|start-latent|>` and `<|end-latent|>`; `<|pause|>` is
read as itself. `### ` stands before an answer.
"""

from __future__ import annotations

LATENT = "<|latent|>"
START = "<|start-latent|>"
END = "<|end-latent|>"
PAUSE = "<|pause|>"
SPECIAL_TOKENS = (START, END, LATENT)
ANSWER_MARK = "###"
