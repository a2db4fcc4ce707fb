#!/bin/bash
# PKCS#11 tokens: SoftHSM as the token, pkcs11-tool as the other program that reads and writes it.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/guest-run.sh"
packages_install "softhsm2-util softhsm2
age age
age-keygen age
pkcs11-tool opensc
python3 python3-minimal
cc gcc"

module=/usr/lib/softhsm/libsofthsm2.so
export SOFTHSM2_CONF=$WORK/softhsm2.conf
mkdir "$WORK/tokens" "$WORK/modules"
printf 'directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\n' "$WORK" >"$SOFTHSM2_CONF"
softhsm2-util --init-token --free --label guests --so-pin 12345678 --pin 4711 >/dev/null
printf '4711\n' >"$WORK/pin"
printf '4712\n' >"$WORK/wrong-pin"
chmod 600 "$WORK/pin" "$WORK/wrong-pin"
# A module that does what SoftHSM never does. Modules are loaded from places only where nobody else can put one.
cc -shared -fPIC -o "$WORK/modules/shim.so" "$REPO/integration/lib/hsm_shim.c"
chmod 755 "$WORK/modules" "$WORK/modules/shim.so"

# token OBJECT [QUERY [MODULE]]: the URI of the token, or of something on it.
token() { echo "pkcs11:token=guests$1?module-path=${3:-$module}&pin-source=file:$WORK/pin${2:-}"; }
# on URI ARGUMENT...: vmward with that keystore.
on() {
    local uri=$1
    shift
    "$vmward" --keystore "$uri" "$@"
}
# tool ARGUMENT...: pkcs11-tool, logged in.
tool() { pkcs11-tool --module "$module" --token-label guests --login --pin 4711 "$@" 2>"$WORK/tool.log"; }
made() { tool "$@" >"$WORK/made" || { cat "$WORK/tool.log"; die "$SCENARIO: pkcs11-tool failed: $*"; }; }
data_object() { tool --read-object --type data --application-label vmward --label "$1"; }
same_xml() { on "$store" secret dumpxml "$1" | has "$2"; }

store=$(token "")
echo "keystore = \"$store\"" >"$VMWARD_CONFIG"

# Secrets as data objects.
image=$WORK/web1.luks
uuid=$(on "$store" secret generate --usage-volume "$image")
value=$(on "$store" secret get-value "$uuid")
promise "pkcs11-tool reads what vmward wrote" equal "$(data_object "$uuid")" "$value"
promise "and sees that it is private, and what it is for" \
    eval "tool --list-objects --type data | grep -A2 'vmward volume $image' | has 'flags:.*private'"
promise "who is not logged in sees nothing of it" \
    eval "pkcs11-tool --module $module --token-label guests --list-objects 2>/dev/null | lacks $uuid"
promise "it is found by its usage" same_xml "$image" "$uuid"
promise "a volume is made with it" "$vmward" volume create "$image" --format raw --size 16M --secret "$uuid"
guest_xml web1 "$image" "usage='$image'" >"$WORK/web1.xml"
promise "the guest's secrets are found" "$vmward" argv "$WORK/web1.xml"
promise "a guest runs with it" guest_runs web1 "$WORK/web1.xml"
made --delete-object --type data --application-label vmward --label "$uuid"
refused "a value that is not there" 66 "the secret $uuid has no value" on "$store" secret get-value "$uuid"
printf %s "$value" >"$WORK/value"
chmod 600 "$WORK/value"
made --write-object "$WORK/value" --type data --application-label vmward --label "$uuid" --private
promise "vmward reads what pkcs11-tool wrote" equal "$(on "$store" secret get-value "$uuid")" "$value"
promise "and the guest runs with it again" guest_runs web1 "$WORK/web1.xml"
printf '<secret private="yes"><uuid>%s</uuid><description>root disk</description><usage type="volume"><volume>%s</volume></usage></secret>' \
    "$uuid" "$image" >"$WORK/redefine.xml"
on "$store" secret define "$WORK/redefine.xml" >/dev/null
promise "a definition is changed" eval "same_xml $uuid 'root disk' && same_xml $uuid \"private='yes'\""
promise "and keeps its value" equal "$(data_object "$uuid")" "$value"
refused "the usage of another secret" 65 "the usage is taken already" on "$store" secret generate --usage-volume "$image"
printf 'a\0b' | on "$store" secret set-value "$uuid" --keep-newline
refused "a value that is no passphrase" 65 "not UTF-8 text, or has a NUL byte" "$vmward" argv "$WORK/web1.xml"
printf %s "$value" | on "$store" secret set-value "$uuid"
other=$(on "$store" secret generate)
on "$store" secret undefine "$other"
promise "what is undefined is gone" eval "tool --list-objects --type data | lacks $other"

# One object, for a secret that is defined elsewhere.
files="file:$WORK/secrets"
made --write-object "$WORK/value" --type data --label disk0 --private
head -c 32 /dev/zero | tr '\0' k >"$WORK/key"
made --write-object "$WORK/key" --type secrkey --key-type AES:32 --label disk1 --extractable
made --keygen --key-type AES:32 --label kept --sensitive
by_uri() {
    printf "<secret><value uri='%s'/></secret>" "${1//&/&amp;}" >"$WORK/by-uri.xml"
    on "$files" secret define "$WORK/by-uri.xml"
}
by_data=$(by_uri "$(token ";object=disk0;type=data")")
promise "the value of a secret is a data object of somebody else's" equal "$(on "$files" secret get-value "$by_data")" "$value"
guest_xml web2 "$image" "uuid='$by_data'" >"$WORK/web2.xml"
promise "a guest runs with it" guest_runs web2 "$WORK/web2.xml" --keystore "$files"
by_key=$(by_uri "$(token ";object=disk1;type=secret-key")")
promise "or a secret key that may leave the token" equal "$(on "$files" secret get-value "$by_key")" "$(printf 'k%.0s' {1..32})"
printf new | on "$files" secret set-value "$by_data"
promise "what vmward sets there, pkcs11-tool reads" equal "$(tool --read-object --type data --label disk0)" new
by_kept=$(by_uri "$(token ";object=kept;type=secret-key")")
refused "a key that may not leave the token" 77 "does not permit it \(it was asked for the object 'kept'\)" \
    on "$files" secret get-value "$by_kept"
missing=$(by_uri "$(token ";object=none")")
refused "an object that is not there" 66 "has no value at pkcs11:token=guests;object=none" on "$files" secret get-value "$missing"

# Values on disk, wrapped by a key that never leaves the token.
made --keypairgen --key-type rsa:2048 --label wrap --id 03 --usage-decrypt
wrapped=$(token ";object=wrap;type=private" "&wrapped=$WORK/wrapped")
public="pkcs11:token=guests;object=wrap;type=private?module-path=$module&wrapped=$WORK/wrapped"
disk=$WORK/db1.luks
wrapped_uuid=$(on "$wrapped" secret generate --usage-volume "$disk")
promise "a volume is made with a wrapped value" on "$wrapped" volume create "$disk" --format raw --size 16M --secret "$wrapped_uuid"
guest_xml db1 "$disk" "usage='$disk'" >"$WORK/db1.xml"
promise "a guest runs with it" guest_runs db1 "$WORK/db1.xml" --keystore "$wrapped"
# The header of an age file is text; another line of it may stand after the key.
awk '/^-> vmward-pkcs11-oaep/ { inside = 1; next } /^-/ { inside = 0 } inside' "$WORK/wrapped/$wrapped_uuid.age" 2>/dev/null |
    tr -d '\n' >"$WORK/stanza"
python3 -c 'import base64, sys; t = sys.stdin.read(); sys.stdout.buffer.write(base64.b64decode(t + "=" * (-len(t) % 4)))' \
    <"$WORK/stanza" >"$WORK/wrapped-key"
made --decrypt --mechanism RSA-PKCS-OAEP --hash-algorithm SHA-1 --mgf MGF1-SHA1 --id 03 -i "$WORK/wrapped-key" -o "$WORK/unwrapped"
promise "pkcs11-tool unwraps its key: 16 bytes of age's" equal "$(wc -c <"$WORK/unwrapped")" 16
head -c 1000000 /dev/zero | tr '\0' x >"$WORK/long"
on "$wrapped" secret set-value "$(on "$wrapped" secret generate)" --file "$WORK/long"
long=$(on "$wrapped" secret list | awk '$2 == "-" { print $1 }')
promise "a value of a megabyte is wrapped as well" eval "on '$wrapped' secret get-value $long | cmp - $WORK/long"
adder=$(on "$public" secret generate)
refused "who has no PIN adds secrets and reads none" 77 "does not accept a session without a PIN" on "$public" secret get-value "$adder"
promise "who has it reads them" test -n "$(on "$wrapped" secret get-value "$adder")"
age-keygen -o "$WORK/recovery.key" 2>/dev/null
age-keygen -y "$WORK/recovery.key" >"$WORK/wrapped/recipients.txt"
printf 'a value' | on "$wrapped" secret set-value "$adder"
promise "so does a recovery key, without the token" \
    equal "$(age -d -i "$WORK/recovery.key" "$WORK/wrapped/$adder.age")" "$(on "$wrapped" secret get-value "$adder")"
made --delete-object --type privkey --id 03
made --delete-object --type pubkey --id 03
refused "a key that is gone" 66 "has no private RSA key of that name" on "$wrapped" secret get-value "$adder"
made --keypairgen --key-type rsa:2048 --label wrap --id 03 --usage-decrypt
refused "another key" 69 "did not unwrap the value" on "$wrapped" secret get-value "$adder"

# What goes wrong. Of 4 disks none may cost a second try of a wrong PIN.
wrong=${store/\/pin/\/wrong-pin}
refused "a wrong PIN" 77 "does not accept the PIN in $WORK/wrong-pin" on "$wrong" secret list
shim=$WORK/modules/shim.so
many=$(sed 's#</devices>##; s#</domain>##' "$WORK/web1.xml"
    for n in b c d; do sed -n '/<disk/,/<\/disk>/p' "$WORK/web1.xml" | sed "s/vda/vd$n/; s#usage='[^']*'#usage='/images/$n'#"; done
    echo "</devices></domain>")
echo "$many" >"$WORK/many.xml"
refused "four secrets of one token with a wrong PIN" 77 "not tried a second time" \
    env HSM_LOGINS="$WORK/logins" "$vmward" --keystore "${wrong/$module/$shim}" argv "$WORK/many.xml"
promise "cost one try" equal "$(cat "$WORK/logins")" x
with_trouble() { HSM_TROUBLE=$1 "$vmward" --keystore "$(token "" "" "$shim")" "${@:2}"; }
rm "$WORK/logins"
export HSM_LOGINS=$WORK/logins
refused "a PIN that is locked" 77 "it is locked after too many wrong ones" with_trouble locked secret list
rm "$WORK/logins"
refused "a token that one more wrong PIN would lock" 77 "does not accept more than one more wrong PIN" with_trouble final-try secret list
promise "is not logged in to" not test -e "$WORK/logins"
refused "a token that is taken out" 75 "the token was taken out" with_trouble removed secret list
SECONDS=0
refused "a module that hangs" 75 "did not answer within 1 s" with_trouble hang --keystore-timeout 1 secret list
refused "that hangs while four secrets are asked for" 75 "did not answer within 1 s" \
    with_trouble hang --keystore-timeout 1 argv "$WORK/many.xml"
promise "keeps nobody longer than the deadline" test $SECONDS -le 15
promise "a slow one is waited for" with_trouble slow secret list
refused "a token that is not there" 66 "has no token 'none' in any slot" on "${store/guests/none}" secret list
refused "a module that is not there" 69 "/usr/lib/none.so could not be read" on "${store/$module//usr/lib/none.so}" secret list
refused "a module that is no library" 69 "could not be loaded" on "${store/$module//etc/passwd}" secret list
chmod 777 "$WORK/modules"
refused "a module that others could replace" 77 "$WORK/modules is not safe to use" with_trouble none secret list
chmod 755 "$WORK/modules"
chmod 644 "$WORK/pin"
refused "a PIN that others can read" 77 "$WORK/pin is not safe to use: others may read this credential" on "$store" secret list
chmod 600 "$WORK/pin"
refused "a PIN in a URI" 78 "put it into a file" on "pkcs11:token=guests?module-path=$module&pin-value=4711" secret list
promise "which is not repeated" absent -q 4711 "$WORK/said"
refused "a relative module" 78 "absolute path" on "pkcs11:token=guests?module-path=libsofthsm2.so" secret list
done_well
