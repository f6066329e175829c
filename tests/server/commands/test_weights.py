"""Weights measured on the prompt, from the configuration or a request to the report of an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fusion.core import End
from fusion.options import FusionParams, Weighting
from fusion.reports import WeightingReport
from server.commands.calibrate.command import known_members
from server.http.app import create_app
from server.loading import build
from server.settings import ServerSettings, read_settings
from tests.support.learned import by_words
from tests.support.model_folders import run
from tests.support.scripted_fuser import ScriptedFuser, ensemble, token
from tests.support.small_configurations import PAIR, parse, problems

QUESTION = "and then the band went to the other land with their hand in the sand"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2, "temperature": 0}


def test_a_method_stands_where_numbers_could():
    short = parse(PAIR + "    weights: packllm-opt\n    weighting: {prune: 0.1}\n").ensembles["both"]
    assert short.weights is None
    assert short.fusion.weighting == Weighting("packllm-opt", prune=0.1)
    long = parse(PAIR + "    weighting: {method: packllm-opt, prune: 0.1}\n").ensembles["both"]
    assert long == short
    assert parse(PAIR).ensembles["both"].fusion.weighting == Weighting()
    environ = {"TUTTI_ENSEMBLES__BOTH__WEIGHTS": "top1"}
    assert parse(PAIR + "    weights: uniform\n", environ).ensembles["both"].weighting.method == "top1"


def test_every_option_reaches_the_fuser():
    options = "temperature: 0.5, grid: 11, prune: 0.2, normalize: false, positions: 9, spread: last, history: last"
    text = PAIR + f"    weights: packllm-sim\n    weighting: {{{options}, coinciding: 3}}\n"
    assert parse(text).ensembles["both"].fusion.weighting == Weighting(
        "packllm-sim", 0.5, 11, 0.2, False, 9, "last", "last", 3
    )


def test_the_pivot_may_be_left_to_the_prompt():
    both = parse(PAIR.replace("pivot: ada", "pivot: auto")).ensembles["both"]
    assert both.pivots == ("ada", "ben")
    named = (
        PAIR.replace("  ben:", "  auto:").replace("[ada, ben]", "[ada, auto]").replace("pivot: ada", "pivot: auto")
    )
    assert parse(named).ensembles["both"].pivots == ("auto",)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "pivot: ada",
            "pivot: ada\n    weights: {ada: 1, ben: 2}\n    weighting: {method: top1}",
            "c.yaml:8: ensembles.both.weights: found numbers, but weighting.method is top1; leave one of the two "
            "out.",
        ),
        (
            "pivot: ada",
            "pivot: ada\n    weighting: {method: packlm}",
            "c.yaml:8: ensembles.both.weighting.method: found 'packlm'; allowed: top1, packllm-sim, packllm-opt, "
            "learned.",
        ),
        (
            "pivot: ada",
            "pivot: auto\n    maps: {ben: x.safetensors}",
            "c.yaml:8: ensembles.both.maps.ben: with pivot: auto there is a map for every pair; leave maps out.",
        ),
    ],
)
def test_mistakes_are_named(before: str, after: str, message: str):
    assert problems(PAIR.replace(before, after)) == [message]


def test_a_request_may_choose_another_method(fuser: ScriptedFuser):
    defaults = FusionParams(weighting=Weighting("packllm-sim", prune=0.1))
    served = ensemble(defaults=defaults)
    with TestClient(create_app({"pair": served}, fuser, ServerSettings())) as client:

        def asked(**fusion: Any) -> FusionParams:
            answer = client.post("/v1/completions", json={"model": "pair", "prompt": "Hello", "fusion": fusion})
            assert answer.status_code == 200, answer.text
            return fuser.last.fusion

        assert asked() == defaults
        assert asked(weights="packllm-opt").weighting == Weighting("packllm-opt", prune=0.1)
        assert asked(weighting={"temperature": 0.2}).weighting == Weighting("packllm-sim", 0.2, prune=0.1)
        assert asked(weights="top1", weighting={"normalize": False}).weighting == Weighting(
            "top1", prune=0.1, normalize=False
        )
        assert asked(weights="uniform") == FusionParams(weighting=Weighting(prune=0.1))
        given = asked(weights={"a": 1, "b": 3})
        assert (given.weights, given.weighting.method) == ({"a": 0.25, "b": 0.75}, "given")


def test_the_report_tells_how_the_weights_came_about(client: TestClient, fuser: ScriptedFuser):
    told = WeightingReport("top1", {"a": 2.5}, {"a": 1.0, "b": 0.0}, ("b",), 7, {"a": 7, "b": 9}, 3, 6, ("why",))
    fuser.script = lambda s: [End("a", (token(b"a"),), finish="stop", weighting=told, pivot="a")]
    body = HELLO | {"model": "pair", "fusion": {"report": True}}
    fusion = client.post("/v1/chat/completions", json=body).json()["choices"][0]["fusion"]
    assert fusion["weighting"] == {
        "method": "top1",
        "perplexity": {"a": 2.5},
        "weights": {"a": 1.0, "b": 0.0},
        "pruned": ["b"],
        "tokens": 7,
        "scored": {"a": 7, "b": 9},
        "kept": 3,
        "coinciding": 6,
        "notes": ["why"],
        "features": {},
        "similarity": None,
    }


@pytest.fixture
def real(broken: Path) -> Iterator[Callable[..., TestClient]]:
    """The folder's models behind the real application, its ensemble changed."""
    with ExitStack() as stack:

        def start(fields: str) -> TestClient:
            path = broken / "tutti.yaml"
            path.write_text(re.sub("pivot: ada.*}", f"{fields}}}", path.read_text()))
            runtime = build(read_settings(path, {}))
            return stack.enter_context(TestClient(create_app(runtime.ensembles, runtime.fuser, ServerSettings())))

        yield start


@pytest.mark.parametrize("method", ["top1", "packllm-sim", "packllm-opt"])
def test_real_models_weigh_themselves(real: Callable[..., TestClient], method: str):
    client = real(f"pivot: ada, weights: {method}, weighting: {{coinciding: 2}}")
    body = HELLO | {"model": "both", "fusion": {"report": True}}
    answer = client.post("/v1/chat/completions", json=body).json()
    told = answer["choices"][0]["fusion"]["weighting"]
    assert (told["method"], told["notes"]) == (method, [])
    assert set(told["perplexity"]) == {"ada", "ben"}
    assert sum(told["weights"].values()) == pytest.approx(1)
    assert 10 < told["tokens"] <= 24
    again = client.post("/v1/chat/completions", json=body).json()["choices"][0]["fusion"]["weighting"]
    assert again["kept"] == told["tokens"]
    assert again["weights"] == told["weights"]
    for prompt in ("", "a"):
        messages = [{"role": "user", "content": prompt}]
        answer = client.post("/v1/chat/completions", json=body | {"messages": messages})
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["fusion"]["weighting"]["method"] == "uniform"


def test_the_prompt_decides_on_the_pivot(real: Callable[..., TestClient]):
    client = real("pivot: auto, weights: packllm-sim")
    body = HELLO | {"model": "both", "logprobs": True, "fusion": {"report": True}}
    answer = client.post("/v1/chat/completions", json=body).json()
    fusion = answer["choices"][0]["fusion"]
    perplexity = fusion["weighting"]["perplexity"]
    assert fusion["pivot"] == min(perplexity, key=lambda name: perplexity[name])
    counted = client.post("/tokenize", json={"model": fusion["pivot"], "messages": HELLO["messages"]}).json()
    assert answer["usage"]["prompt_tokens"] == counted["count"]
    assert client.get("/v1/models/both").json()["fusion"]["pivot"] == "auto"
    alone = client.post(
        "/v1/chat/completions", json=body | {"fusion": {"members": ["ben"], "report": True}}
    ).json()
    assert alone["choices"][0]["fusion"]["pivot"] == "ben"
    other = client.post("/tokenize", json={"model": "ada", "messages": HELLO["messages"]}).json()
    assert alone["usage"]["prompt_tokens"] != other["count"]
    told = sum(one["usage"]["prompt_tokens"] for one in (answer, alone))
    assert f'tutti_prompt_tokens_total{{model="both"}} {told:.1f}' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("field", "value"), [("logit_bias", {"5": 1}), ("stop_token_ids", [5]), ("prompt", [1, 2, 3])]
)
def test_token_ids_need_a_fixed_pivot(real: Callable[..., TestClient], field: str, value: Any):
    client = real("pivot: auto")
    body = {"model": "both", "prompt": "Hello", "max_tokens": 1, field: value}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert client.post("/v1/completions", json=body | {"model": "ada"}).status_code == 200


def test_an_echo_with_logprobs_needs_a_fixed_pivot(real: Callable[..., TestClient]):
    client = real("pivot: auto")
    body = {"model": "both", "prompt": QUESTION, "max_tokens": 1, "echo": True}
    assert client.post("/v1/completions", json=body).json()["choices"][0]["text"].startswith(QUESTION)
    answer = client.post("/v1/completions", json=body | {"logprobs": 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "echo")
    told = client.post("/v1/completions", json=body | {"logprobs": 1, "model": "ben"}).json()
    tokens = client.post("/tokenize", json={"model": "ben", "prompt": QUESTION}).json()["tokens"]
    logprobs = told["choices"][0]["logprobs"]["token_logprobs"]
    assert len(logprobs) == len(tokens) + 1
    assert logprobs[0] is None
    assert all(-20 < value < 0 for value in logprobs[1:])


def test_learned_weights_of_the_folders_models_are_served(real: Callable[..., TestClient], broken: Path):
    settings = read_settings(broken / "tutti.yaml", {})
    learned = by_words({"band": "ben", "land": "ben"}, known_members(settings.ensembles["both"], settings))
    learned.save(broken / "learned.safetensors")
    client = real("pivot: auto, weights: learned, weighting: {file: learned.safetensors, prune: 0.05}")
    body = HELLO | {"model": "both", "fusion": {"report": True}}
    fusion = client.post("/v1/chat/completions", json=body).json()["choices"][0]["fusion"]
    assert (fusion["pivot"], fusion["weighting"]["method"], fusion["weighting"]["pruned"]) == (
        "ben",
        "learned",
        ["ada"],
    )
    assert set(fusion["weighting"]["features"]) == {"band", "land"}
    assert 'tutti_led_requests_total{member="ben",model="both"} 1.0' in client.get("/metrics").text
    other = body | {"messages": [{"role": "user", "content": "Guten Morgen"}]}
    fusion = client.post("/v1/chat/completions", json=other).json()["choices"][0]["fusion"]
    assert fusion["weighting"]["weights"] == {"ada": 0.5, "ben": 0.5}
    streamed = client.post("/v1/chat/completions", json=body | {"stream": True, "n": 2})
    assert streamed.status_code == 200
    refused = client.post("/v1/chat/completions", json=body | {"fusion": {"weighting": {"file": "/etc/passwd"}}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "fusion.weighting.file")


@pytest.mark.parametrize("file", ["another's", "damaged", "missing"])
def test_a_file_that_cannot_be_used_is_served_with_equal_weights(
    real: Callable[..., TestClient], broken: Path, file: str
):
    path = broken / "learned.safetensors"
    if file == "another's":
        by_words({"band": "ben"}, ["ada", "ben"]).save(path)
    elif file == "damaged":
        path.write_bytes(b"nothing of the kind")
    client = real("pivot: auto, weights: learned, weighting: {file: learned.safetensors, prune: 0.05}")
    answer = client.post("/v1/chat/completions", json=HELLO | {"model": "both", "fusion": {"report": True}})
    weighting = answer.json()["choices"][0]["fusion"]["weighting"]
    assert weighting["weights"] == {"ada": 0.5, "ben": 0.5}
    assert "cannot be used" in weighting["notes"][0]
    code, out, err = run("check", broken / "tutti.yaml")
    assert code == 2
    assert "calibrate --learn-weights" in " ".join((out + err).split())


def test_a_request_for_learned_weights_takes_a_file_in_the_configuration(fuser: ScriptedFuser):
    with TestClient(create_app({"pair": ensemble()}, fuser, ServerSettings())) as client:
        for fusion, param in (
            ({"weights": "learned"}, "fusion.weights"),
            ({"weights": "packllm-sim", "weighting": {"offsets": {"z": 1}}}, "fusion.weighting.offsets"),
        ):
            answer = client.post("/v1/completions", json={"model": "pair", "prompt": "x", "fusion": fusion})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_learned_weights_and_offsets_are_checked_in_the_file():
    assert problems(PAIR + "    weights: learned\n") == [
        "c.yaml:5: ensembles.both.weighting: learned takes a file, which `tutti calibrate --learn-weights` "
        "writes; give one."
    ]
    text = PAIR + "    weights: packllm-sim\n    weighting: {offsets: {ada: 1.5, eve: 2}}\n"
    assert problems(text) == [
        "c.yaml:9: ensembles.both.weighting.offsets.eve: 'eve' is no member; allowed: ada, ben."
    ]


def test_the_command_prints_perplexities_and_weights(site: Path):
    code, out, _ = run("weights", site / "tutti.yaml", "--prompt", QUESTION)
    assert code == 0
    heading = next(line.split() for line in out.splitlines() if line.startswith("member"))
    assert heading == ["member", "perplexity", "top1", "packllm-sim", "packllm-opt"]
    lines = (line.replace("closed", "").split() for line in out.splitlines())
    rows = {row[0]: row[1:] for row in lines if row and row[0] in ("ada", "ben")}
    sim = {name: float(row[-2]) for name, row in rows.items()}
    assert sum(sim.values()) == pytest.approx(1, abs=0.002)
    better = min(rows, key=lambda name: float(rows[name][0]))
    assert rows[better][1] == "1.000"
    code, out, _ = run("weights", site / "tutti.yaml", "--prompt", "")
    assert code == 0
    assert "too few to measure" in " ".join(out.split())


def test_the_command_says_what_it_cannot_do(site: Path, tmp_path: Path):
    code, _, err = run("weights", site / "tutti.yaml", "--prompt", "x", "--ensemble", "all")
    assert (code, err) == (2, "There is no ensemble 'all'; choose from both.\n")
    (tmp_path / "one.yaml").write_text(f"models: {{ada: {{source: {site / 'ada'}}}}}")
    code, _, err = run("weights", tmp_path / "one.yaml", "--prompt", "x")
    assert code == 2
    assert "nothing to weigh" in err


def test_the_plan_shows_every_possible_pivot(broken: Path):
    path = broken / "tutti.yaml"
    path.write_text(re.sub("pivot: ada.*}", "pivot: auto, weights: packllm-opt}", path.read_text()))
    code, out, _ = run("check", path)
    assert code == 0
    for pivot, other in (("ada", "ben"), ("ben", "ada")):
        rows = out[out.index(f"both, where {pivot} is the pivot") :].splitlines()
        assert next(row.split() for row in rows if row.startswith(pivot))[1:] == ["pivot", "100.0%", "packllm-opt"]
        assert next(row.split() for row in rows if row.startswith(other))[1] == "spelled"
