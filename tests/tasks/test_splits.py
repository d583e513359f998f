from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from speclock.tasks.splits import group_split, near_duplicate_groups, stratified_split

ESSAY = "It was the best of times, it was the worst of times, it was the age of wisdom and of foolishness."


@given(st.lists(st.integers(0, 4), min_size=10, max_size=200).map(np.array), st.integers(0, 2**31))
def test_a_stratified_split_is_a_partition_in_proportion(labels: np.ndarray, seed: int) -> None:
    train, test = stratified_split(labels, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        in_test = np.sum(labels[test] == label)
        assert abs(in_test - count / 5) <= 1
        assert in_test < count


@given(st.lists(st.integers(0, 40), min_size=1, max_size=200).map(np.array))
def test_a_group_is_on_one_side(groups: np.ndarray) -> None:
    train, test = group_split(groups)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(groups)))
    assert not set(groups[train]) & set(groups[test])
    assert len(test) <= len(groups) / 5


def test_single_rows_split_exactly() -> None:
    train, test = group_split(np.arange(100))
    assert (len(train), len(test)) == (80, 20)


def test_copies_extensions_and_edits_are_near_and_others_are_not() -> None:
    edited = ESSAY.replace("wisdom", "reason").upper()
    extended = (
        ESSAY + " It was the epoch of belief, it was the epoch of incredulity, it was the season of light."
    )
    other = "Call me Ishmael. Some years ago, never mind how long precisely, having little money in my purse."
    groups = near_duplicate_groups([ESSAY, other, edited, extended, ESSAY])
    assert groups[0] == groups[2] == groups[3] == groups[4] != groups[1]


def test_rows_that_belong_together_take_their_groups_along() -> None:
    groups = near_duplicate_groups(
        ["one two three", ESSAY, "four five six", ESSAY], together=[(0, 1), (2, 3)]
    )
    assert len(set(groups)) == 1


@given(st.lists(st.text("abc ", min_size=1, max_size=30), min_size=2, max_size=12))
def test_near_duplicates_agree_with_every_pair_compared(texts: list[str]) -> None:
    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 2]) for i in range(max(1, len(words) - 1))}

    sets = [shingles(text) for text in texts]
    parent = list(range(len(texts)))
    for _ in texts:  # the dense twin: spread the smallest number along every link until nothing moves
        for i, a in enumerate(sets):
            for j, b in enumerate(sets):
                if len(a & b) >= 0.5 * min(len(a), len(b)):
                    parent[i] = parent[j] = min(parent[i], parent[j])
    groups = near_duplicate_groups(texts, words=2)
    for i in range(len(texts)):
        for j in range(len(texts)):
            assert (groups[i] == groups[j]) == (parent[i] == parent[j])
