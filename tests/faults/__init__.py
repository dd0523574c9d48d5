# SPDX-License-Identifier: Apache-2.0
"""nova-compute killed, failing and waiting at every point of a snapshot.

On the small real cloud. Nothing of it is in the product: the points are the
boundaries of its functions, which are wrapped from outside (see hook).
"""

import tests.e2e  # noqa: F401  It lets devcloud be imported.
