from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alignment.errors import ConfigError
from alignment.methods.origin import Origin, Parameters, Side, load_with_origin, save_with_origin
from alignment.vocab_map import VocabMap

EVA = Origin(
    "eva",
    Parameters(top=3),
    Side("models/ada", "tokenizer a", (2, 7), "table a"),
    Side("models/ben", "tokenizer b", (0,), "table b"),
    "0.1.0",
)
EXACT = replace(
    EVA,
    method="exact",
    parameters=None,
    source=replace(EVA.source, embeddings=None),
    target=replace(EVA.target, embeddings=None),
)
MAP = VocabMap(np.array([[1], [0]]), np.array([[0.5], [1]]), 2)


@pytest.mark.parametrize("origin", [EVA, EXACT], ids=["eva", "exact"])
def test_an_origin_comes_back_with_its_map(tmp_path, origin):
    save_with_origin(MAP, tmp_path / "map.safetensors", origin)
    map, found = load_with_origin(tmp_path / "map.safetensors")
    assert (found, found.key) == (origin, origin.key)
    np.testing.assert_array_equal(map.weights, MAP.weights)


OTHERS = [
    replace(EVA, method="hybrid"),
    replace(EVA, parameters=Parameters(top=4)),
    replace(EVA, parameters=Parameters(top=3, embeddings="input")),
    replace(EVA, parameters=Parameters(top=3, threshold=0.2)),
    replace(EVA, tutti="0.2.0"),
    *(
        replace(EVA, source=replace(EVA.source, **change))
        for change in ({"tokenizer": "x"}, {"stops": (2,)}, {"embeddings": "x"})
    ),
    *(
        replace(EVA, target=replace(EVA.target, **change))
        for change in ({"tokenizer": "x"}, {"stops": (1,)}, {"embeddings": "x"})
    ),
]


def test_all_that_decides_a_map_is_in_its_key_and_names_are_not():
    keys = {origin.key for origin in [EVA, *OTHERS]}
    assert len(keys) == 1 + len(OTHERS)
    renamed = replace(EVA, source=replace(EVA.source, name="x"), target=replace(EVA.target, name="y"))
    assert renamed.key == EVA.key


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"source": replace(EVA.source, tokenizer="x", name="eve")},
            "is from models/ada, whose tokens are not those of eve",
        ),
        (
            {"target": replace(EVA.target, stops=(1,), name="eve")},
            "is into models/ben, whose end tokens are not those of eve",
        ),
        (
            {"source": replace(EVA.source, embeddings="x", name="eve")},
            "is from models/ada, whose embeddings are not those of eve",
        ),
    ],
)
def test_a_map_of_other_models_is_refused(change, sentence):
    with pytest.raises(ConfigError, match=f"The vocabulary map m {sentence}: build the map again") as caught:
        EVA.require_same_models(replace(EVA, **change), "m")
    assert str(caught.value).count(". ") == 0, "one sentence"


def test_another_method_and_other_names_are_no_reason_to_refuse():
    wanted = replace(EVA, method="hybrid", parameters=Parameters(), source=replace(EVA.source, name="x"))
    EVA.require_same_models(wanted, "m")


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"method": '"guess"', "parameters": "null", "source": "{}", "target": "{}", "tutti": '"1"'},
        {"method": "eva", "parameters": "null", "source": "{}", "target": "{}", "tutti": '"1"'},
    ],
)
def test_a_map_of_unknown_origin_is_refused(tmp_path, about):
    MAP.save(tmp_path / "map.safetensors", about)
    with pytest.raises(ConfigError, match="does not say what it was made from"):
        load_with_origin(tmp_path / "map.safetensors")
