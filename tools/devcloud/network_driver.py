# SPDX-License-Identifier: Apache-2.0
"""A mechanism driver for Neutron: ports are tap devices without a bridge.

The cloud has no network agents. So that Nova can give a guest a port, this
driver binds each port on any host.
"""

from neutron_lib.api.definitions import portbindings
from neutron_lib.plugins.ml2 import api


class TapMechanismDriver(api.MechanismDriver):

    def initialize(self) -> None:
        """Do nothing: there is no agent, and no device."""

    def bind_port(self, context: api.PortContext) -> None:
        segment = context.segments_to_bind[0]
        context.set_binding(
            segment[api.ID], portbindings.VIF_TYPE_TAP,
            {portbindings.CAP_PORT_FILTER: False}, status='ACTIVE')
