# SPDX-License-Identifier: Apache-2.0
"""The host loses power: what was not made durable is gone."""
