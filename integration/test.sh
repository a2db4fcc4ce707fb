#!/bin/bash
# Installs what is missing and runs every test.
#
# All tests run with the machine's own QEMU; those against a real QEMU then again with the QEMU of each Debian suite
# in VMWARD_TEST_SUITES (bookworm 7.2, trixie 10.0, unstable 11.1):
#
#     integration/test.sh                                  and with the other of bookworm's and trixie's
#     VMWARD_TEST_SUITES= integration/test.sh              the machine's own only
#     VMWARD_TEST_SUITES=unstable integration/test.sh      and 11.1
#
# The whole output is in target/test-*.log; shown are the results, and what was skipped and why.
set -euo pipefail
. "$(dirname "$0")/lib/common.sh"
. "$REPO/integration/lib/packages.sh"
. "$REPO/integration/lib/guest.sh"

packages_install "$PACKAGES_TEST"
# Its tests say so where it cannot be had. Up to QEMU 7.2 it is no package of its own.
qemu_module_install ui-spice-core qemu-system-modules-spice || say "apt-get could not install QEMU's SPICE"
rust_install
virtiofsd_install
guest_build "$TARGET/guest"
export VMWARD_TEST_GUEST=$TARGET/guest
cd "$REPO"

# binaries ARGUMENT...: the test binaries, built.
binaries() {
    cargo test --locked --workspace --no-run --message-format=json-render-diagnostics "$@" |
        sed -n '/"profile":{[^}]*"test":true/s/.*"executable":"\([^"]*\)".*/\1/p'
}

# one LOG BINARY: runs a test binary, everything into a log of its own and at its end into LOG.
one() {
    local log code=0
    log=$(mktemp "$1.XXXXXX")
    echo "     Running $(basename "$2")" >"$log"
    "$2" --show-output >>"$log" 2>&1 || code=$?
    # As one piece each.
    flock "$1" sh -c 'cat "$0" >>"$1"' "$log" "$1"
    grep -E '^ +Running|^test result|^test .* FAILED|^skipped' "$log"
    if [ $code != 0 ]; then
        # Kept for the end, where it is looked for: its failures, or what came last where it was killed.
        { sed -n '/^failures:$/,/^test result/p' "$log" | grep . || tail -n 50 "$log"; } >>"$1.failed"
        echo "error: $(basename "$2") ended with $code" | tee -a "$1" "$1.failed"
    fi
    rm "$log"
    return $code
}
export -f one
# What cargo has in the environment of the tests that it runs.
export CARGO_MANIFEST_DIR=$REPO

# tests NAME ARGUMENT...: runs all tests, everything into a log, the gist onto the screen. Two binaries at a time: a test that
# is the last of its binary would leave a processor idle, and many wait for a guest.
tests() {
    local log=$TARGET/test-$1.log code=0 list
    shift
    : >"$log"
    rm -f "$log.failed"
    list=$(binaries "$@")
    [ -n "$list" ] || die "cargo has built no tests"
    xargs -P 2 -I {} bash -c 'one "$0" {}' "$log" <<<"$list" || code=$?
    if [ $code != 0 ]; then
        cat "$log.failed"
        die "there are failed tests; all of the output is in $log"
    fi
}

# version EMULATOR: as in 10.0.
version() {
    "$1" --version | sed -n '1s/.* version \([0-9]*\.[0-9]*\).*/\1/p'
}

say "building the tests"
cargo test --locked --workspace --no-run --quiet
say "the examples in the documentation"
cargo test --locked --workspace --doc --quiet
say "every test, with this machine's QEMU $(version qemu-system-x86_64)"
tests own
own=$(version qemu-system-x86_64)
case $own in
    10.0) other=bookworm ;;
    *) other=trixie ;;
esac
for suite in ${VMWARD_TEST_SUITES-$other}; do
    emulator=$("$REPO/integration/qemu-root.sh" "$suite" "$TARGET/qemu/$suite")
    say "the tests against a real QEMU again, with $suite's QEMU $(version "$emulator")"
    VMWARD_TEST_EMULATOR=$emulator tests "$suite" --package vmward --test '*'
done
say "all tests passed"
