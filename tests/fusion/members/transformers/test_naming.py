"""The transformers engine gives log-probabilities of named ids, and the best among allowed ones."""

import numpy as np
import pytest
from transformers import LlamaConfig

from fusion.core import Advance, AdvanceFailed
from fusion.members.topk import best_allowed
from fusion.members.transformers.engine import TransformersEngine
from tests.support.named_ids import require_named_ids
from tests.support.random_models import SHAPE, VOCABULARY, build, run


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("chunk", [64, 3])
def test_named_ids_and_limits(k, chunk):
    engine = TransformersEngine(
        build(LlamaConfig(**SHAPE)), cache_tokens=256, max_context=64, prefill_chunk=chunk, candidates=k
    )
    require_named_ids(build(LlamaConfig(**SHAPE)), engine, k)


def test_an_id_beyond_the_vocabulary_is_refused():
    engine = TransformersEngine(build(LlamaConfig(**SHAPE)), cache_tokens=256, max_context=64)
    assert isinstance(run(engine, Advance(1, 0, [1], also=[VOCABULARY]))[1], AdvanceFailed)


def test_ids_beyond_the_end_of_a_mask_are_not_allowed():
    torch = pytest.importorskip("torch")
    logits = torch.arange(40.0)[None]
    ids, scores = best_allowed(logits[0], np.packbits(np.ones(16, np.uint8), bitorder="little"), 3)
    assert ids.tolist() == [15, 14, 13]
    assert scores.tolist() == [15.0, 14.0, 13.0]
