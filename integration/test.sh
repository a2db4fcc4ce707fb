#!/bin/bash
# Installs what is missing and runs every test.
#
#     integration/test.sh                 all tests, with the machine's own QEMU; then those against a real QEMU
#                                         again with the QEMU of each suite in VMWARD_TEST_SUITES
#     VMWARD_TEST_SUITES= integration/test.sh                      the machine's own QEMU only
#     VMWARD_TEST_SUITES="trixie unstable" integration/test.sh     10.0 and 11.1 as well
#
# The whole output is in target/test-*.log; shown are the results, and what was skipped and why.
set -euo pipefail
. "$(dirname "$0")/lib/common.sh"
. "$REPO/integration/lib/packages.sh"
. "$REPO/integration/lib/guest.sh"

packages_install "$PACKAGES_TEST"
rust_install
guest_build "$TARGET/guest"
export VMWARD_TEST_GUEST=$TARGET/guest
cd "$REPO"

# tests NAME ARGUMENT...: runs cargo test, everything into a log, the gist onto the screen.
tests() {
    local log=$TARGET/test-$1.log code=0
    shift
    cargo test --locked --no-fail-fast "$@" -- --show-output >"$log" 2>&1 || code=$?
    grep -E '^ +(Running|Doc-tests)|^test result|^test .* FAILED|^skipped' "$log" || true
    if [ $code != 0 ]; then
        sed -n '/^failures:$/,/^test result/p; /^error/,$p' "$log" | tail -n 300
        die "there are failed tests; all of the output is in $log"
    fi
}

say "building the tests"
cargo test --locked --no-run --quiet
say "every test, with $(qemu-system-x86_64 --version | head -n 1)"
tests own
for suite in ${VMWARD_TEST_SUITES-trixie}; do
    emulator=$("$REPO/integration/qemu-root.sh" "$suite" "$TARGET/qemu/$suite")
    say "the tests against a real QEMU, with $("$emulator" --version | head -n 1)"
    VMWARD_TEST_EMULATOR=$emulator tests "$suite" --test '*'
done
say "all tests passed"
