#!/bin/bash
# Images behind images, each with a key of its own, and overlays that are made on them; the guest's bytes are what all
# layers together hold.
. "$(dirname "$0")/../lib/storage.sh"
storage_begin

# base.luks (raw) <- middle.qcow2 <- top.qcow2, and one more top for a disk that is plugged in.
layers=(base middle top second)
for layer in "${layers[@]}"; do
    secret volume "$layer" "$(openssl rand -hex 24)"
done
for image in base:base.luks:raw middle:middle.qcow2:qcow2 top:top.qcow2:qcow2 second:second.qcow2:qcow2; do
    IFS=: read -r layer file format <<<"$image"
    backing=()
    case $layer in
        middle) backing=(--backing "$WORK/base.luks" --backing-format raw) ;;
        top | second) backing=(--backing "$WORK/middle.qcow2" --backing-format qcow2) ;;
    esac
    promise "'$layer' is made with its own key" "$vmward" volume create "$WORK/$file" --format "$format" \
        --size ${DISK_MIB}M --kdf fast --secret "$layer" "${backing[@]}"
done

# What is in the layers below: each has a letter of its own, one after the other.
IO_BASE=driver=luks,key-secret=base,file.driver=file,file.filename=$WORK/base.luks
IO_MIDDLE=driver=qcow2,encrypt.key-secret=middle,file.driver=file,file.filename=$WORK/middle.qcow2
io() {
    local options=$1 objects=() layer
    shift
    for layer in "${layers[@]}"; do
        objects+=(--object "secret,id=$layer,file=$WORK/right/$layer")
    done
    qemu-io "${objects[@]}" "$@" --image-opts "$options"
}
below() { echo "$1,backing.${2//,/,backing.}"; }
io "$IO_BASE" -c 'write -P 0x41 0 2M' >/dev/null
io "$(below "$IO_MIDDLE" "$IO_BASE")" -c 'write -P 0x42 2M 2M' >/dev/null
promise "the layers below hold what they should" io "$(below "$IO_MIDDLE" "$IO_BASE")" -r -c 'read -P 0x41 0 2M' -c 'read -P 0x42 2M 2M'
before=$(cd "$WORK" && sha256sum base.luks middle.qcow2)

# chain TOP: the <source> of a disk and what is behind it.
chain() {
    cat <<XML
<source file='$WORK/$1.qcow2'>$(encrypted "$1")</source>
  <backingStore type='file'>
    <format type='qcow2'/>
    <source file='$WORK/middle.qcow2'>$(encrypted middle)</source>
    <backingStore type='file'>
      <format type='raw'/>
      <source file='$WORK/base.luks'>$(encrypted base)</source>
    </backingStore>
  </backingStore>
XML
}
DISK_FORMAT=qcow2
linux_xml web1 "$(disk_xml vda file "$(chain top)")" >"$WORK/web1.xml"
disk_xml vdb file "$(chain second)" >"$WORK/vdb.xml"
for layer in base middle top; do
    secret_wrong "$layer"
    refused "a start with the wrong key of '$layer'" 77 "usage '$layer' is not the passphrase of the disk 'vda'" run_guest "$WORK/web1.xml"
    secret_right "$layer"
done
linux_xml web1 "$(disk_xml vda file "$(chain top | sed "s#<source file='$WORK/middle.qcow2'>.*#<source file='$WORK/middle.qcow2'/>#")")" >"$WORK/plain.xml"
refused "with a layer that is said to be plain" 65 'the image is encrypted, and the XML does not say so' run_guest "$WORK/plain.xml"

linux_start web1 "$WORK/web1.xml"
promise "a guest starts with them" guest_sees vda
promise "QEMU keeps no secret" keeps_only web1
promise "the guest reads what the lowest holds" guest_reads vda A
promise "and what the middle one holds" guest_reads vda B 2
promise "it writes over the lowest's" guest_writes vda C
for layer in base middle second; do
    secret_wrong "$layer"
    not_attached "a second disk with the wrong key of '$layer'" 77 "usage '$layer' is not the passphrase of the disk 'vdb'" web1 "$WORK/vdb.xml"
    secret_right "$layer"
done
promise "with the right ones it is plugged in" "$vmward" attach-device web1 "$WORK/vdb.xml"
promise "QEMU keeps no secret of it" keeps_only web1
promise "it has what the lowest holds, not what the first disk wrote" eval 'guest_sees vdb && guest_reads vdb A'
promise "it is written" guest_writes vdb B
promise "both have their own" eval 'guest_reads vda C && guest_reads vdb B'
promise "it is taken out" "$vmward" detach-device web1 vdb
promise "the guest ends" guest_end web1

promise "the layers below are as they were" equal "$(cd "$WORK" && sha256sum base.luks middle.qcow2)" "$before"
top() { below "driver=qcow2,encrypt.key-secret=$1,file.driver=file,file.filename=$WORK/$1.qcow2" "$(below "$IO_MIDDLE" "$IO_BASE")"; }
promise "the top holds what the guest wrote" io "$(top top)" -r -c 'read -P 0x43 0 2M' -c 'read -P 0x42 2M 2M'
promise "so does the other" io "$(top second)" -r -c 'read -P 0x42 0 4M'
promise "nothing is in the clear" unreadable "$WORK"/*.qcow2 "$WORK/base.luks"
promise "cryptsetup opens the lowest with its passphrase" cryptsetup open --test-passphrase --type luks1 \
    --key-file "$WORK/right/base" "$WORK/base.luks"
promise "and not with another's" not cryptsetup open --test-passphrase --type luks1 --key-file "$WORK/right/top" "$WORK/base.luks"
done_well
