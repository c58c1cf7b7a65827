#!/usr/bin/env bash
# mutants.sh [GROUP [OPTION...]]: runs cargo-mutants on the files of a group (default: all groups in turn) in a
# copy of the tree, with the tests below; fails if a mutant survives. Options go to cargo-mutants: --shard 0/4
# for the first of four parts, --list to see the mutants. .cargo/mutants.toml lists the mutants without an
# effect, each with its reason. Reports are in target/mutants/GROUP/mutants.out.
set -u
cd "$(dirname "$0")/.." || exit 1
out=$PWD/target/mutants
# A separate target folder: cargo mistakes a copy of a workspace for the workspace itself.
export CARGO_TARGET_DIR=${MUTANTS_TARGET_DIR:-$out/target} CARGO_PROFILE_DEV_DEBUG=false
# The same random cases each time; the first failure is enough.
export PROPTEST_RNG_SEED=1 PROPTEST_MAX_SHRINK_ITERS=0

# mutants GROUP FILE... -- TARGET... -- TEST...: the files, the test targets to build, the tests to run.
mutants() {
  local group=$1 options=()
  shift
  while [ "$1" != -- ]; do options+=(--file "$1"); shift; done
  shift
  while [ "$1" != -- ]; do options+=(--cargo-arg="$1"); shift; done
  shift
  [ -z "$wanted" ] || [ "$wanted" = "$group" ] || return 0
  mkdir -p "$out/$group"
  cargo mutants --output "$out/$group" "${options[@]}" ${passed_on[@]+"${passed_on[@]}"} -- -- "$@"
  case $? in
    0) ;;
    3) [ ! -s "$out/$group/mutants.out/missed.txt" ] || status=1 ;; # With some, a test did not end.
    *) status=1 ;;
  esac
}

wanted=${1:-}
passed_on=("${@:2}")
status=0
mutants ids src/tracker.rs src/tracker/table.rs src/id.rs src/sys/errqueue.rs \
  -- --lib --test=memlock -- tracker:: id:: errqueue:: ticket
mutants memory src/buf.rs src/shared.rs src/lease.rs \
  -- --lib --test=api --test=kernel --test=memlock \
  -- buf:: lease:: mapped:: pool:: raw:: reaper:: sender:: sys:: \
  magazine:: options:: replacing:: shared:: tcp:: waiting::
mutants raw 'src/raw/*.rs' \
  -- --lib --test=api --test=kernel \
  -- buf:: lease:: pool:: raw:: shared:: \
  reaper:: fork:: magazine:: options:: replacing:: tasks:: waiting::
exit $status
