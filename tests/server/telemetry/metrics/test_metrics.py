"""What /metrics says agrees with what clients of the real server saw."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from alignment.errors import UnavailableError
from fusion.core import End
from server.http.app import create_app
from server.http.paths import GENERATING_PATHS
from server.settings import ServerSettings
from server.telemetry.metrics.catalogue import Catalogue
from server.telemetry.metrics.decoding import DIVERGENCE_EVERY
from tests.support.scraped_server import Live, Scrape, serving
from tests.support.scripted_fuser import ScriptedFuser, ensemble, eventually, says
from tests.support.small_requests import CHAT, CHAT_PATH

ASK: Any = {"messages": [{"role": "user", "content": "the and"}], "temperature": 1.0, "seed": 1}
IGNORE_END = {"ignore_eos": True}


@pytest.fixture(scope="module")
def live(site: Path) -> Iterator[Live]:
    with serving(site / "tutti.yaml") as live:
        yield live


def test_tokens_and_ends_are_counted_exactly(live: Live) -> None:
    usage = []

    def work() -> None:
        with live.sdk() as sdk:
            for model in ("both", "ben"):
                for tokens in (1, 7, 20):
                    answer = sdk.chat.completions.create(
                        model=model, max_tokens=tokens, extra_body=IGNORE_END, **ASK
                    )
                    usage.append((model, answer.usage))

    change = live.change(work)
    for model in ("both", "ben"):
        mine = [one for name, one in usage if name == model]
        generated = sum(one.completion_tokens for one in mine)
        assert generated == 28
        assert change("prompt_tokens_total", model=model) == sum(one.prompt_tokens for one in mine)
        assert change("generation_tokens_total", model=model) == generated
        assert change("rounds_total", model=model) == generated
        assert change("requests_total", model=model, finish_reason="length") == 3
        assert change("requests_total", model=model) == 3
        assert change("request_generation_tokens_sum", model=model) == generated
        assert change("request_prompt_tokens_bucket", model=model, le="+Inf") == 3
        assert change("time_to_first_token_seconds_count", model=model) == 3
        assert change("e2e_request_latency_seconds_count", model=model) == 3
        assert change("time_per_output_token_seconds_count", model=model) == 2, "one token has no time between"
        assert change("inter_token_latency_seconds_count", model=model) == generated - 3
        for family in ("queue", "prefill", "decode"):
            assert change(f"request_{family}_time_seconds_count", model=model) == 3
    assert change("http_requests_total", path="/v1/chat/completions", status="200") == 6
    assert change("requests_total", model="ada") == 0


def test_a_request_of_several_answers_is_one_request(live: Live) -> None:
    def work() -> None:
        with live.sdk() as sdk:
            sdk.chat.completions.create(model="both", max_tokens=5, n=3, extra_body=IGNORE_END, **ASK)

    change = live.change(work)
    assert change("requests_total", model="both") == 1
    assert change("generation_tokens_total", model="both") == 15
    assert change("time_to_first_token_seconds_count", model="both") == 1
    assert change("request_queue_time_seconds_count", model="both") == 3


@pytest.mark.alone
def test_latencies_are_those_that_clients_measure(live: Live) -> None:
    first, whole = [], []

    def ask(index: int) -> int:
        with live.sdk() as sdk:
            began = time.perf_counter()
            stream = sdk.chat.completions.create(
                model="both", max_tokens=40, stream=True, extra_body=IGNORE_END, **{**ASK, "seed": index}
            )
            seen = None
            for chunk in stream:
                if seen is None and chunk.choices and chunk.choices[0].delta.content:
                    seen = time.perf_counter() - began
            whole.append(time.perf_counter() - began)
            first.append(seen or whole[-1])
            return index

    def work() -> None:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(24))) == list(range(24))

    work()  # warms up
    first.clear(), whole.clear()
    change = live.change(work)
    assert change("requests_total", model="both") == 24
    assert change("generation_tokens_total", model="both") == 24 * 40
    told_first = change("time_to_first_token_seconds_sum", model="both") / 24
    told_whole = change("e2e_request_latency_seconds_sum", model="both") / 24
    between = change("inter_token_latency_seconds_sum", model="both") / 24
    # The client's clock also runs while it connects, and text may be held back after its token is there.
    assert 0 < told_first < sum(first) / 24
    assert 0.5 * sum(whole) / 24 < told_whole < sum(whole) / 24
    assert told_first + between == pytest.approx(told_whole, rel=0.25)
    stages = {
        stage: change("round_stage_seconds_sum", model="both", stage=stage)
        for stage in ("waiting", "fusion", "sampling", "synchronisation")
    }
    assert all(seconds > 0 for seconds in stages.values())
    assert sum(stages.values()) / 24 == pytest.approx(between, rel=0.25)


def test_members_are_measured_where_several_take_part(live: Live) -> None:
    reports: list[dict[str, Any]] = []

    def work() -> None:
        with live.sdk() as sdk:
            for seed in range(4):
                reported = IGNORE_END | {"fusion": {"report": True}}
                answer = sdk.chat.completions.create(
                    model="both", max_tokens=50, extra_body=reported, **{**ASK, "seed": seed}
                )
                reports.extend(answer.choices[0].model_extra["fusion"]["rounds"])

    change = live.change(work)
    assert change("rounds_total", model="both") == 200
    assert change("surviving_members_count", model="both") == 200
    kept = [list(report["kept"].values()).count(True) for report in reports]
    assert change("surviving_members_sum", model="both") == sum(kept)
    assert 0 < change("disagreement_rounds_total", model="both") <= 200
    for member in ("ada", "ben"):
        assert change("member_weight_ratio_count", model="both", member=member) == 200
        assert 0 < change("mapped_mass_ratio_sum", model="both", member=member) <= 200 * 1.001
        assert change("member_step_seconds_count", member=member) > 150
        assert change("member_answer_seconds_count", member=member, phase="prefill") == 4
        assert change("member_answer_seconds_count", member=member, phase="decode") > 150
    weights = sum(change("member_weight_ratio_sum", model="both", member=member) for member in ("ada", "ben"))
    absent = change("filter_drops_total", model="both", reason="spelling")
    assert weights == pytest.approx(200)
    assert change("surviving_members_sum", model="both") == 400 - absent - change(
        "filter_drops_total", model="both", reason="filter"
    )
    last = sum(change("straggler_rounds_total", model="both", member=member) for member in ("ada", "ben"))
    assert last == change("straggler_wait_seconds_count", model="both") > 150
    assert 0 < change("divergence_nats_count", model="both") <= 200 / DIVERGENCE_EVERY + 1


def test_errors_are_counted_by_type_and_unknown_names_leave_no_trace(live: Live) -> None:
    def work() -> None:
        with httpx.Client(base_url=live.url) as http:
            for body in ({"model": "who/../is {this}", "messages": ASK["messages"]}, {"model": "nobody"}):
                http.post("/v1/chat/completions", json=body)
            http.get("/nowhere/at/all")
            http.get("/v1/chat/completions")

    change = live.change(work)
    assert change("request_errors_total", type="not_found") == 2
    assert change("request_errors_total", type="invalid_request") == 1
    assert change("request_errors_total", type="method_not_allowed") == 1
    assert change("requests_total") == 0
    scrape = live.scrape()
    assert scrape.label_values("model") == {"both", "ada", "ben"}
    assert scrape.label_values("member") == {"ada", "ben"}
    assert scrape.label_values("path") <= {*GENERATING_PATHS, "other"}


def test_a_client_that_goes_away_is_a_cancellation(live: Live) -> None:
    def work() -> None:
        with live.sdk() as sdk:
            stream = sdk.chat.completions.create(
                model="both", max_tokens=1500, stream=True, extra_body=IGNORE_END, **ASK
            )
            next(iter(stream))
            stream.close()
        eventually(lambda: live.scrape().value("requests_total", finish_reason="cancelled") > before)

    before = live.scrape().value("requests_total", finish_reason="cancelled")
    change = live.change(work)
    assert change("requests_total", model="both", finish_reason="cancelled") == 1
    assert change("requests_total", model="both") == 1
    assert change("e2e_request_latency_seconds_count", model="both") == 0


def test_gauges_show_what_runs(live: Live) -> None:
    with live.sdk() as sdk:
        stream = sdk.chat.completions.create(
            model="both", max_tokens=1500, stream=True, extra_body=IGNORE_END, **ASK
        )
        next(iter(stream))
        scrape = live.scrape()
        stream.close()
    assert eventually(lambda: live.scrape().value("sequences_running") == 0)  # before other tests count
    assert scrape.value("sequences_running", model="both") == 1
    assert scrape.value("sequences_waiting", model="both") == 0
    for member in ("ada", "ben"):
        assert scrape.value("member_up", member=member) == 1
        assert scrape.value("member_sequences", member=member) == 1
        used = scrape.value("member_kv_usage_ratio", member=member)
        assert 0 < used < scrape.value("member_kv_reserved_ratio", member=member) <= 1


def test_rollbacks_are_those_of_the_reports(live: Live) -> None:
    """`ben` has tokens for `an` and `and`, which the pivot spells out: after `a`, `n` it takes `a` back."""
    reports = []

    def work() -> None:
        with httpx.Client(base_url=live.url, timeout=60) as http:
            bias = {str(http.post("/tokenize", json={"prompt": c}).json()["tokens"][0]): 100 for c in "and"}
            body = {"model": "both", "max_tokens": 30, "logit_bias": bias, "fusion": {"report": True}, **ASK}
            choice = http.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]
            reports.extend(choice["fusion"]["rounds"])

    change = live.change(work)
    rolled_back = [report["rolled_back"]["ben"] for report in reports if report["rolled_back"].get("ben")]
    assert len(rolled_back) > 3
    assert change("rollbacks_total", model="both", member="ben") == len(rolled_back)
    assert change("rollback_tokens_total", model="both", member="ben") == sum(rolled_back)
    assert change("rollbacks_total", model="both", member="ada") == 0


@pytest.mark.alone
def test_those_who_wait_are_counted(live: Live) -> None:
    """A member holds 2048 tokens: two such requests do not fit at once."""

    def ask(_: int) -> None:
        with live.sdk() as sdk:
            sdk.chat.completions.create(model="both", max_tokens=1200, extra_body=IGNORE_END, **ASK)

    def work() -> None:
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(ask, index) for index in range(2)]
            assert eventually(lambda: live.scrape().value("sequences_waiting", model="both") == 1)
            for one in asked:
                one.result()

    change = live.change(work)
    assert change("request_queue_time_seconds_count", model="both") == 2
    waited = change("request_queue_time_seconds_sum", model="both")
    decoded = change("request_decode_time_seconds_sum", model="both")
    assert waited == pytest.approx(decoded / 2, rel=0.5), "the second waited while the first was decoded"


# What these tests give no value but 0, and why; test_metrics_decoding.py gives them values.
ZERO_HERE = {
    "tutti_member_restarts": "no member goes down",
    "tutti_degraded_requests": "no member goes down, and none has too small a cache",
    "tutti_pruned_members": "weights are fixed",
    "tutti_member_prompt_nats": "weights are fixed",
    "tutti_led_requests": "weights are fixed",
    "tutti_broken_answers": "no answer breaks off",
    "tutti_draft_tokens": "nothing is drafted",
    "tutti_draft_accepted_tokens": "nothing is drafted",
    "tutti_draft_boundary_lost_tokens": "nothing is drafted",
}


def test_every_other_metric_has_data(live: Live) -> None:
    """Runs after the tests above: what they made the server count is there."""
    families = text_string_to_metric_families(httpx.get(f"{live.url}/metrics").text)
    with_data = {family.name for family in families if any(sample.value for sample in family.samples)}
    expected = {family.name for family in Catalogue().registry.collect()} - ZERO_HERE.keys()
    # Gauges of what runs now, which earlier tests have looked at while something ran.
    momentary = {"tutti_sequences_running", "tutti_sequences_waiting", "tutti_member_sequences"}
    momentary |= {"tutti_member_kv_usage_ratio", "tutti_member_kv_reserved_ratio"}
    assert expected - with_data - momentary == set()


def test_openmetrics_is_spoken_to_those_who_ask(live: Live) -> None:
    answer = httpx.get(f"{live.url}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    assert httpx.get(f"{live.url}/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_probes_and_scrapes_need_no_key_and_are_not_counted(fuser: ScriptedFuser) -> None:
    app = create_app({"pair": ensemble()}, fuser, ServerSettings(api_keys=("secret",)))
    with TestClient(app) as client:
        for path in ("/health", "/ready", "/metrics", "/version"):
            assert client.get(path).status_code == 200
        assert Scrape(client.get("/metrics").text).label_values("path") == set(GENERATING_PATHS)
        assert Scrape(client.get("/metrics").text).value("http_requests_total") == 0
        assert client.post(CHAT_PATH, json=CHAT).status_code == 401
        scrape = Scrape(client.get("/metrics").text)
        assert scrape.value("request_errors_total", type="unauthorized") == 1
        assert scrape.value("http_requests_total", status="401", path="other") == 1
        assert "secret" not in client.get("/metrics").text


def test_a_failure_amid_a_stream_is_an_error(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: [says("Hello")[0], End("", error=RuntimeError("gone"))]
    assert "error" in client.post(CHAT_PATH, json={**CHAT, "stream": True}).text
    scrape = Scrape(client.get("/metrics").text)
    assert scrape.value("requests_total", model="pair", finish_reason="error") == 1
    assert scrape.value("request_errors_total", type="internal") == 1
    assert scrape.value("broken_answers_total") == 1
    assert scrape.value("time_to_first_token_seconds_count", model="pair") == 1


def test_a_failure_of_one_of_several_answers_is_an_error(client: TestClient, fuser: ScriptedFuser) -> None:
    """The other one is given up, which is no cancellation by the client."""
    fails = [End("", error=UnavailableError("Member 'b' failed."))]
    fuser.script = lambda submission: fails if submission.number == 1 else [*says("Hello")[:1], 5.0]
    assert client.post(CHAT_PATH, json={**CHAT, "n": 2}).status_code == 503
    scrape = Scrape(client.get("/metrics").text)
    assert scrape.value("request_errors_total", type="unavailable") == 1
    assert scrape.value("requests_total", model="pair", finish_reason="error") == 1
    assert scrape.value("requests_total", model="pair") == 1
