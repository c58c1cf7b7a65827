#!/usr/bin/env bash
# tests/sanitize/run.sh [address|leak|thread] [CARGO TEST ARGUMENTS...]: the tests under a sanitizer.
#
#     address  memory out of bounds or freed, and leaks (default)
#     leak     leaks alone: faster, without instrumentation
#     thread   data races
#
# Needs the stable toolchain, made to accept nightly flags, and for `thread` its component rust-src. Harmless
# leaks are in leaks.txt beside this file and harmless races in races.txt, with reasons. Tests left out are
# named below, with reasons too.
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
kind=${1:-address}
[ $# = 0 ] || shift
target=$(rustc -vV | sed -n 's/^host: //p')
here=$PWD/tests/sanitize
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$PWD/target/sanitize-$kind
export RUSTFLAGS="-Zsanitizer=$kind" RUST_BACKTRACE=0

# Each step of the simulation reads all memory under the kernel's reads, byte by byte. A sanitizer checks each
# of these reads, always in the same code: some histories are enough.
export PINBUF_SIM_STEPS=${PINBUF_SIM_STEPS:-5000}

# The tests to leave out, as arguments of the test harness: a sanitizer changes the memory in use, and keeps
# freed memory aside, and the functions on the walk are its own too.
leave_out=(
  --skip memory_is_bounded_by_threads
  --skip many_clients_get_their_bytes_in_bounded_memory
  --skip the_walk_of_a_buffer_is_as_designed
)
build=(--target "$target")
case $kind in
  address | leak)
    export LSAN_OPTIONS=suppressions=$here/leaks.txt:print_suppressions=0
    export ASAN_OPTIONS=detect_stack_use_after_return=1
    # The leak sanitizer alone finds callers by frame pointers, needed for the names in leaks.txt.
    [ $kind = address ] || RUSTFLAGS+=" -Cforce-frame-pointers=yes"
    ;;
  thread)
    # Without an instrumented standard library, every contended lock counts as a race.
    [ -d "$(rustc --print sysroot)/lib/rustlib/src/rust/library" ] ||
      { echo "the source of the standard library is missing: rustup component add rust-src" >&2; exit 1; }
    build+=(-Zbuild-std)
    export TSAN_OPTIONS=history_size=4:suppressions=$here/races.txt
    # The sanitizer has no threads in a forked child.
    leave_out+=(
      --skip a_child_can_use_the_library_itself
      --skip a_child_cannot_use_its_parents_magazines
    )
    ;;
  *)
    echo "usage: $0 [address|leak|thread] [CARGO TEST ARGUMENTS...]" >&2
    exit 2
    ;;
esac

[ $# -gt 0 ] || set -- --lib --tests
exec cargo test "${build[@]}" --workspace --exclude loom-tests --all-features --no-fail-fast "$@" -- "${leave_out[@]}"
