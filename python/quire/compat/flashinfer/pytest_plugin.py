# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's name for quire's package, so that its own test files run unchanged::

    python -m pytest -p quire.compat.flashinfer.pytest_plugin tests/attention/test_page.py

`import flashinfer` gives `quire.compat.flashinfer` then, and `flashinfer.anything` that quire lacks
a module of placeholders, which raise NotImplementedError when they are called: files import them
at their head, whether their tests need them or not.
"""

from __future__ import annotations

import enum
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any, Optional

import torch

from . import __name__ as _package
from . import _checks

_ALIAS = "flashinfer"


class PosEncodingMode(enum.Enum):
    """The values that FlashInfer's kernels know them by."""

    NONE = 0
    ROPE_LLAMA = 1
    ALIBI = 2


class MaskMode(enum.Enum):
    """Likewise."""

    NON_CAUSAL = 0
    CAUSAL = 1
    CUSTOM = 2
    MULTIITEMSCORING = 3


class TensorLayout(enum.Enum):
    """Likewise."""

    NHD = 0
    HND = 1


class GPUArchitectureError(Exception):
    """What FlashInfer raises for an architecture that a kernel does not serve."""


def _capability(device: Any = None) -> tuple[int, int]:
    if not torch.cuda.is_available():
        return (0, 0)
    major, minor = torch.cuda.get_device_capability(device)
    return int(major), int(minor)


def _is_sm90(device: Any = None) -> bool:
    return _capability(device)[0] == 9


def _never(*arguments: Any, **options: Any) -> bool:
    return False


#: `flashinfer.utils`, as far as tests ask it.
_UTILS = {
    "GPUArchitectureError": GPUArchitectureError,
    "MaskMode": MaskMode,
    "available_backends": tuple,  # asked by their conftest of other parts: none
    "PosEncodingMode": PosEncodingMode,
    "TensorLayout": TensorLayout,
    "get_alibi_slopes": _checks.alibi_slopes,
    "get_compute_capability": _capability,
    "has_flashinfer_jit_cache": lambda: True,  # nothing is compiled at run time
    "is_fa3_backend_supported": _is_sm90,
    "is_sm90a_supported": _is_sm90,
    **dict.fromkeys(
        (
            "is_sm100a_supported",
            "is_sm110a_supported",
            "is_sm120a_supported",
            "is_sm121a_supported",
            "is_sm12x_supported",
            "is_cute_dsl_available",
        ),
        _never,
    ),
}


class _Placeholder(type):
    """A class whose name FlashInfer has; making one of it, or calling it, raises."""

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        raise NotImplementedError(f"{cls.__module__}.{cls.__name__} is not served by quire")

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(cls.__module__, f"{cls.__name__}.{name}")


def _placeholder(module: str, name: str) -> Any:
    if name.endswith("Error"):
        return type(name, (Exception,), {"__module__": module})
    return _Placeholder(name, (), {"__module__": module})


class _Module(types.ModuleType):
    """A module of placeholders over what quire has."""

    __path__ = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _UTILS.get(name)
        if value is None:
            value = _placeholder(self.__name__, name)
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `flashinfer` and whatever may lie below it."""

    def find_spec(
        self, name: str, path: Optional[Sequence[str]], target: Any = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if name != _ALIAS and not name.startswith(_ALIAS + "."):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Module(spec.name)
        ours = _package + spec.name[len(_ALIAS) :]
        try:
            found = importlib.import_module(ours)
        except ImportError:
            return module
        for name, value in vars(found).items():
            if not name.startswith("__") and not isinstance(value, types.ModuleType):
                setattr(module, name, value)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == _ALIAS:
            for name in ("attention", "cascade", "decode", "page", "prefill", "quantization"):
                importlib.import_module(f"{_ALIAS}.{name}")
            for name in ("jit", "mla", "sparse", "utils"):
                importlib.import_module(f"{_ALIAS}.{name}")


def install() -> None:
    """Makes `import flashinfer` give quire's package in this process."""
    if _ALIAS in sys.modules and not isinstance(sys.modules[_ALIAS], _Module):
        raise RuntimeError("flashinfer itself is imported already")
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


install()
