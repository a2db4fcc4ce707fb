#!/bin/bash
# Guests started and stopped, and encrypted disks plugged in and out, over and over: descriptors, memory and files before
# and after, printed; what has grown is a failure.
#
#     integration/soak.sh              500 starts, 1,000 disks
#     integration/soak.sh 50 100       other numbers
set -euo pipefail
. "$(dirname "$0")/lib/common.sh"
. "$REPO/integration/lib/packages.sh"

starts=${1:-500} disks=${2:-1000}
packages_install "$PACKAGES_TEST"
rust_install
cd "$REPO"
say "$starts starts and stops, $disks disks in and out"
VMWARD_TEST_SOAK=$disks VMWARD_TEST_SOAK_STARTS=$starts \
    cargo test --locked --quiet --test soak -- --nocapture --test-threads 1
