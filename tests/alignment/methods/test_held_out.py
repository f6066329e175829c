"""What a learned map finds of the correspondences that it was not told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import LlamaConfig

from alignment.errors import ConfigError
from alignment.learning.anchors import anchors_of
from alignment.methods.eva import learnable
from alignment.methods.held_out import held_out
from alignment.methods.method import ModelVocabulary
from alignment.methods.registry import Alignment
from alignment.text.tokenizer import Tokenizer
from tests.support import small_tokenizers as tiny

WIDTH = 24


def saved(folder: Path, tokenizer: Tokenizer, meant: float, seed: int) -> ModelVocabulary:
    """Embeddings that mean the same in every model for a share of the surfaces, and nothing for the others."""
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((tokenizer.vocabulary_size, WIDTH)).astype(np.float32)
    for id, surface in enumerate(tokenizer.surfaces):
        own = np.random.default_rng(list(surface or b""))
        if surface and own.random() < meant:
            table[id] = own.standard_normal(WIDTH)
    folder.mkdir()
    save_file({"lm_head.weight": table}, folder / "model.safetensors")
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 1, "num_hidden_layers": 1, "tie_word_embeddings": False}
    LlamaConfig(vocab_size=tokenizer.vocabulary_size, **sizes).save_pretrained(folder)
    return ModelVocabulary(str(folder), tokenizer, (2,))


def alignment(folder: Path, meant: float) -> Alignment:
    source = saved(folder / "a", tiny.sentencepiece(), meant, 1)
    return Alignment(source, saved(folder / "b", tiny.byte_level(), meant, 2), "hybrid")


@pytest.mark.parametrize(("meant", "least", "most"), [(1.0, 1.0, 1.0), (0.5, 0.3, 0.7), (0.0, 0.0, 0.1)])
def test_what_the_tables_mean_is_found(tmp_path, meant, least, most):
    """Four draws, because one holds out some 57 anchors, of which a varying number mean nothing."""
    aligned = alignment(tmp_path, meant)
    draws = [held_out(aligned, 0.3, seed=seed) for seed in range(4)]
    assert least <= np.mean([found.best for found in draws]) <= most
    assert all(found.best <= found.any <= 1 for found in draws)


def test_only_anchors_that_a_map_is_learned_about_are_held_out(tmp_path):
    aligned = alignment(tmp_path, 0.0)
    source, target = aligned.source.tokenizer, aligned.target.tokenizer
    pairs = anchors_of(source, target)
    learned = np.isin(pairs[:, 0], learnable(source)) & np.isin(pairs[:, 1], learnable(target))
    assert not learned.all(), "parts of characters are anchors too"
    assert held_out(aligned, 0.25).anchors == round(0.25 * learned.sum())


def test_it_is_the_same_every_time_and_another_draw_with_another_seed(tmp_path):
    aligned = alignment(tmp_path, 0.5)
    assert held_out(aligned, 0.2) == held_out(aligned, 0.2)
    assert len({held_out(aligned, 0.2, seed=seed).best for seed in range(4)}) > 1


def test_anchors_that_are_not_learned_from_are_not_known(tmp_path):
    """Otherwise a map would be asked for what it was told: without meaning, only those it was told are found."""
    aligned = alignment(tmp_path, 0.0)
    pairs = anchors_of(aligned.source.tokenizer, aligned.target.tokenizer)
    told = Alignment(aligned.source, aligned.target, "eva").learn()
    assert (told.target_ids[pairs[:, 0], 0] == pairs[:, 1]).mean() > 3 * held_out(aligned, 0.3).best


def test_there_must_be_something_to_hold_out(tmp_path):
    aligned = alignment(tmp_path, 1.0)
    with pytest.raises(ConfigError, match="exact learns nothing from anchors"):
        held_out(Alignment(aligned.source, aligned.target, "exact"), 0.1)
    with pytest.raises(ConfigError, match=r"A share of 0 of \d+ anchors is none"):
        held_out(aligned, 0.0)
    with pytest.raises(ConfigError, match="too few anchors"):
        held_out(aligned, 1.0)
