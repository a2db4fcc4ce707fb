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

# absent GREP-ARGUMENT...: whether files have no such line; `not grep` would hold as well for one that cannot be read.
absent() {
    local code=0
    grep "$@" || code=$?
    [ $code = 1 ]
}

# says_nothing COMMAND...: whether it succeeds and prints nothing; "$(COMMAND)" would be empty as well where it has failed.
says_nothing() {
    local said
    said=$("$@") && equal "$said" ""
}

# equal A B: whether two texts are the same.
equal() {
    [ "$1" = "$2" ] || { printf 'not equal:\n%s\n%s\n' "$1" "$2"; return 1; }
}

# not COMMAND...: succeeds if the command fails, in whatever way.
not() { ! "$@"; }

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
