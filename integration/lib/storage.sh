# Guests whose disks are on a storage server, for the scenarios storage-*.sh. To be sourced; sources the rest.
#
# What a scenario does with each service: a wrong password and a wrong passphrase, at the start and while the guest runs,
# are told apart and leave nothing; with the right ones the guest writes to a disk that it started with and to one that is
# plugged in; QEMU keeps no secret object; and what is on the server is looked at with other programs.

. "$(dirname "${BASH_SOURCE[0]}")/scenario.sh"
. "$REPO/integration/lib/guest.sh"
. "$REPO/integration/lib/drive.sh"
. "$REPO/integration/lib/guest-run.sh"
. "$REPO/integration/lib/guest-hold.sh"

# How large the disks are, as the guest sees them, and the part of it that it writes.
DISK_MIB=8
WRITTEN_MIB=2
# Another QEMU than the machine's, as for the tests.
EMULATOR=${VMWARD_TEST_EMULATOR:-}
declare -A SECRET
AS_USER=()
[ "$(id -u)" != 0 ] || AS_USER=(--user root)

# storage_begin [PACKAGES]: what each of the scenarios needs, and a list of further packages.
storage_begin() {
    packages_install "$PACKAGES_TEST${1:+
$1}"
    qemu_module_install block-rbd qemu-block-extra || die "apt-get could not install qemu-block-extra"
    guest_build "$TARGET/guest"
    echo 'keystore = "file:secrets"' >"$VMWARD_CONFIG"
}

# secret KIND ID VALUE: defines a secret of a usage (volume, iscsi, ceph, tls); its UUID is ${SECRET[ID]}, its value is
# in right/ID as well.
secret() {
    printf %s "$3" >"$WORK/value"
    secret_file "$1" "$2" "$WORK/value"
}

# secret_file KIND ID FILE: the same with the value in a file, which may be any bytes.
secret_file() {
    SECRET[$2]=$("$vmward" secret generate "--usage-$1" "$2")
    mkdir -p "$WORK/right"
    cp "$3" "$WORK/right/$2"
    secret_right "$2"
}

# secret_right ID and secret_wrong ID [VALUE [OPTION]]: gives a secret its value, or another one.
secret_right() { "$vmward" secret set-value --keep-newline --file "$WORK/right/$1" "${SECRET[$1]}"; }
secret_wrong() { printf %s "${2:-not-the-right-one}" | "$vmward" secret set-value ${3:-} "${SECRET[$1]}"; }

# luks_image FILE ID [FORMAT]: an encrypted image with the value of a secret as its passphrase, which opens fast.
luks_image() {
    if [ "${3:-raw}" = raw ]; then
        qemu-img create -q -f luks --object "secret,id=k,file=$WORK/right/$2" -o key-secret=k,iter-time=10 "$1" ${DISK_MIB}M
    else
        qemu-img create -q -f "$3" --object "secret,id=k,file=$WORK/right/$2" \
            -o encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10 "$1" ${DISK_MIB}M
    fi
}

# slow_image FILE ID: a raw one with qemu-img's usual costs, which vmward unlocks.
slow_image() {
    qemu-img create -q -f luks --object "secret,id=k,file=$WORK/right/$2" -o key-secret=k,iter-time=500 "$1" ${DISK_MIB}M
}

# unlocked TEXT NAME TARGET: the promise that vmward has unlocked a disk instead of QEMU, where QEMU is new enough for that.
unlocked() {
    case $("${EMULATOR:-qemu-system-x86_64}" --version) in
        *'emulator version '[78].*) echo "  skipped: $1: detached LUKS headers came with QEMU 9.0" ;;
        *) promise "$1" eval "'$vmward' status $2 | has '$3 .*, unlocked by vmward'" ;;
    esac
}

# encrypted ID: the element of an image that the value of a secret opens.
encrypted() { echo "<encryption format='luks'><secret type='passphrase' usage='$1'/></encryption>"; }

# disk_xml TARGET TYPE SOURCE [REST]: a disk. SOURCE is its <source> with what is in it.
disk_xml() {
    cat <<XML
<disk type='$2' device='disk'>
  <driver name='qemu' type='${DISK_FORMAT:-raw}'/>
  $3
  <target dev='$1' bus='virtio'/>
  ${4:-}
</disk>
XML
}

# linux_xml NAME DISK [OS]: a guest that boots the small Linux; DISK is the XML of its disks, OS more elements of <os>.
linux_xml() {
    cat <<XML
<domain type='qemu'>
  <name>$1</name>
  <memory unit='MiB'>192</memory>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>$TARGET/guest/vmlinuz</kernel>
    <initrd>$TARGET/guest/initramfs.gz</initrd>
    <cmdline>console=ttyS0 quiet</cmdline>
    ${3:-}
  </os>
  <features><acpi/></features>
  <devices>
    ${EMULATOR:+<emulator>$EMULATOR</emulator>}
    <controller type='pci' model='pcie-root'/>
    $(printf "<controller type='pci' model='pcie-root-port'/>%.0s" 1 2 3 4 5 6 7 8)
    $2
    <serial type='unix'><source mode='bind' path='$WORK/$1.sock'/></serial>
  </devices>
</domain>
XML
}

# run_guest XML: runs a guest in the foreground; for those that do not start.
run_guest() { "$vmward" run "${AS_USER[@]}" "$1" </dev/null; }

# linux_start NAME XML: boots a guest and connects to it.
linux_start() {
    guest_start "$1" "$2"
    guest_connect "$WORK/$1.sock" "$GUEST_PID"
    guest_wait "guest: ready" 180
}

# guest_writes TARGET LETTER: the guest fills the start of a disk with a letter, and syncs.
guest_writes() {
    guest_run "tr '\\0' '$2' </dev/zero | dd of=/dev/$1 bs=64k count=$((WRITTEN_MIB * 16)) iflag=fullblock conv=fsync 2>/dev/null"
}

# guest_reads TARGET LETTER [MIB]: whether the guest finds the letter there, or from that MiB on, on the disk and not in its cache.
guest_reads() {
    guest_run "echo 3 >/proc/sys/vm/drop_caches; \
        [ \$(dd if=/dev/$1 bs=64k skip=$((${3:-0} * 16)) count=$((WRITTEN_MIB * 16)) 2>/dev/null | tr -cd '$2' | wc -c) = $((WRITTEN_MIB << 20)) ]"
}

# guest_sees TARGET: whether the guest has the disk, with the size that it should have, or gets it.
guest_sees() {
    guest_run "for i in \$(seq 300); do [ \"\$(cat /sys/block/$1/size 2>/dev/null)\" = $((DISK_MIB * 2048)) ] && exit 0; sleep 0.1; done; exit 1"
}

# holds LETTER ID OPTIONS: whether an image holds what the guest wrote, as qemu-io reads it with the passphrase. OPTIONS
# are qemu-io's for the node below LUKS, as in file.driver=file,file.filename=...
holds() {
    qemu-io -r --object "secret,id=k,file=$WORK/right/$2" "${IO_OBJECTS[@]}" --image-opts "driver=luks,key-secret=k,$3" \
        -c "read -P $(printf '0x%x' "'$1") 0 ${WRITTEN_MIB}M"
}
IO_OBJECTS=()

# unreadable FILE...: whether what the guests write (a run of one letter) is not in files as it is.
unreadable() { absent -laE 'A{64}|B{64}|C{64}' "$@"; }

# objects NAME: QEMU's objects that have anything to do with secrets, one a line.
objects() {
    "$vmward" qmp "$1" '{"execute":"qom-list","arguments":{"path":"/objects"}}' |
        python3 -c 'import json, sys
for o in sorted(json.load(sys.stdin), key=lambda o: o["name"]):
    if o["type"].startswith("child<") and "memory-backend" not in o["type"]: print(o["name"])'
}

# keeps_only NAME [ID...]: whether QEMU has these objects and the master key, and no other.
keeps_only() {
    local name=$1
    shift
    equal "$(objects "$name")" "$(printf '%s\n' "$@" masterKey0 | grep . | sort)"
}

# parts NAME: the names of all that QEMU has of disks.
parts() {
    objects "$1"
    "$vmward" qmp "$1" query-named-block-nodes | grep -o '"node-name": "[^"]*"' | sort
    "$vmward" qmp "$1" '{"execute":"qom-list","arguments":{"path":"/machine/peripheral"}}' | grep '"name"'
}

# not_attached TEXT CODE PATTERN NAME DISK: a disk that must not get in, and of which nothing may stay.
not_attached() {
    local before
    before=$(parts "$4")
    refused "$1" "$2" "$3" "$vmward" attach-device "$4" "$5"
    promise "and leaves nothing in QEMU" equal "$(parts "$4")" "$before"
}

# disks_come_and_go: the disk of vdb.xml is plugged into the guest web1, whose own disk holds A, and out of it; then that of
# vdc.xml, which has qemu-img's usual costs and stays. They hold B and C afterwards.
disks_come_and_go() {
    promise "with the right ones it is plugged in" "$vmward" attach-device web1 "$WORK/vdb.xml"
    promise "QEMU keeps no secret of it" keeps_only web1
    promise "the guest sees it" guest_sees vdb
    promise "and writes" guest_writes vdb B
    promise "and reads both" eval 'guest_reads vda A && guest_reads vdb B'
    promise "it is taken out" "$vmward" detach-device web1 vdb
    promise "one with qemu-img's usual costs is plugged in" "$vmward" attach-device web1 "$WORK/vdc.xml"
    unlocked "its key was derived by vmward" web1 vdc
    promise "QEMU keeps no secret of it" keeps_only web1
    # For the guest it has the name that was free again.
    promise "the guest sees it and writes" eval 'guest_sees vdb && guest_writes vdb C'
    promise "and reads it" guest_reads vdb C
}

# recorder FILE PORT: a proxy in front of a server on a port of the loopback; what goes over the wire is in the file.
# Its own port is $RECORDED.
recorder() {
    RECORDED=$(free_port)
    server python3 "$REPO/integration/lib/recorder.py" "$1" "$RECORDED" "$2"
    until_true 20 port_answers "$RECORDED"
}

# port_answers PORT: whether somebody listens on a port of the loopback.
port_answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
