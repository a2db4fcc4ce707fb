# A Ceph cluster of one monitor and one OSD in memory, on the loopback, as plain processes. To be sourced; needs
# scenario.sh. There is no manager: pools, images, clones and encryption need none.

# ceph_start DIR: starts one; CEPH_ARGS then names it to Ceph's programs. $CEPH_PORT is the monitor's.
ceph_start() {
    local dir=$1 fsid osd key
    fsid=$(cat /proc/sys/kernel/random/uuid) osd=$(cat /proc/sys/kernel/random/uuid)
    CEPH_PORT=$(free_port)
    mkdir -p "$dir"/{mon,osd,run}
    # The short interval is what makes it ready in two seconds instead of eleven.
    cat >"$dir/ceph.conf" <<CONF
[global]
fsid = $fsid
mon host = v1:127.0.0.1:$CEPH_PORT
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = $dir/keyring
run dir = $dir/run
admin socket = $dir/run/\$name.\$pid.asok
log file = $dir/\$name.log
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail warn = 1
mon data avail crit = 0
osd pool default pg autoscale mode = off
paxos propose interval = 0.02
paxos min wait = 0.01
mon data = $dir/mon
mon initial members = a
osd data = $dir/osd
osd objectstore = memstore
memstore device bytes = 1073741824
osd class update on start = true
CONF
    # What a client gets that is not root here: no keyring, or QEMU would log in without its secret.
    printf '[global]\nfsid = %s\nmon host = v1:127.0.0.1:%s\nkeyring = /dev/null\n' "$fsid" "$CEPH_PORT" >"$dir/client.conf"
    export CEPH_ARGS="-c $dir/ceph.conf --keyring $dir/keyring"
    ceph-authtool --create-keyring "$dir/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
    ceph-authtool "$dir/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' >/dev/null
    monmaptool --create --fsid "$fsid" --addv a "[v1:127.0.0.1:$CEPH_PORT]" "$dir/monmap" >/dev/null
    ceph-mon -i a --mkfs --monmap "$dir/monmap"
    server ceph-mon -f -i a
    until_true 60 ceph --connect-timeout 5 mon stat
    key=$(ceph-authtool --gen-print-key)
    echo "{\"cephx_secret\":\"$key\"}" | ceph osd new "$osd" -i - >/dev/null
    ceph-authtool --create-keyring "$dir/osd/keyring" --name osd.0 --add-key "$key" >/dev/null
    CEPH_ARGS="-c $dir/ceph.conf" ceph-osd -i 0 --mkfs --osd-uuid "$osd" --keyring "$dir/osd/keyring" >/dev/null 2>&1
    CEPH_ARGS="-c $dir/ceph.conf" server ceph-osd -f -i 0 --keyring "$dir/osd/keyring"
    until_true 60 eval 'ceph osd stat -f json | has "\"num_up_osds\":1"'
    ceph osd pool create rbd 8 >/dev/null 2>&1
    rbd pool init rbd
    ceph auth get-or-create client.vm mon 'profile rbd' osd 'profile rbd' -o "$dir/vm.keyring"
}
