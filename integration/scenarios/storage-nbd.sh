#!/bin/bash
# Disks on an NBD server with TLS, LUKS inside: certificates whose key is encrypted, certificates that are not right, and
# pre-shared keys. Where the files are and which secret decrypts the key is in vmward.toml.
. "$(dirname "$0")/../lib/storage.sh"
storage_begin "$PACKAGES_NBD"

secret tls nbd-key "$(openssl rand -hex 16)"
secret volume exports "$(openssl rand -hex 24)"
certificates "$WORK/pki"
certificates "$WORK/foreign"
pki=$WORK/pki
mkdir "$WORK"/{server,client,stranger,psk,otherpsk}
cp "$pki"/{ca-cert,server-cert,server-key}.pem "$WORK/server"
cp "$pki"/{ca-cert,client-cert}.pem "$WORK/client"
openssl pkcs8 -topk8 -in "$pki/client-key.pem" -out "$WORK/client/client-key.pem" -passout "file:$WORK/right/nbd-key"
# One whose own authority the server does not know.
cp "$WORK"/foreign/{client-cert,client-key,ca-cert}.pem "$WORK/stranger"
cat "$pki/ca-cert.pem" >>"$WORK/stranger/ca-cert.pem"
for dir in psk otherpsk; do
    psktool -u vm -p "$WORK/$dir/keys.psk" >/dev/null
done
for disk in 1 2; do
    luks_image "$WORK/disk$disk" exports
done
slow_image "$WORK/disk3" exports

x509="tls-creds-x509,id=t,dir=$WORK/server,endpoint=server,verify-peer=on"
psk="tls-creds-psk,id=t,dir=$WORK/psk,endpoint=server"
# nbd_server FILE CREDENTIALS: a server of one disk; its port is $NBD_PORT.
nbd_server() {
    NBD_PORT=$(free_port)
    server qemu-nbd -t -e 64 -b 127.0.0.1 -p "$NBD_PORT" -x disk --object "$2" --tls-creds t -f raw "$1"
    until_true 20 port_answers "$NBD_PORT"
}
nbd_server "$WORK/disk1" "$x509"
recorder "$WORK/wire1" "$NBD_PORT"
first=$RECORDED
nbd_server "$WORK/disk2" "$x509"
recorder "$WORK/wire2" "$NBD_PORT"
second=$RECORDED
nbd_server "$WORK/disk3" "$x509"
third=$NBD_PORT

# export_of PORT [TLS]: a <source>.
export_of() {
    echo "<source protocol='nbd' name='disk' ${2-tls='yes'}><host name='localhost' port='$1'/>$(encrypted exports)</source>"
}
# tls LINE...: what vmward.toml says for NBD.
tls() {
    printf '%s\n' 'keystore = "file:secrets"' '[tls.nbd]' "$@" >"$VMWARD_CONFIG"
}
linux_xml web1 "$(disk_xml vda network "$(export_of "$first")")" >"$WORK/web1.xml"
disk_xml vdb network "$(export_of "$second")" >"$WORK/vdb.xml"

tls "directory = \"$WORK/none\""
refused "a start without certificates" 66 'Unable to access credentials' run_guest "$WORK/web1.xml"
tls "directory = \"$WORK/client\""
refused "with an encrypted key and no secret for it" 77 'the private key for TLS is encrypted' run_guest "$WORK/web1.xml"
tls "directory = \"$WORK/client\"" 'secret = "nobodys"'
refused "with a secret that is not there" 66 "nobodys" run_guest "$WORK/web1.xml"
tls "directory = \"$WORK/client\"" 'secret = "exports"'
refused "with one of another usage" 66 "exports" run_guest "$WORK/web1.xml"
tls "directory = \"$WORK/stranger\""
refused "with a certificate of another authority" 69 'TLS|certificate' run_guest "$WORK/web1.xml"
tls 'directory = "client"'
refused "with a relative directory" 78 "has to begin with '/'" run_guest "$WORK/web1.xml"
tls "directory = \"$WORK/client\"" 'secret = "nbd-key"'
secret_wrong nbd-key
refused "with the wrong passphrase of the key" 77 "usage 'nbd-key' is not the passphrase of the TLS key for the disk 'vda'" run_guest "$WORK/web1.xml"
secret_right nbd-key
secret_wrong exports
refused "with the wrong passphrase of the disk" 77 "usage 'exports' is not the passphrase of the disk 'vda'" run_guest "$WORK/web1.xml"
secret_right exports
linux_xml plain "$(disk_xml vda network "$(export_of "$first" "")")" >"$WORK/plain.xml"
refused "without TLS" 65 "tls='yes'" run_guest "$WORK/plain.xml"

linux_start web1 "$WORK/web1.xml"
promise "a guest starts with a disk on it" guest_sees vda
promise "QEMU keeps the certificates, and no secret" keeps_only web1 objlibvirt-1-storage_tls0
promise "the guest writes" guest_writes vda A
secret_wrong nbd-key
not_attached "a second disk with the wrong passphrase of the key" 77 \
    "usage 'nbd-key' is not the passphrase of the TLS key for the disk 'vdb'" web1 "$WORK/vdb.xml"
secret_right nbd-key
secret_wrong exports
not_attached "with the wrong passphrase of the disk" 77 "usage 'exports' is not the passphrase of the disk 'vdb'" web1 "$WORK/vdb.xml"
secret_right exports
promise "with the right ones it is plugged in" "$vmward" attach-device web1 "$WORK/vdb.xml"
promise "QEMU keeps its certificates, and no secret" eval '[ $(objects web1 | wc -l) = 3 ] && objects web1 | lacks secret'
promise "the guest sees it" guest_sees vdb
promise "and writes" guest_writes vdb B
promise "and reads both" eval 'guest_reads vda A && guest_reads vdb B'
promise "it is taken out" "$vmward" detach-device web1 vdb
promise "its certificates as well" keeps_only web1 objlibvirt-1-storage_tls0
disk_xml vdc network "$(export_of "$third")" >"$WORK/vdc.xml"
promise "one with qemu-img's usual costs is plugged in" "$vmward" attach-device web1 "$WORK/vdc.xml"
unlocked "its key was derived by vmward" web1 vdc
promise "QEMU keeps no secret of it" eval '[ $(objects web1 | wc -l) = 3 ] && objects web1 | lacks secret'
# For the guest it has the name that was free again.
promise "the guest sees it and writes" eval 'guest_sees vdb && guest_writes vdb C'
promise "and reads it" guest_reads vdb C
promise "the guest ends" guest_end web1

# Pre-shared keys, on the first disk's image.
kill "${SERVERS[0]}"
ends_within 20 "${SERVERS[0]}" || die "qemu-nbd did not end"
nbd_server "$WORK/disk1" "$psk"
psk_first=$NBD_PORT
kill "${SERVERS[4]}"
ends_within 20 "${SERVERS[4]}" || die "qemu-nbd did not end"
nbd_server "$WORK/disk3" "$psk"
linux_xml web2 "$(disk_xml vda network "$(export_of "$psk_first")")$(disk_xml vdb network "$(export_of "$NBD_PORT")")" >"$WORK/web2.xml"
tls "directory = \"$WORK/otherpsk\"" 'psk-user = "vm"'
refused "a start with another pre-shared key" 69 'TLS handshake failed' run_guest "$WORK/web2.xml"
tls "directory = \"$WORK/psk\"" 'psk-user = "nobody"'
refused "of a user who is not in the file" 69 'not found in PSK file' run_guest "$WORK/web2.xml"
tls "directory = \"$WORK/psk\"" 'psk-user = "vm"' 'secret = "nbd-key"'
refused "with a secret beside it" 78 'not both' run_guest "$WORK/web2.xml"
tls "directory = \"$WORK/psk\"" 'psk-user = "vm"'
linux_start web2 "$WORK/web2.xml"
promise "with the right one it starts, and finds what was written" eval 'guest_sees vda && guest_reads vda A'
unlocked "the key of the other disk was derived by vmward" web2 vdb
promise "what was written is found there as well" guest_reads vdb C
promise "the guest ends" guest_end web2

for disk in 1 2 3; do
    promise "cryptsetup opens disk $disk with the passphrase" cryptsetup open --test-passphrase --type luks1 \
        --key-file "$WORK/right/exports" "$WORK/disk$disk"
done
promise "disk 1 holds what the guest wrote" holds A exports "file.driver=file,file.filename=$WORK/disk1"
promise "so does disk 2" holds B exports "file.driver=file,file.filename=$WORK/disk2"
promise "and disk 3" holds C exports "file.driver=file,file.filename=$WORK/disk3"
promise "none in the clear" unreadable "$WORK"/disk?
promise "nor on the wire, where much went over" eval 'unreadable "$WORK"/wire? && [ $(stat -c %s "$WORK/wire1") -gt 4000000 ]'
# LUKS1's header has its cipher in the clear: that TLS was there is seen by its absence.
promise "where TLS hides the header as well" absent -qaF xts-plain64 "$WORK"/wire1 "$WORK"/wire2
promise "which is in the clear on the server" grep -qaF xts-plain64 "$WORK/disk1"
done_well
