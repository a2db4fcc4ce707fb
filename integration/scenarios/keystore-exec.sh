#!/bin/bash
# Programs that print values: clevis, whose key is with a tang server, and pass, with gpg.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/guest-run.sh"
# Not the package tang: it would open a port of this machine.
packages_install "$PACKAGES_TEST
curl curl
clevis clevis
/usr/libexec/tangd tang-common
gpg gnupg
pass pass"
echo 'keystore = "file:secrets"' >"$VMWARD_CONFIG"
export GNUPGHOME=$WORK/gnupg PASSWORD_STORE_DIR=$WORK/pass
# no_process PATTERN: whether none has that in its arguments.
no_process() { equal "$(pgrep -f "$1"; echo $?)" 1; }
tidy_more() { gpgconf --kill all 2>/dev/null; }

# tang: a server of keys, which sees neither the values nor the keys that they are encrypted with.
mkdir "$WORK/tang" "$WORK/clevis"
/usr/libexec/tangd-keygen "$WORK/tang" sig exc
port=$(free_port)
tang_up() {
    server socat "TCP-LISTEN:$port,bind=127.0.0.1,reuseaddr,fork" "EXEC:/usr/libexec/tangd $WORK/tang"
    until_true 60 curl -sf "http://127.0.0.1:$port/adv"
}
tang_up
tang=${SERVERS[-1]}
thumbprint=$(jose jwk thp -a S256 -i "$(grep -l verify "$WORK"/tang/*.jwk | sed -n 1p)")
seal() { clevis encrypt tang "{\"url\":\"http://127.0.0.1:$port\",\"thp\":\"$thumbprint\"}" >"$1"; }

# The program of the documentation: what vmward asks for is a file, named by the UUID.
cat >"$WORK/clevis-store" <<SCRIPT
#!/bin/sh
[ "\$1" = uuid ] && [ -e "$WORK/clevis/\$2.jwe" ] || exit 66
clevis decrypt <"$WORK/clevis/\$2.jwe" || exit 75
SCRIPT
chmod 700 "$WORK/clevis-store"
web1=11111111-2222-4333-8444-555555555555
printf 'a passphrase that tang helps to unseal' | seal "$WORK/clevis/$web1.jwe"
clevis="exec:$WORK/clevis-store"
promise "vmward asks clevis, which asks tang" \
    equal "$("$vmward" --keystore "$clevis" secret get-value "$web1")" "a passphrase that tang helps to unseal"
"$vmward" --keystore "$clevis" volume create "$WORK/web1.luks" --kdf fast --format raw --size 16M --secret "$web1"
guest_xml web1 "$WORK/web1.luks" "uuid='$web1'" >"$WORK/guest.xml"
promise "a guest runs with its passphrase from clevis and tang" guest_runs web1 "$WORK/guest.xml" --keystore "$clevis"
refused "what clevis has no file of is no secret" 66 "no secret with UUID 11111111-" \
    "$vmward" --keystore "$clevis" secret get-value 11111111-2222-4333-8444-000000000000
local_uuid=$("$vmward" secret generate)
promise "and is looked for in the next keystore" equal "$("$vmward" secret get-value "$local_uuid")" \
    "$("$vmward" --keystore "$clevis" --keystore "file:$WORK/config/secrets" secret get-value "$local_uuid")"
promise "a list says that this one cannot be listed, and goes on" eval \
    "'$vmward' --keystore '$clevis' --keystore 'file:$WORK/config/secrets' secret list 2>&1 |
        grep -c -e 'note: the keystore $clevis cannot list' -e '^$local_uuid' | has -x 2"
kill "$tang"
ends_within 60 "$tang"
refused "without tang there is none, and trying again helps" 75 "the keystore $clevis is not ready: .*127.0.0.1" \
    "$vmward" --keystore "$clevis" run "$WORK/guest.xml"
# The one that stands in for tang takes the connection, and says nothing.
server socat "TCP-LISTEN:$port,bind=127.0.0.1,reuseaddr,fork" "EXEC:sleep 600"
until_true 60 bash -c "exec 3<>/dev/tcp/127.0.0.1/$port"
start=$SECONDS
refused "a silent one has until the deadline" 75 "did not answer within 2 s" \
    "$vmward" --keystore "$clevis" --keystore-timeout 2 run "$WORK/guest.xml"
promise "and not longer" test $((SECONDS - start)) -le 15
# What is killed takes a moment to go. A process that nobody has collected yet has only its name, without a path.
until_true 60 no_process "$WORK/clevis|/clevis-decrypt|//127.0.0.1:$port/"
promise "and nothing of clevis is left" true
kill "${SERVERS[-1]}"

# pass: a value by its URI, of a secret that is defined in vmward's own store.
mkdir -m 700 "$GNUPGHOME"
gpg --quiet --batch --passphrase '' --quick-generate-key vmward future-default default never 2>/dev/null
pass init vmward >/dev/null
printf 'a passphrase in pass\n' | pass insert --multiline vmward/web2 >/dev/null
pass="exec:$(command -v pass)?arg=show&arg=vmward/web2&env=GNUPGHOME&env=PASSWORD_STORE_DIR&strip-newline=yes"
web2=$(cat /proc/sys/kernel/random/uuid)
# value_at URI: where the value of the second secret is.
value_at() {
    cat >"$WORK/secret.xml" <<XML
<secret><uuid>$web2</uuid><usage type='volume'><volume>$WORK/web2.luks</volume></usage>
<value uri='$(echo "$1" | sed 's/&/\&amp;/g')'/></secret>
XML
    "$vmward" secret define "$WORK/secret.xml" >/dev/null
}
value_at "$pass"
promise "vmward reads what pass shows, without its newline" \
    equal "$("$vmward" secret get-value "$web2" | od -An -c)" "$(printf 'a passphrase in pass' | od -An -c)"
"$vmward" volume create "$WORK/web2.luks" --kdf fast --format raw --size 16M --secret "$WORK/web2.luks"
guest_xml web2 "$WORK/web2.luks" "usage='$WORK/web2.luks'" >"$WORK/guest2.xml"
promise "a guest runs with its passphrase from pass" guest_runs web2 "$WORK/guest2.xml"
refused "pass is not written" 69 "cannot set a value: it can only be read" \
    bash -c "printf x | '$vmward' secret set-value $web2"
value_at "exec:$(command -v pass)?arg=show&arg=vmward/web2"
refused "pass gets of the environment what the URI names, and no more" 69 \
    "caused by: Error: vmward/web2 is not in the password store" \
    "$vmward" secret get-value "$web2"
value_at "${pass/web2/web3}"
refused "pass's own words are shown where it fails" 69 "caused by: Error: vmward/web3 is not in the password store" \
    "$vmward" secret get-value "$web2"

# Values that open no disk, and programs that do not what they should.
run2() { "$vmward" "$@" run "$WORK/guest2.xml"; }
value_at "exec:/usr/bin/printf?arg=a%5C0b"
refused "a value with a NUL in it" 65 "is no passphrase: it is not UTF-8 text, or has a NUL byte" run2
value_at "exec:/usr/bin/printf?arg=%5C377%5C376"
refused "a value that is not text" 65 "is no passphrase: it is not UTF-8 text, or has a NUL byte" run2
value_at "exec:/bin/true"
refused "an empty value" 65 "the value is empty" run2
value_at "exec:/usr/bin/head?arg=-c&arg=1048577&arg=/dev/zero"
refused "a value of more than 1 MiB" 69 "gave a wrong answer: the value is longer than 1048576 bytes" run2
value_at "exec:/bin/cat?arg=/dev/zero"
refused "a value without an end" 69 "gave a wrong answer: the value is longer than 1048576 bytes" run2
value_at "exec:/bin/sleep?arg=600"
refused "a program that does not end" 75 "did not answer within 1 s" run2 --keystore-timeout 1
promise "is ended" no_process "^/bin/sleep 600$"
value_at "exec:/bin/sh?arg=-c&arg=kill%20-9%20%24%24"
refused "a program that is killed" 69 "failed: it was killed by SIGKILL" run2
value_at "exec:/nowhere/program"
refused "a program that is not there" 69 "/nowhere/program could not be run" run2
printf '#!/bin/sh\necho value\n' >"$WORK/open"
chmod 777 "$WORK/open"
value_at "exec:$WORK/open"
refused "a program that others can change" 77 "$WORK/open is not safe to use: others may write it" run2
cat >"$WORK/loud" <<'SCRIPT'
#!/bin/sh
set -x
echo hunter2
printf '\033]0;title\a moved\n' >&2
exit 1
SCRIPT
chmod 700 "$WORK/loud"
value_at "exec:$WORK/loud"
refused "one that says its value aloud is not quoted" 69 "what it said has a value in it and is not shown" run2
promise "so that the value is nowhere" absent -q hunter2 "$WORK/said"
refused "a URI in which the program is not an absolute path" 78 "must be an absolute path" \
    "$vmward" --keystore exec:pass secret list
refused "and one that gives a variable a value" 78 "never its value" \
    "$vmward" --keystore "exec:/bin/true?env=TOKEN=x" secret list
promise "doctor says of the program that it is there" eval "'$vmward' --keystore '$clevis' doctor | has 'ok.*clevis-store'"
refused "or that it is not" 69 "could not be run" "$vmward" --keystore exec:/nowhere/program doctor
done_well
