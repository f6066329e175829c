from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.sparse import csr_array

from alignment.errors import ConfigError
from alignment.vocab_map import VocabMap, read_map
from tests.support.sparse_maps import map_of


@st.composite
def matrices(draw) -> np.ndarray:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    cells = st.one_of(st.just(0.0), st.floats(0.125, 1, width=32))
    return np.array(draw(st.lists(cells, min_size=rows * columns, max_size=rows * columns)), np.float32).reshape(
        rows, columns
    )


@given(matrix=matrices())
def test_a_matrix_comes_back_as_it_was(matrix):
    map = map_of(csr_array(matrix))
    np.testing.assert_array_equal(map.to_scipy().toarray(), matrix)
    assert map.target_ids.shape == (len(matrix), max(1, int((matrix > 0).sum(axis=1).max())))
    assert map.coverage == (matrix > 0).any(axis=1).mean()
    for row, (ids, weights) in zip(matrix, zip(map.target_ids, map.weights, strict=True), strict=True):
        gathered = np.zeros_like(row)
        np.add.at(gathered, ids[ids >= 0], weights[ids >= 0])
        np.testing.assert_array_equal(gathered, row)


def test_a_saved_map_is_the_same_when_loaded(tmp_path):
    map = VocabMap(np.array([[3, -1], [0, 2]]), np.array([[1, 0], [0.25, 0.5]]), 7)
    map.save(tmp_path / "map.safetensors")
    map.save(tmp_path / "map.safetensors")
    loaded = VocabMap.load(tmp_path / "map.safetensors")
    assert loaded.target_ids.dtype == np.int32
    assert loaded.weights.dtype == np.float32
    np.testing.assert_array_equal(loaded.target_ids, map.target_ids)
    np.testing.assert_array_equal(loaded.weights, map.weights)
    assert loaded.target_size == 7
    assert [path.name for path in tmp_path.iterdir()] == ["map.safetensors"]


def test_a_map_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "map.safetensors"
    VocabMap(np.zeros((1, 1)), np.ones((1, 1)), 1).save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="no space"):
        VocabMap(np.zeros((2, 1)), np.ones((2, 1)), 1).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_map_cannot_be_changed():
    map = VocabMap(np.zeros((1, 1)), np.ones((1, 1)), 1)
    with pytest.raises(ValueError, match="read-only"):
        map.weights[0, 0] = 2


@pytest.mark.parametrize(
    ("ids", "weights", "message"),
    [
        ([[0, 1]], [[1.0]], "must both be"),
        ([0], [1.0], "must both be"),
        ([[5]], [[1.0]], "between -1 and 4"),
        ([[-2]], [[1.0]], "between -1 and 4"),
        ([[0]], [[np.nan]], "finite"),
        ([[0]], [[np.inf]], "finite"),
        ([[0]], [[-0.5]], "not negative"),
        ([[-1]], [[0.5]], "must be 0 where"),
    ],
)
def test_what_is_no_map_is_refused(ids, weights, message):
    with pytest.raises(ValueError, match=message):
        VocabMap(np.array(ids), np.array(weights), 5)


def test_what_a_map_says_of_itself_comes_back(tmp_path):
    path = tmp_path / "map.safetensors"
    VocabMap(np.zeros((1, 1)), np.ones((1, 1)), 1).save(path, {"method": "by hand", "grüße": 'an "alle"'})
    metadata = read_map(path)[1]
    assert (metadata["method"], metadata["grüße"]) == ("by hand", 'an "alle"')
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask(), "as readable as any other file of this user"


def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def rewrite(path, *, ids=((0,),), **metadata):
    """A map of this Tutti, then the same file with other ids and metadata under the same checksum."""
    VocabMap(np.zeros((1, 1)), np.ones((1, 1)), 10).save(path, {"method": "exact"})
    with safe_open(path, "numpy") as file:
        kept = file.metadata()
    tensors = {"target_ids": np.array(ids, np.int32), "weights": np.ones(np.shape(ids), np.float32)}
    save_file(tensors, path, {k: v for k, v in (kept | metadata).items() if v is not None})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"hello"), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.mkdir(), "is damaged"),
        (lambda path: save_file({"x": np.zeros(1)}, path), "is not a vocabulary map"),
        (lambda path: rewrite(path, version="2"), "version 2"),
        (lambda path: rewrite(path, ids=((1,),)), "checksum"),
        (lambda path: rewrite(path, ids=((0, 0),)), "checksum"),
        (lambda path: rewrite(path, method="eva"), "checksum"),
        (lambda path: rewrite(path, more="x"), "checksum"),
        (lambda path: rewrite(path, checksum=None), "checksum"),
        (lambda path: rewrite(path, target_size=None), "is damaged"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, message):
    path = tmp_path / "map.safetensors"
    content(path)
    with pytest.raises(ConfigError, match=message) as caught:
        VocabMap.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_was_not_changed_is_read(tmp_path):
    rewrite(tmp_path / "map.safetensors")
    assert VocabMap.load(tmp_path / "map.safetensors").target_size == 10


def test_a_truncated_file_is_never_read(tmp_path):
    path = tmp_path / "map.safetensors"
    VocabMap(np.zeros((40, 2)), np.ones((40, 2)), 1).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match="is damaged"):
            VocabMap.load(path)


@given(data=st.data())
def test_a_flipped_bit_is_never_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("maps") / "map.safetensors"
    map = VocabMap(np.array([[3, -1], [0, 2]]), np.array([[1, 0], [0.25, 0.5]]), 7)
    map.save(path, {"method": "exact"})
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        loaded = VocabMap.load(path)
    except ConfigError:
        return
    np.testing.assert_array_equal(loaded.target_ids, map.target_ids)  # a bit of the padding, or of white space
    np.testing.assert_array_equal(loaded.weights, map.weights)
    assert loaded.target_size == 7
