#!/bin/bash
# The secrets of a libvirt, plain and encrypted ones, made by a real one: read where they are, and moved over.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/libvirt.sh"
. "$REPO/integration/lib/guest-run.sh"
packages_install "$PACKAGES_TEST"
libvirt_possible || skip "namespaces of its own, in which libvirt's daemon would run, are not permitted here"
root=$("$REPO/integration/libvirt-root.sh" unstable "$TARGET/libvirt/unstable")

config=$WORK/libvirt secrets=$WORK/libvirt/secrets store=libvirt:$WORK/libvirt/secrets
cp -r "$root/etc/libvirt" "$config"
echo 'keystore = "file:secrets"' >"$VMWARD_CONFIG"

# define NAME USAGE [PRIVATE]: the XML of a secret, where libvirt sees it.
define() {
    echo "<secret ephemeral='no' private='${3:-no}'><description>$1's \"key\" &amp; more</description>
        <usage $2</usage></secret>" >"$config/$1.xml"
}
# virsh prints "Secret UUID created".
uuid_of() { sed -n "s/^Secret \(.*\) created$/\1/p" "$config/$1.out"; }

define disk "type='volume'><volume>/images/web1.luks</volume>"
define ceph "type='ceph'><name>client.admin secret</name>" yes
define later "type='tls'><name>later</name>"
define bytes "type='vtpm'><name>tpm</name>"
printf 'plain in libvirt' >"$config/disk.value"
printf 'a value that only libvirt uses' >"$config/ceph.value"
printf '\000\377\n' >"$config/bytes.value"
echo 'encrypt_data = 0' >"$config/secret.conf"
# In libvirt's root directory, its configuration is /etc/libvirt.
libvirt_session "$root" "$config" '
    for name in disk ceph later bytes; do
        virsh secret-define "/etc/libvirt/$name.xml" >"$config/$name.out"
    done
    for name in disk ceph bytes; do
        virsh secret-set-value --secret "$(sed -n "s/^Secret \(.*\) created$/\1/p" "$config/$name.out")" \
            --file "/etc/libvirt/$name.value" --plain
    done'
disk=$(uuid_of disk) ceph=$(uuid_of ceph) later=$(uuid_of later) bytes=$(uuid_of bytes)
promise "libvirt keeps these values plain" test -s "$secrets/$disk.base64" -a ! -e "$secrets/$disk.aes256cbc"

get() { "$vmward" --keystore "$store" secret get-value "$@"; }
promise "vmward lists the secrets of libvirt" bash -c "'$vmward' --keystore '$store' secret list >'$WORK/list' &&
    grep -qE '^$disk +volume /images/web1.luks +yes +- ' '$WORK/list' &&
    grep -qE '^$ceph +ceph client.admin secret +yes +private ' '$WORK/list' &&
    grep -qE '^$later +tls later +no +- ' '$WORK/list'"
promise "and reads a value by UUID" equal "$(get "$disk")" "plain in libvirt"
promise "and by usage" equal "$(get /images/web1.luks)" "plain in libvirt"
promise "and every byte of it" cmp <(get "$bytes") "$config/bytes.value"
refused "a private one is not shown" 77 "is private" get "$ceph"
refused "one without a value has none" 66 "the secret $later has no value" get "$later"
refused "nothing is written there" 69 "cannot set a value: it can only be read" \
    bash -c "printf x | '$vmward' --keystore '$store' secret set-value $later"

"$vmward" --keystore "$store" volume create "$WORK/web1.luks" --kdf fast --format raw --size 16M --secret /images/web1.luks
guest_xml web1 "$WORK/web1.luks" "uuid='$disk'" >"$WORK/guest.xml"
promise "a guest runs with its passphrase from libvirt's files" guest_runs web1 "$WORK/guest.xml" --keystore "$store"

# From here on libvirt encrypts what it writes.
(umask 077 && head -c 32 /dev/urandom >"$config/key")
echo 'secrets_encryption_key = "/etc/libvirt/key"' >"$config/secret.conf"
printf 'encrypted in libvirt' >"$config/sealed.value"
define sealed "type='volume'><volume>/images/web2.luks</volume>"
cp "$secrets/$disk.base64" "$WORK/old.base64"
printf 'a new passphrase' >"$config/disk.value"
libvirt_session "$root" "$config" '
    virsh secret-define /etc/libvirt/sealed.xml >"$config/sealed.out"
    virsh secret-set-value --secret "$(sed -n "s/^Secret \(.*\) created$/\1/p" "$config/sealed.out")" \
        --file /etc/libvirt/sealed.value --plain
    virsh secret-set-value --secret '"$disk"' --file /etc/libvirt/disk.value --plain'
sealed=$(uuid_of sealed)
promise "libvirt keeps this value encrypted" test -s "$secrets/$sealed.aes256cbc" -a ! -e "$secrets/$sealed.base64"
plain_store=$store store="$store?key=$config/key"
promise "vmward reads it with the key that its URI names" equal "$(get "$sealed")" "encrypted in libvirt"
store=$plain_store
echo "secrets_encryption_key = \"$config/key\"" >"$config/secret.conf"
promise "or that libvirt's secret.conf names" equal "$(get /images/web2.luks)" "encrypted in libvirt"
echo '#' >"$config/secret.conf"
mkdir -m 700 "$WORK/credentials"
(umask 077 && cp "$config/key" "$WORK/credentials/secrets-encryption-key")
promise "or that systemd handed over" \
    equal "$(CREDENTIALS_DIRECTORY=$WORK/credentials get "$sealed")" "encrypted in libvirt"
refused "without the key there is none, and the places are said" 77 "no key to decrypt the value of the secret $sealed" \
    get "$sealed"
promise "the plain ones are read all the same" cmp <(get "$bytes") "$config/bytes.value"
store="$plain_store?key=$config/other"
# There is no MAC in libvirt's files: of 256 other keys one is not noticed, and is no use here.
(umask 077 && head -c 32 /dev/urandom >"$config/other")
while get "$sealed" >/dev/null 2>&1; do
    head -c 32 /dev/urandom >"$config/other"
done
refused "another key is noticed" 77 "encrypted to another key than the one in" get "$sealed"
store="$plain_store?key=$config/key"
promise "a value that libvirt has encrypted anew is the new one" equal "$(get "$disk")" "a new passphrase"
cp "$WORK/old.base64" "$secrets/$disk.base64"
refused "an old plain value beside it is said, where libvirt would use it" 65 \
    "$disk.base64 is damaged: $disk.aes256cbc beside it has another value" get "$disk"
printf 'a\0b' | base64 >"$secrets/$sealed.base64"
rm "$secrets/$sealed.aes256cbc"
"$vmward" --keystore "file:$WORK/other" secret generate --uuid "$sealed" >/dev/null
"$vmward" --keystore "file:$WORK/other" volume create "$WORK/web2.luks" --kdf fast --format raw --size 16M --secret "$sealed"
guest_xml web2 "$WORK/web2.luks" "uuid='$sealed'" >"$WORK/guest2.xml"
refused "a value that is no passphrase starts no guest" 65 "is no passphrase" \
    "$vmward" --keystore "$store" run "$WORK/guest2.xml"
rm "$secrets/$disk.base64"

# Moving over.
import() { "$vmward" secret import --from "$store" "$@"; }
promise "a dry run says what would be done" bash -c "'$vmward' secret import --from '$store' --dry-run >'$WORK/dry' &&
    grep -qx '$disk  volume /images/web1.luks: would be imported' '$WORK/dry' &&
    grep -qx '$later  tls later: would be imported, has no value' '$WORK/dry'"
promise "and does nothing" says_nothing eval '"$vmward" secret list | tail -n +2'
promise "one can be moved over" equal "$(import /images/web1.luks)" "$disk  volume /images/web1.luks: imported"
promise "and all of them" import
for secret in "$disk" "$ceph" "$later" "$bytes" "$sealed"; do
    promise "$secret has kept its definition" \
        equal "$("$vmward" secret dumpxml "$secret")" "$("$vmward" --keystore "$store" secret dumpxml "$secret")"
done
promise "and its value" equal "$("$vmward" secret get-value "$disk")" "a new passphrase"
promise "once more, and all is there already" equal "$(import | grep -c 'is there already$')" 5
printf 'set here' | "$vmward" secret set-value "$disk"
refused "what differs is not overwritten" 65 "the secret $disk is in file:.* already, with another value" import "$disk"
promise "and is as it was" equal "$("$vmward" secret get-value "$disk")" "set here"
promise "unless it is to be" equal "$(import --force "$disk")" "$disk  volume /images/web1.luks: replaced"
promise "then it is libvirt's" equal "$("$vmward" secret get-value "$disk")" "a new passphrase"
echo '<secret>' >"$secrets/$bytes.xml"
refused "one that is damaged is said" 65 "$bytes.xml is damaged" import
refused "and hides no other" 65 "^$disk .* is there already" import
refused "one that is not there is said" 66 "no secret with UUID 00000000-0000-0000-0000-000000000001" \
    import 00000000-0000-0000-0000-000000000001
refused "where nothing can be written, nothing is moved" 78 "no configured keystore" \
    "$vmward" --keystore "$plain_store" secret import --from "$store"
done_well
