#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# DevStack plugin: nova-compute with the driver of nova-snapext.
#
#   [[local|localrc]]
#   enable_plugin nova-snapext URL [BRANCH]

# devstack/files/debs and rpms name the packages: stack.sh installs them.

SNAPEXT_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SNAPEXT_APPARMOR=/etc/apparmor.d/abstractions/libvirt-qemu.d

function install_snapext {
    # As a wheel: an editable install can't add a module to Nova.
    setup_install "$SNAPEXT_DIR"
}

function configure_snapext {
    # DevStack copies this file to nova-cpu.conf when nova-compute starts.
    iniset "$NOVA_CONF" DEFAULT compute_driver snapext.SnapextDriver
    if [[ -n $SNAPEXT_AUTO_STRATEGIES ]]; then
        iniset "$NOVA_CONF" snapext auto_strategies "$SNAPEXT_AUTO_STRATEGIES"
    fi
    if [[ -d /etc/apparmor.d ]]; then
        configure_snapext_apparmor
    fi
}

function configure_snapext_apparmor {
    local rules="abstractions/libvirt-qemu.d/nova-snapext"
    sudo install -d -m 755 "$SNAPEXT_APPARMOR"
    # The work directory is below Nova's instances.
    sed "s:/var/lib/nova/instances:$NOVA_INSTANCES_PATH:" \
        "$SNAPEXT_DIR/etc/apparmor.d/$rules" | \
        sudo tee "$SNAPEXT_APPARMOR/nova-snapext" > /dev/null
}

function remove_snapext {
    sudo rm -f "$SNAPEXT_APPARMOR/nova-snapext"
}

if is_service_enabled n-cpu; then
    if [[ "$1" == "stack" && "$2" == "install" ]]; then
        echo_summary "Installing nova-snapext"
        install_snapext
    elif [[ "$1" == "stack" && "$2" == "post-config" ]]; then
        echo_summary "Configuring nova-snapext"
        configure_snapext
    elif [[ "$1" == "clean" ]]; then
        remove_snapext
    fi
fi
