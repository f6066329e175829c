"""Sums of log-probabilities over HTTP: contrast between two vocabularies, and guidance by a second prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from tests.support.demo import CONFIG, MODELS, questions, user
from tests.support.lm_eval_runs import results
from tests.support.serving import Server, serving

MEMBERS = ["lingvo", "almanac"]
ENSEMBLES = {
    "contrasted": {"members": MEMBERS, "pivot": "lingvo", "contrast": {"amateur": "almanac", "beta": 0.25}},
    "unmasked": {
        "members": MEMBERS,
        "pivot": "lingvo",
        "combine": "arithmetic",
        "weights": {"lingvo": 0.8, "almanac": 0.2},
        "mask": False,
    },
    "guided": {"members": ["lingvo"], "pivot": "lingvo", "guidance": {"scale": 1.5, "negative": "Be rude."}},
}
ASKED = questions(3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("sums")
    models = {name: {"source": str(MODELS / name), "dtype": "float32"} for name in MEMBERS}
    config = folder / "sums.yaml"
    config.write_text(yaml.safe_dump({"models": models, "ensembles": ENSEMBLES}))
    with serving(config, folder / "stderr.log") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def ask(client: openai.OpenAI, model: str, text: str, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 24, **options}
    return client.chat.completions.create(model=model, messages=user(text), **options)


@pytest.mark.parametrize("model", ENSEMBLES)
def test_an_answer_is_the_same_streamed_counted_and_repeated(client: openai.OpenAI, model: str) -> None:
    for text in ASKED:
        whole = ask(client, model, text, n=2, logprobs=True, top_logprobs=3).choices
        said = whole[0].message.content
        assert said
        assert whole[1].message.content == said
        streamed = [chunk.choices[0].delta.content or "" for chunk in ask(client, model, text, stream=True)]
        assert "".join(streamed) == said
        for token in whole[0].logprobs.content:  # greedy: the best of those that are listed
            best = token.top_logprobs[0]
            assert token.logprob == best.logprob
            assert token.logprob <= 1e-6


@pytest.mark.parametrize(
    ("configured", "model", "fusion"),
    [
        ("guided", "lingvo", {"guidance": ENSEMBLES["guided"]["guidance"]}),
        (
            "contrasted",
            "unmasked",
            {
                "combine": "mixture",
                "weights": "uniform",
                "contrast": ENSEMBLES["contrasted"]["contrast"],
                "mask": {"plausibility": 0.1},
            },
        ),
    ],
)
def test_a_configured_sum_is_the_one_that_a_request_asks_for(
    client: openai.OpenAI, configured: str, model: str, fusion: dict[str, Any]
) -> None:
    for text in ASKED:
        answer = ask(client, model, text, extra_body={"fusion": fusion | {"report": True}})
        assert answer.choices[0].message.content == ask(client, configured, text).choices[0].message.content
        assert min(answer.choices[0].model_extra["fusion"]["rounds"][0]["weights"].values()) < 0


def test_an_answer_keeps_to_a_schema_and_to_its_stop(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    for model in ENSEMBLES:
        said = ask(client, model, ASKED[0], response_format=shape, max_tokens=60).choices[0]
        if said.finish_reason == "stop":
            assert isinstance(json.loads(said.message.content)["n"], int)
        plain = ask(client, model, ASKED[0]).choices[0].message.content
        cut = ask(client, model, ASKED[0], stop=[plain[3:5]]).choices[0]
        assert cut.finish_reason == "stop"
        assert cut.message.content == plain[: plain.index(plain[3:5])]


def test_documents_are_read_by_every_member(client: openai.OpenAI) -> None:
    views = [{"context": "Rome is in Italy.", "weight": 0.5}, {"context": "Oslo is in Norway.", "weight": 0.5}]
    answer = ask(client, "lingvo", ASKED[0], extra_body={"fusion": {"views": views, "report": True}})
    assert answer.choices[0].message.content
    weights = answer.choices[0].model_extra["fusion"]["rounds"][0]["weights"]
    assert weights == {"lingvo": 0.5, "lingvo/2": 0.5}


@pytest.mark.timeout(1200)
def test_lm_evaluation_harness_scores_a_sum(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "deploy" / "demo" / "test.jsonl"
    file.parent.mkdir(parents=True)
    rows = (CONFIG.parent / "demo" / "test.jsonl").read_text().splitlines(keepends=True)
    file.write_text("".join(rows[::25]))
    found = results(tmp_path, server.url, "unmasked")["choice"]
    assert found["accuracy"] > 0.6
    assert all(float(one[0]) > -1000 for one in found["said"].values())
