#!/bin/bash
# What takes Ceph 18: luks-any, and clones whose layers have different keys. QEMU and rbd of Debian 13 with their librbd, in
# directories of their own; the cluster is the machine's. Fetching them takes minutes, so it runs only where it is asked for.
. "$(dirname "$0")/../lib/storage.sh"
. "$REPO/integration/lib/ceph.sh"
. "$REPO/integration/lib/suite.sh"
[ -n "${VMWARD_LONG_SCENARIOS:-}" ] || skip "it fetches 1 GB of Debian 13; VMWARD_LONG_SCENARIOS=1 runs it"
storage_begin "$PACKAGES_CEPH"
EMULATOR=$("$REPO/integration/qemu-root.sh" trixie "$TARGET/qemu/trixie")
tools=$TARGET/ceph/trixie
if [ ! -x "$tools/rbd" ]; then
    say "fetching Ceph's tools of trixie"
    suite_fetch trixie "$tools" printf '%s\n' ceph-common
    libraries=$tools/usr/lib/x86_64-linux-gnu
    printf '#!/bin/sh\nexec %s --library-path %s %s "$@"\n' "$libraries/ld-linux-x86-64.so.2" "$libraries:$libraries/ceph" \
        "$tools/usr/bin/rbd" >"$tools/rbd"
    chmod 755 "$tools/rbd"
fi
echo "  rbd: $("$tools/rbd" --version)"

ceph_start "$WORK/ceph"
for layer in parent child second; do
    secret volume "$layer" "$(openssl rand -hex 24)"
done
ceph-authtool -p -n client.vm "$WORK/ceph/vm.keyring" | base64 -d >"$WORK/vm.key"
secret_file ceph client.vm "$WORK/vm.key"
truncate -s $((DISK_MIB + 16))M "$WORK/parent.img"
cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --cipher aes-xts-plain64 --key-size 512 \
    --hash sha256 --sector-size 4096 --key-file "$WORK/right/parent" "$WORK/parent.img"
rbd import --no-progress "$WORK/parent.img" rbd/parent

# image NAME FORMAT SECRET...: a <source> that librbd decrypts, the top layer's secret first.
image() {
    local name=$1 format=$2 secret
    shift 2
    echo "<source protocol='rbd' name='rbd/$name'><config file='$WORK/ceph/client.conf'/>
      <auth username='vm'><secret type='ceph' usage='client.vm'/></auth><encryption format='$format' engine='librbd'>"
    for secret in "$@"; do
        echo "<secret type='passphrase' usage='$secret'/>"
    done
    echo "</encryption></source>"
}
linux_xml web1 "$(disk_xml vda network "$(image parent luks-any parent)")" >"$WORK/web1.xml"
secret_wrong parent
refused "luks-any with the wrong passphrase" 77 "usage 'parent' is not the passphrase of the disk 'vda'" run_guest "$WORK/web1.xml"
secret_right parent
linux_start web1 "$WORK/web1.xml"
promise "a luks2 image opens as luks-any" guest_sees vda
promise "QEMU keeps no secret" keeps_only web1
promise "the guest writes" guest_writes vda A
promise "it ends" guest_end web1

rbd snap create --no-progress rbd/parent@base
rbd snap protect rbd/parent@base
for clone in child:luks2 second:luks1; do
    IFS=: read -r name format <<<"$clone"
    rbd clone rbd/parent@base "rbd/$name"
    promise "a clone gets a key of its own" "$tools/rbd" encryption format "rbd/$name" $format "$WORK/right/$name"
    # What its header, another one than its parent's, leaves for the guest.
    [ $format = luks2 ] || promise "and the size of what it is of" "$tools/rbd" resize --no-progress --size ${DISK_MIB}M --allow-shrink \
        --encryption-passphrase-file "$WORK/right/$name" --encryption-passphrase-file "$WORK/right/parent" "rbd/$name"
done
linux_xml web1 "$(disk_xml vda network "$(image child luks-any child parent)")" >"$WORK/web1.xml"
disk_xml vdb network "$(image second luks-any second parent)" >"$WORK/vdb.xml"
for layer in child parent; do
    secret_wrong $layer
    refused "a start with the wrong passphrase of '$layer'" 77 \
        "usage 'child' or usage 'parent' is not the passphrase of the disk 'vda'" run_guest "$WORK/web1.xml"
    secret_right $layer
done
linux_start web1 "$WORK/web1.xml"
promise "with both it starts" guest_sees vda
promise "QEMU keeps no secret" keeps_only web1
promise "the guest reads what the parent holds" guest_reads vda A
promise "and writes over it" guest_writes vda B
secret_wrong parent
not_attached "a second clone with the wrong passphrase of the parent" 77 \
    "usage 'second' or usage 'parent' is not the passphrase of the disk 'vdb'" web1 "$WORK/vdb.xml"
secret_right parent
promise "with the right ones it is plugged in, luks on luks2" "$vmward" attach-device web1 "$WORK/vdb.xml"
promise "QEMU keeps no secret of it" keeps_only web1
promise "it has what the parent holds" eval 'guest_sees vdb && guest_reads vdb A'
promise "it is written" guest_writes vdb C
promise "all have their own" eval 'guest_reads vda B && guest_reads vdb C'
promise "it is taken out" "$vmward" detach-device web1 vdb
promise "the guest ends" guest_end web1

for name in parent child second; do
    rbd export --no-progress "rbd/$name" "$WORK/$name.raw"
    if [ $name != parent ]; then
        # So that no older client takes the clone for an image of its own.
        promise "the header of '$name' says that it is a layer" equal "$(head -c 4 "$WORK/$name.raw")" RBDL
        printf LUKS | dd of="$WORK/$name.raw" conv=notrunc status=none
    fi
    promise "cryptsetup opens '$name' with its own passphrase" cryptsetup open --test-passphrase --key-file "$WORK/right/$name" "$WORK/$name.raw"
done
promise "and a clone not with its parent's" not cryptsetup open --test-passphrase --key-file "$WORK/right/parent" "$WORK/child.raw"
promise "in the cluster nothing is in the clear" unreadable "$WORK"/*.raw
linux_xml web1 "$(disk_xml vda network "$(image parent luks2 parent)")" >"$WORK/web1.xml"
linux_start web1 "$WORK/web1.xml"
promise "the parent is as it was" guest_reads vda A
promise "the guest ends" guest_end web1
done_well
