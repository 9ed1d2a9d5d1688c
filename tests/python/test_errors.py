# SPDX-License-Identifier: Apache-2.0
"""What users see when something is wrong, word by word."""

from __future__ import annotations

import pickle
import runpy
from typing import Any

import numpy as np
import pytest

import quire

I32 = np.int32
CPU_KERNELS = ", ".join(kernel.name for kernel in quire.kernels() if kernel.name.startswith("cpu."))


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
            "[attention] page_table[0][1]: expected a page id in [0, 2), got 9",
        ),
        (
            {"kv_len": None},
            quire.InvalidArgument,
            "[schedule] kv_len: expected int32 [1], got nothing",
        ),
        (
            {"o": np.zeros((1, 4, 64), np.float16)},
            quire.InvalidArgument,
            "[attention] o_dtype: expected q_dtype (float32) or float32, got float16",
        ),
        (
            {"o": [0]},
            quire.InvalidArgument,
            "[attention] o: expected a NumPy array, a torch tensor or an object with DLPack or an "
            "array interface, got list",
        ),
        (
            {"kernel": "cpu.imaginary"},
            quire.Unsupported,
            f"[attention] kernel: expected one of {CPU_KERNELS} on cpu, got cpu.imaginary",
        ),
        (
            {"q": np.zeros((1, 4, 63), np.float32)},
            quire.Unsupported,
            "[attention] head_dim_qk: expected a multiple of 8 up to 512 (cpu.portable), got 63; "
            "nearest: 56, 64",
        ),
        (
            {"executor": 3},
            quire.InvalidArgument,
            "[quire] executor: expected an open quire.ThreadPool, got 3",
        ),
        (
            {"kv_len": np.array([2**20], I32)},
            quire.TooLong,
            "[schedule] kv_len[0]: expected at most 32 keys of a request as BatchLimits says, "
            "got 1048576",
        ),
    ],
)
def test_one_shot_texts(changes: Any, kind: Any, text: Any) -> None:
    with pytest.raises(quire.Error) as caught:
        one_shot(**changes)
    assert type(caught.value) is kind, caught.value
    assert str(caught.value) == text


def test_what_a_spec_refuses_is_refused_before_anything_runs() -> None:
    with pytest.raises(quire.InvalidArgument, match=r"num_kv_heads \(3\), got 4; nearest: 6"):
        quire.Attention(quire.AttentionSpec(4, 3, 64))
    with pytest.raises(quire.InvalidArgument, match=r"dtype: expected one of .*, got float64"):
        quire.AttentionSpec(4, 2, 64, q_dtype="float64")
    with pytest.raises(quire.InvalidArgument, match="max_num_seqs: expected an integer, got None"):
        quire.Attention(quire.AttentionSpec(4, 2, 64), quire.BatchLimits(max_num_seqs=None))  # type: ignore[arg-type]


def test_a_batch_beyond_the_limits_is_too_long() -> None:
    spec = quire.AttentionSpec(4, 2, 64, q_dtype="float32")
    attend = quire.Attention(spec, quire.BatchLimits(max_num_seqs=4, max_total_q=4, max_kv_len=16))
    batch = quire.Batch(
        np.array([0, 1], I32), kv_len=np.array([17], I32), page_table=np.array([[0, 1]], I32)
    )
    with pytest.raises(quire.TooLong, match="kv_len") as caught:
        attend.schedule(batch)
    assert caught.value.code is quire.ErrorCode.TOO_LONG


def test_a_schedule_belongs_to_its_attention() -> None:
    spec = quire.AttentionSpec(4, 2, 64, q_dtype="float32")
    one, other = quire.Attention(spec), quire.Attention(spec)
    step = one.schedule(
        quire.Batch(np.zeros(1, I32), kv_len=np.zeros(0, I32), page_table=np.zeros((0, 1), I32))
    )
    with pytest.raises(quire.InvalidArgument, match="expected one of this attention"):
        other.run(step, None, None, None)


def test_there_is_no_gpu_in_a_build_without_cuda() -> None:
    if len(quire.devices()) > 1:
        pytest.skip("there is one")
    with pytest.raises(quire.Error) as caught:
        quire.Attention(quire.AttentionSpec(32, 8, 128), device="cuda")
    assert caught.value.code in (quire.ErrorCode.DEVICE_ERROR, quire.ErrorCode.UNSUPPORTED)
    with pytest.raises(quire.InvalidArgument, match="expected 32 bytes on cuda:0"):
        quire.CheckRecord("cuda", memory=np.zeros(32, np.uint8))


def test_errors_are_values_errors_where_they_say_so_and_can_be_pickled() -> None:
    with pytest.raises(ValueError, match="expected 3 axes") as caught:
        one_shot(q=np.zeros(1, np.float32))
    assert isinstance(caught.value, quire.InvalidArgument)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is quire.InvalidArgument
    assert (copy.code, str(copy)) == (caught.value.code, str(caught.value))


def test_what_there_is_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert quire.__version__ == quire.version()
    assert [kernel.name for kernel in quire.kernels()][-1] == "cpu.portable"
    assert quire.devices()[0].device == quire.Device("cpu")
    assert "cores: " in quire.devices()[0].facts
    text = quire.info()
    assert text.startswith(f"quire {quire.version()}, ")
    assert "  cpu.portable: " in text
    runpy.run_module("quire", run_name="__main__")
    assert capsys.readouterr().out == f"{text}\n"
