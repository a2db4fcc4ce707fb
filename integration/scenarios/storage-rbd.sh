#!/bin/bash
# Disks in a Ceph cluster: librbd's encryption (luks, luks2) and QEMU's own on RBD images, logging in with cephx. With the
# librbd of Ceph 16, as Debian 12 has it, luks-any and layers are told as what they are: what it cannot do.
. "$(dirname "$0")/../lib/storage.sh"
. "$REPO/integration/lib/ceph.sh"
storage_begin "$PACKAGES_CEPH"

ceph_start "$WORK/ceph"
secret volume images "$(openssl rand -hex 24)"
# As ceph prints it, base64; what QEMU gets is the key that it stands for.
secret ceph client.vm "$(ceph-authtool -p -n client.vm "$WORK/ceph/vm.keyring")"
