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
rust_install
virtiofsd_install
guest_build "$TARGET/guest"
export VMWARD_TEST_GUEST=$TARGET/guest
cd "$REPO"

# tests NAME ARGUMENT...: runs cargo test, everything into a log, the gist onto the screen.
tests() {
    local log=$TARGET/test-$1.log code=0
    shift
    cargo test --locked --workspace --no-fail-fast "$@" -- --show-output >"$log" 2>&1 || code=$?
    grep -E '^ +(Running|Doc-tests)|^test result|^test .* FAILED|^skipped' "$log" || true
    if [ $code != 0 ]; then
        sed -n '/^failures:$/,/^test result/p; /^error/,$p' "$log" | tail -n 300
        die "there are failed tests; all of the output is in $log"
    fi
}

# version EMULATOR: as in 10.0.
version() {
    "$1" --version | sed -n '1s/.* version \([0-9]*\.[0-9]*\).*/\1/p'
}

say "building the tests"
cargo test --locked --workspace --no-run --quiet
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
