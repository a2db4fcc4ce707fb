# What the scripts here share. To be sourced.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$REPO/target}

# say TEXT: tells on stderr what is going on.
say() {
    printf '== %s\n' "$*" >&2
}

# die TEXT: ends the script.
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# as_root COMMAND...: runs a command that only root may run.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        say "sudo $*"
        sudo "$@"
    else
        die "this needs root, and there is no sudo. As root, run: $*"
    fi
}
