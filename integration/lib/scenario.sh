# What the scenarios share: a home of its own for each, promises that are checked, servers that end with it.
# To be sourced; sources the rest.
#
# A scenario is one file in integration/scenarios. It runs alone as well, installs what it needs, leaves nothing, ends
# with 0 if every promise held, and with 'skipped: why' and SKIPPED where the machine cannot run it.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
. "$REPO/integration/lib/packages.sh"

SKIPPED=77
SCENARIO=$(basename "$0" .sh)
WORK=$(mktemp -d "${TMPDIR:-/tmp}/vmward-$SCENARIO.XXXXXX")
# Lib dirs belong on a tmpfs.
export VMWARD_RUNTIME_DIR VMWARD_CONFIG=$WORK/config/vmward.toml
VMWARD_RUNTIME_DIR=$(mktemp -d "/dev/shm/vmward-$SCENARIO.XXXXXX")
mkdir "$WORK/config"
vmward=$TARGET/debug/vmward
SERVERS=()
PROMISES=0

tidy() {
    local code=$? pid
    set +e
    for pid in "${SERVERS[@]}"; do
        kill "$pid" 2>/dev/null
    done
    for pid in "${SERVERS[@]}"; do
        ends_within 5 "$pid" || kill -9 "$pid" 2>/dev/null
    done
    if declare -F tidy_more >/dev/null; then
        tidy_more
    fi
    rm -rf "$WORK" "$VMWARD_RUNTIME_DIR"
    exit $code
}
trap tidy EXIT

# skip WHY: ends a scenario that this machine cannot run.
skip() {
    echo "skipped: $SCENARIO: $*"
    exit $SKIPPED
}

# server COMMAND...: starts a program in the background; it ends with the scenario. What it says is in server-N.log.
server() {
    "$@" >"$WORK/server-${#SERVERS[@]}.log" 2>&1 </dev/null &
    SERVERS+=($!)
}

# ends_within SECONDS PID: waits for the end of a process.
ends_within() {
    local tries=$(($1 * 20))
    while kill -0 "$2" 2>/dev/null; do
        [ $((tries--)) -gt 0 ] || return 1
        sleep 0.05
    done
}

# until_true SECONDS COMMAND...: tries until it succeeds.
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || die "$SCENARIO: this did not come true: $*"
        sleep 0.05
    done
}

# free_port: a TCP port of the loopback that nobody listens on.
free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# promise TEXT COMMAND...: a command that must succeed. What it printed is in $WORK/said; one that prints nothing leaves
# there what was, and so may be about that.
promise() {
    local text=$1
    shift
    "$@" >"$WORK/saying" 2>&1 || { cat "$WORK/saying"; die "$SCENARIO: NOT SO: $text"; }
    [ ! -s "$WORK/saying" ] || mv "$WORK/saying" "$WORK/said"
    PROMISES=$((PROMISES + 1))
    echo "  ok  $text"
}

# refused TEXT CODE PATTERN COMMAND...: a command that must fail with this exit code and say this (extended regular
# expression, anywhere in what it prints).
refused() {
    local text=$1 code=$2 pattern=$3 found=0
    shift 3
    "$@" >"$WORK/said" 2>&1 || found=$?
    if [ $found != "$code" ] || ! grep -qE -- "$pattern" "$WORK/said"; then
        cat "$WORK/said"
        die "$SCENARIO: NOT SO: $text (exit $found, not $code with '$pattern')"
    fi
    PROMISES=$((PROMISES + 1))
    echo "  ok  $text"
}

# certificates DIR: an authority (ca-cert.pem), a server for localhost (server-*.pem) and two clients (client-*.pem,
# other-*.pem), with ECDSA keys; server-expired-cert.pem is the server's, expired.
certificates() {
    local dir=$1 curve=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
    mkdir -p "$dir"
    openssl req -x509 "${curve[@]}" -keyout "$dir/ca-key.pem" -out "$dir/ca-cert.pem" -days 30 -subj /CN=authority \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
    certificate "$dir" server localhost serverAuth
    certificate "$dir" client web1 clientAuth
    certificate "$dir" other web2 clientAuth
    openssl x509 -req -in "$dir/server.csr" -CA "$dir/ca-cert.pem" -CAkey "$dir/ca-key.pem" -CAcreateserial \
        -days -1 -out "$dir/server-expired-cert.pem" -extfile "$dir/server.ext" 2>/dev/null
}

# certificate DIR NAME SUBJECT USE: one certificate and its key.
certificate() {
    local dir=$1 name=$2
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$dir/$name-key.pem" -out "$dir/$name.csr" \
        -subj "/CN=$3" 2>/dev/null
    {
        echo "basicConstraints=critical,CA:FALSE"
        echo "keyUsage=critical,digitalSignature,keyEncipherment"
        echo "extendedKeyUsage=$4"
        echo "subjectAltName=DNS:$3,IP:127.0.0.1"
    } >"$dir/$name.ext"
    openssl x509 -req -in "$dir/$name.csr" -CA "$dir/ca-cert.pem" -CAkey "$dir/ca-key.pem" -CAcreateserial -days 30 \
        -out "$dir/$name-cert.pem" -extfile "$dir/$name.ext" 2>/dev/null
}

# pypi NAME REQUIREMENT...: programs of PyPI's packages, in a virtual environment that is kept; prints its bin directory.
pypi() (
    # In $(...) a shell goes on after what fails.
    set -e
    dir=$TARGET/pypi/$1 tries=3
    shift
    flock 9
    if [ "$(cat "$dir/requirements" 2>/dev/null)" != "$*" ]; then
        python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
        rm -rf "$dir"
        python3 -m venv "$dir"
        say "fetching $*"
        until "$dir/bin/pip" install --quiet --disable-pip-version-check "$@" >&2; do
            [ $((--tries)) -gt 0 ] || die "pip could not install $*"
            sleep 10
        done
        echo "$*" >"$dir/requirements"
    fi
    echo "$dir/bin"
) 9>"$TARGET/pypi.lock"

# done_well: the last line of a scenario.
done_well() {
    [ $PROMISES -gt 0 ] || die "$SCENARIO: nothing was checked"
    echo "$SCENARIO: $PROMISES promises kept"
}
