# SPDX-License-Identifier: Apache-2.0
"""The C ABI's status codes as exceptions."""

from __future__ import annotations

import enum


class ErrorCode(enum.IntEnum):
    """What went wrong; the values are those of `quire_status_code` and never change."""

    OK = 0
    INVALID_ARGUMENT = 1
    UNSUPPORTED = 2
    OUT_OF_PAGES = 3
    BAD_HANDLE = 4
    TOO_LONG = 5
    QUEUE_FULL = 6
    WORKSPACE_TOO_SMALL = 7
    OUT_OF_MEMORY = 8
    DEVICE_ERROR = 9
    INTERNAL = 10


class Error(Exception):
    """A call failed. Its text is one sentence: what was expected, what came, what comes nearest.

    Codes that callers treat differently have classes of their own below; the others are raised as
    `Error` itself.
    """

    #: What went wrong.
    code: ErrorCode

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code

    def __reduce__(self) -> tuple[type[Error], tuple[ErrorCode, str]]:
        return type(self), (self.code, str(self))


class InvalidArgument(Error, ValueError):
    """A shape, dtype, stride, length, index or flag is wrong."""


class Unsupported(Error):
    """No kernel serves this; the text names the nearest one."""


class OutOfPages(Error):
    """Not enough free pages: an ordinary outcome, and nothing changed."""


class BadHandle(Error):
    """A sequence, page or object that is not live, or is somebody else's."""


class TooLong(Error, ValueError):
    """A length exceeds a declared maximum."""


class QueueFull(Error):
    """No room for another sequence: an ordinary outcome, and nothing changed."""


_CLASSES = {
    ErrorCode.INVALID_ARGUMENT: InvalidArgument,
    ErrorCode.UNSUPPORTED: Unsupported,
    ErrorCode.OUT_OF_PAGES: OutOfPages,
    ErrorCode.BAD_HANDLE: BadHandle,
    ErrorCode.TOO_LONG: TooLong,
    ErrorCode.QUEUE_FULL: QueueFull,
}


def error_of(status: int, text: str) -> Error:
    """The exception of a status other than `OK`."""
    try:
        code = ErrorCode(status)
    except ValueError:  # a code that a newer library has
        return Error(ErrorCode.INTERNAL, f"{text} (status {status})")
    return _CLASSES.get(code, Error)(code, text)


def invalid(where: str, name: str, sentence: str) -> InvalidArgument:
    """Bad input that is seen before the library is called, in the library's words."""
    return InvalidArgument(ErrorCode.INVALID_ARGUMENT, f"[{where}] {name}: {sentence}")
