"""What replaces a written step: one file a family of methods, all in one registry.

    METHODS["coconut"].summary

Read next: `methods/base.py`, the interface.
"""

from __future__ import annotations

from cocot.methods.base import CROSS_ENTROPY, METHODS, Asked, CurriculumConfig, Method, OneStage, Stage, register
from cocot.methods.phases import Phase

# Every method that comes with cocot, in the order of the paper's Table 1; importing one registers it.
from cocot.methods import chain_of_thought, icot, pause, coconut, frontier, sim_cot, codi, pccot, soft, adaptive  # isort: skip

__all__ = [
    "CROSS_ENTROPY",
    "METHODS",
    "Asked",
    "CurriculumConfig",
    "Method",
    "OneStage",
    "Phase",
    "Stage",
    "adaptive",
    "chain_of_thought",
    "coconut",
    "codi",
    "frontier",
    "icot",
    "pause",
    "pccot",
    "register",
    "sim_cot",
    "soft",
]
