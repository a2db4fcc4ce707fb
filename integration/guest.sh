#!/bin/bash
# Builds the small Linux guest of the demo and the tests into a directory (target/guest) and prints its path.
set -euo pipefail
. "$(dirname "$0")/lib/common.sh"
. "$REPO/integration/lib/packages.sh"
. "$REPO/integration/lib/guest.sh"

dir=${1:-$TARGET/guest}
guest_build "$dir"
echo "$dir"
