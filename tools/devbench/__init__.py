# SPDX-License-Identifier: Apache-2.0
"""The benchmark: what a snapshot costs, beside Nova's and beside the limit.

What is measured is only ever compared with what was measured in the same run.
"""
