"""What the API promises, asked by real clients of the real server."""

from __future__ import annotations

import asyncio
import math
import unicodedata
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.support.demo import ENSEMBLE, questions, user
from tests.support.serving import Server

QUESTION = questions(1, "data_to_text")[0]  # its answers are the longest
SERVED = (ENSEMBLE, "abacus", "lingvo", "almanac")


def ask(client: openai.OpenAI, text: str = QUESTION, model: str = ENSEMBLE, **fields: Any) -> ChatCompletion:
    """Greedy, unless `fields` say otherwise; what the SDK has no name for goes in `extra_body`."""
    return client.chat.completions.create(model=model, messages=user(text), **{"temperature": 0, **fields})


def text_of(answer: ChatCompletion, index: int = 0) -> str:
    content = answer.choices[index].message.content
    assert content is not None
    return content


def rounds(answer: ChatCompletion) -> list[dict[str, Any]]:
    """Of the fusion report, which the SDK hands on as it is."""
    return answer.choices[0].fusion["rounds"]  # type: ignore[attr-defined]


def reported(**fields: Any) -> dict[str, Any]:
    return {"fusion": {"report": True, **fields}}


# answers, whole and streamed


@pytest.mark.parametrize("model", SERVED)
def test_chat(client: openai.OpenAI, model: str) -> None:
    answer = ask(client, model=model)
    assert (answer.object, answer.model) == ("chat.completion", model)
    assert [choice.index for choice in answer.choices] == [0]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert text_of(answer)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_is_the_role_the_text_the_end_and_the_usage(client: openai.OpenAI) -> None:
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    *said, end, usage = chunks
    assert said[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.role for chunk in said[1:]] == [None] * (len(said) - 1)
    assert len(said) > 5, "it comes in pieces"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == text_of(whole)
    assert [chunk.choices[0].finish_reason for chunk in said] == [None] * len(said)
    assert end.choices[0].finish_reason == whole.choices[0].finish_reason
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (usage.choices, usage.usage) == ([], whole.usage)


def test_a_stream_tells_usage_only_where_it_was_asked_for(http: httpx.Client) -> None:
    body = {"model": ENSEMBLE, "messages": user(QUESTION), "max_tokens": 3, "stream": True}
    response = http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")
    assert '"usage"' not in response.text


def test_many_clients_at_once_get_what_each_gets_alone(client: openai.OpenAI, server: Server) -> None:
    asked = questions(8)
    alone = [text_of(ask(client, text)) for text in asked]

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as sdk:

            async def whole(text: str) -> str:
                return text_of(
                    await sdk.chat.completions.create(model=ENSEMBLE, messages=user(text), temperature=0)
                )

            async def streamed(text: str) -> str:
                stream = await sdk.chat.completions.create(
                    model=ENSEMBLE, messages=user(text), temperature=0, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return list(await asyncio.gather(*map(whole, asked), *map(streamed, asked)))

    assert asyncio.run(together()) == alone * 2


def test_n_choices(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"n": 3, "seed": 5, "temperature": 1.5, "max_tokens": 20}
    whole = ask(client, **fields)
    texts = [text_of(whole, index) for index in range(3)]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert whole.usage is not None
    assert 3 < whole.usage.completion_tokens <= 60
    streamed = ["", "", ""]
    for chunk in ask(client, stream=True, **fields):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


@pytest.mark.parametrize("model", [ENSEMBLE, "abacus"])
def test_completions_of_a_string_a_list_and_token_ids(
    client: openai.OpenAI, http: httpx.Client, model: str
) -> None:
    prompts = ["The White Tree is a", "Anna has 3 + 4 ="]
    ids = [http.post("/tokenize", json={"model": model, "prompt": p}).json()["tokens"] for p in prompts]

    def texts(prompt: Any) -> list[str]:
        answer = client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=8)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    alone = [*texts(prompts[0]), *texts(prompts[1])]
    assert len(set(alone)) == 2
    assert all(alone)
    assert texts(prompts) == alone
    assert texts(ids[1]) == alone[1:]
    assert texts(ids) == alone


def test_completions_stream(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": ENSEMBLE, "prompt": ["The White Tree", "Anna has"], "temperature": 0}
    whole = client.completions.create(**fields)
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 32, "sixteen tokens each by default"
    streamed = ["", ""]
    for chunk in client.completions.create(**fields, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in whole.choices]


# sampling


def test_a_seed_gives_the_same_text_in_any_company(client: openai.OpenAI, server: Server) -> None:
    fields: dict[str, Any] = {"messages": user(QUESTION), "temperature": 1.5, "max_tokens": 24}

    async def crowd() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as sdk:
            seeds = [7, 1, 7, 2, 3, 7, 4, 5]
            answers = await asyncio.gather(
                *(sdk.chat.completions.create(model=ENSEMBLE, seed=seed, **fields) for seed in seeds)
            )
            return [text_of(answer) for answer in answers]

    alone = text_of(client.chat.completions.create(model=ENSEMBLE, seed=7, **fields))
    texts = asyncio.run(crowd())
    assert [texts[0], texts[2], texts[5]] == [alone] * 3
    assert len(set(texts)) > 3


def test_a_temperature_of_almost_nothing_and_a_nucleus_of_one_are_greedy(client: openai.OpenAI) -> None:
    greedy = text_of(ask(client))
    fields: list[dict[str, Any]] = [
        {"temperature": 1e-9},
        {"temperature": 2, "top_p": 0},
        {"temperature": 2, "extra_body": {"top_k": 1}},
        {"temperature": 2, "extra_body": {"min_p": 1}},
    ]
    assert [text_of(ask(client, **one)) for one in fields] == [greedy] * 4


def test_a_stop_string_ends_the_answer_wherever_its_tokens_end(client: openai.OpenAI) -> None:
    answer = ask(client, logprobs=True)
    text = text_of(answer)
    assert answer.choices[0].logprobs is not None
    tokens = [bytes(token.bytes or []).decode() for token in answer.choices[0].logprobs.content or []]
    begin = len("".join(tokens[:3]))
    stop = text[begin - 1 : begin + 2]  # the end of one token and the beginning of the next
    before = text[: text.index(stop)]
    ended = ask(client, stop=["never said", stop])
    assert (text_of(ended), ended.choices[0].finish_reason) == (before, "stop")
    assert ended.choices[0].stop_reason == stop  # type: ignore[attr-defined]
    kept = ask(client, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert text_of(kept) == before + stop
    streamed = [chunk.choices[0].delta.content or "" for chunk in ask(client, stop=stop, stream=True)]
    assert "".join(streamed) == before


def test_a_stop_token_ends_the_answer(client: openai.OpenAI) -> None:
    ids = [entry["token"] for entry in rounds(ask(client, extra_body=reported()))]
    token = ids[4]
    answer = ask(client, extra_body={"stop_token_ids": [token], **reported()})
    assert [entry["token"] for entry in rounds(answer)] == ids[: ids.index(token) + 1]
    assert text_of(ask(client)).startswith(text_of(answer))
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == token  # type: ignore[attr-defined]


def test_limits_of_length(client: openai.OpenAI) -> None:
    for fields in (
        {"max_tokens": 4},
        {"max_completion_tokens": 4},
        {"max_completion_tokens": 4, "max_tokens": 9},
    ):
        answer = ask(client, **fields)
        assert answer.usage is not None
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 4)


def test_an_answer_goes_on_past_its_end_where_asked_to(client: openai.OpenAI) -> None:
    plain = ask(client)
    assert plain.usage is not None
    length = plain.usage.completion_tokens + 20
    on = ask(client, max_tokens=length, extra_body={"ignore_eos": True})
    assert on.usage is not None
    assert (on.choices[0].finish_reason, on.usage.completion_tokens) == ("length", length)
    assert text_of(on).startswith(text_of(plain))
    least = ask(client, max_tokens=length + 100, extra_body={"min_tokens": length})
    assert least.usage is not None
    assert least.usage.completion_tokens >= length
    assert text_of(least).startswith(text_of(on)[:-3])


@pytest.mark.parametrize("model", [ENSEMBLE, "abacus"])
def test_logit_bias_forces_and_bans(client: openai.OpenAI, model: str) -> None:
    def ids(**fields: Any) -> list[int]:
        return [entry["token"] for entry in rounds(ask(client, model=model, extra_body=reported(), **fields))]

    plain = ids(max_tokens=6)
    forced = max(plain) - 1 if max(plain) - 1 not in plain else max(plain) + 1
    assert ids(max_tokens=6, logit_bias={str(forced): 100}) == [forced] * 6
    assert not set(ids(max_tokens=6, logit_bias={str(token): -100 for token in plain})) & set(plain)


@pytest.mark.parametrize(
    "penalty",
    [{"presence_penalty": 2}, {"frequency_penalty": 2}, {"extra_body": {"repetition_penalty": 2}}],
    ids=lambda penalty: next(iter(penalty.get("extra_body", penalty))),
)
def test_penalties_make_an_answer_repeat_itself_less(client: openai.OpenAI, penalty: dict[str, Any]) -> None:
    def variety(**fields: Any) -> int:
        extra = {"ignore_eos": True, **reported(), **fields.pop("extra_body", {})}
        answer = ask(client, max_tokens=100, extra_body=extra, **fields)
        return len({entry["token"] for entry in rounds(answer)})

    assert variety(**penalty) > variety()


# log-probabilities


@pytest.mark.parametrize("model", SERVED)
def test_chat_logprobs_are_consistent(client: openai.OpenAI, model: str) -> None:
    answer = ask(client, questions(1, "translation")[0], model, logprobs=True, top_logprobs=5)
    assert answer.choices[0].logprobs is not None
    *tokens, end = answer.choices[0].logprobs.content or []
    assert b"".join(bytes(token.bytes or []) for token in tokens).decode() == text_of(answer)
    assert (end.bytes, bool(end.token)) == (None, True), "the end token, which stands for no text"
    for token in (*tokens, end):
        best = [entry.logprob for entry in token.top_logprobs]
        assert best == sorted(best, reverse=True)
        assert sum(map(math.exp, best)) <= 1 + 1e-6
        assert 1 <= len({entry.token for entry in token.top_logprobs}) <= 5
        first = token.top_logprobs[0]
        assert (first.token, first.bytes, first.logprob) == (token.token, token.bytes, token.logprob), "greedy"
        assert token.logprob <= 0


def test_streamed_logprobs_are_those_of_the_whole(client: openai.OpenAI) -> None:
    whole = ask(client, logprobs=True, top_logprobs=2)
    streamed = []
    for chunk in ask(client, logprobs=True, top_logprobs=2, stream=True):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content or []
    assert whole.choices[0].logprobs is not None
    told = whole.choices[0].logprobs.content or []
    assert [token.bytes for token in streamed] == [token.bytes for token in told]
    assert [token.logprob for token in streamed] == pytest.approx([token.logprob for token in told], abs=1e-4)


def test_completion_logprobs_are_consistent(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=ENSEMBLE, prompt="Translate into Esperanto: The", temperature=0, max_tokens=24, logprobs=3
    )
    choice = answer.choices[0]
    told = choice.logprobs
    assert told is not None
    tokens, values = told.tokens or [], told.token_logprobs or []
    texts = [
        token for token, offset in zip(tokens, told.text_offset or [], strict=True) if offset < len(choice.text)
    ]
    assert "".join(texts) == choice.text
    assert len(tokens) >= len(texts) > 3
    for token, offset in zip(texts, told.text_offset or [], strict=False):
        assert choice.text[offset : offset + len(token)] == token
    for token, value, top in zip(tokens, values, told.top_logprobs or [], strict=True):
        assert value is not None
        assert top[token] == value == max(top.values()), "greedy"
        assert len(top) <= 4


# what is served, and tokens


def test_models(client: openai.OpenAI, http: httpx.Client, members: list[str]) -> None:
    assert [model.id for model in client.models.list()] == [ENSEMBLE, *sorted(members, key=SERVED.index)]
    for name in SERVED:
        assert client.models.retrieve(name).id == name
    assert http.get("/version").json()["version"]


TEXTS = ("Anna has 12 apples.", "ŝi aĉetis ĉapelojn — naïve", "日本 👩‍👩‍👧 e\u0301\n\n\t  x ", "")


@pytest.mark.parametrize("model", SERVED)
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_and_back(http: httpx.Client, model: str, text: str) -> None:
    """But for what the tokenizer itself does to a text: compose characters."""
    body = {"model": model, "prompt": text, "add_special_tokens": False, "return_token_strs": True}
    told = http.post("/tokenize", json=body).json()
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    back = http.post("/detokenize", json={"model": model, "tokens": told["tokens"]}).json()
    assert unicodedata.normalize("NFC", back["prompt"]) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("model", SERVED)
def test_a_conversation_counts_what_is_billed(client: openai.OpenAI, http: httpx.Client, model: str) -> None:
    messages = [{"role": "system", "content": "Be polite."}, *user("Hello")]
    told = http.post("/tokenize", json={"model": model, "messages": messages}).json()
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=1)  # type: ignore[arg-type]
    assert answer.usage is not None
    assert told["count"] == answer.usage.prompt_tokens
    info = http.get("/tokenizer_info", params={"model": model}).json()
    assert info["model_max_length"] == told["max_model_len"]
    assert max(told["tokens"]) < info["vocabulary_size"]
    assert info["eos_token"]
    assert "messages" in info["chat_template"]


def test_every_answer_has_an_id(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = {http.post("/v1/chat/completions", json={}).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3


def test_a_fingerprint_belongs_to_what_is_served(client: openai.OpenAI) -> None:
    prints = [ask(client, model=model, max_tokens=1).system_fingerprint for model in SERVED * 2]
    assert len(set(prints)) == len(SERVED)
    assert prints[: len(SERVED)] == prints[len(SERVED) :]


# fusion


def test_the_pivot_with_all_the_weight_is_the_pivot_alone(client: openai.OpenAI, pivot: str) -> None:
    differ = 0
    for text in questions(8):
        alone = text_of(ask(client, text, pivot))
        assert text_of(ask(client, text, extra_body={"fusion": {"weights": {pivot: 1}}})) == alone
        assert text_of(ask(client, text, extra_body={"fusion": {"members": [pivot]}})) == alone
        differ += text_of(ask(client, text)) != alone
    assert differ, "the ensemble is more than its pivot"


def test_who_takes_part(client: openai.OpenAI, members: list[str]) -> None:
    pair = members[:2]
    answer = ask(client, extra_body=reported(members=pair))
    report = answer.choices[0].fusion  # type: ignore[attr-defined]
    assert (sorted(report["members"]), report["pivot"], report["departed"]) == (sorted(pair), members[0], {})
    assert all(entry["weights"] == pytest.approx(dict.fromkeys(pair, 0.5)) for entry in rounds(answer))


@pytest.mark.parametrize("combine", ["mixture", "product"])
@pytest.mark.parametrize("filter_top", [None, 1])
def test_a_report_accounts_for_every_token(
    client: openai.OpenAI, members: list[str], combine: str, filter_top: int | None
) -> None:
    given = dict(zip(members, (0.5, 0.3, 0.2), strict=True))
    left_out = 0
    for text in questions(4):
        fields = reported(combine=combine, filter_top=filter_top, weights=given)
        answer = ask(client, text, extra_body=fields)
        assert answer.usage is not None
        assert len(rounds(answer)) == answer.usage.completion_tokens
        for entry in rounds(answer):
            voters = set(entry["weights"])
            assert members[0] in voters <= set(members)
            assert all(set(entry[name]) == voters for name in ("kept", "contribution", "mass", "rolled_back"))
            assert sum(entry["weights"].values()) == pytest.approx(1)
            assert sum(entry["contribution"].values()) == pytest.approx(1)
            assert all(0 < mass <= 1 + 1e-4 for mass in entry["mass"].values())
            assert all(entry["weights"][name] == 0 for name, kept in entry["kept"].items() if not kept)
            left_out += list(entry["kept"].values()).count(False)
    assert (left_out > 0) == (filter_top is not None)


def test_the_combination_changes_the_distribution(client: openai.OpenAI) -> None:
    def first(combine: str) -> list[float]:
        answer = ask(
            client, logprobs=True, top_logprobs=4, max_tokens=12, extra_body={"fusion": {"combine": combine}}
        )
        assert answer.choices[0].logprobs is not None
        return [token.logprob for token in answer.choices[0].logprobs.content or []]

    assert first("mixture") != pytest.approx(first("product"), abs=1e-3)
