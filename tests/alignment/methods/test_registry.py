from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignment.errors import ConfigError
from alignment.methods.exact import exact_map
from alignment.methods.method import ModelVocabulary
from alignment.methods.origin import Parameters
from alignment.methods.registry import METHODS, Alignment, method_named
from alignment.text.tokenizer import Tokenizer
from server.settings.ensembles import AlignmentSettings
from tests.support import small_tokenizers as tiny


def saved(folder: Path, tokenizer: Tokenizer, seed: int) -> ModelVocabulary:
    """A random model of this tokenizer whose input and output embeddings differ."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=tokenizer.vocabulary_size + 3, tie_word_embeddings=False, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    return ModelVocabulary(str(folder), tokenizer, (2, 3))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelVocabulary, ModelVocabulary]:
    folder = tmp_path_factory.mktemp("models")
    return saved(folder / "a", tiny.sentencepiece(), 1), saved(folder / "b", tiny.byte_level(), 2)


def test_every_method_has_a_name_in_the_configuration():
    for name, method in METHODS.items():
        assert AlignmentSettings(method=name).method == name
        assert method_named(name) is method
    with pytest.raises(
        ConfigError, match="no alignment method 'Eva': use one of spelled, exact, prefix, eva, mined, hybrid"
    ):
        method_named("Eva")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_maps_the_tokenizers_ids_and_takes_end_tokens_to_the_end_token(pair, method):
    map = Alignment(*pair, method).learn()
    source, target = (side.tokenizer for side in pair)
    assert (map.source_size, map.target_size) == (source.vocabulary_size, target.vocabulary_size)
    dense = map.to_scipy()[[2, 3]].toarray()
    assert np.flatnonzero(dense[0]).tolist() == np.flatnonzero(dense[1]).tolist() == [2]
    ordinary = [id for id, surface in enumerate(source.surfaces) if surface]
    special = sorted(target.special_ids)
    assert map.to_scipy()[ordinary][:, special].nnz == 0, "text never becomes a control token"


def test_hybrid_is_exact_where_bytes_coincide_and_eva_elsewhere(pair):
    maps = {method: Alignment(*pair, method).learn().to_scipy().toarray() for method in ("exact", "eva", "hybrid")}
    joined = maps["exact"].any(axis=1)
    assert joined.any()
    assert not joined.all()
    np.testing.assert_array_equal(maps["hybrid"][joined], maps["exact"][joined])
    np.testing.assert_array_equal(maps["hybrid"][~joined], maps["eva"][~joined])


def test_hybrid_and_eva_share_what_is_learned_and_exact_learns_nothing(pair):
    eva = Alignment(*pair, "eva")
    hybrid = Alignment(*pair, "hybrid")
    assert hybrid.kept == eva
    assert eva.kept == eva
    assert Alignment(*pair, "exact").kept is None
    whole = hybrid.complete(eva.learn())
    np.testing.assert_array_equal(whole.to_scipy().toarray(), hybrid.learn().to_scipy().toarray())


def test_a_temperature_makes_learned_rows_distributions_and_keeps_their_order(pair):
    raw = Alignment(*pair, "eva")
    warm, cold = (replace(raw, parameters=Parameters(temperature=one)) for one in (1.0, 0.01))
    assert warm.kept == cold.kept == raw.kept, "the scores are kept, whatever is made of them"
    scores, distributions = raw.learn(), warm.learn()
    used = scores.weights > 0
    np.testing.assert_array_equal(distributions.weights > 0, used)
    np.testing.assert_allclose(distributions.weights.sum(axis=1), used.any(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(cold.complete(scores).weights.argmax(axis=1), scores.weights.argmax(axis=1))
    rows = used.sum(axis=1) > 1
    assert (cold.complete(scores).weights.max(axis=1)[rows] > distributions.weights.max(axis=1)[rows]).all()
    hybrid = replace(warm, method="hybrid").learn().to_scipy().toarray()
    exact = Alignment(*pair, "exact").learn().to_scipy().toarray()
    learned = ~exact.any(axis=1)
    np.testing.assert_array_equal(hybrid[learned], distributions.to_scipy().toarray()[learned])


def test_exact_needs_no_embeddings():
    source, target = (
        ModelVocabulary("/nowhere", tokenizer, (2,)) for tokenizer in (tiny.sentencepiece(), tiny.byte_level())
    )
    alignment = Alignment(source, target, "exact")
    expected = exact_map(source.tokenizer, target.tokenizer, source_stops=(2,), target_stop=2)
    np.testing.assert_array_equal(alignment.learn().target_ids, expected.target_ids)
    assert alignment.origin("0").source.embeddings is None
    with pytest.raises(ConfigError, match="/nowhere"):
        replace(alignment, method="eva").origin("0")


def test_the_configured_table_and_limits_are_used(pair):
    learned = {
        which: Alignment(*pair, "eva", Parameters(which, top=2, threshold=0.3)) for which in ("input", "output")
    }
    first, second = (alignment.learn() for alignment in learned.values())
    assert first.target_ids.shape[1] <= 2
    ordinary = [id for id in range(first.source_size) if id not in pair[0].stop_ids]
    assert first.weights[ordinary][first.weights[ordinary] > 0].min() >= 0.3
    assert not np.array_equal(first.to_scipy().toarray(), second.to_scipy().toarray())
    assert learned["input"].origin("0").key != learned["output"].origin("0").key


def test_an_origin_follows_tokenizers_weights_and_end_tokens(pair, tmp_path):
    source, target = pair
    origin = Alignment(source, target, "eva").origin("0")
    again = Alignment(replace(source, _fingerprints={}), target, "eva").origin("0")
    assert origin == again
    assert origin.target.stops == (2,), "of the target's end tokens one is used"
    retrained = saved(tmp_path / "a", source.tokenizer, 3)
    assert Alignment(retrained, target, "eva").origin("0").source.embeddings != origin.source.embeddings
    assert Alignment(retrained, target, "mined").origin("0").key == Alignment(*pair, "mined").origin("0").key
