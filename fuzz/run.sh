#!/usr/bin/env bash
# run.sh [SECONDS]: fuzzes each target for SECONDS (default 60) from its seed corpus, and names the results.
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
seconds=${1:-60}
# libFuzzer's instrumentation is a nightly option of the compiler; the library needs none.
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=${FUZZ_TARGET_DIR:-$root/target/fuzz}
export PATH=$CARGO_TARGET_DIR/tools/bin:$PATH
if ! command -v cargo-fuzz >/dev/null; then
  cargo install cargo-fuzz --locked --quiet --root "$CARGO_TARGET_DIR/tools" || exit 1
fi
status=0
cd "$root" || exit 1
for target in control simulation; do
  corpus=$root/target/fuzz-corpus/$target
  log=$CARGO_TARGET_DIR/$target.log
  mkdir -p "$corpus" "$CARGO_TARGET_DIR"
  # Panics of user code are a part of the simulation, and so are drops while unwinding: no sanitizer but
  # libFuzzer's own.
  if cargo fuzz run --sanitizer none "$target" "$corpus" "$here/corpus/$target" -- \
    -max_total_time="$seconds" -max_len=16384 -timeout=60 -rss_limit_mb=4096 >"$log" 2>&1; then
    result=ok
  else
    result=FAILED
    status=1
  fi
  awk -v target="$target" -v result="$result" '
    /^#[0-9]+/ { runs = substr($1, 2) }
    / cov: / { for (i = 1; i < NF; i++) if ($i == "cov:") covered = $(i + 1) }
    /^Done/ { runs = $2; seconds = $5 }
    END { printf "%-12s %-7s %10d runs in %4s s, %5d edges covered\n", target, result, runs, seconds == "" ? "?" : seconds, covered }' "$log"
  [ $result = ok ] || tail -n 40 "$log"
done
exit $status
