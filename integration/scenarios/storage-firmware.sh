#!/bin/bash
# UEFI variables in places that need a secret: an image with LUKS, and a unit of an iSCSI target with CHAP, LUKS on it as well.
. "$(dirname "$0")/../lib/storage.sh"
code=/usr/share/OVMF/OVMF_CODE_4M.fd
template=/usr/share/OVMF/OVMF_VARS_4M.fd
storage_begin "$PACKAGES_ISCSI"
[ -e "$code" ] || apt_install ovmf
[ -e "$template" ] || skip "ovmf of this release has no $template"

iqn=iqn.2026-11.org.vmward:$$
secret volume variables "$(openssl rand -hex 24)"
secret iscsi "$iqn" "chap-$(openssl rand -hex 12)"
bytes=$(stat -L -c %s "$template")
# variables FILE: encrypted variables as a guest has them that was never started. The flash is as large as the payload.
variables() {
    "$vmward" volume create "$1" --format raw --size "$bytes" --kdf fast --secret variables
    qemu-img convert -n -f raw --object "secret,id=k,file=$WORK/right/variables" --target-image-opts \
        "$template" "driver=luks,key-secret=k,file.driver=file,file.filename=$1"
}
promise "variables are encrypted" variables "$WORK/vars.luks"
cp "$WORK/vars.luks" "$WORK/unit"

export TGT_IPC_SOCKET=$WORK/tgtd.sock
port=$(free_port)
target() { tgtadm --lld iscsi "$@"; }
tidy_more() { target --mode target --op delete --force --tid 1 2>/dev/null; target --mode system --op delete 2>/dev/null; }
server tgtd -f --iscsi "portal=127.0.0.1:$port"
until_true 20 target --mode system --op show
target --mode target --op new --tid 1 --targetname "$iqn"
target --mode logicalunit --op new --tid 1 --lun 1 --backing-store "$WORK/unit"
target --mode target --op bind --tid 1 --initiator-address 127.0.0.1
target --mode account --op new --user vm --password "$(cat "$WORK/right/$iqn")"
target --mode account --op bind --tid 1 --user vm

# guest NAME NVRAM: a guest that boots through UEFI.
guest() {
    linux_xml "$1" "" "<loader readonly='yes' type='pflash'>$code</loader>$2" >"$WORK/$1.xml"
}
guest web1 "<nvram type='file' format='raw'><source file='$WORK/vars.luks'>$(encrypted variables)</source></nvram>"
guest web2 "<nvram type='network' format='raw'>
  <source protocol='iscsi' name='$iqn/1'><host name='127.0.0.1' port='$port'/>
    <auth username='vm'><secret type='iscsi' usage='$iqn'/></auth>$(encrypted variables)</source></nvram>"
guest web3 "<nvram type='file' template='$template'><source file='$WORK/new.luks'>$(encrypted variables)</source></nvram>"

refused "no template is copied into encrypted variables" 65 'copies no template into encrypted variables' run_guest "$WORK/web3.xml"
secret_wrong variables
refused "a start with the wrong passphrase" 77 "usage 'variables' is not the passphrase of the firmware's variables" run_guest "$WORK/web1.xml"
secret_right variables
secret_wrong "$iqn"
refused "with the wrong CHAP secret" 77 "usage '$iqn' is not what the server of the firmware's variables accepts" run_guest "$WORK/web2.xml"
secret_right "$iqn"

# plain FILE: the variables, decrypted.
plain() {
    qemu-img convert --object "secret,id=k,file=$WORK/right/variables" \
        --image-opts "driver=luks,key-secret=k,file.driver=file,file.filename=$1" -O raw "$WORK/plain"
}
# UEFI keeps the names of variables in UTF-16; the firmware makes its boot order at the first start.
order='B\x00o\x00o\x00t\x00O\x00r\x00d\x00e\x00r'
promise "the template has no boot order" absent -qaP "$order" "$template"
for guest in web1:vars.luks web2:unit; do
    IFS=: read -r name file <<<"$guest"
    linux_start "$name" "$WORK/$name.xml"
    promise "'$name' boots through UEFI" guest_run '[ -d /sys/firmware/efi ]'
    promise "QEMU keeps no secret" keeps_only "$name"
    promise "it ends" guest_end "$name"
    promise "the firmware has written its variables" eval 'plain "$WORK/$file" && grep -qaP "$order" "$WORK/plain"'
    promise "and not in the clear" absent -qaP "$order" "$WORK/$file"
done
done_well
