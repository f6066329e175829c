"""Pictures of a run: its tree, and the share of each domain in the questions of every round."""

from __future__ import annotations

from pathlib import Path

from fusion.distill.bohdi.state import State
from fusion.figures import new_figure, save

LONGEST = 60
"""Leaves that a picture shows; of a larger tree those with the most questions."""


def draw_tree(path: Path, state: State, title: str) -> bool:
    """Draw the tree as PNG, coloured by posterior mean; False where matplotlib is not installed."""
    figure = new_figure(7, 4)
    if figure is None:
        return False
    nodes = state.tree.nodes
    leaves = sorted(state.tree.leaves, key=lambda leaf: -nodes[leaf].questions)[:LONGEST]
    shown = sorted({leaf[:depth] for leaf in leaves for depth in range(1, len(leaf) + 1)})
    rows = {leaf: float(row) for row, leaf in enumerate(path for path in shown if len(path) == state.tree.levels)}
    for node in sorted(shown, key=len, reverse=True):
        if node not in rows:
            below = [rows[child] for child in shown if child[:-1] == node]
            rows[node] = sum(below) / len(below)
    figure.set_size_inches(3 + 3 * state.tree.levels, 1.5 + 0.3 * len(leaves))
    axes = figure.add_subplot()
    for node in shown:
        posterior = nodes[node]
        mean = posterior.alpha / (posterior.alpha + posterior.beta)
        depth = len(node)
        if depth > 1:
            axes.plot([depth - 1, depth], [rows[node[:-1]], rows[node]], color="0.8", linewidth=1, zorder=1)
        axes.scatter([depth], [rows[node]], c=[mean], cmap="coolwarm", vmin=0, vmax=1, s=60, zorder=2)
        label = f"{node[-1]}  {mean:.2f} of {posterior.questions}"
        axes.annotate(
            label,
            (depth, rows[node]),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            parse_math=False,  # names are a model's words, and `$` means no formula there
        )
    axes.set_title(f"{title}: share of questions that a source won, of all", parse_math=False)
    axes.set(xlim=(0.8, state.tree.levels + 1))
    axes.invert_yaxis()
    axes.set_axis_off()
    return save(figure, path)


def draw_shares(path: Path, state: State, title: str) -> bool:
    """Draw over the rounds how the questions were spread over the domains of the first level, as PNG."""
    figure = new_figure(7, 4)
    if figure is None:
        return False
    axes = figure.add_subplot()
    rounds = sorted(state.drawn)
    counts = {round: state.by_first(round) for round in rounds}
    names = list(dict.fromkeys(name for round in rounds for name in counts[round]))
    base = [0.0] * len(rounds)
    bars = []
    for name in names:
        shares = [100 * counts[round][name] / max(counts[round].total(), 1) for round in rounds]
        bars.append(axes.bar([str(round) for round in rounds], shares, bottom=base))
        base = [low + share for low, share in zip(base, shares, strict=True)]
    axes.set(xlabel="round", ylabel="questions in %")
    axes.set_title(title, parse_math=False)
    if names:
        # Names are set afterwards, as a legend leaves out labels that begin with `_`.
        legend = axes.legend(bars, [""] * len(bars), loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set(text=name, parse_math=False)
    return save(figure, path)
