# SPDX-License-Identifier: Apache-2.0
"""torch tensors, and the operations as custom operators. Skipped where there is no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import quire
from reference import MIXED, Array, attention, paged, random_requests

torch = pytest.importorskip("torch")

DEVICES = ["cpu"]
if torch.cuda.is_available() and len(quire.devices()) > 1:
    DEVICES.append("cuda")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def on(device: str, array: Array, dtype: Any = None) -> Any:
    return torch.from_numpy(array).to(device, dtype)


class Case:
    """A mixed batch on a device, and what comes of it."""

    def __init__(self, device: str, dtype: Any) -> None:
        rng = np.random.default_rng(11)
        requests = random_requests(rng, MIXED, num_kv_heads=2, head_dim_qk=64)
        q = rng.standard_normal((requests.qo_indptr[-1], 4, 64)).astype(np.float32)
        # Values that bfloat16 has too, so that the reference sees the same.
        for rows in (requests.k, requests.v):
            rows[:] = [torch.from_numpy(row).bfloat16().float().numpy() for row in rows]
        q = torch.from_numpy(q).bfloat16().float().numpy()
        cache = paged(rng, requests, 16)
        self.expected = attention(q, requests)
        self.q, self.k, self.v = (on(device, array, dtype) for array in (q, cache.k, cache.v))
        self.batch = {
            "qo_indptr": on(device, requests.qo_indptr),
            "kv_len": on(device, cache.kv_len),
            "page_table": on(device, cache.page_table),
        }

    def check(self, o: Any, lse: Any) -> None:
        # Whatever o is stored as: weights have the precision of q on tensor cores.
        tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[self.q.dtype]
        np.testing.assert_allclose(
            o.float().cpu(), self.expected[0], atol=tolerance, rtol=tolerance
        )
        np.testing.assert_allclose(lse.cpu(), self.expected[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_attention_of_tensors(device: str, dtype: str) -> None:
    case = Case(device, getattr(torch, dtype))
    o, lse = quire.attention(case.q, case.k, case.v, return_lse=True, checked=True, **case.batch)
    assert (o.dtype, o.device, lse.dtype) == (case.q.dtype, case.q.device, torch.float32)
    case.check(o, lse)
    o, lse = quire.attention(
        case.q, case.k, case.v, o_dtype=torch.float32, return_lse=True, **case.batch
    )
    assert o.dtype == torch.float32
    case.check(o, lse)


def test_schedule_and_run_on_the_current_stream(device: str) -> None:
    case = Case(device, torch.bfloat16)
    spec = quire.AttentionSpec(4, 2, 64, q_dtype=torch.bfloat16)
    attend = quire.Attention(spec, quire.BatchLimits(16, 256, 1024), device=torch.device(device))
    record = quire.CheckRecord(device)
    step = attend.schedule(quire.Batch(**case.batch), attend.allocate_workspaces(), check=record)
    o = torch.full_like(case.q, float("nan"))
    _, lse = attend.run(
        step, case.q, quire.view(case.k), case.v, o=o, return_lse=True, check=record
    )
    record.raise_if_offended()
    case.check(o, lse)


def test_views_have_the_tensors_address_and_strides() -> None:
    base = torch.zeros(4, 6, 8, dtype=torch.bfloat16)
    for tensor in (base, base[1:, ::2], base.transpose(0, 1), torch.nn.Parameter(base, False)):
        view = quire.view(tensor)
        assert view.pointer == tensor.data_ptr()
        assert view.shape == tuple(tensor.shape)
        assert view.strides == tensor.stride()
        assert view.dtype == "bfloat16"
    assert quire.view(torch.zeros(3, dtype=torch.uint8), "float8_e5m2").dtype == "float8_e5m2"
    assert quire.view(torch.zeros(3, dtype=torch.float8_e4m3fn)).dtype == "float8_e4m3"


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (torch.zeros(3, dtype=torch.float64), "got float64"),
        (torch.zeros(3, requires_grad=True), r"no gradient.*under torch\.no_grad\(\)"),
        (torch.zeros(3, 3).to_sparse(), r"strided tensor, got torch\.sparse_coo"),
        (torch.zeros(3, device="meta"), "on cpu or cuda, got one on meta"),
    ],
)
def test_what_cannot_be_viewed_gets_a_sentence(tensor: Any, sentence: str) -> None:
    with pytest.raises(quire.InvalidArgument, match=sentence):
        quire.view(tensor)


def test_tensors_that_require_gradients_are_read_where_none_is_taken() -> None:
    tensor = torch.zeros(3, requires_grad=True)
    with torch.no_grad():
        assert quire.view(tensor).pointer == tensor.data_ptr()


def test_operators_pass_torchs_own_checks(device: str) -> None:
    from quire import torch_ops

    case = Case(device, torch.bfloat16)
    arguments = (case.q, case.k, case.v)
    torch.library.opcheck(torch_ops.attention.default, arguments, case.batch)
    torch.library.opcheck(
        torch_ops.attention.default,
        arguments,
        {**case.batch, "o_dtype": torch.float32, "window_left": 5, "logits_soft_cap": 3.0},
    )
    rows = torch.randn(6, 2, 64, device=device)
    caches = [torch.zeros(3, 16, 2, 64, device=device) for _ in range(2)]
    slots = torch.tensor([0, 3, -1, 40, 7, 9], device=device)
    torch.library.opcheck(torch_ops.append.default, (rows, rows, *caches), {"slot_mapping": slots})
    o_parts, lse_parts = (
        torch.randn(2, 3, 4, 64, device=device),
        torch.randn(2, 3, 4, device=device),
    )
    torch.library.opcheck(torch_ops.merge_states.default, (o_parts, lse_parts))


def test_operators_give_what_the_functions_give(device: str) -> None:
    from quire import torch_ops

    case = Case(device, torch.bfloat16)
    o, lse = torch_ops.attention(case.q, case.k, case.v, **case.batch)
    case.check(o, lse)
    k, v = torch.zeros_like(case.k), torch.zeros_like(case.v)
    rows = torch.randn(case.q.shape[0], 2, 64, device=device)
    torch_ops.append(rows, rows, k, v, **case.batch)
    expected = torch.zeros_like(case.k)
    quire.append(rows, rows, expected, torch.zeros_like(v), batch=quire.Batch(**case.batch))
    assert torch.equal(k, expected)
    assert torch.equal(k, v)


def test_a_compiled_graph_holds_the_operator(device: str) -> None:
    from quire import torch_ops

    case = Case(device, torch.float32)

    @torch.compile(backend="aot_eager", fullgraph=True)  # type: ignore[untyped-decorator]
    def layer(q: Any, k: Any, v: Any, batch: dict[str, Any]) -> Any:
        o, lse = torch_ops.attention(q, k, v, **batch)
        return o * 1, lse

    case.check(*layer(case.q, case.k, case.v, case.batch))
