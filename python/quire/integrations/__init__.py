# SPDX-License-Identifier: Apache-2.0
"""quire inside of other packages: docs/compat.md."""
