# SPDX-License-Identifier: Apache-2.0
"""What users see when something is wrong, word by word."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import quire

I32 = np.int32


def one_shot(**changes: Any) -> Any:
    arguments = {
        "q": np.zeros((1, 4, 64), np.float32),
        "k": np.zeros((2, 16, 2, 64), np.float32),
        "v": np.zeros((2, 16, 2, 64), np.float32),
        "qo_indptr": np.array([0, 1], I32),
        "kv_len": np.array([17], I32),
        "page_table": np.array([[0, 1]], I32),
        **changes,
    }
    return quire.attention(**arguments)


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        (
            {"q": np.zeros((1, 256), np.float32)},
            quire.InvalidArgument,
            "[attention] q: expected 3 axes, got shape [1, 256]",
        ),
        (
            {"k": np.zeros((32, 2, 64), np.float32)},
            quire.InvalidArgument,
            "[attention] k: expected 4 axes, got shape [32, 2, 64]",
        ),
        (
            {"kv_layout": "nhd"},
            quire.InvalidArgument,
            '[AttentionSpec] kv_layout: expected one of "NHD", "HND", got \'nhd\'',
        ),
        (
            {"mask": True},
            quire.InvalidArgument,
            '[AttentionSpec] mask: expected one of "none", "causal", "tree", "full", got True',
        ),
        (
            {"window_left": 2**32},
            quire.InvalidArgument,
            "[AttentionSpec] window_left: expected an int32, got 4294967296",
        ),
        (
            {"window_left": 1.5},
            quire.InvalidArgument,
            "[AttentionSpec] window_left: expected an integer, got 1.5",
        ),
        (
            {"sm_scale": 0},
            quire.InvalidArgument,
            "[AttentionSpec] sm_scale: expected None or a number other than 0, got 0",
        ),
        (
            {"qo_indptr": np.array([0, 1])},
            quire.InvalidArgument,
            "[schedule] qo_indptr: expected int32 [≥1], got int64 [2]",
        ),
        (
            {"page_table": np.array([[0, 9]], I32)},
            quire.InvalidArgument,
            "[run] page_table[0][1]: expected a page id in [0, 2), got 9",
        ),
        (
            {"kv_len": None},
            quire.InvalidArgument,
            "[schedule] kv_len: expected int32 [1], got nothing",
        ),
        (
            {"o": np.zeros((1, 4, 64), np.float16)},
            quire.InvalidArgument,
            None,
        ),
        (
            {"kernel": "cpu.imaginary"},
            quire.InvalidArgument,
            None,
        ),
        (
            {"q": np.zeros((1, 4, 63), np.float32)},
            quire.InvalidArgument,
            None,
        ),
        ({"o": [0]}, quire.InvalidArgument, None),
        ({"executor": 3}, quire.InvalidArgument, None),
    ],
)
def test_one_shot_texts(changes: Any, kind: Any, text: Any) -> None:
    with pytest.raises(quire.Error) as caught:
        one_shot(**changes)
    print(type(caught.value).__name__, caught.value)
    assert type(caught.value) is kind
    assert text is None or str(caught.value) == text
