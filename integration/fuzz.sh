#!/bin/bash
# Looks for inputs that make a decoder panic, hang or take too much memory, with cargo-fuzz.
#
#     integration/fuzz.sh                  each decoder, a minute long
#     integration/fuzz.sh SECONDS NAME...  some, as long as that
#
# Needs no nightly toolchain: there is no address sanitizer, which this crate's safe code needs least. What is found is in
# fuzz/artifacts; what shows something that no other input does is kept in fuzz/corpus. Neither belongs into the repository,
# but a small input that failed once belongs into fixtures/fuzz/NAME, where tests/decoders.rs tries it each time.
set -euo pipefail
. "$(dirname "$0")/lib/common.sh"
. "$REPO/integration/lib/packages.sh"

packages_install "$PACKAGES_DEMO
c++ g++"
rust_install
tools=$TARGET/cargo-fuzz
if [ ! -x "$tools/bin/cargo-fuzz" ]; then
    say "building cargo-fuzz"
    cargo install --quiet --locked --root "$tools" cargo-fuzz
fi
PATH=$tools/bin:$PATH
cd "$REPO"
seconds=${1:-60}
names=("${@:2}")
if [ ${#names[@]} = 0 ]; then
    mapfile -t names < <(cargo fuzz list)
fi
failed=0
for name in "${names[@]}"; do
    say "$name, $seconds s"
    mkdir -p "fuzz/corpus/$name"
    nice cargo fuzz run --sanitizer none "$name" "fuzz/corpus/$name" "fixtures/fuzz/$name" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=16384 \
        -print_final_stats=1 >"$TARGET/fuzz-$name.log" 2>&1 || failed=$((failed + 1))
    grep -E 'stat::number_of_executed_units|^==|panicked|SUMMARY' "$TARGET/fuzz-$name.log" || tail -n 3 "$TARGET/fuzz-$name.log"
done
[ $failed = 0 ] || die "$failed of ${#names[@]} decoders fail; what with is in fuzz/artifacts"
