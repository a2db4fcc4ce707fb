#!/bin/bash
# The KMIP keystore, against PyKMIP: its own client reads what vmward wrote, and the reverse.
. "$(dirname "$0")/../lib/scenario.sh"
packages_install "$PACKAGES_TEST"
bin=$(pypi pykmip pykmip==0.11.0 cryptography==50.0.2)

pki=$WORK/pki port=$(free_port)
certificates "$pki"
chmod 600 "$pki"/*-key.pem
mkdir "$WORK/policy"

# kmip_server PORT CERTIFICATE: the server, with one database.
kmip_server() {
    cat >"$WORK/server-$1.conf" <<CONF
[server]
hostname=127.0.0.1
port=$1
certificate_path=$pki/$2
key_path=$pki/server-key.pem
ca_path=$pki/ca-cert.pem
auth_suite=TLS1.2
policy_path=$WORK/policy
enable_tls_client_auth=True
database_path=$WORK/kmip.db
logging_level=INFO
CONF
    server "$bin/python" -W ignore -c "
from kmip.services.server import KmipServer
with KmipServer(config_path='$WORK/server-$1.conf', log_path='$WORK/kmip-$1.log') as server: server.serve()"
    KMIP_SERVERS+=("${SERVERS[-1]}")
    disown "${SERVERS[-1]}"
    until_true 60 bash -c "exec 3<>/dev/tcp/127.0.0.1/$1"
}
KMIP_SERVERS=()

# client PYTHON [NAME]: a few lines with PyKMIP's own client; its certificate is that of NAME.
client() {
    "$bin/python" -W ignore -c "
import sys
from kmip import enums
from kmip.core.factories.attributes import AttributeFactory
from kmip.pie import objects
from kmip.pie.client import ProxyKmipClient
def named(name):
    from kmip.core.attributes import Name
    name = Name.create(name, enums.NameType.UNINTERPRETED_TEXT_STRING)
    return [AttributeFactory().create_attribute(enums.AttributeType.NAME, name)]
def secret(value, name):
    return objects.SecretData(value, enums.SecretDataType.PASSWORD, name=name,
                              masks=[enums.CryptographicUsageMask.DERIVE_KEY])
with ProxyKmipClient(hostname='127.0.0.1', port=$port, cert='$pki/${2:-client}-cert.pem',
                     key='$pki/${2:-client}-key.pem', ca='$pki/ca-cert.pem',
                     ssl_version='PROTOCOL_TLSv1_2', kmip_version=enums.KMIPVersion.KMIP_1_2) as c:
    ids = lambda name: c.locate(attributes=named(name))
    out = lambda value: sys.stdout.buffer.write(value)
    $1" 2>"$WORK/client.log" || { cat "$WORK/client.log" >&2; return 1; }
}

files="ca=$pki/ca-cert.pem&cert=$pki/client-cert.pem&key=$pki/client-key.pem"
uri="kmip://127.0.0.1:$port?$files"
keystore() { echo "keystore = \"$1\"" >"$VMWARD_CONFIG"; }
get() { "$vmward" secret get-value "$@"; }
kmip_server "$port" server-cert.pem

# Round trips in each version.
for version in "" "&version=1.4" "&version=1.3" "&version=1.2"; do
    keystore "$uri$version"
    uuid=$("$vmward" secret generate --usage-volume "/images/web1$version.qcow2")
    promise "PyKMIP's client reads by the UUID what vmward generated (${version:-newest version})" \
        equal "$(client "out(c.get(ids('$uuid')[0]).value)")" "$(get "$uuid")"
    printf 'another value' | "$vmward" secret set-value "$uuid"
    promise "a value that was replaced is the one that both read, and the old one is destroyed" \
        equal "$(client "out(b'%d ' % len(ids('volume:/images/web1$version.qcow2')) + c.get(ids('$uuid')[0]).value)"), $(get "/images/web1$version.qcow2")" \
        "1 another value, another value"
    "$vmward" secret dumpxml "$uuid" | sed "s/private='no'/private='yes'/" >"$WORK/secret.xml"
    promise "its definition can be changed" "$vmward" secret define "$WORK/secret.xml"
    refused "a private value is not shown" 77 private get "$uuid"
    promise "a secret can be undefined" "$vmward" secret undefine "$uuid"
    promise "and is gone" equal "$(client "print(ids('$uuid'))")" "[]"
done

# Defined without a value.
keystore "$uri"
uuid=5c7f1f0e-6f0e-4c8c-8a44-0d9b6dd4f6a1
cat >"$WORK/secret.xml" <<XML
<secret ephemeral='no' private='no'>
  <uuid>$uuid</uuid>
  <description>web1's "root" &amp; more</description>
  <usage type='volume'>
    <volume>/images/web1.luks</volume>
  </usage>
</secret>
XML
promise "a secret can be defined without a value" "$vmward" secret define "$WORK/secret.xml"
promise "its definition comes back as it was" equal "$("$vmward" secret dumpxml "$uuid")" "$(cat "$WORK/secret.xml")"
refused "and has no value yet" 66 "the secret $uuid has no value" get "$uuid"
printf 'passphrase of web1' | "$vmward" secret set-value "$uuid"
promise "then it has one" equal "$(get "$uuid")" "passphrase of web1"
promise "the list shows it" eval "'$vmward' secret list | has -E '^$uuid +volume /images/web1.luks +yes'"

# A guest.
"$vmward" volume create "$WORK/web1.luks" --format raw --size 16M --secret "$uuid"
cat >"$WORK/guest.xml" <<XML
<domain type='qemu'>
  <name>web1</name><memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices><disk type='file' device='disk'>
    <driver name='qemu' type='raw'/><source file='$WORK/web1.luks'>
    <encryption format='luks'><secret type='passphrase' uuid='$uuid'/></encryption></source>
    <target dev='vda' bus='virtio'/></disk></devices>
</domain>
XML
as_user=()
[ "$(id -u)" != 0 ] || as_user=(--user root)
server "$vmward" run "${as_user[@]}" "$WORK/guest.xml"
until_true 60 eval "'$vmward' list | has 'web1.*running'"
supervisor=${SERVERS[-1]}
# in_memory TEXT: whether the supervisor's memory has it. Only root may look.
in_memory() {
    python3 - "$supervisor" "$1" <<'PYTHON'
import sys
pid, text, found = sys.argv[1], sys.argv[2].encode(), False
for line in open(f'/proc/{pid}/maps'):
    start, end = (int(n, 16) for n in line.split()[0].split('-'))
    if ' rw' in line:
        with open(f'/proc/{pid}/mem', 'rb') as memory:
            memory.seek(start)
            found |= text in memory.read(end - start)
sys.exit(not found)
PYTHON
}
if [ "$(id -u)" = 0 ]; then
    promise "its supervisor's memory can be searched" in_memory "$uuid"
    promise "and has neither the passphrase" not in_memory "passphrase of web1"
    promise "nor the client's key" not in_memory "$(sed -n 2p "$pki/client-key.pem")"
fi
promise "a guest runs with its passphrase from the server" "$vmward" destroy web1
promise "and has ended" ends_within 60 "$supervisor"

# What other programs made.
client "c.register(secret(b'by PyKMIP', '7d3c1f6a-3b8e-4f7e-9d55-1d0a4f2b9c11')); c.register(secret(b'by name', 'web/2'))
    c.activate(c.register(secret(bytes([0, 255]), 'raw')))"
promise "a secret is found that PyKMIP's client named by its UUID" equal "$(get 7d3c1f6a-3b8e-4f7e-9d55-1d0a4f2b9c11)" "by PyKMIP"
key=$(client "u = c.create(enums.CryptographicAlgorithm.AES, 256, name='aes', cryptographic_usage_mask=[enums.CryptographicUsageMask.ENCRYPT]); c.activate(u); print(u)")

# value_at UUID OBJECT: a secret here whose value is there.
value_at() {
    "$vmward" --keystore "file:$WORK/local" secret define - >/dev/null <<XML
<secret><uuid>$1</uuid><value uri='kmip://127.0.0.1:$port$2&amp;ca=$pki/ca-cert.pem&amp;cert=$pki/${3:-client}-cert.pem&amp;key=$pki/${3:-client}-key.pem'/></secret>
XML
}
keystore "file:$WORK/local"
n=00000000-0000-4000-8000-00000000000
value_at ${n}1 "/web%2F2?version=2.0"
promise "a value is read by its object's name" equal "$(get ${n}1)" "by name"
printf 'set by vmward' | "$vmward" secret set-value ${n}1
promise "and set there, in 2.0" equal "$(client "out(c.get(ids('web/2')[0]).value)"), $(get ${n}1)" "set by vmward, set by vmward"
value_at ${n}2 "?id=$key"
promise "a symmetric key is read by its identifier, as the bytes that it is" \
    equal "$(get --base64 ${n}2)" "$(client "import base64; out(base64.b64encode(c.get('$key').value))")"
refused "an object that is named by its identifier is not replaced" 69 "cannot give a new value to an object" \
    bash -c "printf x | '$vmward' secret set-value ${n}2"
value_at ${n}3 "/raw?version=1.4"
sed "s/uuid='$uuid'/uuid='${n}3'/" "$WORK/guest.xml" >"$WORK/raw.xml"
refused "a value that is not text opens no disk, and the message names the secret" 65 "${n}3 cannot be used.*no passphrase" \
    "$vmward" run "${as_user[@]}" "$WORK/raw.xml"
printf 'active no more' | "$vmward" secret set-value ${n}3
promise "an active object is revoked and destroyed when it is replaced" equal "$(client "print(len(ids('raw')))"), $(get ${n}3)" "1, active no more"

# What can go wrong.
value_at ${n}4 "/nothing?version=1.4"
refused "a missing object" 66 "has no value at kmip://127.0.0.1:$port/nothing" get ${n}4
value_at ${n}5 "?id=999"
refused "a missing identifier" 66 "has no value at kmip://127.0.0.1:$port\?id=999" get ${n}5
value_at ${n}6 "?id=$key" other
refused "another client's object" 77 "127.0.0.1:$port\?id=$key does not permit it" get ${n}6
keystore "${uri//client-/other-}"
refused "another client does not see the secrets" 66 "no .*secret with UUID $uuid is defined" get "$uuid"

# failing TEXT CODE PATTERN URI: reading the secret from a keystore that does not work.
failing() {
    local deadline=20
    # What is about the answer needs one, however slow the machine is.
    [[ $3 != *'did not answer'* ]] || deadline=2
    keystore "$4"
    refused "$1" "$2" "$3" timeout 30 "$vmward" --keystore-timeout $deadline secret get-value "$uuid"
}
failing "an unreachable server" 75 "cannot be reached.*$uuid" "kmip://127.0.0.1:$(free_port)?$files"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$pki/stranger-key.pem" -out "$pki/stranger-cert.pem" \
    -days 30 -subj /CN=web1 2>/dev/null
chmod 600 "$pki/stranger-key.pem"
failing "an unknown authority" 69 "cannot be trusted: its certificate is of an unknown authority" "${uri//ca-cert/stranger-cert}"
failing "a client that the server does not know" 77 "does not accept the client certificate" "${uri//client-/stranger-}"
openssl x509 -req -in "$pki/client.csr" -CA "$pki/ca-cert.pem" -CAkey "$pki/ca-key.pem" -CAcreateserial -days -1 \
    -out "$pki/expired-cert.pem" -extfile "$pki/client.ext" 2>/dev/null
failing "an expired client certificate" 69 "expired-cert.pem expired at " "${uri/client-cert/expired-cert}"
failing "a key of another certificate" 69 "other-key.pem is not the key of .*client-cert.pem" "${uri/client-key/other-key}"
failing "a file that is no certificate" 69 "client.csr holds no certificate" "${uri/client-cert.pem/client.csr}"
failing "a missing file" 69 "missing.pem could not be read" "${uri/client-key/missing}"
chmod 644 "$pki/other-key.pem"
failing "a key that others can read" 77 "other-key.pem is not safe to use: others may read" "${uri//client-/other-}"
failing "a credential in the URI" 78 "must hold no credentials" "${uri/127/user:password@127}"
failing "a version that nobody speaks" 78 "version 3.0; vmward speaks 2.0, 1.4, 1.3 and 1.2" "$uri&version=3.0"
sed 's/IP:127.0.0.1/IP:127.0.0.9/' "$pki/server.ext" >"$pki/elsewhere.ext"
openssl x509 -req -in "$pki/server.csr" -CA "$pki/ca-cert.pem" -CAkey "$pki/ca-key.pem" -CAcreateserial -days 30 \
    -out "$pki/elsewhere-cert.pem" -extfile "$pki/elsewhere.ext" 2>/dev/null
elsewhere=$(free_port)
kmip_server "$elsewhere" elsewhere-cert.pem
failing "a server of another name" 69 "cannot be trusted: its certificate is for another name" "${uri/$port/$elsewhere}"
expired=$(free_port)
kmip_server "$expired" server-expired-cert.pem
failing "an expired server certificate" 69 "cannot be trusted: its certificate has expired" "${uri/$port/$expired}"

# Servers that have a certificate and no manners: HOW says in what way.
cat >"$WORK/liar.py" <<'PYTHON'
import socket, ssl, struct, sys, time
port, how, pki = int(sys.argv[1]), sys.argv[2], sys.argv[3]
def item(tag, kind, content):
    return bytes([0x42, tag >> 8, tag & 255, kind]) + struct.pack('>I', len(content)) + content + bytes(-len(content) % 8)
def reply(*versions):
    number = lambda tag, n: item(tag, 2, struct.pack('>i', n))
    word = lambda tag, n: item(tag, 5, struct.pack('>I', n))
    of = lambda v: item(0x69, 1, number(0x6a, v[0]) + number(0x6b, v[1]))
    header = item(0x7a, 1, of((1, 2)) + item(0x92, 9, bytes(8)) + number(0x0d, 1))
    payload = item(0x7c, 1, b''.join(map(of, versions)))
    return item(0x7b, 1, header + item(0x0f, 1, word(0x5c, 0x1e) + word(0x7f, 0) + payload))
answers = {
    'garbage': b'HTTP/1.1 400 Bad Request\r\n\r\n' * 3,
    'lengths': b'\x42\x00\x7b\x01\x00\x00\x00\x10' + b'\x42\x00\x7a\x01\x00\x00\x00\x40' + bytes(8),
    'huge': b'\x42\x00\x7b\x01\xff\xff\xff\xf0',
    'old': reply((1, 1), (1, 0)),
    'other': item(0x7b, 1, b''),
}
listener = socket.create_server(('127.0.0.1', port))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(pki + '/server-cert.pem', pki + '/server-key.pem')
while True:
    connection, _ = listener.accept()
    try:
        if how == 'deaf':
            time.sleep(60)
        if how == 'plain':
            connection.sendall(b'220 ready\r\n' * 100)
            continue
        connection = context.wrap_socket(connection, server_side=True)
        connection.recv(65536)
        if how == 'silent':
            time.sleep(60)
        if how == 'closing':
            continue
        if how == 'dripping':
            for byte in b'\x42\x00\x7b\x01\x00\x10\x00\x00' + bytes(1 << 20):
                connection.sendall(bytes([byte]))
                time.sleep(0.2)
        if how == 'endless':
            connection.sendall(b'\x42\x00\x7b\x01\x00\x10\x00\x00')
            while True:
                connection.sendall(bytes(1 << 16))
        connection.sendall(answers[how])
    except OSError:
        pass
    finally:
        connection.close()
PYTHON
# liar HOW TEXT CODE PATTERN: what such a server makes of a secret.
liar() {
    local at
    at=$(free_port)
    server "$bin/python" "$WORK/liar.py" "$at" "$1" "$pki"
    until_true 60 eval "ss -Htln 'sport = $at' | has ."
    failing "$2" "$3" "$4" "${uri/$port/$at}"
}
liar deaf "a server that says nothing at all" 75 "did not answer within 2 s"
liar silent "a server that does not answer" 75 "did not answer within 2 s"
liar dripping "a server that answers a byte at a time" 75 "did not answer within 2 s"
liar endless "a server that does not stop" 69 "gave a wrong answer"
liar closing "a server that hangs up" 75 "is not ready: it closed the connection"
liar plain "a server of something else" 69 "gave a wrong answer: what it speaks is not TLS"
liar garbage "a server that speaks something else over TLS" 69 "gave a wrong answer"
liar lengths "a reply with a wrong length" 69 "gave a wrong answer: an item of the message is cut off"
liar huge "a reply of 4 GiB" 69 "gave a wrong answer: it announces 4294967288 bytes"
liar other "a reply to nothing" 69 "gave a wrong answer: it has not as many results"
liar old "a server of another age" 69 "it speaks KMIP 1.1 and 1.0, vmward 2.0, 1.4, 1.3 and 1.2"

# How many requests a lookup takes; the server's log has a line for each.
keystore "$uri"
requests() {
    local before
    before=$(grep -c 'Received request' "$WORK/kmip-$port.log")
    get "$1" >/dev/null
    echo $(($(grep -c 'Received request' "$WORK/kmip-$port.log") - before))
}
few=$(requests "$uuid")
for n in 1 2 3 4 5 6 7 8 9; do "$vmward" secret generate --usage-ceph "client.$n"; done >/dev/null
promise "with ten secrets a lookup takes as many requests as with one: $few" equal "$(requests "$uuid")" "$few"
promise "the list has them all" equal "$("$vmward" secret list | grep -c ' ceph ')" 9
promise "no value is in the server's log" absent -qF 'passphrase of web1' "$WORK"/kmip-*.log
# It takes a signal to end only with the next connection.
kill -9 "${KMIP_SERVERS[@]}"
done_well
