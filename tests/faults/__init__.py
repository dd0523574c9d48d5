# SPDX-License-Identifier: Apache-2.0
"""Faults at every point of a snapshot: nova-compute is killed, fails or waits.

These tests run on the small real cloud. The package itself has no code for
them: each point is a call of a function, which is wrapped from outside (see
hook).
"""

import tests.e2e  # noqa: F401  This makes devcloud importable.
