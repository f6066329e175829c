"""Vocabulary maps of sparse matrices."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from alignment.vocab_map import VocabMap


def map_of(matrix) -> VocabMap:
    """The map of a matrix [Vs, Vt]; R is the largest number of entries in a row, at least 1."""
    matrix = csr_array(matrix.copy())
    matrix.sum_duplicates()
    counts = np.diff(matrix.indptr)
    rows = np.repeat(np.arange(len(counts)), counts)
    slots = np.arange(len(rows)) - matrix.indptr[rows]
    shape = (len(counts), max(1, int(counts.max(initial=0))))
    ids, weights = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    ids[rows, slots], weights[rows, slots] = matrix.indices, matrix.data
    return VocabMap(ids, weights, int(matrix.shape[1]))
