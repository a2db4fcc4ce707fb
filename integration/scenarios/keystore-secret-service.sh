#!/bin/bash
# The desktop's keyring: gnome-keyring on a session bus of its own, secret-tool as the other program that speaks to it.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/guest-run.sh"
packages_install "dbus-daemon dbus-daemon
gnome-keyring-daemon gnome-keyring
secret-tool libsecret-tools
gdbus libglib2.0-bin
python3 python3-minimal"

export HOME=$WORK/home XDG_RUNTIME_DIR=$WORK/runtime
mkdir -m 700 "$HOME" "$XDG_RUNTIME_DIR"
unset DISPLAY WAYLAND_DISPLAY

# bus NAME: a session bus that starts no service by itself; its address is in the variable.
bus() {
    cat >"$WORK/$1.conf" <<XML
<busconfig>
  <type>session</type>
  <listen>unix:path=$WORK/$1.bus</listen>
  <policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>
XML
    server dbus-daemon --nofork --config-file="$WORK/$1.conf"
    until_true 60 test -S "$WORK/$1.bus"
    export DBUS_SESSION_BUS_ADDRESS=unix:path=$WORK/$1.bus
}
# on URI ARGUMENT...: vmward with that keystore.
on() {
    local uri=$1
    shift
    "$vmward" --keystore "$uri" "$@"
}
# ask METHOD ARGUMENT...: asks the agent itself.
ask() {
    gdbus call --session --dest org.freedesktop.secrets --object-path /org/freedesktop/secrets \
        --method "org.freedesktop.Secret.Service.$1" "${@:2}"
}
agent_is_there() { ask ReadAlias default | has /collection/; }

store=secret-service:
echo "keystore = \"$store\"" >"$VMWARD_CONFIG"
refused "no session bus" 75 "there is no session bus" on $store secret list
[ "$(id -u)" != 0 ] || refused "of which root is told that it needs the user's" 75 \
    "set DBUS_SESSION_BUS_ADDRESS to the user's bus" on $store secret list
bus main
refused "a bus without an agent" 75 "no agent is on the session bus" on $store secret list
printf 'a login password' >"$WORK/password"
server bash -c "exec gnome-keyring-daemon --unlock --foreground --components=secrets <'$WORK/password'"
until_true 60 agent_is_there

# Secrets as items.
image=$WORK/web1.luks
uuid=$(on $store secret generate --usage-volume "$image")
value=$(on $store secret get-value "$uuid")
promise "secret-tool reads what vmward wrote" equal "$(secret-tool lookup uuid "$uuid")" "$value"
promise "by its usage as well" equal "$(secret-tool lookup usage-type volume usage-id "$image")" "$value"
promise "a volume is made with it" "$vmward" volume create "$image" --format raw --size 16M --secret "$image"
guest_xml web1 "$image" "usage='$image'" >"$WORK/web1.xml"
promise "a guest runs with it" guest_runs web1 "$WORK/web1.xml"
printf '<secret private="yes"><uuid>%s</uuid><description>root disk</description><usage type="volume"><volume>%s</volume></usage></secret>' \
    "$uuid" "$image" >"$WORK/redefine.xml"
on $store secret define "$WORK/redefine.xml" >/dev/null
promise "a definition is changed" eval "on $store secret dumpxml $uuid | tr -d '\n' | has \"private='yes'.*root disk\""
promise "and keeps its value" equal "$(secret-tool lookup uuid "$uuid")" "$value"
promise "its description is its label" eval "secret-tool search uuid $uuid 2>&1 | has -x 'label = root disk'"
refused "the usage of another secret" 65 "the usage is taken already" on $store secret generate --usage-volume "$image"
empty=$(echo '<secret/>' | on $store secret define -)
refused "a secret without a value" 66 "the secret $empty has no value" on $store secret get-value "$empty"
promise "is listed as one" eval "on $store secret list | has '^$empty  - *no '"
printf 'ä\0b' | on $store secret set-value "$empty" --keep-newline
promise "any bytes come back" equal "$(on $store secret get-value --base64 "$empty")" "$(printf 'ä\0b' | base64)"
promise "and it has a value now" eval "on $store secret list | has '^$empty  - *yes '"
guest_xml web2 "$image" "uuid='$empty'" >"$WORK/web2.xml"
refused "a value that is no passphrase" 65 "not UTF-8 text, or has a NUL byte" "$vmward" argv "$WORK/web2.xml"
on $store secret undefine "$empty"
promise "what is undefined is gone" equal "$(secret-tool lookup uuid "$empty" 2>&1; echo $?)" 1

# Items of somebody else's, for a secret that is defined elsewhere.
files="file:$WORK/secrets"
by_uri() {
    printf "<secret><value uri='%s'/></secret>" "${1//&/&amp;}" >"$WORK/by-uri.xml"
    on "$files" secret define "$WORK/by-uri.xml"
}
printf %s "$value" | secret-tool store --label="the disk of web1" disk web1 site north
by_item=$(by_uri "secret-service:?disk=web1&site=north")
promise "vmward reads what secret-tool wrote" equal "$(on "$files" secret get-value "$by_item")" "$value"
guest_xml web2 "$image" "uuid='$by_item'" >"$WORK/web2.xml"
promise "a guest runs with it" guest_runs web2 "$WORK/web2.xml" --keystore "$files"
printf new | on "$files" secret set-value "$by_item"
promise "secret-tool reads what vmward sets there" equal "$(secret-tool lookup disk web1)" new
printf %s "$value" | secret-tool store --label="the other one" disk web1 site south
refused "attributes that two items have" 69 "it has 2 such items" on "$files" secret get-value "$(by_uri "secret-service:?disk=web1")"
refused "an item that is not there" 66 "has no value at secret-service:.disk=none" \
    on "$files" secret get-value "$(by_uri "secret-service:?disk=none")"

# Collections.
promise "a collection is named by its alias" eval "on secret-service:collection=default secret list | has $uuid"
promise "or by its name" eval "on secret-service:collection=login secret list | has $uuid"
promise "what is in another one is not in it" eval "on secret-service:collection=session secret list | lacks $uuid"
refused "a collection that is not there" 66 "has no collection 'none'" on secret-service:collection=none secret list
promise "doctor looks at it" eval "'$vmward' doctor | has 'secret-service: has 1 secret'"

# What goes wrong. Without a display there is nobody to ask for the password.
ask Lock "['/org/freedesktop/secrets/collection/login']" >/dev/null
refused "a locked keyring" 75 "the keystore secret-service: is locked" on $store secret get-value "$uuid"
refused "and how to go on" 75 "unlock it and try again" on $store secret list
refused "whatever is asked of it" 75 "is locked" on $store secret generate
refused "a guest whose secret is locked in" 75 "is locked" "$vmward" argv "$WORK/web1.xml"
kill -STOP "${SERVERS[1]}"
SECONDS=0
refused "an agent that does not answer" 75 "did not answer within 1 s" on $store --keystore-timeout 1 secret list
kill -CONT "${SERVERS[1]}"
kill -STOP "${SERVERS[0]}"
refused "a bus that does not answer" 75 "did not answer within 1 s" on $store --keystore-timeout 1 secret list
kill -CONT "${SERVERS[0]}"
promise "keeps nobody longer than the deadline" test $SECONDS -le 15
export DBUS_SESSION_BUS_ADDRESS=unix:path=$WORK/none
refused "a bus that is not there" 75 "the session bus at unix:path=$WORK/none" on $store secret list
# A peer that talks, but not D-Bus.
cat >"$WORK/liar.py" <<'PY'
import socket, sys, threading
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
def lie(peer):
    try:
        while True:
            peer.sendall(b"x" * 65536)
    except OSError:
        pass
while True:
    threading.Thread(target=lie, args=(listener.accept()[0],), daemon=True).start()
PY
server python3 "$WORK/liar.py" "$WORK/liar"
until_true 60 test -S "$WORK/liar"
export DBUS_SESSION_BUS_ADDRESS=unix:path=$WORK/liar
refused "a bus that talks nonsense without end" 75 "cannot be reached|did not answer" on $store --keystore-timeout 2 secret list
refused "a URI of no meaning" 78 "after the colon" on secret-service:login secret list
done_well
