#!/bin/bash
# New keys for a volume whose secret is in a key server: while a guest runs, at rest, and while the server is gone. Other
# programs say what the server has, what opens the volume, and where the values are not.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/guest-run.sh"
. "$REPO/integration/lib/guest-hold.sh"
. "$REPO/integration/lib/openbao.sh"
packages_install "$PACKAGES_TEST"
openbao_start

echo "keystore = \"$BAO_KEYSTORE\"" >"$VMWARD_CONFIG"
image=$WORK/web1.luks
uuid=$("$vmward" secret generate --usage-volume "$image")
promise "a volume is made" "$vmward" volume create "$image" --format raw --size 8M --secret "$uuid"
value() { "$vmward" secret get-value "$uuid"; }
# opens VALUE: by cryptsetup's word.
opens() { printf %s "$1" | cryptsetup open --test-passphrase --key-file - "$image"; }
nowhere() { printf %s "$1" | hex | "${@:2}"; }
count() { "$vmward" secret list --json | python3 -c 'import json,sys; print(len(json.load(sys.stdin)))'; }

first=$(value)
guest_xml web1 "$image" "uuid='$uuid'" >"$WORK/web1.xml"
guest_start web1 "$WORK/web1.xml"
promise "its key is changed while a guest runs from it" "$vmward" volume rekey --domain web1 vda
second=$(value)
promise "the server has another value" not equal "$first" "$second"
promise "which opens the volume" opens "$second"
promise "as the old one does not any more" not opens "$first"
promise "the server has nothing else of it" equal "$(count)" 1
chosen="chosen for the scenario $uuid"
promise "a value that somebody chose" eval \
    'printf %s "$chosen" | "$vmward" volume rekey --domain web1 vda --stdin'
promise "opens it, too" opens "$chosen"
if [ "$(id -u)" = 0 ]; then
    for each in "$first" "$second" "$chosen"; do
        promise "no value is left in the supervisor" \
            nowhere "$each" python3 "$REPO/integration/lib/memory.py" "$GUEST_PID"
    done
fi
mapfile -t files < <(find "$WORK" "$VMWARD_RUNTIME_DIR" -type f)
for each in "$first" "$second" "$chosen"; do
    promise "none is in a file" nowhere "$each" perl "$REPO/integration/lib/scan.pl" "${files[@]}"
    promise "nor in arguments or environments" \
        nowhere "$each" perl "$REPO/integration/lib/scan.pl" /proc/[0-9]*/cmdline /proc/[0-9]*/environ
done
refused "at rest means that no guest runs from it" 75 'in use' "$vmward" volume rekey "$image"
promise "the guest ends" guest_end web1
promise "and starts with what it was given" guest_runs web1 "$WORK/web1.xml"

promise "at rest it gets a key for machines" "$vmward" volume rekey "$image" --machine-key
third=$(value)
promise "which opens it" opens "$third"
promise "in its first slot" eval '"$vmward" volume info "$image" --try | has "opens key slot 0$"'
promise "as the one before does not any more" not opens "$chosen"

# The server is stopped when the new key goes into its slot; the secret gets it a moment later, if that was not too late.
mkfifo "$WORK/steps"
cut_off() {
    local step rekeying code=0
    third=$(value)
    "$vmward" volume rekey "$image" --progress-fd 3 3>"$WORK/steps" >"$WORK/rekey.log" 2>&1 &
    rekeying=$!
    while read -r step; do
        case $step in *write-material*) kill -STOP "$BAO_PID" ;; esac
    done <"$WORK/steps"
    wait $rekeying || code=$?
    kill -CONT "$BAO_PID"
    [ $code = 75 ] && grep -q 'did not answer' "$WORK/rekey.log"
}
promise "a server that is gone midway is said" until_true 120 cut_off
until_true 20 "$BAO" token lookup
promise "what the server has opens the volume" opens "$(value)"
promise "the same again completes it" "$vmward" volume rekey "$image"
promise "what the server has then opens the volume" opens "$(value)"
promise "and what it had does not" not opens "$third"
promise "there is one secret in the end" equal "$(count)" 1
done_well
