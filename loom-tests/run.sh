#!/usr/bin/env bash
# run.sh [MODEL...]: explores the models under loom (all, or those whose names contain MODEL) and prints the number of
#   executions of each. LOOM_MAX_PREEMPTIONS (default 2) bounds the search.
# run.sh mutants [MUTANT...]: applies each patch of mutants/ to a copy of the tree and checks that the model named in
#   its first line fails.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
export LOOM_MAX_PREEMPTIONS=${LOOM_MAX_PREEMPTIONS:-2} RUSTFLAGS="--cfg loom ${RUSTFLAGS:-}"
export CARGO_TARGET_DIR=${LOOM_TARGET_DIR:-$root/target/loom}

explore() { # cargo's arguments after --
  cargo test --quiet --release --package loom-tests --tests -- --nocapture --test-threads=1 "$@" 2>&1
}

models() {
  out=$(cd "$root" && explore "$@"); status=$?
  printf '%s\n' "$out" | sed -n 's/.*model \([a-z_]*\) \([0-9]*\)$/\1 \2/p' |
    awk '{ printf "%-58s %9d executions\n", $1, $2; n++ } END { print n + 0 " models, preemption bound " ENVIRON["LOOM_MAX_PREEMPTIONS"] }'
  [ $status -eq 0 ] || printf '%s\n' "$out"
  return $status
}

mutants() {
  # Not the target folder of the true tree: cargo takes a copy of a workspace for the workspace itself.
  export CARGO_TARGET_DIR=$CARGO_TARGET_DIR-mutants
  copy=$(mktemp -d) || exit 1
  trap 'rm -rf "$copy"' EXIT
  missed=0
  printf '%-37s %-58s %s\n' mutant model result
  for patch in "$here"/mutants/*.patch; do
    name=$(basename "$patch" .patch)
    [ $# -eq 0 ] || [[ " $* " == *" $name "* ]] || continue
    model=$(sed -n '1s/^model: //p' "$patch")
    rm -rf "$copy/tree" && mkdir "$copy/tree"
    tar -C "$root" -c --exclude=./target --exclude=./.git . | tar -C "$copy/tree" -xm  # -m: cargo goes by the time
    if ! patch -s -N -p1 -d "$copy/tree" <"$patch"; then
      result='DOES NOT APPLY'; missed=1
    elif ! out=$(cd "$copy/tree" && cargo test --quiet --release --package loom-tests --tests --no-run 2>&1); then
      result='DOES NOT BUILD'; missed=1
    elif out=$(cd "$copy/tree" && explore --exact "$model"); then
      result='NOT CAUGHT'; missed=1
    else
      result=caught
    fi
    printf '%-37s %-58s %s\n' "$name" "$model" "$result"
  done
  return $missed
}

if [ "${1:-}" = mutants ]; then shift; mutants "$@"; else models "$@"; fi
