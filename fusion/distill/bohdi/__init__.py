"""Bohdi (arXiv 2506.15721): a model learns from questions that others write, most where it is behind them.

A tree of domains, each the arm of a bandit, decides what the next questions are about (`tree`). Round by round it
is explored (`explore`: a leader writes questions, target and sources answer, a judge decides), the target learns
what was gathered (`learn`). All that happens goes to a journal, from which a run is replayed and resumed.
"""

from fusion.distill.bohdi.tree import Domain, KnowledgeTree, Node
from fusion.distill.swblrt import Verdict, swblrt

__all__ = ["Domain", "KnowledgeTree", "Node", "Verdict", "swblrt"]
