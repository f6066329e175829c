"""Knowledge tree: domains of knowledge as the arms of a hierarchical bandit.

Bohdi (arXiv 2506.15721) decides with it what the next training questions are about. Every node has a Beta
posterior of how often a source model's answer beats the student's; Thompson sampling descends from the root to a
leaf, and a placeholder below every inner node stands for the domains that are not in the tree yet. The tree is
state and rules alone: models are asked elsewhere, and chance comes from the caller's generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from fusion.distill.swblrt import swblrt

Domain = tuple[str, ...]

MOST_FAILURES = 10
"""Proposals of one descent that may fail before it ends."""


@dataclass(slots=True)
class Node:
    """One domain, or a placeholder.

    Attributes:
        alpha: of the Beta posterior: 1 + the rewards.
        beta: 1 + what the rewards fell short of 1.
        window: the latest outcomes, 0 or 1, oldest first; None in a tree without windows and for placeholders.
        questions: drawn for it so far.
        unusable: draws that yielded no question. They count against the node in later draws, beside beta, but are
            no outcomes: what is tested are the answers.
    """

    alpha: float = 1
    beta: float = 1
    window: list[int] | None = None
    questions: int = 0
    unusable: int = 0


class KnowledgeTree:
    """Domains of up to `levels` levels; a path is a tuple of names, the root is () and has no node.

    Attributes:
        nodes: {path: node} in the order of adding; neither the root nor placeholders.
        levels: depth of a leaf.
        window_size: outcomes that a node remembers and a test needs; None for no windows and no tests.
        threshold: a test resets a node where its p-value is below.
    """

    def __init__(self, *, levels: int = 3, window_size: int | None, threshold: float) -> None:
        if levels < 1:
            raise ValueError(f"levels must be at least 1, not {levels}")
        if window_size is not None and window_size < 1:
            raise ValueError(f"window_size must be at least 1, or None for no windows, not {window_size}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], not {threshold}")
        self.levels, self.window_size, self.threshold = levels, window_size, threshold
        self.nodes: dict[Domain, Node] = {}
        self._children: dict[Domain, list[Domain]] = {(): []}
        self._placeholders: dict[Domain, Node] = {(): Node()}

    def placeholder(self, parent: Domain) -> Node:
        """The domain below `parent` that is not thought of yet, Beta(1, 1) at first; () is the root.

        Raises:
            ValueError: there is no such parent, or it is a leaf.
        """
        node = self._placeholders.get(tuple(parent))
        if node is None:
            raise ValueError(f"{_name(parent)} is no node with children")
        return node

    def add(self, path: Domain) -> None:
        """A new node: Beta(1, 1), an empty window, no questions. Parents come first.

        Raises:
            ValueError: the path is there already, too deep, has an empty name, or its parent is missing.
        """
        path = tuple(path)
        if not path or not all(isinstance(name, str) and name for name in path):
            raise ValueError(f"a path is a tuple of names that are not empty, not {path!r}")
        if len(path) > self.levels:
            raise ValueError(f"{_name(path)} is deeper than the tree's {self.levels} levels")
        if path in self.nodes:
            raise ValueError(f"{_name(path)} is in the tree already")
        if path[:-1] not in self._children:
            raise ValueError(f"add {_name(path[:-1])} before {_name(path)}")
        self.nodes[path] = Node(window=None if self.window_size is None else [])
        self._children[path[:-1]].append(path)
        if len(path) < self.levels:
            self._children[path] = []
            self._placeholders[path] = Node()

    def grow(self, parent: Domain, name: str | None) -> bool:
        """Take a proposal for a new domain below `parent`; returns whether it is one.

        A new name becomes a node and counts in the placeholder's alpha. None, an empty name or one that the parent
        has already counts in its beta.
        """
        placeholder = self.placeholder(parent)
        if name and (*parent, name) not in self.nodes:
            placeholder.alpha += 1
            self.add((*parent, name))
            return True
        placeholder.beta += 1
        return False

    def discourage(self, path: Domain) -> None:
        """Count a draw that yielded nothing usable against a domain and all above it, for later draws alone."""
        for depth in range(1, len(path) + 1):
            self.nodes[path[:depth]].unusable += 1

    def update(self, outcomes: Iterable[tuple[Domain, float | None]]) -> None:
        """Count questions and their rewards, for the domain they were drawn for and all above it.

        Args:
            outcomes: (path, reward) each. A reward in [0, 1] adds to alpha, what it falls short of 1 to beta, and
                its integer part joins the window; None (no verdict) counts the question only.

        Raises:
            ValueError: an unknown path or a reward outside [0, 1]; nothing is changed then.
        """
        batch = [(tuple(path), reward) for path, reward in outcomes]
        for path, reward in batch:
            if path not in self.nodes:
                raise ValueError(f"{_name(path)} is not in the tree")
            if reward is not None and not 0 <= reward <= 1:
                raise ValueError(f"the reward of {_name(path)} must lie in [0, 1], not {reward}")
        for path, reward in batch:
            for depth in range(1, len(path) + 1):
                node = self.nodes[path[:depth]]
                node.questions += 1
                if reward is None:
                    continue
                node.alpha += reward
                node.beta += 1 - reward
                if node.window is not None:
                    node.window = [*node.window, int(reward)][-(self.window_size or 0) :]

    def introspect(self) -> list[Domain]:
        """Test every node against its window; the paths of those that were reset. Windows stay as they are."""
        changed = []
        if self.window_size is not None:
            for path, node in self.nodes.items():
                # A full window without a question behind it cannot be, so the mode exists.
                verdict = swblrt(
                    node.alpha,
                    node.beta,
                    node.window or [],
                    window_size=self.window_size,
                    threshold=self.threshold,
                )
                if verdict.reset:
                    node.alpha, node.beta = verdict.alpha, verdict.beta
                    changed.append(path)
        return changed

    def draw(
        self, rng: np.random.Generator, propose: Callable[[Domain], str | None] | None = None
    ) -> Domain | None:
        """One descent by Thompson sampling: at each level the child of the largest sample from its posterior.

        Args:
            rng: the only source of chance.
            propose: asked for the name of a new domain below a parent when its placeholder is drawn. A new name
                becomes a node, and the descent goes on from it; None, an empty name or one the parent already has
                is a failure, and is drawn again. Successes count in the placeholder's alpha, failures in its beta.
                Without `propose` the tree does not change: nodes with questions take part, placeholders do not.

        Returns:
            The path of a leaf; None after the tenth failure, or where no node has questions.
        """
        here: Domain = ()
        failures = 0
        while len(here) < self.levels:
            children = list(self._children[here])
            if propose is None:
                children = [path for path in children if self.nodes[path].questions]
                if not children:
                    return None
            arms = [self.nodes[path] for path in children]
            if propose is not None:
                arms.append(self._placeholders[here])
            samples = rng.beta([arm.alpha for arm in arms], [arm.beta + arm.unusable for arm in arms])
            best = int(np.argmax(samples))
            if best < len(children):
                here = children[best]
                continue
            assert propose is not None
            name = propose(here)
            if self.grow(here, name):
                assert name is not None
                here = (*here, name)
                continue
            failures += 1
            if failures == MOST_FAILURES:
                return None
        return here

    def children(self, parent: Domain) -> list[Domain]:
        """The nodes below `parent`, in the order of adding; none below a leaf."""
        return list(self._children.get(tuple(parent), []))

    @property
    def leaves(self) -> list[Domain]:
        """The paths of all leaves."""
        return [path for path in self.nodes if len(path) == self.levels]


def _name(path: Domain) -> str:
    return "/".join(map(str, path)) or "the root"
