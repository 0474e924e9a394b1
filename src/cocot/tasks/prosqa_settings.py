"""The settings of ProsQA's graphs, checked before any is drawn.

In: what `ProsQA.generate` was given. Out: `Sizes`, or an error that says what is wrong.

Read next: `prosqa_graphs.py` (what the sizes are for).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cocot.errors import ConfigError
from cocot.tasks.problem import check_whole
from cocot.tasks.prosqa_graphs import LAWS, Sizes

MOST_NODES = 100_000
_MOST_IDS = 1_000  # a new id weighs all that were there before

# Settings that not every mode has, and the modes that have them.
_MODES_WITH = {
    **dict.fromkeys(("layers", "width", "nodes", "parents"), ("balanced",)),
    **dict.fromkeys(("ids", "any_root"), tuple(LAWS)),
}


def _whole(name: str, value: int | Sequence[int], low: int, high: int, why: str = "") -> tuple[int, ...]:
    """The whole numbers of a setting that takes one or several."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if not values:
        raise ConfigError(f"{name}={value!r} is empty: give one whole number or several to draw from")
    for number in values:
        check_whole(name, number, low, high, why)
    return values


def _check_modes(modes: Sequence[str], given: Mapping[str, Any]) -> None:
    """Refuse settings that none of the modes has."""
    for name, having in _MODES_WITH.items():
        if given[name] is not None and not set(modes) & set(having):
            mode, use = (" or ".join(map(repr, names)) for names in (modes, having))
            raise ConfigError(f"mode {mode} has no {name}, got {given[name]!r}: leave it out or use {use}")
    if given["ids"] is not None and given["hops"] is None and "released" in modes:
        raise ConfigError(
            f"mode 'released' takes ids only with hops, got ids={given['ids']!r}: its own law has 28 ids and "
            "targets 3 to 6 steps from their root; say with hops how many steps the questions take, or leave ids out"
        )
    if not isinstance(given["any_root"], bool | None):
        raise ConfigError(f"any_root must be true or false, got {given['any_root']!r}")
    if given["any_root"] and given["hops"] is None:
        raise ConfigError("any_root needs hops: say how many steps the questions take, or leave any_root out")


def check_sizes(modes: Sequence[str], rendering: str, names: tuple[int, int], given: Mapping[str, Any]) -> Sizes:
    """Check the sizes of the graphs, and that the rendering has names for the nodes of mode `balanced`.

    Args:
        modes: Known modes.
        rendering: A known rendering.
        names: How many names `sentences` has for nodes without an in-edge, and for nodes with one.
        given: What `ProsQA.generate` got for the graphs, by its names; None for a default.

    Raises:
        ConfigError: one of them is impossible, or has no meaning with these modes.
    """
    _check_modes(modes, given)
    layers, width, nodes, parents, hops, ids = (
        given[name] for name in ("layers", "width", "nodes", "parents", "hops", "ids")
    )
    check_whole("width", 2 if width is None else width, 1, MOST_NODES)
    sizes = Sizes(
        layers=_whole("layers", 3 if layers is None else layers, 1, MOST_NODES),
        width=2 if width is None else width,
        nodes=nodes,
        parents=_whole("parents", 1 if parents is None else parents, 1, MOST_NODES),
        hops=None if hops is None else _whole("hops", hops, 1, MOST_NODES),
        ids=None if ids is None else _whole("ids", ids, 4, _MOST_IDS, " (2 roots and a node below each)"),
        # Without ids in both renderings: a seed has the same first graph in both, as it always had.
        names=names if rendering == "sentences" or ids is None else None,
        starts="roots" if not given["any_root"] else "sources" if rendering == "sentences" else "any",
    )
    _check_nodes(sizes, 2 + names[1] if rendering == "sentences" else MOST_NODES)
    _check_hops(modes, sizes)
    return sizes


def _check_nodes(sizes: Sizes, most: int) -> None:
    """Refuse more nodes of mode `balanced` than can be drawn, or than there are names."""
    tree_nodes = 2 + 2 * max(sizes.layers) * sizes.width
    if tree_nodes > MOST_NODES:
        raise ConfigError(f"layers and width make {tree_nodes} nodes; the most is {MOST_NODES}")
    if sizes.nodes is not None:
        check_whole("nodes", sizes.nodes, tree_nodes, MOST_NODES, " (2 roots + 2 families x layers x width)")
    if (sizes.nodes or tree_nodes) > most:
        raise ConfigError(
            f"{sizes.nodes or tree_nodes} nodes are more than rendering 'sentences' has names for ({most}): "
            "lower layers, width or nodes, or use rendering 'symbolic'"
        )


def _check_hops(modes: Sequence[str], sizes: Sizes) -> None:
    """Refuse hops that no graph of any mode has, and graphs that have none of them."""
    if sizes.hops is None:
        return
    # A chain from one root to the target, the other root and its distractor: 3 ids more than hops.
    reaches = {mode: [most - 3 for most in _ids(mode, sizes)] if mode in LAWS else sizes.layers for mode in modes}
    check_whole("hops", max(sizes.hops), 1, max(map(max, reaches.values())))
    for mode, offered in reaches.items():
        if min(sizes.hops) > min(offered):
            fitting, has = ("ids", min(offered) + 3) if mode in LAWS else ("layers", min(offered))
            raise ConfigError(
                f"no question of {min(sizes.hops)} hops or more fits graphs of mode {mode!r} with {fitting}={has}: "
                f"lower the smallest of hops={sizes.hops!r}, or raise {fitting}"
            )


def _ids(mode: str, sizes: Sizes) -> tuple[int, ...]:
    return sizes.ids or (LAWS[mode].num_ids,)


def most_nodes(mode: str, sizes: Sizes) -> int:
    """How many nodes the largest graph of a mode may have."""
    return max(_ids(mode, sizes)) if mode in LAWS else sizes.nodes or 2 + 2 * max(sizes.layers) * sizes.width
