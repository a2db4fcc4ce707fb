#!/bin/bash
# Shows vmward at work, from nothing to a wiped key: an encrypted guest, an encrypted disk plugged in and out, and
# what is left when it is over. Every claim is checked; the first that does not hold ends the demo with an error.
#
#     integration/demo.sh          on a fresh Debian 12 or 13, as root or as a user who may use sudo
#
# It installs what is missing through apt-get (once that is done it needs no root), builds vmward, and keeps all it
# makes in a directory of its own, which it removes at the end.
set -euo pipefail
. "$(dirname "$0")/lib/common.sh"
. "$REPO/integration/lib/packages.sh"
. "$REPO/integration/lib/guest.sh"
. "$REPO/integration/lib/drive.sh"

SECONDS=0
packages_install "$PACKAGES_DEMO"
rust_install
say "building vmward"
(cd "$REPO" && cargo build --locked --quiet)
vmward=$TARGET/debug/vmward
guest=$TARGET/guest
guest_build "$guest"
say "installed and built after $SECONDS s"

SECONDS=0
work=$(mktemp -d "${TMPDIR:-/tmp}/vmward-demo.XXXXXX")
# Lib dirs belong on a tmpfs: a master key that never was on a disk need not be wiped from one.
export VMWARD_RUNTIME_DIR
VMWARD_RUNTIME_DIR=$(mktemp -d /dev/shm/vmward-demo.XXXXXX)
export VMWARD_CONFIG=$work/config/vmward.toml
mkdir "$work/config"
echo 'keystore = "file:secrets"' >"$VMWARD_CONFIG"
supervisor=

tidy() {
    local code=$?
    if [ -n "$supervisor" ] && kill -0 "$supervisor" 2>/dev/null; then
        kill "$supervisor"
        wait "$supervisor" || true
    fi
    if [ $code != 0 ]; then
        printf '\nThe demo failed. What `vmward run` said:\n' >&2
        cat "$work/run.log" >&2 2>/dev/null || true
    fi
    rm -rf "$work" "$VMWARD_RUNTIME_DIR"
    exit $code
}
trap tidy EXIT

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }
note() { printf '  %s\n' "$*"; }

# vm ARGUMENT...: runs vmward, as a person would type it.
vm() {
    printf '  $ vmward %s\n' "$*"
    "$vmward" "$@" 2>&1 | sed 's/^/    /'
}

# in_guest COMMAND: the same in the guest.
in_guest() {
    printf '  guest# %s\n' "$1"
    guest_run "$1" | sed 's/^/    /'
}

# check TEXT COMMAND...: a promise that the command must bear out.
check() {
    local promise=$1
    shift
    if "$@" >"$work/check.log" 2>&1; then
        printf '  \033[32mok\033[0m  %s\n' "$promise"
    else
        printf '  \033[31mNOT SO\033[0m  %s\n' "$promise"
        cat "$work/check.log"
        exit 1
    fi
}

# secrets_in_hex: what must not be found anywhere, for scan.pl: both passphrases as they are and the base64 of
# them, and the master key once there is one. By pipe: on no command line, in no file.
master_key=
secrets_in_hex() {
    for secret in "$system_secret" "$data_secret"; do
        "$vmward" secret get-value "$secret" | od -An -v -tx1 | tr -d ' \n'
        echo
        "$vmward" secret get-value --base64 "$secret" | tr -d '\n' | od -An -v -tx1 | tr -d ' \n'
        echo
    done
    if [ -n "$master_key" ]; then
        echo "$master_key"
    fi
}
no_secret_in() { secrets_in_hex | perl "$REPO/integration/lib/scan.pl" "$@"; }
no_secret_in_processes() { no_secret_in /proc/[0-9]*/cmdline /proc/[0-9]*/environ; }
no_secret_in_lib_dir() {
    local files
    mapfile -t files < <(find "$VMWARD_RUNTIME_DIR" -type f ! -name master-key.aes)
    no_secret_in "${files[@]}"
}
no_secret_in_journal() {
    local journal
    command -v journalctl >/dev/null || return 0
    journal=$(journalctl --quiet --since "-15 min") && no_secret_in <(printf %s "$journal")
}
no_secret_in_work() {
    local files
    mapfile -t files < <(find "$work" -type f)
    no_secret_in "${files[@]}"
}
# image_read SECRET IMAGE OUT: decrypts an image with qemu-img, the passphrase from a pipe on descriptor 3.
image_read() {
    local secret=$1 image=$2 out=$3
    qemu-img convert --object secret,id=s,file=/dev/fd/3 --image-opts "$image" -O raw "$out" \
        3< <("$vmward" secret get-value "$secret")
}
encrypted() {
    qemu-img info --output=json "$1" | tr -d ' \n' | has '"encrypted":true'
}
file_in_image() { debugfs -R "cat $2" "$1" 2>/dev/null | has -x "$3"; }

title "1. Two secrets, and an encrypted disk for each"
note "A secret is a random 256-bit key in vmward's keystore, itself encrypted. Disks name it by what it is for."
vm secret generate --usage-volume "$work/system.qcow2" | tee "$work/uuid"
system_secret=$(tail -n 1 "$work/uuid" | tr -d ' ')
vm secret generate --usage-volume "$work/data.luks" | tee "$work/uuid"
data_secret=$(tail -n 1 "$work/uuid" | tr -d ' ')
vm volume create "$work/system.qcow2" --format qcow2 --size 256M --secret "$system_secret"
vm volume create "$work/data.luks" --format raw --size 64M --secret "$data_secret"
vm secret list
check "qemu-img says that the first is encrypted" encrypted "$work/system.qcow2"
check "and the second" encrypted "$work/data.luks"
check "neither passphrase is in any file of the demo, the keystore included" no_secret_in_work

title "2. A Linux that boots with its disk on the encrypted qcow2"
for xml in guest disk; do
    sed "s#@GUEST@#$guest#; s#@DIR@#$work#" "$REPO/fixtures/examples/$xml.xml" >"$work/$xml.xml"
done
note "The guest is described as for libvirt; its disk:"
sed -n '/<disk/,/<\/disk/s/^/  /p' "$work/guest.xml"
vm check "$work/guest.xml"
# Root's QEMU would run as the user vmward-qemu, if there is one, to whom the demo's directory is closed.
as_user=()
[ "$(id -u)" != 0 ] || as_user=(--user root)
printf '  $ vmward run %s &\n' "${as_user[*]:+${as_user[*]} }$work/guest.xml"
booting=$SECONDS
"$vmward" run "${as_user[@]}" "$work/guest.xml" >"$work/run.log" 2>&1 </dev/null &
supervisor=$!
guest_connect "$work/serial.sock" "$supervisor"
guest_wait "guest: ready" 120
note "booted in $((SECONDS - booting)) s"
qemu=$("$vmward" status --json demo | sed 's/.*"qemu":\([0-9]*\).*/\1/')
kill -0 "$qemu"
in_guest "blockdev --getsize64 /dev/vda"
in_guest "mke2fs -F /dev/vda >/dev/null && mount -t ext4 /dev/vda /mnt"
in_guest "echo 'written by the guest' >/mnt/hello.txt && sync && cat /mnt/hello.txt"

title "3. A second encrypted disk, plugged in and out while it runs"
vm attach-device demo "$work/disk.xml"
in_guest "until [ -b /dev/vdb ]; do sleep 0.1; done; blockdev --getsize64 /dev/vdb"
in_guest "mke2fs -F /dev/vdb >/dev/null && mount -t ext4 /dev/vdb /mnt2"
in_guest "echo 'on the hot-plugged disk' >/mnt2/data.txt && umount /mnt2"
vm detach-device demo vdb
in_guest "until [ ! -e /dev/vdb ]; do sleep 0.1; done; ls /dev/vd*"

title "4. What runs, and what can be seen of the secrets"
vm list
vm status demo
vm argv "$work/guest.xml"
"$vmward" dumpxml demo >"$work/live.xml"
printf '  $ vmward dumpxml demo    (%s lines)\n' "$(wc -l <"$work/live.xml")"
key=$VMWARD_RUNTIME_DIR/demo/master-key.aes
master_key=$(od -An -v -tx1 "$key" | tr -d ' \n')
check "the master key is 32 bytes that only its owner may read" test "${#master_key}$(stat -c %a "$key")" = 64600
check "the search that follows finds the master key where it has to be" equal "$(no_secret_in "$key")" "$key"
check "the guest's XML as it runs names the secret and does not hold it" grep -q '<secret ' "$work/live.xml"
check "no passphrase and no master key is in any process's arguments or environment" no_secret_in_processes
check "nor in the guest's lib dir, but for the master key's own file" no_secret_in_lib_dir
check "nor in any file of the demo: logs, XML, keystore, images" no_secret_in_work
check "nor in the journal" no_secret_in_journal

title "5. Shutdown, and what is left"
lib_dir=$VMWARD_RUNTIME_DIR/demo
vm shutdown demo
code=0
wait "$supervisor" || code=$?
supervisor=
check "the guest powered off and the supervisor exited with 0" test "$code" = 0
check "QEMU (process $qemu) is gone" not kill -0 "$qemu"
check "the master key file, the lib dir and the sockets are gone" not test -e "$lib_dir"
check "nothing is left in the runtime directory, and no socket elsewhere" \
    says_nothing eval 'find "$VMWARD_RUNTIME_DIR" -mindepth 1 && find "$work" -type s'
check "the master key and the passphrases are in no process and no file of the demo" \
    eval 'no_secret_in_processes && no_secret_in_work && no_secret_in_journal'
image_read "$system_secret" "driver=qcow2,encrypt.key-secret=s,file.filename=$work/system.qcow2" "$work/system.raw"
image_read "$data_secret" "driver=luks,key-secret=s,file.filename=$work/data.luks" "$work/data.raw"
check "qemu-img, given the secrets, reads back what the guest wrote" \
    file_in_image "$work/system.raw" hello.txt 'written by the guest'
check "and what it wrote to the hot-plugged disk" file_in_image "$work/data.raw" data.txt 'on the hot-plugged disk'
check "without the secret, that text is nowhere in the images" \
    absent -qaF -e 'written by the guest' -e 'on the hot-plugged disk' "$work/system.qcow2" "$work/data.luks"
title "That was all, in $SECONDS s. Every line marked ok was checked, not just printed."
