#!/bin/bash
# Disks in a Ceph cluster: librbd's encryption (luks, luks2) and QEMU's own on RBD images, logging in with cephx. With the
# librbd of Ceph 16, as Debian 12 has it, luks-any and layers are told as what they are: what it cannot do.
. "$(dirname "$0")/../lib/storage.sh"
. "$REPO/integration/lib/ceph.sh"
storage_begin "$PACKAGES_CEPH"

ceph_start "$WORK/ceph"
secret volume images "$(openssl rand -hex 24)"
# Ceph prints its keys in base64; the value is what that stands for, as with virsh secret-set-value.
ceph-authtool -p -n client.vm "$WORK/ceph/vm.keyring" | base64 -d >"$WORK/vm.key"
secret_file ceph client.vm "$WORK/vm.key"
ceph-authtool --gen-print-key | base64 -d >"$WORK/other.key"

# Made with a derivation that takes no time, which `rbd encryption format` cannot do. A payload at 4 MiB is what librbd
# of later versions expects of LUKS1; LUKS2 has sectors of 4 KiB.
librbd_image() {
    local file=$WORK/$1.img options=(--align-payload 8192)
    [ "$2" = luks1 ] || options=(--sector-size 4096)
    truncate -s $((DISK_MIB + $([ "$2" = luks1 ] && echo 4 || echo 16)))M "$file"
    cryptsetup luksFormat -q --type "$2" --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --cipher aes-xts-plain64 \
        --key-size 512 --hash sha256 "${options[@]}" --key-file "$WORK/right/images" "$file"
    rbd import --no-progress "$file" "rbd/$1"
    rm "$file"
}
librbd_image one luks1
librbd_image two luks2
luks_image "$WORK/three.img" images
rbd import --no-progress "$WORK/three.img" rbd/three
luks_image "$WORK/four.img" images qcow2
rbd import --no-progress "$WORK/four.img" rbd/four
slow_image "$WORK/five.img" images
rbd import --no-progress "$WORK/five.img" rbd/five
rbd create --size ${DISK_MIB}M rbd/plain

# image NAME [ENCRYPTION]: a <source>. Where it has its login from is the secret alone, so the configuration has none.
image() {
    echo "<source protocol='rbd' name='rbd/$1'><config file='$WORK/ceph/client.conf'/>
      <auth username='vm'><secret type='ceph' usage='client.vm'/></auth>${2:-}</source>"
}
passphrase="<secret type='passphrase' usage='images'/>"
librbd() { echo "<encryption format='$1' engine='librbd'>$passphrase${2:-}</encryption>"; }

linux_xml web1 "$(disk_xml vda network "$(image one "$(librbd luks)")")" >"$WORK/web1.xml"
secret_wrong client.vm "$(base64 -w0 "$WORK/other.key")" --base64
refused "a start with the wrong cephx key" 77 "usage 'client.vm' is not what the server of the disk 'vda' accepts" run_guest "$WORK/web1.xml"
secret_wrong client.vm
refused "or with what is no key" 65 'takes the value of the disk.s cephx secret for no key' run_guest "$WORK/web1.xml"
secret_right client.vm
secret_wrong images
refused "a start with the wrong passphrase for librbd" 77 "usage 'images' is not the passphrase of the disk 'vda'" run_guest "$WORK/web1.xml"
secret_right images

# What is not as the XML says is nobody's wrong secret.
other() { linux_xml web1 "$(disk_xml vda network "$(image "$1" "$2")")" >"$WORK/other.xml"; }
other two "$(librbd luks)"
refused "a luks2 image as luks" 65 'no LUKS header of the version' run_guest "$WORK/other.xml"
other plain "$(librbd luks2)"
refused "a plain image as luks2" 65 'no LUKS header of the version' run_guest "$WORK/other.xml"
other plain "$(encrypted images)"
refused "a plain image with QEMU's encryption" 69 'not in LUKS format|Volume is not|LUKS' run_guest "$WORK/other.xml"
other none "$(librbd luks)"
refused "an image that is not there" 66 'No such file' run_guest "$WORK/other.xml"
case $(ceph-mon --version)$("${EMULATOR:-qemu-system-x86_64}" --version) in
    *'emulator version 7.'*)
        other one "$(librbd luks-any)"
        refused "luks-any is beyond this QEMU" 65 'this QEMU is too old for this encryption by librbd' run_guest "$WORK/other.xml" ;;
    *' 16.'*)
        other one "$(librbd luks-any)"
        refused "luks-any is beyond Ceph 16" 69 "too old for format='luks-any'" run_guest "$WORK/other.xml"
        other one "$(librbd luks "$passphrase")"
        refused "so are layers" 69 'too old for an image with several secrets' run_guest "$WORK/other.xml" ;;
    *) echo "skipped: what an old librbd says: this is $(ceph-mon --version)" ;;
esac

linux_start web1 "$WORK/web1.xml"
promise "a guest starts with a luks disk of librbd" guest_sees vda
promise "QEMU keeps no secret" keeps_only web1
promise "the guest writes" guest_writes vda A

disk_xml vdb network "$(image two "$(librbd luks2)")" >"$WORK/vdb.xml"
disk_xml vdc network "$(image three "$(encrypted images)")" >"$WORK/vdc.xml"
DISK_FORMAT=qcow2 disk_xml vdd network "$(image four "$(encrypted images)")" >"$WORK/vdd.xml"
secret_wrong client.vm "$(base64 -w0 "$WORK/other.key")" --base64
not_attached "a second disk with the wrong cephx key" 77 "usage 'client.vm' is not what the server of the disk 'vdb' accepts" web1 "$WORK/vdb.xml"
secret_right client.vm
secret_wrong images
not_attached "with the wrong passphrase for librbd" 77 "usage 'images' is not the passphrase of the disk 'vdb'" web1 "$WORK/vdb.xml"
not_attached "and for QEMU" 77 "usage 'images' is not the passphrase of the disk 'vdc'" web1 "$WORK/vdc.xml"
secret_right images
letters=(B C B)
for disk in vdb vdc vdd; do
    promise "with the right ones $disk is plugged in" "$vmward" attach-device web1 "$WORK/$disk.xml"
    promise "and seen" guest_sees $disk
    promise "and written" guest_writes $disk "${letters[0]}"
    promise "and read" guest_reads $disk "${letters[0]}"
    letters=("${letters[@]:1}")
done
promise "QEMU keeps no secret of them" keeps_only web1
promise "the first is as it was" guest_reads vda A
promise "one is taken out" "$vmward" detach-device web1 vdb
disk_xml vde network "$(image five "$(encrypted images)")" >"$WORK/vde.xml"
promise "one with qemu-img's usual costs is plugged in" "$vmward" attach-device web1 "$WORK/vde.xml"
unlocked "its key was derived by vmward" web1 vde
if "$vmward" status web1 | has ' unlocked by vmward'; then
    promise "as volume info says" eval '"$vmward" volume info rbd:rbd/five --ceph-conf "$WORK/ceph/client.conf" --ceph-user vm \
        --ceph-secret client.vm | has "web1 as vde, unlocked by vmward"'
fi
promise "QEMU keeps no secret of it" keeps_only web1
# For the guest it has the name that was free again.
promise "the guest sees it and writes" eval 'guest_sees vdb && guest_writes vdb C'
promise "and reads it" guest_reads vdb C
promise "the guest ends" guest_end web1

# What is in the cluster, without librbd's or QEMU's decryption.
for image in one two three four five; do
    rbd export --no-progress "rbd/$image" "$WORK/$image.raw"
done
promise "in the cluster nothing is in the clear" unreadable "$WORK"/*.raw
for image in one two three five; do
    promise "cryptsetup opens '$image' with the passphrase" cryptsetup open --test-passphrase --key-file "$WORK/right/images" "$WORK/$image.raw"
done
promise "QEMU's own driver reads what librbd's luks wrote" holds A images "file.driver=file,file.filename=$WORK/one.raw"
promise "and what QEMU's wrote" holds C images "file.driver=file,file.filename=$WORK/three.raw"
promise "also where vmward derived the key" holds C images "file.driver=file,file.filename=$WORK/five.raw"
promise "also in qcow2" qemu-io -r --object "secret,id=k,file=$WORK/right/images" \
    --image-opts "driver=qcow2,encrypt.key-secret=k,file.driver=file,file.filename=$WORK/four.raw" -c "read -P 0x42 0 ${WRITTEN_MIB}M"
ceph-authtool -p -n client.vm "$WORK/ceph/vm.keyring" | tr -d '\n' >"$WORK/vm.base64"
promise "librbd reads what luks2 holds, through another program" qemu-io -r --object "secret,id=k,file=$WORK/right/images" \
    --object "secret,id=c,file=$WORK/vm.base64,format=base64" \
    --image-opts "driver=rbd,pool=rbd,image=two,conf=$WORK/ceph/client.conf,user=vm,key-secret=c,encrypt.format=luks2,encrypt.key-secret=k" \
    -c "read -P 0x42 0 ${WRITTEN_MIB}M"
done_well
