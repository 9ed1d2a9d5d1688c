# SPDX-License-Identifier: Apache-2.0
"""Views see the caller's memory, whoever made it, and copy nothing."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import quire
from quire import _arrays, _tensors


class Exporter:
    """An array that is known by one protocol only."""

    def __init__(self, array: Any) -> None:
        self.array = array


class DLPack(Exporter):
    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class OldDLPack(DLPack):
    """As exporters were before DLPack 1.0."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        return self.array.__dlpack__()


class ArrayInterface(Exporter):
    @property
    def __array_interface__(self) -> Any:
        return self.array.__array_interface__


class CudaArrayInterface(Exporter):
    """Of memory that is not on a GPU: views do not follow pointers."""

    @property
    def __cuda_array_interface__(self) -> Any:
        return {**self.array.__array_interface__, "version": 3, "stream": None}


ARRAYS = [
    np.zeros((3, 4, 5), np.float32),
    np.zeros((3, 8, 5), np.float16)[:, ::2],
    np.zeros((6, 4), np.int32)[::-1],
    np.zeros(7, np.int64)[2:],
    np.zeros((2, 0, 3), np.uint8),
    np.zeros((), np.uint32),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
@pytest.mark.parametrize(
    "kind", [lambda a: a, DLPack, OldDLPack, ArrayInterface, CudaArrayInterface]
)
def test_views_have_the_arrays_address_shape_and_strides(kind: Any, array: Any) -> None:
    given = kind(array)
    view = quire.view(given)
    assert view.owner is given
    assert view.pointer == array.ctypes.data
    assert view.dtype == array.dtype.name
    assert view.shape == array.shape
    assert view.nbytes == array.nbytes
    for size, stride, expected in zip(view.shape, view.strides, array.strides):
        assert size <= 1 or not array.size or stride * array.itemsize == expected
    assert view.device.type == ("cuda" if kind is CudaArrayInterface else "cpu")
    assert view.is_contiguous == (array.flags.c_contiguous)


def test_views_of_views_are_themselves() -> None:
    view = quire.view(np.zeros(3, np.float32))
    assert quire.view(view) is view
    assert quire.view(view, "int32").dtype == "int32"


@pytest.mark.parametrize("kind", [lambda a: a, ArrayInterface, DLPack])
def test_bits_are_viewed_as_what_they_are_said_to_be(kind: Any) -> None:
    assert quire.view(kind(np.zeros(3, np.uint16)), "bfloat16").dtype == "bfloat16"
    assert quire.view(kind(np.zeros(3, np.uint8)), "float8_e4m3").dtype == "float8_e4m3"
    with pytest.raises(quire.InvalidArgument, match=r"4 bytes \(float32\), got uint16"):
        quire.view(kind(np.zeros(3, np.uint16)), "float32")
    with pytest.raises(quire.InvalidArgument, match=r'view\(array, "bfloat16"\)'):
        quire.view(kind(np.zeros(3, np.uint16)))


def test_ml_dtypes_are_known_by_name() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype, name in (
        (ml_dtypes.bfloat16, "bfloat16"),
        (ml_dtypes.float8_e4m3fn, "float8_e4m3"),
        (ml_dtypes.float8_e5m2, "float8_e5m2"),
    ):
        assert quire.view(np.zeros(3, dtype)).dtype == name
        assert quire.AttentionSpec(1, 1, 64, q_dtype=dtype).q_dtype == name
    # Another format of the same width is not taken for it.
    with pytest.raises(quire.InvalidArgument, match="got float8_e4m3fnuz"):
        quire.view(np.zeros(3, ml_dtypes.float8_e4m3fnuz))


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        ([1, 2], "expected a NumPy array, a torch tensor or .*, got list"),
        (np.zeros(3), "expected one of float32, .*, got float64"),
        (np.zeros(3, ">f4"), "got >f4"),
        (np.zeros(3, bool), "got bool"),
        (np.ma.zeros(3, np.float32), "without a mask"),
        (np.zeros(3, [("a", "f4")]), "got void32"),
        (np.zeros((1,) * 5, np.float32), r"at most 4 axes, got shape \[1, 1, 1, 1, 1\]"),
        (
            np.ndarray((2,), np.float32, np.zeros(12, np.uint8), strides=(6,)),
            r"strides in multiples of 4 bytes, got \[6\]",
        ),
        (DLPack(np.zeros((1,) * 5, np.float32)), "at most 4 axes"),
        (DLPack(np.zeros(3)), "got float64"),
        (DLPack(np.zeros(3, bool)), r"got bool|DLPack only supports"),
        (DLPack(np.zeros(3, complex)), "got DLPack type 5 of bits 128"),
    ],
)
def test_what_cannot_be_viewed_gets_a_sentence(array: Any, sentence: Any) -> None:
    with pytest.raises(quire.InvalidArgument, match=sentence):
        quire.view(array)
    with pytest.raises(quire.InvalidArgument, match=r"^\[attention\] q: expected"):
        quire.attention(array, array, array, qo_indptr=np.zeros(1, np.int32))


EXPORTS_READ_ONLY = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="this NumPy exports none by DLPack"
)


@pytest.mark.parametrize(
    "kind",
    [lambda a: a, ArrayInterface, pytest.param(DLPack, marks=EXPORTS_READ_ONLY), quire.view],
)
def test_nothing_is_written_to_read_only_arrays(kind: Any) -> None:
    q = np.zeros((1, 1, 64), np.float32)
    pages = np.zeros((1, 16, 1, 64), np.float32)
    o = np.zeros_like(q)
    o.flags.writeable = False
    with pytest.raises(quire.InvalidArgument, match=r"o: expected .* written to, got a read-only"):
        quire.attention(
            q,
            pages,
            pages,
            o=kind(o),
            qo_indptr=np.array([0, 1], np.int32),
            kv_len=np.array([1], np.int32),
            page_table=np.array([[0]], np.int32),
        )


@pytest.mark.parametrize(
    "kind", [lambda a: a, ArrayInterface, pytest.param(DLPack, marks=EXPORTS_READ_ONLY)]
)
def test_read_only_inputs_are_read(kind: Any) -> None:
    frozen = np.zeros(4, np.float32)
    frozen.flags.writeable = False
    assert quire.view(kind(frozen)).readonly


def test_an_export_that_fails_gets_a_sentence() -> None:
    class Unwilling(DLPack):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("not today")

    with pytest.raises(quire.InvalidArgument, match="exports without a copy: not today"):
        quire.view(Unwilling(np.zeros(4, np.float32)))


def test_arrays_that_may_be_written_to_say_so() -> None:
    assert not quire.view(DLPack(np.zeros(4, np.float32))).readonly


def test_views_and_batches_keep_arrays_alive_and_let_go_of_them() -> None:
    for keep in (quire.view, quire.Batch):
        for kind in (Exporter, DLPack):
            array = np.zeros(3, np.int32)
            alive = weakref.ref(array)
            keeper = keep(array if kind is Exporter else kind(array))
            del array
            assert alive() is not None
            del keeper
            gc.collect()
            assert alive() is None


def test_a_capsule_that_owns_a_copy_lives_as_long_as_its_view() -> None:
    class Copying(DLPack):
        """Says "no copy" and makes one, as some exporters did."""

        def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
            copy = self.array.copy()
            self.made = weakref.ref(copy)
            return copy.__dlpack__()

    exporter = Copying(np.zeros(3, np.int32))
    batch = quire.Batch(exporter)
    gc.collect()
    assert exporter.made() is not None
    del batch
    gc.collect()
    assert exporter.made() is None


def test_layouts_that_are_remembered_are_bounded() -> None:
    for size in range(_arrays._MAX_LAYOUTS + 10):
        assert quire.view(np.zeros((size, 1), np.uint8)).shape == (size, 1)
    assert len(_arrays._numpy_layouts) <= _arrays._MAX_LAYOUTS


def test_an_array_that_is_reshaped_in_place_is_seen_anew() -> None:
    array = np.zeros(6, np.float32)
    assert quire.view(array).shape == (6,)
    array.resize((2, 3), refcheck=False)
    assert quire.view(array).shape == (2, 3)
    assert quire.view(array).pointer == array.ctypes.data


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:3", "cuda:3"), (quire.Device("cuda", 2), "cuda:2")],
)
def test_devices_are_named(device: Any, expected: str) -> None:
    assert str(_tensors.as_device(device)) == expected


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", 0, None])
def test_devices_that_do_not_exist_are_refused(device: Any) -> None:
    with pytest.raises(quire.InvalidArgument, match='expected "cpu", "cuda" or "cuda:N"'):
        quire.Attention(quire.AttentionSpec(1, 1, 64), device=device)


def test_a_gpu_array_without_a_stream_is_refused() -> None:
    on_gpu = CudaArrayInterface(np.zeros((1, 1, 64), np.float32))
    with pytest.raises(quire.InvalidArgument, match=r"\[append\] stream: expected a CUDA stream"):
        quire.append(on_gpu, on_gpu, on_gpu, on_gpu)


def test_streams_are_handles_or_objects_that_have_one() -> None:
    from quire._calls import stream_handle

    class Torch:
        cuda_stream = 5

    class CuPy:
        ptr = 6

    class Protocol:
        def __cuda_stream__(self) -> tuple[int, int]:
            return (0, 7)

    assert [stream_handle(s, "run") for s in (0, 4, Torch(), CuPy(), Protocol())] == [0, 4, 5, 6, 7]
    with pytest.raises(quire.InvalidArgument, match=r"\[run\] stream: .* got object"):
        stream_handle(object(), "run")
