#!/usr/bin/env bash
# tests/vm/run.sh [--short]: real guests move between two QEMUs, under software emulation, while they write.
#
# The guest is a Debian kernel with one program, guest.rs: it writes memory at a rate, checks every page and
# prints heartbeats. A move counts as right if both memories are equal at the end of the downtime, and if the
# heartbeats go on at the destination without a wrong page. The negative control must end with wrong pages.
#
# First the parts for hypervisors move a guest without a network (moves::), then the program does it over TCP, and
# is disturbed (program::).
#
#     QEMU 7.2          each case; RUNS=20 repeats the cases (default: 3, with --short 1)
#     QEMU 10           the same, from Debian's next release, unpacked into a cache and not installed
#     from 7.2 to 10    one move by digests
#
# --short is one case of QEMU 7.2 by each tracker, without and with the program, and the negative control. As root the script installs Debian's
# qemu-system-x86. A missing tool or package is named, and its cases are skipped. Ends with 1 after a failure.
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
cannot() { echo "SKIPPED tests/vm: $*"; }
short=
[ "${1-}" = --short ] && short=1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pinbuf-qemu
place=$(mktemp -d) || exit 1
trap 'rm -rf "$place"' EXIT

if ! command -v qemu-system-x86_64 >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -qq && apt-get install -y -qq --no-install-recommends qemu-system-x86 seabios kmod >/dev/null
fi
[ "$(uname -m)" = x86_64 ] || { cannot "the guest is built for x86_64"; exit 0; }
command -v qemu-system-x86_64 >/dev/null || { cannot "no qemu-system-x86_64"; exit 0; }

# The guest. `boot` fetches the kernel, but runs it elsewhere.
kernel() {
  find "$cache/kernels" -path '*/6.12*/boot/vmlinuz-*' 2>/dev/null | sort -V | tail -n 1
}
[ -n "$(kernel)" ] || tests/guest/boot 6.12 true >/dev/null 2>&1
VM_KERNEL=$(kernel)
[ -n "$VM_KERNEL" ] || { cannot "no kernel package linux-image-6.12*-cloud-amd64"; exit 0; }
rustc --edition 2024 -O -C target-feature=+crt-static -C panic=abort -C strip=symbols \
  -o "$place/init" tests/vm/guest.rs || exit 1
VM_INITRD=$place/initrd
tests/vm/archive "$place/init" >"$VM_INITRD" || exit 1

# QEMU of Debian's next release: all packages that it needs, its own C library included.
newer=$cache/qemu-10
fetch_newer() {
  local apt=$place/apt
  mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/etc" "$newer.part" && : >"$apt/status"
  echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main' \
    >"$apt/etc/sources.list"
  printf 'Dir::%s "%s";\n' State "$apt" State::lists "$apt/lists" State::status "$apt/status" Cache "$apt" \
    Etc "$apt/etc" Etc::parts /nonexistent Etc::sourceparts /nonexistent >"$apt/conf"
  (
    export APT_CONFIG=$apt/conf
    apt-get update -qq && apt-get install -y -qq -d --no-install-recommends qemu-system-x86 seabios
  ) || return 1
  local package
  for package in "$apt"/archives/*.deb; do dpkg-deb -x "$package" "$newer.part" || return 1; done
  mv "$newer.part" "$newer"
}
qemu7=qemu-system-x86_64
qemu10="$newer/usr/lib64/ld-linux-x86-64.so.2 --library-path $newer/usr/lib/x86_64-linux-gnu \
$newer/usr/bin/qemu-system-x86_64 -L $newer/usr/share/qemu -L $newer/usr/share/seabios"
if [ -z "$short" ] && ! [ -d "$newer" ] && ! fetch_newer >"$place/fetch" 2>&1; then
  cannot "QEMU 10: $(tail -n 1 "$place/fetch")"
fi

# Built for speed: the rates of the guest are those of a real one.
cargo build -q --release -p migration_sender --example pinbuf_uffd || exit 1
tests=$(cargo test -q --release --no-run --message-format=json -p migration_sender --test hypervisor |
  sed -n 's/.*"kind":\["test"\].*"executable":"\([^"]*\)".*/\1/p') || exit 1
VM_LIBRARY=$(realpath "${CARGO_TARGET_DIR:-target}/release/examples/libpinbuf_uffd.so") || exit 1
export VM_KERNEL VM_INITRD VM_LIBRARY

status=0
moves() {
  local what=$1
  shift
  echo "== $what"
  timeout 3000 "$tests" --ignored --nocapture --test-threads 1 "$@" 2>&1 |
    sed -nE 's/^test .* \.\.\. (.)/\1/; /^(MOVED|SKIPPED|test result)/p; /panicked/,/^note/p'
  [ "${PIPESTATUS[0]}" = 0 ] || status=1
}

export VM_SOURCE=$qemu7 VM_DESTINATION=$qemu7
if [ -n "$short" ]; then
  VM_RUNS=${RUNS-1} moves 'QEMU 7.2' moves::a_guest_that moves::digests program::the_program_moves_a_guest
  exit $status
fi
export VM_RUNS=${RUNS-3}
moves 'QEMU 7.2' moves:: program::
if [ -d "$newer" ]; then
  VM_SOURCE=$qemu10 VM_DESTINATION=$qemu10 moves 'QEMU 10' moves:: program::the_program
  VM_RUNS=1 VM_DESTINATION=$qemu10 moves 'from 7.2 to 10' moves::a_guest_that
fi
exit $status
