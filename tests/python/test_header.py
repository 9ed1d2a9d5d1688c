# SPDX-License-Identifier: Apache-2.0
"""What the package repeats of the C headers is what a C compiler and the headers' texts say."""

from __future__ import annotations

import ctypes
import os
import pathlib
import re
import subprocess
from typing import Any

import pytest

import quire
from quire import _library as c
from quire import _serving_library as s

INCLUDE = pathlib.Path(__file__).parents[2] / "include"
HEADERS = ("quire/quire.h", "quire/serving.h")
HEADER = "".join((INCLUDE / name).read_text(encoding="utf-8") for name in HEADERS)
CODE = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.S)

STRUCTS: dict[str, type[ctypes.Structure]] = {
    "quire_device": c.Device,
    "quire_seq_id": c.SeqId,
    "quire_copy_op": c.CopyOp,
    "quire_attention_spec": c.AttentionSpec,
    "quire_batch_limits": c.BatchLimits,
    "quire_attention_options": c.AttentionOptions,
    "quire_page_pool_spec": c.PagePoolSpec,
    "quire_page_table_spec": c.PageTableSpec,
    "quire_kernel_info": c.KernelInfo,
    "quire_device_info": c.DeviceInfo,
    "quire_prefix_cache_spec": s.PrefixCacheSpec,
    "quire_retention": s.Retention,
    "quire_prefix_cache_stats": s.PrefixCacheStats,
    "quire_prefix_event": s.PrefixEvent,
    "quire_restored_page": s.RestoredPage,
    "quire_host_match": s.HostMatch,
    "quire_batch_entry": s.BatchEntry,
    "quire_batch_shape": s.BatchShape,
    "quire_staged_batch": s.StagedBatch,
    "quire_batcher_spec": s.BatcherSpec,
    "quire_request": s.Request,
    "quire_step_budget": s.StepBudget,
    "quire_step_item": s.StepItem,
    "quire_batcher_stats": s.BatcherStats,
    "quire_recorder_spec": s.RecorderSpec,
    "quire_request_event": s.RequestEvent,
    "quire_step_record": s.StepRecord,
    "quire_request_record": s.RequestRecord,
    "quire_record_counts": s.RecordCounts,
}
# Structs that are packed, with the fields that a format packs, in order.
PACKED = {
    "quire_tensor": ("@P4i4q4q", ("data", "dtype", "rank", "device", "shape", "strides")),
    "quire_copy_tensors": ("@P4i4q4qP4i4q4q", ("dst", "src")),
    "quire_call_options": (c.CALL_OPTIONS.format, ("struct_size", "stream", "check")),
    "quire_check_record": (
        c.CHECK_RECORD.format,
        ("what", "seq", "position", "value", "bound"),
    ),
}
FUNCTIONS = {**c.UNLOCKED, **c.LOCKED, **s.LOCKED}
UNUSED_STRUCTS = {"quire_executor_callbacks"}  # Python's lock would serialise such an executor
UNUSED_FUNCTIONS = {
    "quire_attention_get_limits",
    "quire_dtype_name",
    "quire_executor_create",
    "quire_staged_batch_as_batch",
    "quire_staged_batch_slots",
    "quire_status_name",
    "quire_tensor_packed",
}
ENUMERATORS: dict[str, dict[str, int]] = {
    "quire_status_code": {f"QUIRE_{code.name}": code.value for code in quire.ErrorCode},
    "quire_dtype_code": {
        "QUIRE_DTYPE_NONE": 0,
        **{f"QUIRE_{name.upper()}": code for name, code in c.DTYPES.items()},
    },
    "quire_device_type": {
        "QUIRE_DEVICE_CPU": c.DEVICE_CPU,
        "QUIRE_DEVICE_CUDA": c.DEVICE_CUDA,
    },
    "quire_kv_layout": {f"QUIRE_LAYOUT_{name}": code for name, code in c.KV_LAYOUTS.items()},
    "quire_mask": {f"QUIRE_MASK_{name.upper()}": code for name, code in c.MASKS.items()},
    "quire_kv_scale": {f"QUIRE_SCALE_{name.upper()}": code for name, code in c.KV_SCALES.items()},
    "quire_prefix_event_kind": {
        "QUIRE_PREFIX_STORED": s.PREFIX_STORED,
        "QUIRE_PREFIX_REMOVED": s.PREFIX_REMOVED,
    },
    "quire_event_kind": {f"QUIRE_EVENT_{kind.name}": kind.value for kind in quire.EventKind},
}
CONSTANTS = {
    "QUIRE_MAX_RANK": c.MAX_RANK,
    "QUIRE_CONTIGUOUS_KV": quire.CONTIGUOUS_KV,
    "QUIRE_MAX_PREFIX_LEVELS": quire.MAX_PREFIX_LEVELS,
    "QUIRE_WORKSPACE_ALIGNMENT": c.WORKSPACE_ALIGNMENT,
    "QUIRE_NO_PAGE": quire.NO_PAGE,
    "QUIRE_OMITTED": quire.OMITTED,
    "QUIRE_STAGING_ALIGNMENT": s.STAGING_ALIGNMENT,
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Values of C expressions, by their text."""
    expressions = list(CONSTANTS)
    for names in ENUMERATORS.values():
        expressions += names
    for struct, fields in all_fields().items():
        expressions.append(f"sizeof({struct})")
        for field in fields:
            expressions.append(f"offsetof({struct}, {field})")
            expressions.append(f"sizeof((({struct}*)0)->{field})")
    work = tmp_path_factory.mktemp("header")
    lines = "\n".join(f'  printf("%lld %s\\n", (long long)({e}), "{e}");' for e in expressions)
    includes = "".join(f'#include "{name}"\n' for name in HEADERS)
    program = f"#include <stddef.h>\n#include <stdio.h>\n{includes}"
    (work / "values.c").write_text(f"{program}int main(void) {{\n{lines}\n  return 0;\n}}\n")
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-std=c99", f"-I{INCLUDE}", "values.c", "-o", "values"], cwd=work, check=True
    )
    output = subprocess.run([work / "values"], check=True, capture_output=True, text=True).stdout
    values = (line.split(" ", 1) for line in output.splitlines())
    return {expression: int(value) for value, expression in values}


def all_fields() -> dict[str, list[str]]:
    fields = {name: [field[0] for field in struct._fields_] for name, struct in STRUCTS.items()}
    fields.update({name: list(names) for name, (_, names) in PACKED.items()})
    fields.update({name: ["struct_size", *names] for name, names in c.TENSORS.items()})
    return fields


def test_every_struct_of_the_header_is_known() -> None:
    structs = set(re.findall(r"typedef struct (\w+) \{", CODE))
    assert structs == {*all_fields(), *UNUSED_STRUCTS}


@pytest.mark.parametrize("name", STRUCTS)
def test_fields_of_ctypes_structs_lie_where_c_has_them(name: str, compiled: dict[str, int]) -> None:
    struct = STRUCTS[name]
    assert ctypes.sizeof(struct) == compiled[f"sizeof({name})"]
    for field, *_ in struct._fields_:
        member = getattr(struct, field)
        assert member.offset == compiled[f"offsetof({name}, {field})"], field
        assert member.size == compiled[f"sizeof((({name}*)0)->{field})"], field


@pytest.mark.parametrize("name", PACKED)
def test_packed_structs_have_the_fields_of_c_in_order(name: str, compiled: dict[str, int]) -> None:
    import struct

    layout, fields = PACKED[name]
    assert struct.calcsize(layout) == compiled[f"sizeof({name})"]
    end = 0
    for field in fields:  # without gaps, and so where the format has them
        assert compiled[f"offsetof({name}, {field})"] == end, field
        end += compiled[f"sizeof((({name}*)0)->{field})"]
    assert end == compiled[f"sizeof({name})"]


def test_a_packed_tensor_is_a_pointer_and_a_layout() -> None:
    assert len(c.NO_TENSOR) == c.POINTER_SIZED.size + c.TENSOR_LAYOUT.size
    assert PACKED["quire_tensor"][0].replace("P", "") == c.TENSOR_LAYOUT.format


@pytest.mark.parametrize("name", c.TENSORS)
def test_structs_of_tensors_have_the_fields_of_c_in_order(
    name: str, compiled: dict[str, int]
) -> None:
    end = c.SIZE.size
    for field in c.TENSORS[name]:
        assert compiled[f"offsetof({name}, {field})"] == end, field
        end += len(c.NO_TENSOR)
    assert end == compiled[f"sizeof({name})"]
    assert c.tensors_header(name) == c.SIZE.pack(end)


@pytest.mark.parametrize("name", ENUMERATORS)
def test_enumerators_have_the_values_of_c(name: str, compiled: dict[str, int]) -> None:
    body = re.search(rf"enum {name} \{{(.*?)\}}", CODE, re.S)
    assert body is not None
    assert set(re.findall(r"\b(QUIRE_\w+)\b\s*=", body[1])) == set(ENUMERATORS[name])
    for enumerator, value in ENUMERATORS[name].items():
        assert value == compiled[enumerator], enumerator


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_have_the_values_of_c(name: str, compiled: dict[str, int]) -> None:
    assert CONSTANTS[name] == compiled[name]


def declared_functions() -> dict[str, tuple[str, list[str]]]:
    """Kind of the result and of each parameter, by function."""
    functions = {}
    pattern = r"QUIRE_API\s+([\w\s*]+?)\s*(\bquire_\w+)\(([^)]*)\)\s*QUIRE_NOEXCEPT;"
    for result, name, parameters in re.findall(pattern, CODE):
        declarations = " ".join(parameters.split()).split(", ")
        kinds = [c_kind(each) for each in declarations if each != "void"]
        functions[name] = (c_kind(f"{result} result"), kinds)
    return functions


def c_kind(declaration: str) -> str:
    """How a parameter is passed, of its type and name."""
    if "*" in declaration:
        return "pointer"
    type_name = declaration.split()[-2]
    # ctypes cannot tell size_t from uint64_t where both are one type.
    one: Any = ctypes.c_uint64
    same = {"uint64_t": "size_t"} if one is ctypes.c_size_t else {}
    return {"quire_status": "int32_t", "quire_dtype": "int32_t", **same}.get(type_name, type_name)


def ctypes_kind(kind: Any) -> str:
    if kind is None:
        return "void"
    if kind in (ctypes.c_void_p, ctypes.c_char_p) or hasattr(kind, "contents"):
        return "pointer"
    names = {
        ctypes.c_double: "double",
        ctypes.c_int32: "int32_t",
        ctypes.c_int64: "int64_t",
        ctypes.c_uint64: "uint64_t",
        ctypes.c_size_t: "size_t",
        s.BatchShape: "quire_batch_shape",
        s.PrefixListener: "quire_prefix_listener",
        c.Device: "quire_device",
        c.SeqId: "quire_seq_id",
    }
    return names[kind]


def test_every_function_of_the_header_is_known() -> None:
    used = {name for name in declared_functions() if not name.endswith("_init")}
    assert used == {*FUNCTIONS, *UNUSED_FUNCTIONS}
    assert len(FUNCTIONS) == len(c.UNLOCKED) + len(c.LOCKED) + len(s.LOCKED)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_parameters_of_the_header(name: str) -> None:
    result, parameters = FUNCTIONS[name]
    assert (ctypes_kind(result), list(map(ctypes_kind, parameters))) == declared_functions()[name]
