"""The end of an answer is one event, however many ids the members have for it."""

from __future__ import annotations

import gc
import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from fusion.assembly.ensembles import build_ensemble, build_for_any_pivot
from fusion.ensemble import Model, View
from fusion.options import FusionParams, SamplingParams
from fusion.sequence.bias import with_ends
from fusion.sequence.sequence import Sequence
from tests.support import small_tokenizers as small
from tests.support.toy_fuser import ROOMY
from tests.support.toy_members import ToyMember

EOS, END = 2, 3  # </s>, which the template writes after a turn, and <|end|>
P_END, P_ON = 0.6, 0.4


def saying(name: str, tokenizer, stops: tuple[int, ...], meant: int, *, padding: int = 0) -> Model:
    """Says " fox", then wants to end with `meant` at 0.6 or to go on with " fox" at 0.4."""
    size = tokenizer.vocabulary_size + padding
    fox = tokenizer.encode(" fox", add_special_tokens=False)[-1]

    def distribution(tokens: list[int]) -> np.ndarray:
        p = np.full(size, 1e-9)
        p[fox] = 1.0 if tokens[-1] != fox else P_ON
        if tokens[-1] == fox:
            p[meant] = P_END
        return np.log(p / p.sum()).astype(np.float32)

    return Model(ToyMember(name, distribution, size, ROOMY, k=20), tokenizer, stops, name)


def pair(kind: str) -> dict[str, Model]:
    byte_level, sentencepiece = small.byte_level(), small.sentencepiece()
    match kind:
        case "mixed, the pivot means its second end":
            return {
                "p": saying("p", byte_level, (EOS, END), END),
                "m": saying("m", sentencepiece, (EOS,), EOS),
            }
        case "mixed, the member means its second end":
            return {
                "p": saying("p", byte_level, (EOS,), EOS),
                "m": saying("m", sentencepiece, (EOS, END), END),
            }
        case "twins with unlike ends":
            return {
                "p": saying("p", byte_level, (EOS,), EOS),
                "m": saying("m", byte_level, (END,), END, padding=7),
            }
        case "twins, of which the pivot means an end of the other":
            return {
                "p": saying("p", byte_level, (EOS,), END),
                "m": saying("m", byte_level, (END,), END),
            }
        case "a twin in a mixed ensemble":
            return {
                "p": saying("p", byte_level, (EOS,), EOS),
                "t": saying("t", byte_level, (END,), END),
                "m": saying("m", sentencepiece, (EOS,), EOS),
            }
    raise AssertionError(kind)


KINDS = [
    "mixed, the pivot means its second end",
    "mixed, the member means its second end",
    "twins with unlike ends",
    "twins, of which the pivot means an end of the other",
    "a twin in a mixed ensemble",
]
RULES = [FusionParams(), FusionParams(combine="product"), FusionParams(filter_top=1), FusionParams(guard=True)]


@pytest.mark.parametrize("fusion", RULES, ids=["mixture", "product", "filter", "guard"])
@pytest.mark.parametrize("kind", KINDS)
def test_members_that_all_want_to_end_do(run, kind, fusion):
    listener = run(build_ensemble("both", pair(kind), "p")).submit("Hi", fusion, max_tokens=6, logprobs=3).wait()
    assert listener.text.strip() == "fox"
    assert (listener.last.finish, listener.last.stop_reason) == ("stop", None)
    end = listener.updates[-1].tokens[-1]
    assert end.chosen.id == EOS
    assert math.exp(end.chosen.logprob) > P_END - 1e-3
    assert END not in [one.id for one in end.top]


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_the_prompt_makes_the_pivot(run, kind):
    ensemble = build_for_any_pivot("any", pair(kind), defaults=FusionParams(weights={"m": 1.0, "p": 1.0}))
    for view in ensemble.views.values():
        assert view.end == ensemble.models[view.pivot].stop_ids[0]
    assert run(ensemble).submit("Hi", max_tokens=6).wait().last.finish == "stop"


def test_a_model_alone_keeps_its_ends_apart(run):
    alone = {"p": saying("p", small.byte_level(), (EOS, END), END)}
    listener = run(build_ensemble("alone", alone, "p")).submit("Hi", max_tokens=6).wait()
    assert listener.ids[-1] == END
    assert listener.last.finish == "stop"


@pytest.mark.parametrize("kind", KINDS)
def test_no_end_comes_before_min_tokens_or_with_ignore_eos(run, kind):
    running = run(build_ensemble("both", pair(kind), "p"))
    listener = running.submit("Hi", max_tokens=12, min_tokens=4).wait()
    assert listener.last.finish == "stop"
    assert not {EOS, END} & set(listener.ids[:4])
    listener = running.submit("Hi", max_tokens=6, ignore_eos=True).wait()
    assert listener.last.finish == "length"
    assert not {EOS, END} & set(listener.ids)


def test_an_end_that_the_request_names_is_distinct(run):
    running = run(build_ensemble("both", pair("mixed, the pivot means its second end"), "p"))
    weighty = FusionParams(weights={"p": 1.0})
    named = running.submit("Hi", weighty, max_tokens=6, ignore_eos=True, stop_token_ids=(END,)).wait()
    assert (named.ids[-1], named.last.stop_reason) == (END, END)
    banned = running.submit("Hi", weighty, max_tokens=6, logit_bias={END: -100.0}).wait()
    assert banned.last.finish == "length"


def test_stop_ids_of_a_request_do_not_split_the_end(run):
    running = run(build_ensemble("both", pair("mixed, the pivot means its second end"), "p"))
    listener = running.submit("Hi", max_tokens=6, stop_token_ids=(EOS, END)).wait()
    assert (listener.ids[-1], listener.last.finish, listener.last.stop_reason) == (EOS, "stop", EOS)


@pytest.mark.parametrize(("include", "text"), [(False, "fox"), (True, "fox<|end|>")])
def test_a_stop_string_that_names_a_control_token_stops_at_it(run, include, text):
    alone = {"p": saying("p", small.byte_level(), (EOS,), END)}
    running = run(build_ensemble("alone", alone, "p"))
    options = {"max_tokens": 6, "stop": ("<|end|>",), "include_stop": include}
    listener = running.submit("Hi", **options).wait()
    assert (listener.text.strip(), listener.last.finish, listener.last.stop_reason) == (text, "stop", "<|end|>")
    assert running.submit("Hi", ignore_eos=True, **options).wait().last.finish == "stop"
    assert len(running.submit("Hi", min_tokens=3, **options).wait().ids) == 4
    assert running.submit("Hi", max_tokens=6).wait().last.finish == "length"


@pytest.mark.parametrize("named", [{"stop_token_ids": (END,)}, {"stop": ("<|end|>",)}], ids=["by id", "by name"])
@pytest.mark.parametrize("kind", ["alone", "mixed"])
def test_a_control_token_that_the_request_stops_at_may_come(run, kind, named):
    """It ends the answer, so no member has to follow it."""
    models = {"p": saying("p", small.byte_level(), (EOS,), END)}
    if kind == "mixed":
        models["m"] = saying("m", small.sentencepiece(), (EOS,), EOS)
    running = run(build_ensemble("stopped", models, "p"))
    weighty = FusionParams(weights={"p": 1.0})
    listener = running.submit("Hi", weighty, max_tokens=6, **named).wait()
    assert (listener.last.finish, listener.ids[-1]) == ("stop", END)
    if kind == "mixed":  # what nobody asked for is not followed
        assert END not in running.submit("Hi", weighty, max_tokens=6).wait().ids


def test_special_tokens_and_distinct_ends_go_together():
    """A bias on an end leaves the tokens that a constraint may admit, such as the one that opens a call."""
    view = build_ensemble("both", pair("mixed, the pivot means its second end"), "p").first
    special = view.tokenizer.special_ids
    assert len(special - view.ends) > 0
    for distinct in (False, True):
        targets = view.maps_of("p", distinct=distinct, kept=special).rest.target_ids[:, 0]
        assert all(targets[id] == id for id in special - view.ends)
        assert (targets[END] == END) == distinct
        assert targets[EOS] == EOS
    assert view.maps_of("p", kept=special) is view.maps_of("p", kept=special)
    assert view.maps_of("m", kept=special) is view.maps["m"]


def test_maps_for_requests_are_made_once_and_live_as_long_as_a_sequence_uses_them(monkeypatch):
    tokenizer = small.byte_level(*(f"<|stop {number}|>" for number in range(40)))
    models = pair("mixed, the pivot means its second end")
    ensemble = build_ensemble("many", models | {"p": saying("p", tokenizer, (EOS, END), END)}, "p")
    prompt, stops = ensemble.encode_chat([{"role": "user", "content": "Hi"}]), sorted(tokenizer.special_ids)[-40:]
    made, make = [], View.own_maps
    monkeypatch.setattr(View, "own_maps", lambda *args, **options: made.append(args) or make(*args, **options))
    sequences = [
        Sequence(id, ensemble, prompt, SamplingParams(8, stop_token_ids=(id,)), FusionParams(), "", print)
        for id in stops * 2
    ]
    for _ in range(3):
        for sequence in sequences:
            assert sequence.map_of("p").target_ids[sequence.number, 0] == sequence.number
    assert len(made) == len(stops)
    used = weakref.ref(ensemble.first.maps_of("p", kept=sequences[0].ends.kept))
    del sequence, sequences
    gc.collect()
    assert used() is None


def test_a_mask_that_admits_the_end_admits_the_ends_of_a_twin():
    models = {"p": SimpleNamespace(stop_ids=(EOS,)), "m": SimpleNamespace(stop_ids=(END, EOS, 999))}
    view = SimpleNamespace(end=EOS, stop_ids=frozenset({EOS}), models=models)
    admits, bars = np.array([0b0110], np.uint8), np.array([0b0010], np.uint8)
    assert with_ends(admits, view, "m").tolist() == [0b1110]
    assert admits.tolist() == [0b0110], "the mask itself is the grammar's"
    assert with_ends(admits, view, "p") is admits
    assert with_ends(bars, view, "m") is bars
