from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.distill.bohdi import KnowledgeTree, swblrt
from tests.support.reference import shared

LEAVES = [("a", "b", "c"), ("a", "b", "d"), ("a", "e", "f"), ("g", "h", "i")]


def golden():
    return json.loads(shared("golden", "bohdi.json").read_text())


def planted(window_size=5, threshold=0.2, **options):
    tree = KnowledgeTree(window_size=window_size, threshold=threshold, **options)
    for leaf in LEAVES:
        for depth in range(1, 4):
            if leaf[:depth] not in tree.nodes:
                tree.add(leaf[:depth])
    return tree


def state(tree):
    return {
        "/".join(path): {
            "params": [node.alpha, node.beta],
            "window": node.window,
            "num_questions": node.questions,
        }
        for path, node in tree.nodes.items()
    }


def test_the_authors_verdicts_are_met():
    for case in golden()["swblrt_cases"]:
        window = list(case["window"])
        arguments = {"window_size": case["window_size"], "threshold": case["thr"]}
        if "error" in case:
            with pytest.raises(ValueError, match="no mode"):
                swblrt(case["alpha"], case["beta"], window, **arguments)
            continue
        verdict = swblrt(case["alpha"], case["beta"], window, **arguments)
        assert verdict.reset == case["reset"], case["name"]
        assert [verdict.alpha, verdict.beta] == case["params_after"]
        assert window == case["window_after"]
        if case["p_value"] is None:
            assert verdict.p_value is None
            assert verdict.statistic is None
        else:
            assert verdict.p_value == pytest.approx(case["p_value"], abs=1e-10)
            assert verdict.statistic == pytest.approx(case["lambda"], abs=1e-9)


def test_the_authors_bookkeeping_is_met():
    for simulation in golden()["simulations"]:
        size = simulation["window_size"]
        tree = KnowledgeTree(window_size=None if size == "global" else size, threshold=simulation["thr"] or 0)
        for name in simulation["nodes"]:
            tree.add(tuple(name.split("/")))
        for event in simulation["events"]:
            before = state(tree)
            if "batch" in event:
                tree.update([(tuple(leaf.split("/")), None if r == "None" else r) for leaf, r in event["batch"]])
            else:
                assert sorted("/".join(path) for path in tree.introspect()) == sorted(event["changed"])
            assert {name: state(tree)[name] for name in event["state"]} == event["state"], before


@given(st.lists(st.integers(0, 1), min_size=4, max_size=9), st.integers(1, 40), st.integers(2, 40))
def test_a_verdict_is_symmetric_in_success_and_failure(window, alpha, beta):
    one = swblrt(alpha, beta, window, window_size=4, threshold=0.1)
    other = swblrt(beta, alpha, [1 - x for x in window], window_size=4, threshold=0.1)
    assert (one.reset, one.alpha, one.beta) == (other.reset, other.beta, other.alpha)
    assert one.p_value == pytest.approx(other.p_value, abs=1e-12)


def test_a_window_that_cannot_be_tested_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        swblrt(0, 3, [1], window_size=1, threshold=0.1)
    with pytest.raises(ValueError, match="only hold 0 and 1"):
        swblrt(2, 3, [2], window_size=1, threshold=0.1)


def test_a_reward_counts_for_the_leaf_and_everything_above_it():
    tree = planted(window_size=2)
    tree.update([(LEAVES[0], 1), (LEAVES[1], 0), (LEAVES[0], None), (LEAVES[0], 0.75)])
    assert (tree.nodes["a",].alpha, tree.nodes["a",].beta, tree.nodes["a",].questions) == (2.75, 2.25, 4)
    assert tree.nodes["a",].window == [0, 0]
    assert tree.nodes[LEAVES[1]].window == [0]
    assert tree.nodes["g",].questions == 0


def test_without_windows_nothing_is_tested():
    tree = planted(window_size=None)
    tree.update([(LEAVES[0], 1)] * 30 + [(LEAVES[0], 0)] * 30)
    assert tree.nodes[LEAVES[0]].window is None
    assert tree.introspect() == []


def test_a_changed_rate_is_noticed_and_forgotten():
    tree = planted(window_size=10, threshold=0.05)
    tree.update([(LEAVES[0], 1)] * 40 + [(LEAVES[0], 0)] * 10)
    assert tree.introspect() == [LEAVES[0][:1], LEAVES[0][:2], LEAVES[0]]
    assert (tree.nodes[LEAVES[0]].alpha, tree.nodes[LEAVES[0]].beta) == (1, 11)
    assert tree.nodes[LEAVES[0]].window == [0] * 10
    assert tree.introspect() == []


def test_a_bad_batch_changes_nothing():
    tree = planted()
    before = copy.deepcopy(tree.nodes)
    for batch in ([(LEAVES[0], 1), (("x",), 1)], [(LEAVES[0], 1), (LEAVES[0], 1.5)]):
        with pytest.raises(ValueError, match=r"not in the tree|must lie in"):
            tree.update(batch)
    assert tree.nodes == before


def test_questions_are_drawn_only_where_there_are_some():
    tree = planted()
    rng = np.random.default_rng(0)
    assert tree.draw(rng) is None
    tree.update([(LEAVES[0], 1), (LEAVES[2], None)])
    before = vars(copy.deepcopy(tree))
    drawn = {tree.draw(rng) for _ in range(100)}
    assert drawn == {LEAVES[0], LEAVES[2]}
    assert vars(tree) == before


def test_domains_that_win_are_drawn_more_often():
    tree = planted(window_size=None)
    tree.update([(LEAVES[0], 1)] * 20 + [(LEAVES[3], 0)] * 20)
    rng = np.random.default_rng(0)
    assert sum(tree.draw(rng) == LEAVES[0] for _ in range(200)) > 190


def test_an_empty_tree_grows_to_a_leaf():
    tree = KnowledgeTree(window_size=5, threshold=0.2)
    asked = []

    def propose(parent):
        asked.append(parent)
        return f"n{len(asked)}"

    assert tree.draw(np.random.default_rng(0), propose) == ("n1", "n2", "n3")
    assert asked == [(), ("n1",), ("n1", "n2")]
    assert [tree.placeholder(path).alpha for path in asked] == [2, 2, 2]
    assert [len(path) for path in tree.nodes] == [1, 2, 3]
    assert tree.nodes["n1",].window == []


@pytest.mark.parametrize("failing", [None, "", "a"])
def test_the_tenth_failure_ends_a_descent(failing):
    tree = KnowledgeTree(window_size=5, threshold=0.2)
    if failing == "a":
        tree.add(("a",))
        tree.nodes["a",].beta = 1e9
    calls = []
    assert tree.draw(np.random.default_rng(0), lambda parent: calls.append(parent) or failing) is None
    assert calls == [()] * 10
    assert (tree.placeholder(()).alpha, tree.placeholder(()).beta) == (1, 11)
    assert len(tree.nodes) == (failing == "a")


def test_failures_add_up_over_a_descent():
    tree = KnowledgeTree(window_size=5, threshold=0.2)
    answers = iter([None] * 6 + ["a"] + [None] * 4)
    assert tree.draw(np.random.default_rng(0), lambda parent: next(answers)) is None
    assert tree.placeholder(()).beta == 7
    assert tree.placeholder(("a",)).beta == 5


def test_a_name_may_occur_under_two_parents():
    tree = planted()
    tree.add(("g", "b"))
    assert ("g", "b") in tree.nodes


def test_a_seed_replays_a_run():
    def run(tree):
        rng = np.random.default_rng(7)
        names = (f"n{i}" for i in range(1000))
        drawn = []
        for step in range(60):
            leaf = tree.draw(rng, lambda parent: next(names))
            drawn.append(leaf)
            tree.update([(leaf, step % 2)])
            tree.introspect()
        return drawn, vars(tree)

    tree = planted()
    assert run(copy.deepcopy(tree)) == run(tree)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (("x", "y"), "add x before x/y"),
        (("a",), "in the tree already"),
        (("a", "b", "c", "d"), "deeper than"),
        ((), "tuple of names"),
        (("",), "tuple of names"),
    ],
)
def test_a_path_that_cannot_be_added_is_refused(path, sentence):
    with pytest.raises(ValueError, match=sentence):
        planted().add(path)


def test_a_tree_that_cannot_work_is_refused():
    for options in ({"levels": 0}, {"window_size": 0}, {"threshold": 2}):
        with pytest.raises(ValueError, match="must"):
            KnowledgeTree(**{"window_size": 5, "threshold": 0.2, **options})
    with pytest.raises(ValueError, match="no node with children"):
        planted().placeholder(LEAVES[0])


def test_draws_that_yield_nothing_count_where_draws_are_made_and_in_no_test():
    tree = planted(window_size=8, threshold=0.5)
    barren, fruitful = ("a", "b", "c"), ("a", "b", "d")
    tree.update([(leaf, reward) for reward in (1, 1, 1, 0, 1, 1, 1, 0) for leaf in (barren, fruitful)])
    for _ in range(50):
        tree.discourage(barren)
    assert [tree.nodes[barren].unusable, tree.nodes[("a", "b")].unusable] == [50, 50]
    assert tree.introspect() == []  # the rates are what they were
    assert tree.nodes[barren].beta == tree.nodes[fruitful].beta == 3
    rng = np.random.default_rng(0)
    drawn = [tree.draw(rng) for _ in range(100)]
    assert drawn.count(barren) < 10 < drawn.count(fruitful)
