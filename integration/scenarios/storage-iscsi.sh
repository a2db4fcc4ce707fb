#!/bin/bash
# Disks on an iSCSI target with CHAP, LUKS inside: tgtd, which needs no kernel module.
. "$(dirname "$0")/../lib/storage.sh"
storage_begin "$PACKAGES_ISCSI"

iqn=iqn.2026-11.org.vmward:$$
port=$(free_port)
secret iscsi "$iqn" "chap-$(openssl rand -hex 12)"
secret volume luns "$(openssl rand -hex 24)"
for lun in 1 2; do
    luks_image "$WORK/lun$lun" luns
done
slow_image "$WORK/lun3" luns

export TGT_IPC_SOCKET=$WORK/tgtd.sock
target() { tgtadm --lld iscsi "$@"; }
# tgtd does not end while it has targets.
tidy_more() { target --mode target --op delete --force --tid 1 2>/dev/null; target --mode system --op delete 2>/dev/null; }
server tgtd -f --iscsi "portal=127.0.0.1:$port"
until_true 20 target --mode system --op show
target --mode target --op new --tid 1 --targetname "$iqn"
for lun in 1 2 3; do
    target --mode logicalunit --op new --tid 1 --lun $lun --backing-store "$WORK/lun$lun"
done
target --mode target --op bind --tid 1 --initiator-address 127.0.0.1
target --mode account --op new --user vm --password "$(cat "$WORK/right/$iqn")"
target --mode account --op bind --tid 1 --user vm
recorder "$WORK/wire" "$port"

# unit N [USER]: a <source>.
unit() {
    echo "<source protocol='iscsi' name='$iqn/$1'><host name='127.0.0.1' port='$RECORDED'/>
      <auth username='${2:-vm}'><secret type='iscsi' usage='$iqn'/></auth>$(encrypted luns)</source>"
}
linux_xml web1 "$(disk_xml vda network "$(unit 1)")" >"$WORK/web1.xml"
disk_xml vdb network "$(unit 2)" >"$WORK/vdb.xml"

secret_wrong "$iqn"
refused "a start with the wrong CHAP secret" 77 "usage '$iqn' is not what the server of the disk 'vda' accepts" run_guest "$WORK/web1.xml"
secret_right "$iqn"
secret_wrong luns
refused "a start with the wrong passphrase" 77 "usage 'luns' is not the passphrase of the disk 'vda'" run_guest "$WORK/web1.xml"
secret_right luns

linux_start web1 "$WORK/web1.xml"
promise "a guest starts with a disk on it" guest_sees vda
promise "QEMU keeps no secret" keeps_only web1
promise "the guest writes" guest_writes vda A

secret_wrong "$iqn"
not_attached "a second disk with the wrong CHAP secret" 77 "usage '$iqn' is not what the server of the disk 'vdb' accepts" web1 "$WORK/vdb.xml"
secret_right "$iqn"
secret_wrong luns
not_attached "with the wrong passphrase" 77 "usage 'luns' is not the passphrase of the disk 'vdb'" web1 "$WORK/vdb.xml"
secret_right luns
disk_xml vdc network "$(unit 3)" >"$WORK/vdc.xml"
disks_come_and_go
promise "the guest ends" guest_end web1

for lun in 1 2 3; do
    promise "cryptsetup opens unit $lun with the passphrase" cryptsetup open --test-passphrase --type luks1 \
        --key-file "$WORK/right/luns" "$WORK/lun$lun"
done
promise "unit 1 holds what the guest wrote" holds A luns "file.driver=file,file.filename=$WORK/lun1"
promise "so does unit 2" holds B luns "file.driver=file,file.filename=$WORK/lun2"
promise "and unit 3" holds C luns "file.driver=file,file.filename=$WORK/lun3"
promise "none in the clear" unreadable "$WORK"/lun?
promise "nor on the wire, where much went over" eval 'unreadable "$WORK/wire" && [ $(stat -c %s "$WORK/wire") -gt 4000000 ]'
promise "neither the password" absent -qaF "$(cat "$WORK/right/$iqn")" "$WORK/wire"
done_well
