"""What members and weights do, as metrics: toy members that fail when told to, and prompts that weigh them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.assembly.ensembles import build_ensemble
from fusion.options import FusionParams, Weighting
from fusion.round import Round
from fusion.views import ModelView
from server.telemetry.metrics.catalogue import Catalogue
from server.telemetry.metrics.decoding import DIVERGENCE_EVERY, DecodingMetrics
from server.telemetry.metrics.exposition import describe, exposition, refresh
from tests.support.fuser_fixtures import run, tokenizers  # noqa: F401  (fixtures)
from tests.support.scraped_server import Scrape
from tests.support.scripted_fuser import eventually
from tests.support.toy_fuser import toy_ensemble

PIVOT, OTHER = "almanac", "lingvo"


class Measured:
    """A running ensemble of toys and its metrics."""

    def __init__(self, running, ensemble) -> None:
        self.running, self.ensemble = running, ensemble
        self.catalogue = Catalogue()
        running.fuser.observer = DecodingMetrics(self.catalogue, {ensemble.name: ensemble})

    def scrape(self) -> Scrape:
        refresh(self.catalogue, {self.ensemble.name: self.ensemble}, self.running.fuser.load())
        return Scrape(exposition(self.catalogue, "")[0].decode())


@pytest.fixture
def measured(tokenizers, run):  # noqa: F811
    ensemble = toy_ensemble(tokenizers, pivot=PIVOT, on_member_failure="degrade")
    return Measured(run(ensemble), ensemble)


def test_a_member_that_goes_and_comes_back(measured: Measured) -> None:
    member = measured.running.fuser.members[OTHER]
    assert measured.scrape().value("member_up", member=OTHER) == 1
    member.fail()
    assert eventually(lambda: measured.scrape().value("member_up", member=OTHER) == 0)
    assert measured.running.submit(max_tokens=5).wait().last.finish is not None
    assert eventually(lambda: measured.scrape().value("degraded_requests_total", model="toys", reason="lost") == 1)
    assert measured.scrape().value("member_up", member=PIVOT) == 1
    member.come_back()
    assert eventually(lambda: measured.scrape().value("member_up", member=OTHER) == 1)
    assert eventually(lambda: measured.scrape().value("member_restarts_total", member=OTHER) == 1)
    assert measured.scrape().value("member_restarts_total", member=PIVOT) == 0


def test_a_member_that_fails_at_a_sequence(measured: Measured) -> None:
    measured.running.fuser.members[OTHER].fail_on = lambda tokens: True
    assert measured.running.submit(max_tokens=5).wait().last.finish is not None
    assert eventually(lambda: measured.scrape().value("degraded_requests_total", reason="failed") == 1)


def test_weights_from_the_prompt(measured: Measured) -> None:
    fusion = FusionParams(weighting=Weighting("packllm-sim", prune=0.35))
    messages = [{"role": "user", "content": "What is 12 + 7? Say this in Esperanto, please."}]
    prompt = measured.ensemble.encode_chat(messages, locate=True)
    told = [measured.running.submit(prompt, fusion, max_tokens=4, seed=i).wait().last.weighting for i in range(3)]
    assert eventually(lambda: measured.scrape().value("member_prompt_nats_count") == 9)
    scrape = measured.scrape()
    pruned = [name for report in told for name in report.pruned]
    assert pruned
    leaders = [max(report.weights, key=report.weights.__getitem__) for report in told]
    for name in measured.ensemble.models:
        assert scrape.value("pruned_members_total", member=name) == pruned.count(name)
        assert scrape.value("led_requests_total", member=name) == leaders.count(name)
        nats = sum(np.log(report.perplexity[name]) for report in told)
        assert scrape.value("member_prompt_nats_sum", member=name) == pytest.approx(nats)


def test_drafts_are_counted(measured: Measured) -> None:
    observer, name = measured.running.fuser.observer, measured.ensemble.name
    observer.drafted(name, 5, 3, 0)
    observer.drafted(name, 0, 0, 2)
    scrape = measured.scrape()
    assert scrape.value("draft_tokens_total", model=name) == 5
    assert scrape.value("draft_accepted_tokens_total", model=name) == 3
    assert scrape.value("draft_boundary_lost_tokens_total", model=name) == 2


def rounds(probabilities: list[list[list[float]]], **changes) -> Round:
    array = np.array(probabilities)
    size, members, _ = array.shape
    weights = np.full((size, members), 1 / members)
    kept = np.ones((size, members), dtype=bool)
    plain = {"weights": weights, "kept": kept, "fused": array.mean(axis=1), "mass": array.sum(axis=2)}
    plain |= {"waiting": [0.1] * size, "last": [], "absent": []}
    plain |= {"began": 0.0, "combined": 0.01, "ended": 0.03, "synchronisation": 0.03}
    return Round(model="toys", voters=tuple("abc"[:members]), probabilities=array, **(plain | changes))


@pytest.fixture
def fed(tokenizers):  # noqa: F811
    """The metrics of an ensemble of `a`, `b` and `c`, to be fed by hand."""
    ensemble = toy_ensemble(dict(zip("abc", tokenizers.values(), strict=True)), pivot="a")
    catalogue = Catalogue()
    describe(catalogue, {"toys": ensemble}, "1.2")
    return DecodingMetrics(catalogue, {"toys": ensemble}), lambda: Scrape(exposition(catalogue, "")[0].decode())


def test_a_batch_of_rounds(fed) -> None:
    metrics, scrape = fed
    agreeing = [[0.9, 0.1], [0.8, 0.1], [0.6, 0.4]]
    split = [[0.9, 0.1], [0.2, 0.7], [0.3, 0.7]]
    weights = np.array([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]])
    kept = np.array([[True, True, True], [False, True, True]])
    last = [("b", 0.5), ("c", 0.25)]
    mass = np.array([[1.0, 0.9, 1.0], [1.0, 0.9, 1.0]])
    rounds_of = rounds([agreeing, split], weights=weights, kept=kept, mass=mass + 0.5, last=last, waiting=[0.1])
    metrics.fused(rounds_of)
    found = scrape()
    assert found.value("rounds_total") == 2
    assert found.value("disagreement_rounds_total") == 1
    assert [found.value("fused_differs_rounds_total", member=m) for m in "abc"] == [1, 0, 0]
    assert [found.value("filter_drops_total", member=m, reason="filter") for m in "abc"] == [1, 0, 0]
    assert [found.value("member_weight_ratio_sum", member=m) for m in "abc"] == [0.5, 0.75, 0.75]
    assert [found.value("mapped_mass_ratio_sum", member=m) for m in "abc"] == pytest.approx([3, 2.8, 3])
    assert found.value("surviving_members_bucket", le="2.0") == 1
    assert [found.value("straggler_rounds_total", member=m) for m in "abc"] == [0, 1, 1]
    assert found.value("straggler_wait_seconds_sum") == 0.75
    assert found.value("round_stage_seconds_count", stage="waiting") == 1
    stages = {
        s: found.value("round_stage_seconds_sum", stage=s) for s in ("fusion", "sampling", "synchronisation")
    }
    assert stages == pytest.approx({"fusion": 0.01, "sampling": 0.02, "synchronisation": 0.03})
    assert found.value("divergence_nats_count") == 2
    assert found.value("ensemble_info", model="toys", member="b", pivot="a", combine="mixture") == 1


def test_divergence_is_measured_now_and_then(fed) -> None:
    metrics, scrape = fed
    for _ in range(3 * DIVERGENCE_EVERY):
        metrics.fused(rounds([[[1.0, 0.0], [0.0, 1.0]]]))
    assert scrape().value("divergence_nats_count") == 3
    assert scrape().value("divergence_nats_sum") == pytest.approx(3 * np.log(2))


def test_restarts_of_a_model_that_is_only_in_views_are_counted(tokenizers) -> None:  # noqa: F811
    """The view is the member, and its model the engine that comes back."""
    plain = toy_ensemble({"a": tokenizers["lingvo"]}, pivot="a")
    views = {"tidy": replace(plain.models["a"], view=ModelView("tidy", system="Be tidy."))}
    catalogue = Catalogue()
    DecodingMetrics(catalogue, {"toys": build_ensemble("toys", views, "tidy")}).came_back("a")
    found = Scrape(exposition(catalogue, "")[0].decode())
    assert found.value("member_restarts_total", member="a") == 1


def test_a_member_alone_is_not_compared_with_itself(tokenizers) -> None:  # noqa: F811
    ensemble = toy_ensemble({"a": tokenizers["lingvo"]}, pivot="a")
    catalogue = Catalogue()
    metrics = DecodingMetrics(catalogue, {"toys": ensemble})
    metrics.fused(rounds([[[0.9, 0.1]]]))
    found = Scrape(exposition(catalogue, "")[0].decode())
    assert found.value("rounds_total", model="toys") == 1
    for name in ("member_weight_ratio_count", "surviving_members_count", "divergence_nats_count"):
        assert found.value(name, model="toys") == 0
