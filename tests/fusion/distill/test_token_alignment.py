from __future__ import annotations

import itertools
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from scipy import sparse
from tokenizers import Tokenizer

from fusion.distill.token_alignment import (
    align_sequences,
    count_alignments,
    same_tokens,
    statistical_map,
    transfer,
)
from tests.support.reference import shared

PAIRS = ("pivot_bytelevel", "pivot_metaspace")
MODES = {"aligned_stat": "statistics", "aligned_nomatrix": "statistics-nomatrix", "aligned_exact": "exact"}
words = st.lists(st.text("ab ", max_size=3), max_size=7)


def golden():
    return json.loads(shared("golden", "fusechat_align.json").read_text())


def vocabulary(file):
    tokenizer = Tokenizer.from_file(str(shared("golden", file)))
    return [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]


def vocabularies(pair):
    return {
        "pivot_tokens": vocabulary(pair["pivot_tokenizer"]),
        "source_tokens": vocabulary(pair["source_tokenizer"]),
        "pivot_marker": pair["pivot_marker"],
        "source_marker": pair["source_marker"],
    }


def special_ids(pair):
    pivot, source = pair["pivot_special"], pair["source_special"]
    return {
        source[name]: pivot[name]
        for name in ("bos", "eos")
        if source[name] is not None and pivot[name] is not None
    }


def table(spec):
    rows, columns, values = np.array(spec["entries"]).T
    return sparse.csr_array((values, (rows, columns)), shape=spec["shape"])


def padded(rows, k, padding, dtype):
    return np.array([row + [padding] * (k - len(row)) for row in rows], dtype=dtype)


def warp(pivot, source):
    """Dynamic time warping written out, the oracle of `align_sequences`."""
    total = {}
    for i, own in enumerate(pivot):
        for j, other in enumerate(source):
            before = [total[p] for p in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if p in total]
            total[i, j] = Levenshtein.distance(own, other) + min(before, default=0)
    at = (len(pivot) - 1, len(source) - 1)
    pairs = [at]
    while at != (0, 0):
        i, j = at
        at = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda p: total.get(p, float("inf")))
        pairs.append(at)
    return [sorted(j for i, j in pairs if i == own) for own in range(len(pivot))]


@pytest.mark.parametrize("name", PAIRS)
def test_the_authors_paths_are_met(name):
    for sample in golden()["pairs"][name]["samples"]:
        assert align_sequences(sample["pivot_strings"], sample["source_strings"]) == sample["path"]


def test_ties_go_the_way_the_authors_code_goes():
    cases = golden()["dtw_cases"]
    assert any(case["variants_differ"] for case in cases)
    for case in cases:
        assert align_sequences(case["series_2"], case["series_1"]) == case["map_2_to_1_fusechat"]


@given(words, words)
def test_the_fast_path_is_the_plain_one(pivot, source):
    if pivot and source:
        assert align_sequences(pivot, source) == warp(pivot, source)


@given(words, words)
def test_a_path_is_monotone_and_covers_both_sides(pivot, source):
    path = align_sequences(pivot, source)
    assert len(path) == len(pivot)
    if pivot and source:
        assert all(path)
        assert sorted({j for positions in path for j in positions}) == list(range(len(source)))
        assert all(b[0] - a[-1] in (0, 1) for a, b in itertools.pairwise(path))


def test_equal_sequences_align_one_to_one():
    tokens = list("abcabdxyz")
    assert align_sequences(tokens, tokens) == [[i] for i in range(len(tokens))]


def test_nothing_aligns_with_an_empty_sequence():
    assert align_sequences(["a", "b"], []) == [[], []]
    assert align_sequences([], ["a"]) == []


@pytest.mark.parametrize("name", PAIRS)
def test_the_authors_counts_are_met(name):
    pair = golden()["pairs"][name]
    samples = [(s["pivot_ids"], s["source_ids"], s["path"]) for s in pair["samples"]]
    counts = count_alignments(samples, tuple(pair["counts"]["shape"]))
    assert counts.format == "csr"
    assert np.issubdtype(counts.dtype, np.integer)
    assert (counts != table(pair["counts"])).nnz == 0


def test_a_source_id_counts_once_for_each_pivot_position():
    counts = count_alignments([([1, 1], [0, 0, 2], [[0, 1], [1, 2]])], (2, 3))
    np.testing.assert_array_equal(counts.toarray(), [[0, 0, 0], [2, 0, 1]])


@pytest.mark.parametrize("name", PAIRS)
def test_the_authors_vocabulary_map_is_met(name):
    pair = golden()["pairs"][name]
    mapped = statistical_map(
        table(pair["counts"]),
        **vocabularies(pair),
        unknown=pair["pivot_special"]["unk"],
        special=special_ids(pair),
        rules="fusechat",
    )
    assert mapped.dtype == np.int32
    assert mapped.tolist() == pair["source_to_pivot"]


def test_the_authors_weighting_decides_as_theirs_does():
    case = golden()["vocab_map_case"]
    pair = golden()["pairs"][case["pair"]]
    mapped = statistical_map(
        table(case["counts"]),
        **vocabularies(pair),
        unknown=pair["pivot_special"]["unk"],
        special=special_ids(pair),
        rules="fusechat",
    )
    assert mapped.tolist() == case["source_to_pivot"]


def test_by_default_the_frequent_pair_wins_and_what_was_never_aligned_is_dropped():
    counts = sparse.csr_array(np.array([[1, 0, 0], [40, 0, 0], [0, 0, 1]]))
    markers = {"pivot_marker": "_", "source_marker": "#"}
    names = ["abx", "xyz", "b"], ["aby", "q", "b"]
    assert statistical_map(counts, *names, **markers, unknown=0).tolist() == [1, -1, 2]
    assert statistical_map(counts, *names, **markers, unknown=0, rules="fusechat").tolist() == [0, 0, 2]


def test_special_ids_are_set_last():
    counts = sparse.csr_array(np.eye(3, dtype=int))
    mapped = statistical_map(
        counts, list("abc"), list("abc"), pivot_marker="_", source_marker="_", unknown=0, special={1: 2}
    )
    assert mapped.tolist() == [0, 2, 2]


def test_every_marker_is_replaced_before_tokens_are_compared():
    same = same_tokens(["_a", "a", "__", "_a"], ["#a", "#", "##", "a", "_a"], pivot_marker="_", source_marker="#")
    assert same.dtype == np.int32
    assert same.tolist() == [0, -1, 2, 1, 0]


@pytest.mark.parametrize("field", MODES)
@pytest.mark.parametrize("name", PAIRS)
def test_the_authors_transferred_distributions_are_met(name, field):
    data = golden()
    pair = data["pairs"][name]
    same = same_tokens(**vocabularies(pair))
    for sample in pair["samples"]:
        logits, ids = transfer(
            sample["path"],
            sample["pivot_ids"],
            sample["pivot_strings"],
            sample["source_strings"],
            np.array(sample["source_logits"]),
            np.array(sample["source_indices"]),
            mode=MODES[field],
            same=same,
            statistics=None if field == "aligned_exact" else np.array(pair["source_to_pivot"]),
        )
        assert (logits.dtype, ids.dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(ids, padded(sample[field]["indices"], data["top_k"], -1, np.int32))
        np.testing.assert_array_equal(logits, padded(sample[field]["logits"], data["top_k"], -np.inf, np.float32))


def test_an_exact_row_may_be_left_empty_and_padding_stays_padding():
    logits, ids = transfer(
        [[0], [1]],
        [5, 6],
        ["a", "b"],
        ["a", "b"],
        [[2.0, 1.0], [3.0, -np.inf]],
        [[0, 1], [2, -1]],
        mode="exact",
        same=[-1, -1, 4],
    )
    np.testing.assert_array_equal(ids, [[-1, -1], [4, -1]])
    np.testing.assert_array_equal(logits, np.float32([[-np.inf, -np.inf], [3, -np.inf]]))


def test_entries_of_one_token_are_added_up_where_asked():
    row = np.log(np.float32([[0.6, 0.3, 0.05]]))
    given_ = ([[0]], [5], ["a"], ["a"], row, [[0, 1, 2]])
    published, _ = transfer(*given_, mode="exact", same=[5, 5, 7])
    added, ids = transfer(*given_, mode="exact", same=[5, 5, 7], add_up=True)
    np.testing.assert_array_equal(ids, [[5, 7, -1]])
    np.testing.assert_allclose(np.exp(published), [[0.6, 0.05, 0]], atol=1e-6)
    np.testing.assert_allclose(np.exp(added), [[0.9, 0.05, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mode": "soft"}, "mode must be one of"),
        ({"statistics": None}, "needs statistics"),
        ({"source_indices": [[9]]}, "outside the source vocabulary"),
        ({"path": []}, "0 entries for 1 pivot strings"),
        ({"source_logits": [[1.0, 2.0]]}, "must both be"),
    ],
)
def test_what_cannot_be_transferred_is_refused(change, sentence):
    given_ = {
        "path": [[0]],
        "pivot_ids": [0],
        "pivot_strings": ["a"],
        "source_strings": ["a"],
        "source_logits": [[1.0]],
        "source_indices": [[0]],
        "mode": "statistics",
        "same": [0],
        "statistics": [0],
    }
    with pytest.raises(ValueError, match=sentence):
        transfer(**{**given_, **change})


def test_a_map_of_another_size_or_rule_is_refused():
    counts = sparse.csr_array((2, 2), dtype=int)
    markers = {"pivot_marker": "_", "source_marker": "_", "unknown": 0}
    with pytest.raises(ValueError, match="counts are 2 x 2"):
        statistical_map(counts, ["a"], ["b"], **markers)
    with pytest.raises(ValueError, match="rules must be one of"):
        statistical_map(counts, ["a", "b"], ["b", "c"], **markers, rules="other")


def rows_with_repetitions(count, k):
    """Arguments of `transfer` for rows of `k` entries whose ids fall together in groups; the log-probabilities."""
    rng = np.random.default_rng(0)
    indices = np.stack([rng.permutation(2 * k)[:k] for _ in range(count)]).astype(np.int32)
    indices[:, -3:] = -1
    logprobs = np.where(indices >= 0, rng.normal(-8, 3, indices.shape), -np.inf).astype(np.float32)
    same = rng.integers(-1, k // 3, 2 * k)
    texts = ["a"] * count
    return ([[i] for i in range(count)], [1] * count, texts, texts, logprobs, indices), same


def test_adding_up_is_a_sum_over_all_pairs_of_entries():
    given_, same = rows_with_repetitions(50, 40)
    logprobs, indices = given_[4:]
    added, ids = transfer(*given_, mode="exact", same=same, add_up=True)
    targets = np.where(indices >= 0, same[indices], -1)
    together = np.where(
        targets[:, :, None] == targets[:, None, :], logprobs[:, None, :].astype(np.float64), -np.inf
    )
    sums = np.exp(together).sum(axis=2)
    for row, target in zip(range(50), targets, strict=True):
        firsts = [at for at, id in enumerate(target) if id >= 0 and id not in target[:at]]
        assert ids[row, : len(firsts)].tolist() == target[firsts].tolist()
        expected = np.log(sums[row, firsts]).astype(np.float32)
        np.testing.assert_array_max_ulp(added[row, : len(firsts)], expected, maxulp=1)
        assert (ids[row, len(firsts) :] == -1).all()


def test_adding_up_takes_memory_for_the_entries_and_not_for_their_pairs():
    given_, same = rows_with_repetitions(64, 256)
    tracemalloc.start()
    transfer(*given_, mode="exact", same=same, add_up=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 64 * 256 * 8
