#!/bin/bash
# Volumes that vmward makes in a Ceph cluster: luks and luks2 by librbd, LUKS by QEMU. A guest uses them, and rbd, cryptsetup and
# qemu-io say what they are; then they are grown, get new keys, are copied, and destroyed.
. "$(dirname "$0")/../lib/storage.sh"
. "$REPO/integration/lib/ceph.sh"
storage_begin "$PACKAGES_CEPH"
# Larger than a header of LUKS2.
DISK_MIB=20

ceph_start "$WORK/ceph"
OSD_PID=${SERVERS[-1]}
ceph-authtool -p -n client.vm "$WORK/ceph/vm.keyring" | tr -d '\n' >"$WORK/vm.base64"
base64 -d "$WORK/vm.base64" >"$WORK/vm.key"
secret_file ceph client.vm "$WORK/vm.key"
ceph-authtool --gen-print-key | base64 -d >"$WORK/other.key"
cluster=(--ceph-conf "$WORK/ceph/client.conf" --ceph-user vm --ceph-secret client.vm)
volume() { "$vmward" volume "$1" "${@:2}" "${cluster[@]}"; }
images() { rbd ls | sort | tr '\n' ' '; }

# What is not asked for in a way that it can be done.
refused "a name without a pool" 64 'not rbd:POOL/IMAGE' volume create rbd:one --size 20M --generate
refused "a snapshot" 64 'not rbd:POOL/IMAGE' volume create rbd:rbd/one@s --size 20M --generate
refused "qcow2" 64 'not qcow2, but luks, luks2 or raw' volume create rbd:rbd/one --size 20M --format qcow2 --generate
refused "luks in a file" 64 'not luks, but qcow2 or raw' "$vmward" volume create "$WORK/one" --size 20M --format luks --generate
refused "a cluster's user for a file" 64 'about a cluster' volume create "$WORK/one" --size 20M --generate
refused "a cipher that librbd has not" 64 'librbd has the ciphers' \
    volume create rbd:rbd/one --size 20M --format luks --cipher serpent-256-xts --generate
refused "less than librbd encrypts" 64 'larger than 16 MiB' volume create rbd:rbd/one --size 16M --format luks2 --generate
refused "replacing" 64 'made without --force' volume create rbd:rbd/one --size 20M --generate --force
refused "without a size" 64 'needs a size' volume create rbd:rbd/one --generate
refused "a pool that is not there" 66 'no image rbd:none/one' volume create rbd:none/one --size 20M --generate
refused "converting into a snapshot" 64 'not rbd:POOL/IMAGE' volume convert "$WORK/one" rbd:rbd/one@s --generate
refused "a volume of another kind" 65 "of type 'file' and 'network'" "$vmward" volume create --volume-xml - <<<"<volume type='block'/>"
for command in info "resize +4M" "rekey" "convert $WORK/copy --generate" "delete --yes"; do
    set -- $command
    refused "$1 of an image that is not there" 66 'no image rbd:rbd/one' volume "$1" rbd:rbd/one "${@:2}"
done
secret_wrong client.vm "$(base64 -w0 "$WORK/other.key")" --base64
refused "the wrong cephx key" 77 'does not accept this user' volume create rbd:rbd/one --size 20M --generate
secret_wrong client.vm "no key but a secret"
refused "what is no key" 65 'key and configuration' volume create rbd:rbd/one --size 20M --generate
cp "$WORK/said" "$WORK/told"
promise "which is not told with it" absent -qE "no key but a secret|$(printf 'no key but a secret' | base64)" "$WORK/told"
secret_right client.vm
mkdir "$WORK/bin"
ln -s "$(command -v qemu-img)" "$WORK/bin"
refused "without Ceph's program" 69 'no rbd in PATH' env PATH="$WORK/bin" "$vmward" volume create rbd:rbd/one --size 20M \
    --generate "${cluster[@]}"
promise "nothing was made" says_nothing images
promise "nor any secret" eval '"$vmward" secret list --json | lacks "\"rbd:"'

# Made, while somebody looks at the arguments and environments of all there is.
printf %s "$(openssl rand -hex 24)" >"$WORK/one.value"
SECRET[one]=$("$vmward" secret generate --usage-volume rbd:rbd/one)
"$vmward" secret set-value --file "$WORK/one.value" "${SECRET[one]}"
watch() {
    while [ ! -e "$WORK/made" ]; do
        { hex <"$WORK/one.value"; hex <"$WORK/vm.key"; hex <"$WORK/vm.base64"; } |
            perl "$REPO/integration/lib/scan.pl" /proc/[0-9]*/cmdline /proc/[0-9]*/environ || echo "exit $?"
    done >"$WORK/seen" 2>&1
}
watch &
SERVERS+=($!)
promise "a luks volume is made" volume create rbd:rbd/one --size ${DISK_MIB}M --format luks --secret rbd:rbd/one
touch "$WORK/made"
promise "no secret was in arguments or environments" says_nothing cat "$WORK/seen"
# As libvirt's storage driver describes it, and with the element of a disk.
cat >"$WORK/two.xml" <<XML
<volume type='network'>
  <name>two</name>
  <key>rbd/two</key>
  <capacity unit='MiB'>$DISK_MIB</capacity>
  <allocation unit='bytes'>0</allocation>
  <target>
    <path>rbd/two</path>
    <format type='raw'/>
    <encryption format='luks2' engine='librbd'/>
  </target>
</volume>
XML
SECRET[two]=$(volume create --volume-xml "$WORK/two.xml" | sed -n "s/.*<secret.*uuid=['\"]\([^'\"]*\).*/\1/p")
promise "a luks2 volume from libvirt's XML, with a secret of its own" equal "$("$vmward" secret list --json | grep -o 'rbd:rbd/two')" rbd:rbd/two
SECRET[three]=$(volume create rbd:rbd/three --size ${DISK_MIB}M --format raw --cipher aes-128-xts --generate)
promise "and one that QEMU encrypts" equal "$(images)" "one three two "
for name in two three; do
    printf %s "$("$vmward" secret get-value "${SECRET[$name]}")" >"$WORK/$name.value"
done
for name in one two three; do
    promise "info says that its secret opens '$name'" eval 'volume info rbd:rbd/$name --try | tee "$WORK/info" | has "which opens it$"'
    promise "and that the guest gets what was asked for" grep -q "($((DISK_MIB << 20)) bytes)" "$WORK/info"
done
refused "info with the wrong secret" 77 'not the passphrase of rbd:rbd/one' volume info rbd:rbd/one --try --secret rbd:rbd/two
refused "info with the wrong secret of luks2" 77 'not the passphrase of rbd:rbd/two' volume info rbd:rbd/two --try --secret rbd:rbd/one
rbd export --no-progress rbd/one "$WORK/before.raw"
refused "an image that is there" 64 'exists already' volume create rbd:rbd/one --size 20M --secret rbd:rbd/one
rbd create --size 4M rbd/plain
refused "also a plain one" 64 'exists already' volume create rbd:rbd/plain --size 20M --generate
rbd export --no-progress rbd/one "$WORK/after.raw"
promise "it is as it was" cmp "$WORK/before.raw" "$WORK/after.raw"
refused "a plain image is not grown" 65 'not an encrypted volume' volume resize rbd:rbd/plain +4M
refused "nor destroyed" 65 'not an encrypted volume' volume delete rbd:rbd/plain --yes
promise "but removed by rbd" rbd rm --no-progress rbd/plain

# Interrupted at several moments: nothing of it is left, image or secret.
secrets=$("$vmward" secret list --json | grep -c '"rbd:' || true)
interrupted() {
    local making code=0
    "$vmward" volume create rbd:rbd/cut --size 20M --format "$1" --generate "${cluster[@]}" &
    making=$!
    sleep "$2"
    kill -TERM $making 2>/dev/null || true
    wait $making || code=$?
    [ $code = 143 ] || { echo "exit $code"; return 1; }
}
for format in luks luks2; do
    for moment in 0.1 0.5 1; do
        promise "$format, stopped after $moment s" interrupted $format $moment
    done
done
promise "leaves no image" equal "$(images)" "one three two "
promise "and no secret" equal "$("$vmward" secret list --json | grep -c '"rbd:')" "$secrets"

# A cluster that does not answer any more: what is left is told, and the signals are heeded all the same.
left_behind() {
    local making code try
    for try in 1 2 3 4 5; do
        code=0
        "$vmward" volume create rbd:rbd/cut --size 20M --format luks --generate "${cluster[@]}" &
        making=$!
        until_true 60 eval '! kill -0 $making || rbd ls | has ^cut.vmward-'
        kill -STOP "$OSD_PID"
        while kill -TERM $making 2>/dev/null; do sleep 0.5; done
        kill -CONT "$OSD_PID"
        wait $making || code=$?
        # On a slow machine it may be through before it is seen.
        [ $code = 0 ] && volume delete rbd:rbd/cut --secret --yes || break
    done
    [ $code = 69 ] || { echo "exit $code"; return 1; }
}
promise "a cluster that stops midway" left_behind
cp "$WORK/said" "$WORK/told"
promise "what is left is told" grep -q 'the unfinished rbd:rbd/cut.vmward-.* could not be removed' "$WORK/told"
promise "and its secret is gone" equal "$("$vmward" secret list --json | grep -c '"rbd:')" "$secrets"
# The cluster takes the client that was killed for alive for 30 s.
until_true 120 rbd rm --no-progress "$(rbd ls | grep ^cut.vmward-)"

# disk TARGET IMAGE ENGINE FORMAT: its XML.
disk() {
    disk_xml "$1" network "<source protocol='rbd' name='rbd/$2'><config file='$WORK/ceph/client.conf'/>
      <auth username='vm'><secret type='ceph' usage='client.vm'/></auth>
      <encryption format='$4' engine='$3'><secret type='passphrase' usage='rbd:rbd/$2'/></encryption></source>"
}
disks="$(disk vda one librbd luks)$(disk vdb two librbd luks2)$(disk vdc three qemu luks)"
linux_xml web1 "$disks" >"$WORK/web1.xml"
linux_start web1 "$WORK/web1.xml"
letters=(A B C)
for n in 0 1 2; do
    disk=vd$(printf '%b' "\\x$((61 + n))")
    promise "the guest sees $disk, as large as it was made" guest_sees "$disk"
    promise "and writes to it" guest_writes "$disk" "${letters[n]}"
    promise "and reads it" guest_reads "$disk" "${letters[n]}"
done
refused "what it uses is not grown at rest" 75 'in use' volume resize rbd:rbd/one +4M
refused "nor destroyed" 75 'in use' volume delete rbd:rbd/two --yes
refused "nor are its keys changed" 75 'in use' volume rekey rbd:rbd/three
promise "the guest ends" guest_end web1

for name in one two three; do
    rbd export --no-progress "rbd/$name" "$WORK/$name.raw"
    promise "cryptsetup opens '$name' with its passphrase" \
        cryptsetup open --test-passphrase --key-file "$WORK/$name.value" "$WORK/$name.raw"
done
promise "in the cluster nothing is in the clear" unreadable "$WORK"/{one,two,three}.raw

for name in one two three; do
    promise "'$name' is grown" volume resize rbd:rbd/$name +4M
    refused "and not cut off by mistake" 64 'would cut off' volume resize rbd:rbd/$name ${DISK_MIB}M
done
DISK_MIB=$((DISK_MIB + 4))

# New keys; and a run that is cut off, which the next one completes.
opens() { cryptsetup open --test-passphrase --key-file "$1" "$2" 2>/dev/null; }
for name in one two three; do
    promise "'$name' gets a new key" volume rekey rbd:rbd/$name
    cp "$WORK/$name.value" "$WORK/$name.old"
    "$vmward" secret get-value "${SECRET[$name]}" | tr -d '\n' >"$WORK/$name.value"
    rm "$WORK/$name.raw"
    rbd export --no-progress "rbd/$name" "$WORK/$name.raw"
    promise "the new value opens it" opens "$WORK/$name.value" "$WORK/$name.raw"
    promise "the old one does not" not opens "$WORK/$name.old" "$WORK/$name.raw"
    promise "nor its key slot, which was overwritten" equal "$(cryptsetup luksDump "$WORK/$name.raw" | grep -cE 'ENABLED|^  [0-9]+: luks2')" 1
done
refused "a value that does not open it is not replaced" 77 'was not unlocked' volume rekey rbd:rbd/two --secret rbd:rbd/three --force
refused "a machine key for luks2" 64 "is LUKS1's" volume rekey rbd:rbd/two --machine-key
promise "'three' gets a machine key" volume rekey rbd:rbd/three --machine-key
for name in two three; do
    for moment in 0.3 0.6 0.9; do
        "$vmward" volume rekey rbd:rbd/$name "${cluster[@]}" 2>/dev/null &
        rekeying=$!
        sleep $moment
        kill -KILL $rekeying 2>/dev/null || true
        wait $rekeying 2>/dev/null || true
        promise "killed after $moment s, what the keystore has opens '$name'" until_true 120 volume info rbd:rbd/$name --try
        promise "and the next run completes it" until_true 120 volume rekey rbd:rbd/$name
    done
done
promise "the keystore remembers no new value" eval '"$vmward" secret list --json | lacks "new value of"'
linux_start web1 "$WORK/web1.xml"
for n in 0 1 2; do
    disk=vd$(printf '%b' "\\x$((61 + n))")
    promise "the guest sees all of $disk" guest_sees "$disk"
    promise "and what it wrote" guest_reads "$disk" "${letters[n]}"
    promise "and its end is there" guest_run "dd if=/dev/$disk of=/dev/null bs=1M skip=$((DISK_MIB - 1)) count=1"
done
promise "it ends again" guest_end web1
promise "with --shrink one gets smaller" volume resize rbd:rbd/two $((DISK_MIB - 4))M --shrink

# Copies, within the cluster, to a file and back; each is read through its encryption.
letter() { [ "$(head -c $((WRITTEN_MIB << 20)) "$1" | tr -cd "$2" | wc -c)" = $((WRITTEN_MIB << 20)) ]; }
promise "a luks2 volume is copied to a file" volume convert rbd:rbd/two "$WORK/copy.luks" --format raw --generate
printf %s "$("$vmward" secret get-value "$WORK/copy.luks")" >"$WORK/right/copy"
promise "which has what the guest wrote" holds B copy "file.driver=file,file.filename=$WORK/copy.luks"
promise "the file is copied to the cluster" volume convert "$WORK/copy.luks" rbd:rbd/four --format luks --generate
refused "a plain copy is not in luks" 64 'a plain image of a cluster is raw' volume convert rbd:rbd/four rbd:rbd/plain --format luks --to-plain
promise "from there to a plain image, as is said" volume convert rbd:rbd/four rbd:rbd/plain --to-plain
promise "its secret opens the copy" volume info rbd:rbd/four --try
rbd export --no-progress rbd/plain "$WORK/plain.raw"
promise "which has it in the clear" letter "$WORK/plain.raw" B
refused "the format of a plain image is not guessed" 64 'is not guessed' volume convert rbd:rbd/plain rbd:rbd/five --generate
refused "nor a copy made plain by leaving out its secret" 64 'needs a secret' volume convert rbd:rbd/four rbd:rbd/five
refused "nor in the place of another" 64 'exists already' volume convert rbd:rbd/four rbd:rbd/three --secret rbd:rbd/three
promise "a plain one becomes encrypted" volume convert rbd:rbd/plain rbd:rbd/five --source-format raw --format raw --generate
rbd export --no-progress rbd/five "$WORK/five.raw"
rbd export --no-progress rbd/four "$WORK/four.raw"
promise "nothing of it is in the clear" unreadable "$WORK/five.raw" "$WORK/four.raw"
refused "with the wrong secret nothing is copied" 77 'not the passphrase of rbd:rbd/four' \
    volume convert rbd:rbd/four rbd:rbd/six --source-secret rbd:rbd/five --generate
promise "nothing is left of it" equal "$(images)" "five four one plain three two "
rbd rm --no-progress rbd/plain
for name in four five; do
    promise "'$name' is destroyed" volume delete rbd:rbd/$name --secret --yes
done

# Destroyed.
rbd snap create --no-progress rbd/one@kept
refused "what has snapshots is not destroyed" 64 'has snapshots' volume delete rbd:rbd/one --yes
promise "its secret opens it" volume info rbd:rbd/one --try
rbd snap rm --no-progress rbd/one@kept
refused "nothing is destroyed without being asked" 64 'without being asked' volume delete rbd:rbd/one
promise "with its secret" volume delete rbd:rbd/one --secret --yes
promise "two goes, too" volume delete rbd:rbd/two --secret --yes
promise "and three, without its secret" volume delete rbd:rbd/three --yes
promise "there is no image left" says_nothing images
promise "and one secret" equal "$("$vmward" secret list --json | grep -o '"rbd:[^"]*"')" '"rbd:rbd/three"'
done_well
