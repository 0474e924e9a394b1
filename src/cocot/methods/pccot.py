"""PCCoT: thoughts that are refined together, a few times, not one after the other (Wu et al., arXiv 2506.18582).

All thoughts begin as the placeholder's embedding. An iteration reads them all at once behind the question, and feeds
every one with the hidden state of the position before it. After T iterations the first T thoughts are those of
Coconut's recurrence; without any they are pause tokens. It is trained as CODI is: the same weights, in words, are the
teacher.
Read next: `methods/codi.py`; `modeling/recurrence.py` (the iterations).
"""

from __future__ import annotations

from cocot.methods.base import CurriculumConfig, register
from cocot.methods.codi import CodiWithoutProjection


@register
class Pccot(CodiWithoutProjection):
    """Self-distillation into thoughts that are refined in parallel."""

    name = "pccot"
    summary = "codi whose thoughts are all refined together, a few times"

    def iterations(self, config: CurriculumConfig) -> int | None:
        """As the curriculum says."""
        return config.pccot_iterations
