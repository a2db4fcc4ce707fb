#!/bin/bash
# Disks on an NFS server, LUKS inside: nfs-ganesha, which needs no kernel module. QEMU's driver speaks NFS 3, whose servers
# are found by rpcbind.
. "$(dirname "$0")/../lib/storage.sh"
[ "$(id -u)" = 0 ] || skip "an NFS server of one's own takes root"
storage_begin "$PACKAGES_NFS"

secret volume exports "$(openssl rand -hex 24)"
mkdir "$WORK/export"
luks_image "$WORK/export/disk1" exports
for disk in 2 3; do
    slow_image "$WORK/export/disk$disk" exports
done

rpcinfo -p 127.0.0.1 >/dev/null 2>&1 || server rpcbind -f
until_true 20 rpcinfo -p 127.0.0.1
nfs_port=$(free_port)
cat >"$WORK/ganesha.conf" <<CONF
NFS_CORE_PARAM {
    Protocols = 3; NFS_Port = $nfs_port; MNT_Port = $(free_port); Bind_addr = 127.0.0.1;
    Enable_NLM = false; Enable_RQUOTA = false;
}
NFSv4 { RecoveryBackend = fs; }
EXPORT {
    Export_Id = 1; Path = $WORK/export; Pseudo = /export; Protocols = 3;
    Access_Type = RW; Squash = None; SecType = sys; PrivilegedPort = false;
    FSAL { Name = VFS; }
}
CONF
mkdir -p /run/ganesha
server ganesha.nfsd -F -f "$WORK/ganesha.conf" -L "$WORK/ganesha.log" -p "$WORK/ganesha.pid"
until_true 60 qemu-img info "nfs://127.0.0.1$WORK/export/disk1"

# export_of N: a <source>.
export_of() {
    echo "<source protocol='nfs' name='$WORK/export/disk$1'><host name='127.0.0.1'/>$(encrypted exports)</source>"
}
linux_xml web1 "$(disk_xml vda network "$(export_of 1)")$(disk_xml vdb network "$(export_of 2)")" >"$WORK/web1.xml"
disk_xml vdc network "$(export_of 3)" >"$WORK/vdc.xml"

secret_wrong exports
refused "a start with the wrong passphrase" 77 "no key slot opens|usage 'exports' is not the passphrase" run_guest "$WORK/web1.xml"
secret_right exports
linux_start web1 "$WORK/web1.xml"
promise "a guest starts with two disks on it" eval 'guest_sees vda && guest_sees vdb'
unlocked "the key of the slow one was derived by vmward" web1 vdb
promise "QEMU keeps no secret" keeps_only web1
promise "the guest writes" eval 'guest_writes vda A && guest_writes vdb B'
secret_wrong exports
not_attached "a third with the wrong passphrase" 77 "no key slot opens|usage 'exports' is not the passphrase" web1 "$WORK/vdc.xml"
secret_right exports
promise "with the right one it is plugged in" "$vmward" attach-device web1 "$WORK/vdc.xml"
unlocked "its key was derived by vmward" web1 vdc
promise "the guest sees it and writes" eval 'guest_sees vdc && guest_writes vdc C'
promise "and reads all three" eval 'guest_reads vda A && guest_reads vdb B && guest_reads vdc C'
promise "it is taken out" "$vmward" detach-device web1 vdc
promise "and leaves nothing" keeps_only web1
promise "the guest ends" guest_end web1

for disk in 1 2 3; do
    promise "cryptsetup opens disk $disk with the passphrase" cryptsetup open --test-passphrase --type luks1 \
        --key-file "$WORK/right/exports" "$WORK/export/disk$disk"
done
promise "disk 1 holds what the guest wrote" holds A exports "file.driver=file,file.filename=$WORK/export/disk1"
promise "so does disk 2" holds B exports "file.driver=file,file.filename=$WORK/export/disk2"
promise "and disk 3" holds C exports "file.driver=file,file.filename=$WORK/export/disk3"
promise "none in the clear" unreadable "$WORK"/export/disk?
done_well
