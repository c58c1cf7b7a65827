#!/usr/bin/env bash
# run.sh [MODEL...]: explores the models under loom (all, or those whose names contain MODEL) and prints the number of
#   executions of each; fails if one fails, or if there is a model that no mutant belongs to, or the reverse.
# run.sh mutants [MUTANT...]: applies each patch of mutants/ to a copy of the tree and checks that the models named in
#   its first line fail, and after how many executions.
# LOOM_MAX_PREEMPTIONS (default 2) bounds the search, LOOM_MAX_DURATION (seconds) the time for each model.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
target=${LOOM_TARGET_DIR:-$root/target/loom}
# The interval, in executions, between loom's looks at the time.
export LOOM_MAX_PREEMPTIONS=${LOOM_MAX_PREEMPTIONS:-2} LOOM_CHECKPOINT_INTERVAL=${LOOM_CHECKPOINT_INTERVAL:-100}
export RUSTFLAGS="--cfg loom ${RUSTFLAGS:-}" CARGO_TARGET_DIR=$target

explore() { # in the tree of this folder; cargo's arguments, -- and those of the tests
  cargo test --quiet --profile loom --package loom-tests "$@" 2>&1
}

# Every model, behind the name of its file.
names() {
  awk '/^#\[test\]/ { test = 1; next }
       test && sub(/^fn /, "") { sub(/\(.*/, ""); n = split(FILENAME, path, "/"); sub(/\.rs$/, "", path[n])
                                 print path[n], $0; test = 0 }' "$here"/tests/*.rs
}

# The mutants of a model.
mutants_of() {
  grep -lE "^model:(.* )?$1( |\$)" "$here"/mutants/*.patch
}

models() {
  out=$(cd "$root" && explore --tests -- --nocapture --test-threads=1 "$@"); status=$?
  printf '%s\n' "$out" | sed -nE 's/.*model ([a-z_0-9]+) holds, ([0-9]+) s, ([0-9]+)$/\1 \2 \3/p' |
    awk '{ printf "%-66s %9d executions %5d s\n", $1, $3, $2; n++ }
         END { print n + 0 " models, preemption bound " ENVIRON["LOOM_MAX_PREEMPTIONS"] }'
  [ $status -eq 0 ] || printf '%s\n' "$out"
  grep -q 'holds,' <<<"$out" || { echo "no model has that in its name: $*"; status=1; }
  while read -r _ model; do
    mutants_of "$model" >/dev/null || { echo "no mutant: $model"; status=1; }
  done < <(names)
  while read -r model; do
    names | grep -q " $model\$" || { echo "no model: $model"; status=1; }
  done < <(sed -sn '1s/^model: //p' "$here"/mutants/*.patch | tr ' ' '\n')
  return $status
}

# The effect of a mutant on a model of a file, in the tree of this folder, which is restored afterwards.
verdict() { # patch, file, model
  patch --dry-run -s -f -p1 <"$1" || { echo 'DOES NOT APPLY'; return 1; }
  sed -n 's|^+++ b/||p' "$1" | tar -cf "$saved" -T - && patch -s -f -p1 <"$1"
  if explore --test "$2" --no-run >/dev/null; then
    LOOM_TESTS_COUNT=$count timeout 300 cargo test --quiet --profile loom --package loom-tests --test "$2" -- \
      --test-threads=1 --exact "$3" >/dev/null 2>&1
    case $? in
      0) result='NOT CAUGHT' ;;
      124) result='TIME IS UP' ;;
      *) result=$(cat "$count") ;;
    esac
  else
    result='DOES NOT BUILD'
  fi
  tar -xmf "$saved"
  echo "$result"
  [[ $result =~ ^[0-9]+$ ]]
}

mutants() {
  # A separate folder and target: cargo mistakes a copy of a workspace for the workspace itself.
  copy=$target-mutants/tree saved=$target-mutants/saved.tar count=$target-mutants/count
  export CARGO_TARGET_DIR=$target-mutants/target
  rm -rf "$copy" && mkdir -p "$copy" || exit 1
  tar -C "$root" -c --exclude=./target --exclude=./.git . | tar -C "$copy" -xm # -m, here and below: cargo goes by the time
  cd "$copy" || exit 1
  unmutated=$(explore --tests -- --nocapture --test-threads=1) || { printf '%s\n' "$unmutated"; exit 1; }
  status=0
  printf '%-66s %10s  %-42s %s\n' model executions mutant 'caught after'
  while read -r file model; do
    executions=$(printf '%s\n' "$unmutated" | sed -nE "s/.*model $model holds.* ([0-9]+)\$/\1/p")
    for patch in $(mutants_of "$model"); do
      name=$(basename "$patch" .patch)
      [ $# -eq 0 ] || [[ " $* " == *" $name "* ]] || continue
      result=$(verdict "$patch" "$file" "$model") || status=1
      printf '%-66s %10s  %-42s %s\n' "$model" "$executions" "$name" "$result"
    done
  done < <(names)
  return $status
}

if [ "${1:-}" = mutants ]; then shift; mutants "$@"; else models "$@"; fi
