#!/bin/bash
# Disks on an SSH server, LUKS inside: QEMU logs in with the keys of its user, or with those of an agent. Passwords are
# nothing that QEMU's driver can do: vmward starts nbdkit for them, between the two.
# QEMU's SSH library asks the user database for the home: in a namespace, root has another one.
if [ "$(id -u)" = 0 ] && [ -z "${VMWARD_HOME:-}" ]; then
    . "$(dirname "$0")/../lib/common.sh"
    . "$REPO/integration/lib/packages.sh"
    # There a package could not add its user to what is mounted over /etc/passwd.
    packages_install "$PACKAGES_TEST
$PACKAGES_SSH"
    export VMWARD_HOME
    VMWARD_HOME=$(mktemp -d)
    trap 'rm -rf "$VMWARD_HOME"' EXIT
    sed "s#^\(root:[^:]*:[^:]*:[^:]*:[^:]*\):[^:]*:#\1:$VMWARD_HOME:#" /etc/passwd >"$VMWARD_HOME/passwd"
    # And another password, which this process makes and nobody else sees.
    openssl rand -hex 12 | tr -d '\n' >"$VMWARD_HOME/password"
    sed "s#^root:[^:]*:#root:$(openssl passwd -6 -stdin <"$VMWARD_HOME/password"):#" /etc/shadow >"$VMWARD_HOME/shadow"
    unshare --mount --propagation private bash -c 'mount --bind "$VMWARD_HOME/passwd" /etc/passwd &&
        mount --bind "$VMWARD_HOME/shadow" /etc/shadow && exec bash "$0"' "$0"
    exit
fi
. "$(dirname "$0")/../lib/storage.sh"
[ -n "${VMWARD_HOME:-}" ] || skip "only root can give QEMU's user a home of the scenario's own"
storage_begin "$PACKAGES_NBD"

secret volume remote "$(openssl rand -hex 24)"
for disk in 1 2; do
    luks_image "$WORK/disk$disk" remote
done
slow_image "$WORK/disk3" remote
ssh=$VMWARD_HOME/.ssh
mkdir -m 700 "$ssh"
for key in host mine other; do
    ssh-keygen -q -t ed25519 -N '' -f "$WORK/$key"
done
cp "$WORK/mine.pub" "$ssh/authorized_keys"
port=$(free_port)
cat >"$WORK/sshd_config" <<CONF
Port $port
ListenAddress 127.0.0.1
HostKey $WORK/host
AuthorizedKeysFile $ssh/authorized_keys
PermitRootLogin yes
PasswordAuthentication yes
UsePAM no
StrictModes no
PidFile none
Subsystem sftp internal-sftp
CONF
if [ ! -d /run/sshd ]; then
    mkdir /run/sshd
    tidy_more() { rmdir /run/sshd; }
fi
server "$(command -v sshd)" -D -e -f "$WORK/sshd_config"
until_true 20 port_answers "$port"
recorder "$WORK/wire" "$port"

# remote N: a <source>.
remote() {
    echo "<source protocol='ssh' name='$WORK/disk$1'><host name='127.0.0.1' port='$RECORDED'/>
      <identity username='root'/>$(encrypted remote)</source>"
}
linux_xml web1 "$(disk_xml vda network "$(remote 1)")" >"$WORK/web1.xml"
disk_xml vdb network "$(remote 2)" >"$WORK/vdb.xml"
# The key of a user is its file and the .pub beside it: libssh wants both.
key() { cp "$WORK/$1" "$ssh/id_ed25519" && cp "$WORK/$1.pub" "$ssh/id_ed25519.pub"; }

key mine
refused "a start with a server that is not known" 77 'no host key was found' run_guest "$WORK/web1.xml"
echo "[127.0.0.1]:$RECORDED $(cut -d' ' -f1,2 "$WORK/other.pub")" >"$ssh/known_hosts"
refused "or is another one than is known" 77 'host key .* does not match' run_guest "$WORK/web1.xml"
echo "[127.0.0.1]:$RECORDED $(cut -d' ' -f1,2 "$WORK/host.pub")" >"$ssh/known_hosts"
key other
refused "with the wrong key" 77 'accepts none of the keys in ~/.ssh' run_guest "$WORK/web1.xml"
key mine
secret_wrong remote
refused "with the wrong passphrase" 77 "usage 'remote' is not the passphrase of the disk 'vda'" run_guest "$WORK/web1.xml"
secret_right remote
linux_xml web1 "$(disk_xml vda network "$(remote 4)")" >"$WORK/none.xml"
refused "of a file that is not there" 66 'No such file|no such file' run_guest "$WORK/none.xml"

linux_start web1 "$WORK/web1.xml"
promise "a guest starts with a disk on it" guest_sees vda
promise "QEMU keeps no secret" keeps_only web1
promise "the guest writes" guest_writes vda A
key other
not_attached "a second disk with the wrong key" 77 'accepts none of the keys in ~/.ssh' web1 "$WORK/vdb.xml"
key mine
secret_wrong remote
not_attached "with the wrong passphrase" 77 "usage 'remote' is not the passphrase of the disk 'vdb'" web1 "$WORK/vdb.xml"
secret_right remote
disk_xml vdc network "$(remote 3)" >"$WORK/vdc.xml"
disks_come_and_go
promise "the guest ends" guest_end web1

# The agent's keys, with none in a file.
rm "$ssh"/id_ed25519*
server ssh-agent -D -a "$WORK/agent"
until_true 20 test -S "$WORK/agent"
sed "s#<domain type='qemu'>#<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>#
    s#</domain>#<qemu:commandline><qemu:env name='SSH_AUTH_SOCK' value='$WORK/agent'/></qemu:commandline></domain>#" \
    "$WORK/web1.xml" >"$WORK/agent.xml"
refused "a start with an agent that has no key" 77 'accepts none of the keys' run_guest "$WORK/agent.xml"
SSH_AUTH_SOCK=$WORK/agent ssh-add -q "$WORK/mine"
linux_start web1 "$WORK/agent.xml"
promise "with one that has, the guest finds what it wrote" guest_reads vda A
promise "a disk is plugged in with it" "$vmward" attach-device web1 "$WORK/vdb.xml"
promise "and has what was written" guest_reads vdb B
promise "the guest ends" guest_end web1

# A password, with nbdkit between QEMU and the server; it comes through a pipe.
secret iscsi ssh-password "$(cat "$VMWARD_HOME/password")"
rm "$ssh/authorized_keys"
login="<auth username='root'><secret type='iscsi' usage='ssh-password'/></auth>"
linux_xml web2 "$(disk_xml vda network "$(remote 1 | sed "s#<identity username='root'/>#$login#")")
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>" >"$WORK/web2.xml"
disk_xml vdb network "$(remote 2 | sed "s#<identity username='root'/>#$login#")" >"$WORK/password.xml"
# Programs are looked for in PATH.
mkdir "$WORK/bin"
ln -s "$(command -v "${EMULATOR:-qemu-system-x86_64}")" "$WORK/bin/qemu-system-x86_64"
refused "a start without nbdkit" 69 'there is no nbdkit on this host' env PATH="$WORK/bin" "$vmward" run "${AS_USER[@]}" "$WORK/web2.xml"
secret_wrong ssh-password
refused "with the wrong password" 77 'all possible authentication methods failed' run_guest "$WORK/web2.xml"
cp "$WORK/said" "$WORK/told"
promise "which is not told" absent -qF not-the-right-one "$WORK/told"
secret_right ssh-password
mv "$ssh/known_hosts" "$WORK/known_hosts"
refused "of a server that is not known" 77 'host key is unknown|known_hosts' run_guest "$WORK/web2.xml"
known() { sed "s#<auth#<knownHosts path='$WORK/known_hosts'/><auth#" "$1"; }
known "$WORK/web2.xml" >"$WORK/known.xml"
disk_xml vdc network "$(remote 3 | sed "s#<identity username='root'/>#$login#")" >"$WORK/slow.xml"
known "$WORK/slow.xml" >"$WORK/vdc.xml"
linux_xml web2 "$(cat "$WORK/vdc.xml")" >"$WORK/slow.xml"
secret_wrong remote
refused "of a slow disk with the wrong passphrase, which vmward has tried" 77 'no key slot opens|is not the passphrase' run_guest "$WORK/slow.xml"
secret_right remote
linux_start web2 "$WORK/known.xml"
promise "with the right one, and a file of known servers, the guest finds what it wrote" guest_reads vda A
promise "QEMU keeps no secret" keeps_only web2
password_nowhere() { hex <"$VMWARD_HOME/password" | perl "$REPO/integration/lib/scan.pl" /proc/[0-9]*/cmdline /proc/[0-9]*/environ; }
promise "the password is in no arguments and no environment" password_nowhere
promise "status shows nbdkit" eval '"$vmward" status web2 | has nbdkit'
# What is plugged in while the guest runs has nbdkits of its own, which go with it.
nbdkits() { pgrep -f "nbdkit --foreground --unix $VMWARD_RUNTIME_DIR/web2/helper-${1:-}"; }
served() {
    "$vmward" status web2 | grep nbdkit
    (cd "$VMWARD_RUNTIME_DIR/web2" && ls helper-*)
    nbdkits
}
supervisor_again() {
    kill -KILL "$GUEST_PID"
    ends_within 10 "$GUEST_PID"
    guest_start web2 "$WORK/known.xml"
}
before=$(served)
not_served() {
    not_attached "$@"
    promise "and no nbdkit, and no socket of one" equal "$(served)" "$before"
}
known "$WORK/password.xml" >"$WORK/vdb.xml"
not_served "a disk of a server that is not known is not plugged in" 77 'host key is unknown' web2 "$WORK/password.xml"
secret_wrong ssh-password
not_served "nor with the wrong password" 77 'all possible authentication methods failed' web2 "$WORK/vdb.xml"
promise "which is not told" absent -qF not-the-right-one "$WORK/said"
secret_right ssh-password
secret_wrong remote
not_served "nor with the wrong passphrase" 77 "usage 'remote' is not the passphrase of the disk 'vdb'" web2 "$WORK/vdb.xml"
secret_right remote
sed "s#port='$RECORDED'#port='$(free_port)'#" "$WORK/vdb.xml" >"$WORK/none.xml"
not_served "nor from where nobody answers" 69 'Connection refused' web2 "$WORK/none.xml"
sed "s#$WORK/disk2#$WORK/disk4#" "$WORK/vdb.xml" >"$WORK/none.xml"
not_served "nor a file that is not there" 66 'No such file' web2 "$WORK/none.xml"
promise "with all that is right it is plugged in" "$vmward" attach-device web2 "$WORK/vdb.xml"
promise "QEMU keeps no secret" keeps_only web2
promise "the password is in no arguments and no environment" password_nowhere
promise "status shows its nbdkit" eval '"$vmward" status web2 | has "nbdkit (virtio-disk1-nbdkit0)"'
promise "the guest has what was written" eval 'guest_sees vdb && guest_reads vdb B'
hot=$(nbdkits virtio-disk1)
supervisor_again
promise "a supervisor that comes back has both nbdkits" equal "$("$vmward" status web2 | grep -c 'nbdkit (.*process')" 2
promise "the guest writes" guest_writes vdb B
promise "and the disk is taken out" "$vmward" detach-device web2 vdb
promise "with its nbdkit" ends_within 10 "$hot"
promise "and the socket of that" equal "$(served)" "$before"
promise "a slow one is plugged in" "$vmward" attach-device web2 "$WORK/vdc.xml"
unlocked "its key was derived by vmward" web2 vdc
promise "the guest has what was written" eval 'guest_sees vdb && guest_reads vdb C'
promise "it is taken out" "$vmward" detach-device web2 vdc
promise "and nothing of it is left" equal "$(served)" "$before"
in_qemu=$(parts web2)
kill -KILL "$GUEST_PID"
ends_within 10 "$GUEST_PID"
VMWARD_TEST_STOP_AT=DeviceAdded:1 guest_start web2 "$WORK/known.xml"
"$vmward" attach-device web2 "$WORK/vdb.xml" >"$WORK/attaching" 2>&1 &
attaching=$!
until_true 20 grep -q '^State:.T' "/proc/$GUEST_PID/status"
promise "midway it has an nbdkit" nbdkits virtio-disk1
supervisor_again
wait $attaching || true
promise "of a disk whose supervisor was killed midway no nbdkit is left" equal "$(served)" "$before"
until_true 60 eval 'equal "$(parts web2)" "$in_qemu"'
promise "it is plugged in again" "$vmward" attach-device web2 "$WORK/vdb.xml"
kill -KILL "$(nbdkits virtio-disk1)"
until_true 20 eval '"$vmward" status web2 | has "nbdkit (virtio-disk1-nbdkit0), was killed by SIGKILL"'
promise "an nbdkit that is killed is told of" \
    grep -qF "nbdkit, which gave the guest the file $WORK/disk2 on 127.0.0.1, was killed by SIGKILL" "$WORK/web2.log"
promise "its disk is taken out" "$vmward" detach-device web2 vdb
promise "and nothing of it is left" equal "$(served)" "$before"

# Media as well: the new one is open before the old one goes.
medium() {
    head -c 1M /dev/zero | tr '\0' "$1" >"$WORK/medium$1"
    remote 2 | sed "s#<identity username='root'/>#$login#; s#<encryption.*</encryption>##; s#/disk2#/medium$1#" >"$WORK/source"
    known "$WORK/source" >"$WORK/known_source"
    echo "<disk type='network' device='cdrom'><driver name='qemu' type='raw'/>$(cat "$WORK/known_source")
      <target dev='sda' bus='sata'/><readonly/></disk>"
}
drive_holds() {
    local read="dd if=/dev/sr0 bs=2048 count=1 2>/dev/null"
    guest_run "for i in \$(seq 300); do [ \"\$($read | wc -c) \$($read | tr -d $1 | wc -c)\" = '2048 0' ] && exit 0; sleep 0.1; done; exit 1"
}
for letter in M N; do
    medium $letter >"$WORK/medium.xml"
    promise "the medium $letter is put in" "$vmward" change-media web2 sda "$WORK/medium.xml"
    promise "the guest reads it" drive_holds $letter
    promise "one nbdkit serves it" equal "$(nbdkits sata | wc -l)" 1
done
secret_wrong ssh-password
refused "with the wrong password none is" 77 'all possible authentication methods failed' \
    "$vmward" change-media web2 sda "$WORK/medium.xml"
secret_right ssh-password
promise "the old one is there" drive_holds N
supervisor_again
promise "and for a supervisor that comes back" eval 'drive_holds N && "$vmward" status web2 | has "nbdkit (sata.*process"'
promise "the medium is taken out" "$vmward" change-media web2 sda --eject
promise "with its nbdkit" equal "$(served)" "$before"

promise "the disk that was there at the start is taken out" "$vmward" detach-device web2 vda
promise "with its nbdkit" equal "$(nbdkits; echo $?)" 1
promise "and plugged in" eval 'known "$WORK/web2.xml" | awk "/<disk/ && !n++, /<.disk>/" >"$WORK/vda.xml" &&
    "$vmward" attach-device web2 "$WORK/vda.xml"'
promise "the guest finds what it wrote" eval 'guest_sees vda && guest_reads vda A'
nbdkit=$(nbdkits)
promise "the guest ends" guest_end web2
promise "and nbdkit with it" ends_within 10 "$nbdkit"

for disk in 1 2 3; do
    promise "cryptsetup opens disk $disk with the passphrase" cryptsetup open --test-passphrase --type luks1 \
        --key-file "$WORK/right/remote" "$WORK/disk$disk"
done
promise "disk 1 holds what the guest wrote" holds A remote "file.driver=file,file.filename=$WORK/disk1"
promise "so does disk 2" holds B remote "file.driver=file,file.filename=$WORK/disk2"
promise "and disk 3" holds C remote "file.driver=file,file.filename=$WORK/disk3"
promise "none in the clear" unreadable "$WORK"/disk?
promise "nor on the wire, nor the header, where much went over" eval \
    'unreadable "$WORK/wire" && absent -qaF xts-plain64 "$WORK/wire" && [ $(stat -c %s "$WORK/wire") -gt 4000000 ]'
done_well
