# For compare.sh and differential.sh: an earlier revision in a worktree of its own, with today's
# rows and histories in it. Sets `earlier`, the folder.
#
#   . benches/earlier.sh; check_out REV

# Removes from a copied file the methods that the earlier kernel interface lacks.
without_newer() {
  if ! grep -q 'fn is_over' "$earlier/src/sender/kernel.rs"; then
    sed -i "$1" "$2"
  fi
}

# Gives an earlier revision the public modules, and the copied files its names.
with_todays_names() {
  grep -q '^pub mod pool;' "$earlier/src/lib.rs" && return
  sed -i -E 's/^mod (error|pool|reaper|sender);/pub mod \1;/' "$earlier/src/lib.rs"
  sed -i 's/^    backing::Backing,$//; $a pub use crate::backing::{Backing, Pages};' "$earlier/src/pool.rs"
  echo 'pub use crate::{NotificationId, IdRange};' >>"$earlier/src/internals.rs"
  sed -i -E 's/OnRelease/HandBack/g; s/on_release/hand_back/g; s/Payload::Shared\b/Payload::SharedBuf/g
    s/Payload::Arc\b/Payload::Shared/g; s/reap_and_flush/flush_now/; s/close\(Some\(deadline\)\)/close(deadline)/' \
    "$earlier"/tests/differential/*.rs "$earlier"/tests/simulation/*.rs "$earlier"/benches/rows.rs
}

check_out() {
  local revision
  revision=$(git rev-parse --short "$1^{commit}") || exit 1
  earlier=$PWD/target/earlier/$revision
  git worktree prune
  [ -d "$earlier" ] || git worktree add -q --detach "$earlier" "$revision" || exit 1
  git -C "$earlier" checkout -q --force "$revision" || exit 1
  rm -rf "$earlier/benches" "$earlier/tests/differential" "$earlier/tests/simulation"
  cp -r benches "$earlier/"
  cp -r tests/differential tests/simulation "$earlier/tests/"
  cp tests/common/filter.rs "$earlier/tests/common/"
  with_todays_names
  # An earlier revision has not every example and test of today.
  awk 'BEGIN { RS = ""; ORS = "\n\n" } !/^\[\[(example|test)\]\]/' Cargo.toml >"$earlier/Cargo.toml"
  # Rows and histories are of the root package; an earlier revision has not every other member.
  sed -i -z 's/\nmembers = \[[^]]*\]/\nmembers = []/' "$earlier/Cargo.toml"
  cp Cargo.lock "$earlier/"
  without_newer '/fn is_over/,/^    }$/d' "$earlier/benches/scale/sink.rs"
  without_newer '/newer:/,/newer end/d' "$earlier/tests/differential/kernel.rs"
  if grep -q 'fn rouse' "$earlier/src/sender/kernel.rs"; then
    sed -i 's/fn wake(&self)/fn rouse(\&self)/' "$earlier/tests/differential/kernel.rs"
  fi
  if grep -rq 'pub sequence: u64' "$earlier/src/sender"; then
    sed -i 's/back\.ticket\.sequence()/back.sequence/' "$earlier/tests/differential/history.rs"
  fi
  if ! grep -q ' TimedOut(' "$earlier/src/error.rs"; then
    sed -i '/SendError::\(TimedOut\|Unfinished\)/d' "$earlier/tests/differential/history.rs"
  fi
  # The seam's names have changed.
  if grep -q 'fn read_notes' "$earlier/src/sender/kernel.rs"; then
    sed -i 's/\bread_batch\b/read_notes/' "$earlier/benches/scale/sink.rs" \
      "$earlier/tests/differential/kernel.rs" "$earlier/tests/simulation/kernel.rs"
  fi
  # Cargo's names contain the path inside a workspace, so a common target folder would mix the two builds.
  unset CARGO_TARGET_DIR
}

# The newest program of this kind that `cargo ARGUMENTS` builds in folder $1.
program() {
  local folder=$1 log=$PWD/target/earlier/log
  shift
  (cd "$folder" && cargo "$@" --no-run --message-format=json-render-diagnostics) \
    2>"$log" |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1 || true
}
