# SPDX-License-Identifier: Apache-2.0
"""`python -m quire`: what a bug report should hold."""

from ._info import info

print(info())
