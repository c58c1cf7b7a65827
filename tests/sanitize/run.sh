#!/usr/bin/env bash
# tests/sanitize/run.sh [address|leak|thread] [CARGO TEST ARGUMENTS...]: the tests under a sanitizer.
#
#   address  memory that is out of bounds or freed, and leaks (default)
#   leak     leaks alone: faster, nothing is instrumented
#   thread   data races
#
# Needs the stable toolchain, which is told to take the flags of a nightly one, and for `thread` its
# component rust-src. Leaks that are no fault are in leaks.txt beside this file and races in races.txt,
# with the reason for each. Tests that are left out are named below, with the reason too.
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
kind=${1:-address}
[ $# = 0 ] || shift
target=$(rustc -vV | sed -n 's/^host: //p')
here=$PWD/tests/sanitize
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$PWD/target/sanitize-$kind
export RUSTFLAGS="-Zsanitizer=$kind" RUST_BACKTRACE=0

# Each step of the simulation reads all memory that the kernel may read, byte by byte. A sanitizer
# looks at each of these reads, and at the same code again and again: some histories are enough.
export PINBUF_SIM_STEPS=${PINBUF_SIM_STEPS:-5000}

# The tests to leave out, as arguments of the test harness: the memory in use is not what it is
# without a sanitizer, and what is freed is kept aside.
leave_out=(
  --skip memory_is_bounded_by_threads
)
build=(--target "$target")
case $kind in
  address | leak)
    export LSAN_OPTIONS=suppressions=$here/leaks.txt:print_suppressions=0
    export ASAN_OPTIONS=detect_stack_use_after_return=1
    # Alone it finds callers by frame pointers, and without them none that leaks.txt names.
    [ $kind = address ] || RUSTFLAGS+=" -Cforce-frame-pointers=yes"
    ;;
  thread)
    # Without its own standard library, instrumented too, every lock that is contended for is a race.
    [ -d "$(rustc --print sysroot)/lib/rustlib/src/rust/library" ] ||
      { echo "the source of the standard library is missing: rustup component add rust-src" >&2; exit 1; }
    build+=(-Zbuild-std)
    export TSAN_OPTIONS=history_size=4:suppressions=$here/races.txt
    # The sanitizer has no threads in a child that was forked from several.
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
