# SPDX-License-Identifier: Apache-2.0
"""The benchmark: compare snapshots with Nova's own, and with the limit.

Figures are compared only with figures of the same run.
"""
