# Talking to the small guest over its serial port. To be sourced; needs common.sh.

# guest_connect SOCKET PID: connects, while the supervisor lives; answers come in on the descriptor GUEST_OUT.
guest_connect() {
    while [ ! -S "$1" ]; do
        kill -0 "$2" 2>/dev/null || die "the guest did not start"
        sleep 0.05
    done
    coproc SERIAL { socat - "UNIX-CONNECT:$1"; }
    # The shell closes a coprocess's own descriptors in subshells, which pipelines are.
    exec {GUEST_OUT}<&"${SERIAL[0]}" {GUEST_IN}>&"${SERIAL[1]}"
}

# guest_wait TEXT SECONDS: waits for a line that holds the text.
guest_wait() {
    local line
    while IFS= read -r -t "$2" line <&"$GUEST_OUT"; do
        case $line in *"$1"*) return ;; esac
    done
    die "the guest did not say '$1' within $2 s"
}

# guest_run COMMAND: runs a command in the guest and prints what it prints; its exit code is the result's.
guest_run() {
    local line
    printf '%s\n' "$1" >&"$GUEST_IN"
    while IFS= read -r -t 60 line <&"$GUEST_OUT"; do
        case $line in
            "guest: done "*) return "${line#guest: done }" ;;
            *) printf '%s\n' "$line" ;;
        esac
    done
    die "the guest did not answer to: $1"
}
