"""A whole run: its rounds, its result, its journal, and what ends it before its time."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from alignment.errors import ConfigError
from fusion.distill.bohdi import run as running
from fusion.distill.bohdi.journal import read_events
from fusion.distill.bohdi.learn import choose_lesson
from fusion.distill.bohdi.run import Run
from fusion.distill.bohdi.settings import TARGET, Learn, Tree
from fusion.distill.bohdi.state import State
from fusion.distill.bohdi.voices import Reply
from fusion.members.lineage import parents_of
from tests.support.distillable import files_of
from tests.support.scripted_voices import ScriptedVoices, opening, said


@pytest.fixture
def voices(monkeypatch):
    """Those of all runs of a test."""
    scripted = ScriptedVoices()
    monkeypatch.setattr(running, "open_voices", opening(scripted))
    return scripted


def test_rounds_lead_to_a_model_with_a_record(settings, voices):
    run = Run(settings)
    assert run.run() == settings.out
    record = json.loads((settings.out / "distillation.json").read_text())
    assert record["method"] == "bohdi"
    assert parents_of(str(settings.out)) == ("ada", "ben")
    assert [one["questions"] for one in record["figures"]["rounds"].values()] == [8, 8]
    assert [one["steps"] for one in record["figures"]["rounds"].values()] == [2, 2]
    assert "a source won" in (settings.out / "README.md").read_text()
    assert run.notes == []


def test_a_run_is_replayed_from_its_journal(settings, voices):
    run = Run(settings)
    run.run()
    again = State.of(settings.tree, read_events(settings.work / "journal.jsonl"))
    assert vars(again.tree) == vars(run.state.tree)
    assert list(again.tree.nodes) == list(run.state.tree.nodes)
    assert (again.samples, again.lessons, again.trained) == (
        run.state.samples,
        run.state.lessons,
        run.state.trained,
    )


def test_a_finished_run_does_nothing_and_a_further_round_goes_on(settings, voices):
    Run(settings).run()
    before, asked = files_of(settings.out), len(voices.asked)
    Run(settings).run()
    assert files_of(settings.out) == before
    assert len(voices.asked) == asked
    longer = Run(replace(settings, rounds=3))
    longer.run()
    assert sorted(longer.state.trained) == [1, 2, 3]
    assert files_of(settings.out) != before


def test_a_run_resumed_after_any_piece_of_its_journal_ends_the_same(settings, voices):
    whole = replace(settings, work=settings.work.parent / "whole", out=settings.out.parent / "whole-out")
    Run(whole).run()
    journal = (whole.work / "journal.jsonl").read_bytes()
    lines = journal.splitlines(keepends=True)
    for end in [at for at, line in enumerate(lines, 1) if b'"commit"' in line][::3]:
        work = settings.work / str(end)
        work.mkdir(parents=True)
        (work / "journal.jsonl").write_bytes(b"".join(lines[:end]) + b'{"event": "sample", "rou')
        resumed = replace(settings, work=work, out=settings.out / str(end))
        Run(resumed).run()
        assert (work / "journal.jsonl").read_bytes() == journal
        assert files_of(resumed.out) == files_of(whole.out)


def test_other_settings_are_another_run(settings, voices):
    Run(settings).run()
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        Run(replace(settings, tree=Tree(levels=3))).run()


def test_settings_may_change_before_anything_has_happened(settings, voices):
    first = Run(replace(settings, tree=Tree(levels=3))).journal
    assert [event["event"] for event in first.events] == ["begin"]
    assert Run(settings).journal.events[0]["tree"]["levels"] == 2


def test_without_introspection_no_node_is_tested(settings, voices):
    run = Run(replace(settings, tree=replace(settings.tree, window=None)))
    run.run()
    assert not run.state.introspected
    assert all(node.window is None for node in run.state.tree.nodes.values())
    tested = Run(replace(settings, work=settings.work / "tested", out=settings.out / "tested"))
    tested.run()
    assert sorted(tested.state.introspected) == [2]


@pytest.mark.parametrize("name", ["rounds", "questions"])
def test_a_budget_of_zero_is_refused(settings, voices, name):
    none = replace(settings, rounds=0) if name == "rounds" else None
    none = none or replace(settings, explore=replace(settings.explore, questions=0))
    with pytest.raises(ConfigError, match=rf"{name} is 0, so there is nothing to do"):
        Run(none).run()
    assert voices.asked == []


def test_a_leader_that_writes_nothing_usable_ends_the_run_with_a_sentence(settings, voices):
    voices.reply = lambda request: said("?") if "question" in str(request.schema) else None
    patient = replace(settings, explore=replace(settings.explore, questions=400, barren=2))
    run = Run(patient)
    with pytest.raises(ConfigError, match="nothing to learn from: of 8 questions none had a usable answer"):
        run.run()
    assert "no usable question in 2 batches in a row" in run.notes[0]
    assert len([event for event in read_events(settings.work / "journal.jsonl") if event["event"] == "batch"]) == 2


def test_a_round_that_gathered_nothing_learns_from_what_is_there(settings, voices):
    Run(replace(settings, rounds=1)).run()
    voices.reply = lambda request: said("?") if "question" in str(request.schema) else None
    run = Run(settings)
    run.run()
    assert not any(sample.round == 2 for sample in run.state.samples.values())
    assert len(run.state.lessons[2]) == len(run.state.samples)
    assert settings.out.is_dir()


def test_exploration_that_was_over_when_a_run_ended_is_not_gone_on_with(settings, voices):
    voices.reply = lambda request: said("?") if "question" in str(request.schema) else None
    patient = replace(settings, explore=replace(settings.explore, questions=400, barren=2))
    with pytest.raises(ConfigError, match="nothing to learn from"):
        Run(patient).run()
    path = settings.work / "journal.jsonl"
    journal = path.read_bytes()
    path.write_bytes(journal[: journal.index(b'{"event": "explored"')])
    with pytest.raises(ConfigError, match="nothing to learn from"):
        Run(patient).run()
    assert path.read_bytes() == journal


def test_models_are_not_trained_again_where_the_base_lies_elsewhere(settings, voices, tmp_path):
    Run(settings).run()
    first = settings.work / "round-01" / "model"
    before = {file: file.stat().st_mtime_ns for file in first.iterdir()}
    elsewhere = replace(settings.base, source=str(shutil.copytree(settings.base.source, tmp_path / "elsewhere")))
    longer = Run(replace(settings, base=elsewhere, rounds=3))
    longer.run()
    assert {file: file.stat().st_mtime_ns for file in first.iterdir()} == before


def test_what_the_target_cannot_read_is_no_part_of_what_it_learned(settings, voices):
    def reply(request):
        if request.schema is not None or request.model == TARGET or "1" not in request.prompt:
            return None
        return said(f"{request.prompt} well, and a house that is far away sees it as well from where it stands")

    voices.reply = reply
    run = Run(replace(settings, rounds=1, max_length=100))
    run.run()
    samples, _ = run.state.trained[1]
    assert 0 < samples < len(run.state.lessons[1])
    record = json.loads((settings.out / "distillation.json").read_text())
    assert record["figures"]["rounds"]["1"]["learned_from"] == samples
    assert f"learned from {samples} of {len(run.state.lessons[1])} samples" in run.notes[-1]


def test_a_target_that_dies_ends_exploration_and_keeps_what_was_gathered(settings, voices):
    def reply(request):
        late = sum(asked.schema is None for asked in voices.asked) > 2 * 4
        return Reply(error="it is down.") if late and request.model == TARGET and not request.schema else None

    voices.reply = reply
    run = Run(replace(settings, rounds=1, explore=replace(settings.explore, questions=40)))
    run.run()
    assert "models do not answer any more (target: it is down.)" in run.notes[0]
    assert 0 < run.state.questions(1) < 40
    assert {round: steps for round, (_, steps) in run.state.trained.items()} == {1: 2}


def test_lessons_follow_the_tree_and_take_all_samples_of_a_leaf_before_one_again(settings):
    events = [{"event": "planted", "path": path} for path in (["a"], ["a", "x"], ["b"], ["b", "y"], ["b", "z"])]
    for number in range(8):
        path, reward = (["a", "x"], 1) if number < 4 else (["b", "y"], 0)
        sample = {"event": "sample", "round": 1, "id": str(number), "path": path, "answer": "!", "reward": reward}
        events.append(sample | {"question": f"{number}?"})
    wanted = replace(settings, learn=Learn(samples=200))
    lesson = choose_lesson(1, State.of(settings.tree, events), wanted)
    assert len(lesson) == 200
    of_a = [id for id in lesson if id in "0123"]
    assert len(of_a) > 150  # a source wins there
    for start in range(0, len(of_a) - 4, 4):
        assert set(of_a[start : start + 4]) == set("0123")
    even = replace(settings, learn=Learn(samples=200, even=1.0))
    assert 80 < sum(id in "0123" for id in choose_lesson(1, State.of(settings.tree, events), even)) < 120
    assert len(choose_lesson(1, State.of(settings.tree, events), settings)) == 8
    assert len(choose_lesson(2, State.of(settings.tree, events), settings)) == 8  # it gathered none itself
    assert choose_lesson(1, State.of(settings.tree, []), settings) == []
