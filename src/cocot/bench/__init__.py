"""Ratios of speed and memory, each measured in one run: `cocot bench`.

In: a device, the shapes of model and text to measure. Out: a human-readable table, one JSON document for programs.
Read next: `ratios.py` (what is compared), `measure.py` (how), `workload.py` (with which models and texts).
"""
