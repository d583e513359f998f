"""Splits into train and test that are the same on every machine and let nothing leak across."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from scipy import sparse
from scipy.sparse.csgraph import connected_components

SPLIT_SEED = 0
"""One seed for every split: were it the run's seed, a second run would train on the first one's test rows."""


def stratified_split(
    labels: Int[np.ndarray, " n"], test_fraction: float = 0.2, seed: int = SPLIT_SEED
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Shuffled train and test rows, each class in proportion, with at least one row of it on either side.

    A class of a single row goes to train.
    """
    rng = np.random.default_rng(seed)
    train, test = [], []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        cut = min(max(1, round(test_fraction * len(rows))), len(rows) - 1)
        test.append(rows[:cut])
        train.append(rows[cut:])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))


def group_split(
    groups: Int[np.ndarray, " n"], test_fraction: float = 0.2, seed: int = SPLIT_SEED
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Shuffled train and test rows such that no group is on both sides.

    Groups larger than a twentieth of the test split go to train, so that no family of near copies decides
    the score; the others fill the test split in random order.
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(groups)
    room = test_fraction * len(groups)
    small = sizes <= max(1.0, room / 20)
    in_test = np.zeros(len(sizes), dtype=bool)
    for group in rng.permutation(np.flatnonzero(small & (sizes > 0))):
        if sizes[group] <= room:
            in_test[group] = True
            room -= sizes[group]
    rows = rng.permutation(len(groups))
    return rows[~in_test[groups[rows]]], rows[in_test[groups[rows]]]


def near_duplicate_groups(
    texts: Sequence[str],
    threshold: float = 0.5,
    words: int = 5,
    together: Sequence[tuple[int, int]] = (),
) -> Int[np.ndarray, " n"]:
    """A group number for each text; texts that share most of their wording have the same one.

    Two texts are linked when the shingles (runs of ``words`` words) they share are at least ``threshold``
    of the smaller one's, ``|A ∩ B| / min(|A|, |B|)``, so that a text and its extension are linked; groups
    are the connected components. Rows named in a pair of ``together`` are linked whatever they say. Exact,
    no hashing; cost grows with the number of shared shingles.
    """
    columns: dict[tuple[str, ...], int] = {}
    rows_of, columns_of = [], []
    for row, text in enumerate(texts):
        tokens = re.findall(r"\w+", text.lower())
        shingles = {tuple(tokens[i : i + words]) for i in range(max(1, len(tokens) - words + 1))}
        rows_of += [row] * len(shingles)
        columns_of += [columns.setdefault(shingle, len(columns)) for shingle in shingles]
    shape = (len(texts), len(columns))
    has = sparse.csr_matrix((np.ones(len(rows_of), dtype=np.int32), (rows_of, columns_of)), shape=shape)
    shared = (has @ has.T).tocoo()
    sizes = has.getnnz(axis=1)
    near = shared.data >= threshold * np.minimum(sizes[shared.row], sizes[shared.col])
    extra = np.array(together, dtype=np.int64).reshape(-1, 2)
    ends = np.concatenate([shared.row[near], extra[:, 0]]), np.concatenate([shared.col[near], extra[:, 1]])
    links = sparse.coo_matrix((np.ones(len(ends[0])), ends), shape=shared.shape)
    return connected_components(links, directed=False)[1].astype(np.int64)
