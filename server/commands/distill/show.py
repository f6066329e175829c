"""`tutti distill show`: the tree of a Bohdi run with its posteriors, samples and resets, and pictures of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from alignment.errors import ConfigError
from fusion.distill.bohdi.journal import NAME, read_events
from fusion.distill.bohdi.picture import draw_shares, draw_tree
from fusion.distill.bohdi.settings import Tree as TreeSettings
from fusion.distill.bohdi.state import State
from fusion.distill.bohdi.tree import Domain
from server.commands.tables import right, say, table


def show(run: Path, output: Console, notes: Console) -> None:
    """Print tree and rounds of the run in a work folder, and draw them there as `tree.png` and `shares.png`.

    Raises:
        ConfigError: there is no journal of a run, or the pictures cannot be written.
    """
    state = state_of(run / NAME)
    output.print(tree_of(state))
    output.print(rounds_table(state))
    if draw_tree(run / "tree.png", state, run.name) and draw_shares(run / "shares.png", state, run.name):
        say(notes, f"Drawn: {run / 'tree.png'}, {run / 'shares.png'}.")
    else:
        say(notes, "For pictures install matplotlib: pip install '.[distill]'")


def state_of(journal: Path) -> State:
    """The state that a journal leads to.

    Raises:
        ConfigError: there is none, or it is no journal of a run.
    """
    events = read_events(journal)
    if not events or events[0].get("event") != "begin":
        raise ConfigError(f"{journal} is no journal of a run of tutti distill bohdi.")
    return State.of(TreeSettings(**events[0]["tree"]), events)


def tree_of(state: State) -> Tree:
    """Each domain with its posterior, how often it was drawn, what was gathered, and when it was reset."""
    resets: dict[Domain, list[int]] = {}
    for round, paths in state.introspected.items():
        for path in paths:
            resets.setdefault(path, []).append(round)
    samples = Counter(
        sample.path[:depth] for sample in state.samples.values() for depth in range(1, len(sample.path) + 1)
    )
    result = Tree(
        "domain  [dim]mean of its posterior, Beta(alpha, beta) · questions · unusable draws · samples · reset "
        "before round[/]"
    )
    branches: dict[Domain, Tree] = {(): result}
    for path in sorted(state.tree.nodes, key=lambda path: (len(path), state.tree.nodes[path].questions * -1)):
        node = state.tree.nodes[path]
        mean = node.alpha / (node.alpha + node.beta)
        label = (
            f"{escape(path[-1])}  [bold]{mean:.2f}[/] [dim]Beta({node.alpha:g}, {node.beta:g})[/] · "
            f"{node.questions} · {node.unusable} · {samples[path]}"
        )
        if path in resets:
            label += f" · [yellow]reset {', '.join(map(str, resets[path]))}[/]"
        branches[path] = branches[path[:-1]].add(label)
    return result


def rounds_table(state: State) -> Table:
    """What came of each round's questions."""
    columns = ("round", "questions", "source won", "target won", "reset", "learned from", "steps")
    result = table("Rounds", *map(right, columns))
    for round in sorted(state.drawn):
        samples, steps = state.trained.get(round, (len(state.lessons.get(round, [])), ""))
        result.add_row(
            str(round),
            str(state.questions(round)),
            str(state.rewards[round][1]),
            str(state.rewards[round][0]),
            str(len(state.introspected.get(round, []))),
            str(samples),
            str(steps),
        )
    dropped = ", ".join(f"{escape(why)} {number}" for why, number in state.dropped.most_common(6))
    result.caption = f"dropped: {dropped or 'none'}; undecided: {state.undecided}"
    return result
