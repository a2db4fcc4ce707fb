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

# has GREP-ARGUMENT...: whether its input has such a line; to be used at the end of a pipe. It reads all of it: grep -q stops at
# the first, and what writes more then ends with SIGPIPE, with which pipefail makes a pipe fail that has found it.
has() {
    local text
    text=$(cat)
    grep -q "$@" <<<"$text"
}

# lacks GREP-ARGUMENT...: the contrary. `not` of a pipe would hold as well where what writes into it has failed.
lacks() {
    ! has "$@"
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
