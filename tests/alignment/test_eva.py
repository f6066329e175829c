from __future__ import annotations

import numpy as np
import pytest
import torch

from alignment.errors import ConfigError
from alignment.eva import learn_map
from alignment.learning import csls
from alignment.learning.anchors import anchors_of
from alignment.learning.vecmap import map_together
from alignment.methods.eva import eva_map
from alignment.methods.exact import exact_map
from tests.support import small_tokenizers as tiny
from tests.support.reference import shared

SPECIAL = {0: 0, 1: 1, 2: 2}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


@pytest.fixture(scope="module")
def golden():
    return np.load(shared("golden", "eva_map.npz"))


@pytest.mark.parametrize("device", DEVICES)
def test_the_authors_map_is_met(golden, device):
    learned = learn_map(golden["src_emb"], golden["tgt_emb"], golden["pairs"], special=SPECIAL, device=device)
    expected = np.zeros(golden["shape"], np.float32)
    expected[golden["rows"], golden["cols"]] = golden["vals"]
    matrix = learned.to_scipy().toarray()
    same = ((matrix != 0) == (expected != 0)).all(axis=1)
    clear = golden["row_margin"] > 2e-5
    assert same[clear].all()
    assert same.mean() >= 0.999
    np.testing.assert_allclose(matrix[same], expected[same], atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_the_authors_inner_products_are_met(golden, device):
    tables = [torch.tensor(golden[name], device=device) for name in ("src_emb", "tgt_emb")]
    source, target = map_together(*tables, torch.tensor(golden["pairs"], device=device))
    np.testing.assert_allclose((source @ target.T).cpu(), golden["src_mapped"] @ golden["tgt_mapped"].T, atol=2e-5)


def plant(rng, vs, vt, d1, d2, noise, anchors):
    """Tables whose first min(vs, vt) rows correspond up to a turn (or a projection) and noise."""
    both = min(vs, vt)
    source, target = rng.standard_normal((vs, d1)), rng.standard_normal((vt, d2))
    turn = np.linalg.qr(rng.standard_normal((max(d1, d2), max(d1, d2))))[0][:d1, :d2]
    target[:both] = source[:both] @ turn + noise * rng.standard_normal((both, d2))
    order = rng.permutation(vt)
    shuffled = np.empty_like(target)
    shuffled[order] = target
    true = np.stack([np.arange(both), order[:both]], axis=1)
    return source.astype(np.float32), shuffled.astype(np.float32), true[:anchors], true[anchors:]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def oracle(x, z, pairs, special, top=10, threshold=0.1):
    """The paper's map step by step in float64, with the whole matrix, loops, and SVDs of the anchors."""
    x, z = (unit(unit(t.astype(float)) - unit(t.astype(float)).mean(axis=0)) for t in (x, z))
    sides = []
    for table, ids in ((x, pairs[:, 0]), (z, pairs[:, 1])):
        _, s, vt = np.linalg.svd(table[ids], full_matrices=False)
        sides.append((vt.T @ np.diag(1 / s) @ vt, vt.T @ np.diag(s) @ vt))
    (wx, wx_inverse), (wz, wz_inverse) = sides
    u, s, vt = np.linalg.svd((x[pairs[:, 0]] @ wx).T @ (z[pairs[:, 1]] @ wz), full_matrices=False)
    x = x @ wx @ u * np.sqrt(s) @ (u.T @ wx_inverse @ u)
    z = z @ wz @ vt.T * np.sqrt(s) @ (vt @ wz_inverse @ vt.T)
    cosines = unit(x) @ unit(z).T
    hubs = cosines.max(axis=0)
    hubs[list(special.values())] = 0
    scores = 2 * cosines - hubs
    matrix = np.zeros(scores.shape)
    for i, row in enumerate(scores):
        if i in special:
            matrix[i, special[i]] = 1
            continue
        best = [j for j in np.argsort(-row)[:top] if j not in special.values() and row[j] >= threshold]
        if len(best) <= 5 or np.std(row[best]) > 0.01:
            matrix[i, best] = row[best]
    return matrix


@pytest.mark.parametrize(
    ("vs", "vt", "d1", "d2", "special"),
    [(90, 70, 12, 12, {0: 3, 4: 3}), (60, 110, 8, 14, {}), (110, 60, 14, 8, {5: 0}), (50, 50, 10, 10, SPECIAL)],
)
def test_the_equations_in_double_precision_give_the_same_map(vs, vt, d1, d2, special, monkeypatch):
    source, target, anchors, _ = plant(np.random.default_rng(vs), vs, vt, d1, d2, 0.3, 40)
    anchors = np.concatenate([anchors, anchors[:7]])  # those count twice
    monkeypatch.setattr(csls, "_CELLS", 7 * vs)
    learned = learn_map(source, target, anchors, special=special)
    np.testing.assert_allclose(learned.to_scipy().toarray(), oracle(source, target, anchors, special), atol=1e-5)
    assert (np.diff(learned.weights, axis=1) <= 0).all()


def test_rows_that_say_nothing_are_dropped():
    rng = np.random.default_rng(3)
    source, target, anchors, _ = plant(rng, 300, 300, 8, 8, 0.0, 100)
    target = np.concatenate([target, np.repeat(target[anchors[:1, 1]], 9, axis=0)])
    flat = int(anchors[0, 0])
    learned = learn_map(source, target, anchors)
    assert (learned.target_ids[flat] == -1).all()
    fewer = learn_map(source, target, anchors, top=5)
    assert (fewer.target_ids[flat] >= 0).sum() == 5
    assert np.ptp(fewer.weights[flat]) < 0.01


@pytest.mark.parametrize(("d1", "d2"), [(64, 64), (48, 80), (80, 48)])
def test_counterparts_that_are_no_anchors_are_found(d1, d2):
    source, target, anchors, hidden = plant(np.random.default_rng(0), 900, 1500, d1, d2, 0.1, 400)
    learned = learn_map(source, target, anchors)
    found = learned.target_ids[hidden[:, 0], 0] == hidden[:, 1]
    assert found.mean() > (0.99 if d1 <= d2 else 0.95)  # the narrower table has lost a part of the wider one


def test_the_result_is_the_same_every_time():
    source, target, anchors, _ = plant(np.random.default_rng(1), 400, 500, 32, 32, 0.5, 200)
    first, second = (learn_map(source, target, anchors) for _ in range(2))
    assert first.target_ids.tobytes() == second.target_ids.tobytes()
    assert first.weights.tobytes() == second.weights.tobytes()


def test_the_tables_of_the_caller_stay_as_they_are():
    source, target, anchors, _ = plant(np.random.default_rng(1), 40, 40, 4, 4, 0.5, 20)
    before = source.copy(), target.copy()
    learn_map(source, target, anchors)
    np.testing.assert_array_equal(source, before[0])
    np.testing.assert_array_equal(target, before[1])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_tables_of_other_precision_are_taken(dtype):
    source, target, anchors, hidden = plant(np.random.default_rng(5), 300, 300, 16, 16, 0.05, 150)
    learned = learn_map(source.astype(dtype), target.astype(dtype), anchors)
    assert (learned.target_ids[hidden[:, 0], 0] == hidden[:, 1]).mean() > 0.95


def test_a_dimension_that_no_token_uses_changes_nothing():
    source, target, anchors, _ = plant(np.random.default_rng(2), 200, 220, 16, 16, 0.2, 120)
    plain = learn_map(source, target, anchors).to_scipy().toarray()
    dead = [np.insert(table, 7, 0, axis=1) for table in (source, target)]
    np.testing.assert_allclose(learn_map(*dead, anchors).to_scipy().toarray(), plain, atol=1e-5)


GOOD = plant(np.random.default_rng(4), 50, 60, 6, 6, 0.1, 30)


def spoiled(value):
    table = GOOD[0].copy()
    table[3, 2] = value
    return table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": spoiled(np.nan)}, "1 of the 50 source embeddings contain NaN"),
        ({"source": spoiled(-np.inf)}, "1 of the 50 source embeddings contain NaN or infinity"),
        ({"target": np.ones((60, 6))}, "All target embeddings point the same way"),
        ({"source": np.zeros((50, 6))}, "All source embeddings point the same way"),
        ({"source": GOOD[0][0]}, "source embeddings must be a table"),
        ({"target": np.zeros((0, 6))}, "target embeddings must be a table"),
        ({"target": np.full((60, 6), "a")}, "target embeddings must be a table"),
        ({"anchors": GOOD[2][:5]}, "too few anchors: 5 different source tokens, .* at least 6"),
        ({"anchors": []}, "too few anchors: 0"),
        ({"anchors": np.repeat(GOOD[2][:1], 40, axis=0)}, "too few anchors: 1"),
        ({"source": np.zeros((50, 99))}, "too few anchors: 30 .* at least 99"),
        ({"anchors": [(i, i + 45) for i in range(30)]}, "anchors name target ids from 45 to 74"),
        ({"anchors": [(i - 1, i) for i in range(30)]}, "anchors name source ids from -1 to 28"),
        ({"anchors": [(i, i, i) for i in range(30)]}, "must be pairs"),
        ({"anchors": GOOD[2] + 0.5}, "must be pairs"),
        ({"special": {50: 0}}, "special tokens name source ids"),
        ({"top": 0}, "top >= 1"),
        ({"threshold": 0.0}, "threshold > 0"),
        ({"threshold": float("nan")}, "threshold > 0"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused_in_a_sentence(change, message):
    given = {"source": GOOD[0], "target": GOOD[1], "anchors": GOOD[2]} | change
    with pytest.raises(ConfigError, match=message) as caught:
        learn_map(given.pop("source"), given.pop("target"), given.pop("anchors"), **given)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def embeddings_of(tokenizer, width, turn, rows):
    """Tokens with the same bytes are near each other, special tokens and padding are far from everything."""
    table = np.full((rows, width), 50.0, np.float32)
    for id, surface in enumerate(tokenizer.surfaces):
        if surface:
            unused = id in tokenizer.byte_ids and tokenizer.surfaces.count(surface) > 1
            seed = [*surface, 256] if unused else list(surface)
            table[id] = np.random.default_rng(seed).standard_normal(width) @ turn
    return table


@pytest.fixture(scope="module")
def learned():
    source, target = tiny.byte_level(), tiny.sentencepiece()
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 24)))[0]
    tables = embeddings_of(source, 24, np.eye(24), 1000), embeddings_of(target, 24, turn, 920)
    stops = source.hf.convert_tokens_to_ids(["</s>", "<|end|>"])
    map = eva_map(source, target, *tables, source_stops=stops, target_stop=target.hf.eos_token_id)
    return source, target, stops, map


def test_tokens_of_the_same_bytes_find_each_other(learned):
    source, target, _, map = learned
    assert (map.source_size, map.target_size) == (source.vocabulary_size, target.vocabulary_size)
    anchors = anchors_of(source, target)
    np.testing.assert_array_equal(map.target_ids[anchors[:, 0], 0], anchors[:, 1])


def test_stops_go_to_the_stop_and_nothing_else_is_special(learned):
    source, target, stops, map = learned
    for stop in stops:
        assert map.target_ids[stop].tolist()[0] == target.hf.eos_token_id
        assert (map.target_ids[stop, 1:] == -1).all()
        assert map.weights[stop].sum() == 1
    others = sorted(source.special_ids - set(stops))
    assert others
    assert (map.target_ids[others] == -1).all()
    text = [id for id, surface in enumerate(source.surfaces) if surface]
    assert not np.isin(map.target_ids[text], sorted(target.special_ids)).any()


def test_parts_of_characters_keep_their_bytes(learned):
    source, target, _, map = learned
    parts = [id for id, s in enumerate(source.surfaces) if s and "\ufffd" in s.decode(errors="replace")]
    assert len(parts) >= 128
    exact = exact_map(source, target, source_stops=(), target_stop=0)
    np.testing.assert_array_equal(map.target_ids[parts, 0], exact.target_ids[parts, 0])
    assert (map.target_ids[parts, 1:] == -1).all()
    whole = np.setdiff1d([id for id, surface in enumerate(source.surfaces) if surface], parts)
    never_seen = [target.byte_ids[byte] for byte in (*b"aeiou", 0xC3, 0xE2)]
    assert not np.isin(map.target_ids[whole], never_seen).any()


def test_tables_shorter_than_the_tokenizer_are_refused():
    tokenizer = tiny.byte_level()
    table = np.zeros((10, 4), np.float32)
    with pytest.raises(ConfigError, match="source tokenizer tiny has ids up to"):
        eva_map(tokenizer, tokenizer, table, table, source_stops=(), target_stop=2)
