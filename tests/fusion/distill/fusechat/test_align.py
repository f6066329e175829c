"""Targets hold the distributions of whichever model predicts a conversation best, in the base's tokens."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.errors import ConfigError
from fusion.core import Ids
from fusion.distill import token_alignment
from fusion.distill.fusechat import align as aligning
from fusion.distill.fusechat import pairing
from fusion.distill.fusechat.pairing import gather
from fusion.distill.fusechat.run import Run
from fusion.distill.fusechat.settings import Align, FuseChat, Target
from fusion.distill.loss import PADDING, REST
from fusion.distill.training.settings import BASE
from fusion.distill.training.shards import Arrays, require_shard, shard_path


def targets_of(run: Run, name: str, number: int = 0) -> Arrays:
    path = shard_path(run.settings.work / "align" / f"target-{name}", number)
    return require_shard(path, run._targets_inputs(name))


def aligned(run: Run, settings: FuseChat) -> Run:
    """Another alignment of what `run` has read."""
    other = Run(settings)
    settings.work.mkdir(parents=True)
    (settings.work / "represent").symlink_to(run.settings.work / "represent")
    other.align()
    return other


def test_each_conversation_is_learned_towards_the_model_that_predicts_it_best(done: Run) -> None:
    pivot, source = done._reading_of(BASE, 0), done._reading_of("ben", 0)
    owner = targets_of(done, "ben")["owner"]
    assert owner.tolist() == (source.losses < pivot.losses).astype(int).tolist()
    assert 0 < owner.sum() < len(owner)


def test_every_learned_position_has_a_distribution(done: Run) -> None:
    for name in done.settings.targets:
        targets = targets_of(done, name)
        assert targets["probabilities"].sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert (targets["probabilities"][targets["ids"] == PADDING] == 0).all()
        assert targets["ids"].max() < aligning.open_vocabulary(done.settings.base).size


def test_the_bases_own_conversations_have_its_own_distributions_and_the_rest_of_the_mass(done: Run) -> None:
    pivot, targets = done._reading_of(BASE, 0), targets_of(done, "ben")
    rows = pivot.rows()
    number = int(np.flatnonzero(targets["owner"] == 0)[0])
    here = slice(rows[number], rows[number + 1])
    assert (targets["ids"][here, :-1] == pivot.ids[here]).all()
    assert np.abs(targets["probabilities"][here, :-1] - np.exp(pivot.logprobs[here])).max() < 1e-5
    assert (targets["ids"][here, -1] == REST).all()


def test_without_the_rest_entries_are_renormalised_as_published(done: Run, site: FuseChat) -> None:
    run = aligned(done, replace(site, align=Align(rest=False, temperature=2.0)))
    targets = targets_of(run, "ben")
    assert not (targets["ids"] == REST).any()
    assert targets["probabilities"].sum(axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", ["statistics-nomatrix", "exact"])
def test_the_other_published_ways_take_over_fewer_positions(done: Run, site: FuseChat, method: str) -> None:
    run = aligned(done, replace(site, align=Align(method=method)))  # type: ignore[arg-type]
    assert 0 < targets_of(run, "ben")["positions"][1] < targets_of(done, "ben")["positions"][1]


def test_an_end_goes_to_an_end_though_the_base_has_its_namesake(done: Run, site: FuseChat, tmp_path: Path) -> None:
    """The base ends a turn with <end>; the source with what is a token of another role there."""
    other = shutil.copytree(site.sources["ben"].source, tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        path = other / name
        path.write_text(path.read_text().replace("<end>", "<END>").replace("<system>", "<end>"))
        path.write_text(path.read_text().replace("<END>", "<system>"))
    source = replace(site.sources["ben"], source=str(other))
    run = Run(replace(site, sources={"ben": source}, targets={"ben": Target(("ben",))}))
    run.represent()
    base = aligning.open_vocabulary(site.base)
    teacher = run._teacher("ben", base)
    assert teacher.vocabulary.strings[teacher.vocabulary.stops[0]] == "<system>"
    assert teacher.same is not None
    assert int(teacher.same[teacher.vocabulary.stops[0]]) == base.stops[0]


def test_equal_models_are_projected_onto_themselves(done: Run, site: FuseChat) -> None:
    twins = replace(site, sources={"twin": site.base}, targets={"twin": Target(("twin",), "mean")})
    run = Run(replace(twins, align=Align(method="projected")))
    run.represent()
    run.align()
    pivot, targets = done._reading_of(BASE, 0), targets_of(run, "twin")
    assert (targets["positions"] == len(pivot.ids)).all()
    order = np.argsort(targets["ids"][:, :-1], axis=1), np.argsort(pivot.ids, axis=1)
    same = [np.take_along_axis(a, o, 1) for a, o in zip((targets["ids"][:, :-1], pivot.ids), order, strict=True)]
    assert (same[0] == same[1]).all()


def test_projected_positions_are_those_after_the_same_text(done: Run) -> None:
    base, other = (aligning.open_vocabulary(done.settings.readers[name]) for name in (BASE, "ben"))
    pairs = list(pairing.answers(done._reading_of(BASE, 0), done._reading_of("ben", 0)))
    shared = 0
    for answer in pairs:
        found = pairing.shared_positions(base, other, answer)
        for at, position in enumerate(found.tolist()):
            own = base.tokenizer.surface_of(answer.pivot[:at])
            theirs = [other.tokenizer.surface_of(answer.source[:n]) for n in range(len(answer.source))]
            assert position == (theirs.index(own) if own in theirs else -1)
            shared += position >= 0
    assert shared


@pytest.mark.parametrize("map", ["eva", "hybrid"])
def test_a_map_whose_rows_hold_more_than_a_token_had_adds_no_mass(done: Run, site: FuseChat, map: str) -> None:
    settings = Align(method="projected", map=map)
    base, source = aligning.open_vocabulary(site.base), site.sources["ben"]
    projected = aligning.project("ben", base, site.base, source, settings).map
    assert projected is not None
    assert projected.weights.sum(axis=1).max() == pytest.approx(1)
    targets = targets_of(aligned(done, replace(site, align=settings)), "ben")
    taken = (targets["ids"] != PADDING).any(axis=1)
    assert targets["probabilities"][taken].sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_the_mean_of_base_and_sources_is_what_their_ensemble_answers(done: Run, site: FuseChat) -> None:
    from fusion.step import fuse_logits

    all_of_them = (BASE, "ben", "eve")
    settings = replace(
        site, targets={"all": Target(all_of_them, "mean")}, align=Align(method="projected", map="exact")
    )
    run = aligned(done, settings)
    targets = targets_of(run, "all")
    base = aligning.open_vocabulary(site.base)
    readings = {name: done._reading_of(name, 0) for name in all_of_them}
    answers = {name: list(pairing.answers(readings[BASE], readings[name])) for name in all_of_them}
    maps = {
        name: aligning.project(name, base, site.base, site.sources[name], settings.align).map
        for name in ("ben", "eve")
    }
    sizes = {name: aligning.open_vocabulary(site.readers[name]).size for name in all_of_them}
    logits, row = [], answers[BASE][0].pivot_row
    for name in all_of_them:
        reading = readings[name]
        at = answers[name][0].source_row  # the first position of an answer is shared by all
        dense = np.full(sizes[name], -np.inf)
        dense[reading.ids[at]] = reading.logprobs[at]
        dense[~np.isfinite(dense)] = -50.0
        rest = 1 - np.exp(reading.logprobs[at]).sum()
        dense[dense == -50.0] = np.log(rest / (dense == -50.0).sum())
        logits.append(dense)
    fused, _ = fuse_logits(logits, [None, maps["ben"], maps["eve"]])
    best = int(np.argmax(fused))
    assert targets["ids"][row, 0] == best
    assert targets["probabilities"][row, 0] == pytest.approx(fused[best], abs=0.02)


@pytest.mark.parametrize("target", [Target(("ben", "eve")), Target((BASE, "ben", "eve"), "mean")])
def test_positions_are_projected_in_pieces_and_only_where_a_source_is_learned_from(
    done: Run, site: FuseChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    settings = replace(site, targets={"all": target}, align=Align(method="projected"))
    whole = targets_of(aligned(done, settings), "all")
    projected, counts = pairing.projected_rows, []

    def counting(ids: Ids, *rest: Any) -> Any:
        counts.append(len(ids))
        return projected(ids, *rest)

    monkeypatch.setattr(pairing, "projected_rows", counting)
    monkeypatch.setattr(aligning, "TOGETHER", 7)
    run = aligned(done, replace(settings, work=tmp_path / "pieces"))
    shards = [targets_of(run, "all", number) for number in range(run.count)]
    assert all((shards[0][name] == whole[name]).all() for name in whole)
    assert max(counts) == 7
    read_each = len(target.teachers) if target.combine == "mean" else 1
    assert sum(counts) <= read_each * sum(int(targets["positions"][0]) for targets in shards)


def test_a_source_that_has_next_to_nothing_to_say_is_named(
    done: Run, site: FuseChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pairing, token_alignment):
        monkeypatch.setattr(module, "matching_positions", lambda path, *_, **__: np.full(len(path), -1))
    with pytest.raises(ConfigError, match="tokens of ben cannot be aligned with the base's: only 0 of"):
        aligned(done, site)


def test_equal_ids_of_a_row_are_added_up_and_the_most_come_first() -> None:
    ids = np.array([[4, 2, 4, -1, 7], [-1, -1, -1, -1, -1]], np.int32)
    mass = np.array([[0.1, 0.25, 0.2, 0.0, 0.05], [0.0] * 5])
    names, sums = gather(ids, mass, 2)
    assert names.tolist() == [[4, 2], [-1, -1]]
    assert sums[0] == pytest.approx([0.3, 0.25])
    assert gather(ids, mass, 2)[1][1].tolist() == [0, 0]


def test_a_rerun_aligns_nothing_again(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "paths", None)
    monkeypatch.setattr(aligning, "_shard", None)
    done.align()
