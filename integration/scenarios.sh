#!/bin/bash
# Runs the scenarios: vmward against real servers, each installed and started by its scenario.
#
#     integration/scenarios.sh             all of them
#     integration/scenarios.sh NAME...     some
#
# What each one printed is in target/scenarios/NAME.log; shown are the results, and what was skipped and why. Each has 40 minutes.
set -euo pipefail
. "$(dirname "$0")/lib/common.sh"
. "$REPO/integration/lib/packages.sh"

packages_install "$PACKAGES_TEST"
rust_install
say "building vmward"
(cd "$REPO" && cargo build --locked --quiet)
mkdir -p "$TARGET/scenarios"
names=("$@")
if [ $# = 0 ]; then
    mapfile -t names < <(cd "$REPO/integration/scenarios" && ls | sed -n 's/\.sh$//p')
fi

# lane NAME...: runs scenarios one after the other; how many of them failed is its exit status.
lane() {
    local name log start code failed=0
    for name in "$@"; do
        log=$TARGET/scenarios/$name.log
        start=$SECONDS code=0
        timeout --kill-after=60 2400 bash "$REPO/integration/scenarios/$name.sh" >"$log" 2>&1 </dev/null || code=$?
        case $code in
            0) echo "ok       $name: $(tail -n 1 "$log" | sed "s/^$name: //"), $((SECONDS - start)) s" ;;
            77) grep '^skipped: ' "$log" ;;
            *)
                printf 'FAILED   %s:\n%s\n' "$name" "$(tail -n 60 "$log" | sed 's/^/    /')"
                failed=$((failed + 1))
                ;;
        esac
    done
    return $failed
}

# Two at a time, as they mostly wait for their servers. Those that share what they start are in one lane.
images=() others=()
for name in "${names[@]}"; do
    case $name in
        storage-* | volume-*) images+=("$name") ;;
        *) others+=("$name") ;;
    esac
done
failed=0
lane "${images[@]}" &
lane "${others[@]}" || failed=$?
wait $! || failed=$((failed + $?))
[ $failed = 0 ] || die "$failed of ${#names[@]} scenarios failed"
say "all scenarios are as they should be"
