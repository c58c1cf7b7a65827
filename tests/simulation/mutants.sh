#!/usr/bin/env bash
# mutants.sh [MUTANT...]: applies each patch of mutants/ to a copy of the tree and runs the simulation there
# until a failure. Prints the number of steps up to the failure, and the seed of the history. PINBUF_SIM_STEPS
# (default 400 million) bounds the search. A failure in the histories of slow_peer.rs takes no steps.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
# A separate target folder: cargo mistakes a copy of a workspace for the workspace itself.
export CARGO_TARGET_DIR=${MUTANTS_TARGET_DIR:-$root/target/simulation-mutants}
export PINBUF_SIM_STEPS=${PINBUF_SIM_STEPS:-400000000} PINBUF_SIM_SEED=${PINBUF_SIM_SEED:-1}
copy=$(mktemp -d) || exit 1
trap 'rm -rf "$copy"' EXIT
missed=0
printf '%-31s %-15s %12s %8s  %s\n' mutant result 'after steps' seed 'what it said'
for patch in "$here"/mutants/*.patch; do
  name=$(basename "$patch" .patch) steps='' seed='' said=''
  [ $# -eq 0 ] || [[ " $* " == *" $name "* ]] || continue
  rm -rf "$copy/tree" && mkdir "$copy/tree"
  tar -C "$root" -c --exclude=./target --exclude=./.git --exclude=./fuzz/target . | tar -C "$copy/tree" -xm  # -m: cargo goes by the time
  if ! patch -s -N -p1 -d "$copy/tree" <"$patch"; then
    result='DOES NOT APPLY'; missed=1
  elif ! (cd "$copy/tree" && cargo test --quiet --release --test simulation --no-run) 2>"$copy/log"; then
    result='DOES NOT BUILD'; missed=1
  elif ! (cd "$copy/tree" && timeout 300 cargo test --quiet --release --test simulation slow_peer) >"$copy/log" 2>&1; then
    result=caught steps=none
    said=$(sed -n '/panicked at/{n;p;q}' "$copy/log" | cut -c1-60)
  elif (cd "$copy/tree" && timeout 300 cargo test --quiet --release --test simulation -- --nocapture) >"$copy/log" 2>&1; then
    result='NOT CAUGHT'; missed=1
  elif ! grep -q 'failed after' "$copy/log"; then
    result='NO VERDICT'; missed=1  # Out of time, or out of memory.
  else
    result=caught
    steps=$(sed -n 's/.*failed after \([0-9]*\) steps.*/\1/p' "$copy/log" | head -n 1)
    seed=$(sed -n 's/.*failed after .* of seed \([0-9]*\)\..*/\1/p' "$copy/log" | head -n 1)
    said=$(sed -n '/panicked at/{n;p;q}' "$copy/log" | cut -c1-60)
  fi
  printf '%-31s %-15s %12s %8s  %s\n' "$name" "$result" "$steps" "$seed" "$said"
done
exit $missed
