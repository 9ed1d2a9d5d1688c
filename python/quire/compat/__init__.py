# SPDX-License-Identifier: Apache-2.0
"""The interfaces of other attention libraries, served by quire's kernels: docs/compat.md."""
