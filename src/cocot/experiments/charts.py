"""The figures of a page: charts as values, drawn by altair.

In: a `SearchData`, the rows of a table, logs of runs. Out: altair charts, each with a description for those who
cannot see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from cocot.evaluation.statistics import wilson_interval
from cocot.interpret.path_categories import CATEGORIES
from cocot.interpret.search_data import SearchData
from cocot.tasks.graphs import leads_to
from cocot.training.training_curve import training_curve

# Okabe and Ito's colours: told apart by colour-blind readers, and visible on light and dark ground.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999", "#B8A500")
_WIDTH, _HEIGHT = 340, 220
_PERCENTILES = range(0, 101, 5)

Log = Sequence[Mapping[str, Any]]


def training(logs: Mapping[str, Log]) -> Any:
    """Loss and validation accuracy of each run over its optimizer steps, with a rule where a stage begins."""
    points, rules = [], []
    for name, log in logs.items():
        curve = training_curve(log)
        rules += [{"run": name, "step": step, "stage": stage} for step, stage in curve.stages]
        for what, own in (("loss", curve.loss), ("validation accuracy", curve.accuracy)):
            points += [{"run": name, "step": step, "what": what, "value": value} for step, value in own]
    x = alt.X("step:Q", title="optimizer step")
    parts = []
    for what in ("loss", "validation accuracy"):
        shown = _data([point for point in points if point["what"] == what])
        y = alt.Y("value:Q", title=what).scale(type="symlog" if what == "loss" else "linear")
        line = alt.Chart(shown).mark_line().encode(x, y, _colour("run"), tooltip=["run:N", "step:Q", "value:Q"])
        rule = alt.Chart(_data(rules)).mark_rule(strokeDash=[2, 3], opacity=0.5)
        parts.append(alt.layer(rule.encode(x, _colour("run"), tooltip=["run:N", "stage:N"]), line))
    text = "Loss and validation accuracy against optimizer steps for each run; dashed rules mark where stages begin."
    return _sized(alt.hconcat(*(part.properties(width=_WIDTH, height=_HEIGHT) for part in parts)), text)


def accuracy_and_tokens(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Accuracy against generated tokens, with intervals: what a method buys with its words."""
    points = [
        {
            "method": ", ".join(row["values"].values()),
            "test": test,
            **{name: result[name] for name in ("accuracy", "low", "high", "tokens")},
        }
        for row in rows
        for test, result in row["tests"].items()
    ]
    base = alt.Chart(_data(points)).encode(
        alt.X("tokens:Q", title="generated tokens, thoughts included"), _colour("method")
    )
    dots = base.mark_point(filled=True, size=70).encode(
        alt.Y("accuracy:Q", title="accuracy"),
        alt.Shape("method:N", legend=None),
        tooltip=["method:N", "accuracy:Q", "tokens:Q"],
    )
    bars = base.mark_rule().encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    return _sized(alt.layer(bars, dots), "Accuracy with its interval against generated tokens, a point a method.")


def accuracy_by_row(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Accuracy of each row with its interval, and of each of its seeds: which differences are larger than chance."""
    points, seeds = [], []
    for row in rows:
        name = ", ".join(row["values"].values())
        for test, result in row["tests"].items():
            own = {"row": name, "test": test}
            points.append({**own, **{part: result[part] for part in ("accuracy", "low", "high")}})
            by_seed = result.get("by_seed", ())
            seeds += [{**own, "accuracy": accuracy} for accuracy in by_seed] if len(by_seed) > 1 else []
    tests = list(rows[0]["tests"])
    height = 14 * len(tests) + 8
    encoded = [alt.Y("row:N", title=None, sort=None), alt.YOffset("test:N", sort=tests), _colour("test", tests)]
    x = alt.X("accuracy:Q", title="accuracy").scale(domain=(0, 1))
    base = alt.Chart(_data(points)).encode(*encoded)
    rule = base.mark_rule(strokeWidth=2).encode(alt.X("low:Q", title="accuracy"), alt.X2("high:Q"))
    dot = base.mark_point(filled=True, size=60).encode(x, tooltip=["row:N", "test:N", "accuracy:Q", "low:Q", "high:Q"])
    tick = alt.Chart(_data(seeds)).mark_tick(size=10).encode(x, *encoded, tooltip=["row:N", "test:N", "accuracy:Q"])
    layers = (rule, tick, dot) if seeds else (rule, dot)
    text = "Accuracy of each row: a dot for the mean of its seeds, a tick for each of them, a line for the interval."
    return _sized(alt.layer(*layers), text).properties(height=height * len(points) / len(tests))


def answers(search: SearchData) -> Any:
    """Accuracy of what the model writes after k thoughts, with its interval."""
    points = []
    for k, correct in enumerate(search.correct):
        low, high = wilson_interval(int(correct.sum()), len(correct))
        points.append({"thoughts": k, "accuracy": float(correct.mean()), "low": low, "high": high})
    base = alt.Chart(_data(points)).encode(alt.X("thoughts:O", title="thoughts before the text"))
    line = base.mark_line(point=True, color=COLOURS[0]).encode(
        alt.Y("accuracy:Q", title="accuracy").scale(domain=(0, 1)), tooltip=["thoughts:O", "accuracy:Q"]
    )
    bars = base.mark_rule(color=COLOURS[0]).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    return _sized(alt.layer(bars, line), "Accuracy with its interval against the number of thoughts before the text.")


def categories(search: SearchData) -> Any:
    """The paper's categories of what is written after k thoughts."""
    points = []
    for k in range(len(search.values)):
        found = search.categories(k)
        points += [
            {"thoughts": k, "category": name, "order": order, "share": found.count(name) / len(found)}
            for order, name in enumerate(CATEGORIES)
        ]
    chart = (
        alt.Chart(_data(points))
        .mark_bar()
        .encode(
            alt.X("thoughts:O", title="thoughts before the text"),
            alt.Y("share:Q", title="share of problems").stack(True),
            _colour("category", CATEGORIES),
            alt.Order("order:Q"),
            tooltip=["thoughts:O", "category:N", alt.Tooltip("share:Q", format=".1%")],
        )
    )
    return _sized(chart, "Share of each category of written paths against the number of thoughts before the text.")


def value_by_height(search: SearchData, height: str = "height_shortest") -> Any:
    """Mean value of a frontier node after k thoughts against its height: those that lead to the target, and others."""
    is_right = np.concatenate([leads_to(p.graph, p.graph.target) for p in search.problems if p.graph])
    heights = getattr(search, height)
    points = []
    for k in range(1, len(search.values)):
        goes_on = np.array([len(problem.steps) > k for problem in search.problems])[search.problem]
        for name, kind in (("leads to the answer", is_right), ("does not", ~is_right)):
            for level in np.unique(heights):
                own = goes_on & kind & (search.depth == search.next_depth(k)) & (heights == level)
                if own.any():
                    value = float(search.values[k][own].mean())
                    points.append(
                        {"thoughts": k, "node": name, "height": int(level), "value": value, "n": int(own.sum())}
                    )
    chart = (
        alt.Chart(_data(points))
        .mark_line(point=True)
        .encode(
            alt.X("height:O", title="height: " + height.removeprefix("height_") + " way to a leaf"),
            alt.Y("value:Q", title="mean probability"),
            _colour("node", ("leads to the answer", "does not")),
            alt.StrokeDash("thoughts:N", title="after thoughts").legend(symbolType="stroke"),
            tooltip=["thoughts:N", "node:N", "height:O", "value:Q", "n:Q"],
        )
    )
    return _sized(chart, "Mean probability of frontier nodes against their height, right and wrong ones apart.")


def parallelism(search: SearchData) -> Any:
    """Cumulative value of the top 1, 2 and 3 nodes over percentiles of problems: how many branches are held at once?"""
    points = []
    for k in range(1, len(search.values)):
        tops = np.array(
            [
                np.cumsum(np.sort(search.values[k][search.problem == index])[::-1][:3])
                for index, problem in enumerate(search.problems)
                if len(problem.steps) > k
            ]
        )
        if len(tops):
            points += [
                {"thoughts": k, "top": f"top {top + 1}", "percentile": share, "value": float(value)}
                for top in range(tops.shape[1])
                for share, value in zip(_PERCENTILES, np.percentile(tops[:, top], _PERCENTILES), strict=True)
            ]
    chart = (
        alt.Chart(_data(points))
        .mark_line()
        .encode(
            alt.X("percentile:Q", title="percentile of problems"),
            alt.Y("value:Q", title="probability of the top nodes together"),
            _colour("top", ("top 1", "top 2", "top 3")),
            alt.StrokeDash("thoughts:N", title="after thoughts").legend(symbolType="stroke"),
            tooltip=["thoughts:N", "top:N", "percentile:Q", "value:Q"],
        )
    )
    return _sized(
        chart, "Cumulative probability of the likeliest one, two and three nodes over percentiles of problems."
    )


def _data(points: Sequence[Mapping[str, Any]]) -> Any:
    make: Any = alt.Data  # has no annotations
    return make(values=points)


def _colour(name: str, domain: Sequence[str] | None = None) -> alt.Color:
    """Always the same palette; with a domain, the same colour for the same value in every chart."""
    scale: dict[str, Any] = {"range": list(COLOURS)}
    if domain:
        scale["domain"] = list(domain)
    return alt.Color(f"{name}:N", title=name).scale(**scale)


def _sized(chart: Any, description: str) -> Any:
    is_joined = isinstance(chart, alt.HConcatChart)
    size = {} if is_joined else {"width": _WIDTH, "height": _HEIGHT}
    return chart.properties(description=description, **size)
