#!/usr/bin/env bash
# tests/fresh/run.sh [MACHINE...]: runs the README's two commands on nearly empty machines.
#
#     bare      gcc, libc6-dev, coreutils and a shell
#     iproute2  the packages of every Debian, gcc, libc6-dev and iproute2
#     iptables  the same, and iptables
#
# A machine is a folder of unpacked packages, the root directory of a mount namespace. Rust, the crates and a
# copy of the source are mounted read-only there. The mounts and all processes end with the script. Both
# commands run as root and as an ordinary user, while busy loops load the processors.
#
# Needs root and Debian or Ubuntu. Set ROUNDS for several rounds (default 1), BUSY for the number of busy loops
# (default: one per processor), USERS for a single user (root or nobody). Packages, builds and logs are kept in
# target/fresh.
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
place=$PWD/target/fresh
rounds=${ROUNDS:-1}
busy=${BUSY:-$(nproc)}
read -ra users <<<"${USERS:-root nobody}"
compiler=(gcc libc6-dev coreutils dash)
minutes=40

# closure PACKAGE...: the packages and all their dependencies.
closure() {
  apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances "$@" | grep '^[a-z0-9]' | sort -u
}

# The packages of a machine, by name.
packages() {
  local essential
  case $1 in
    bare) closure "${compiler[@]}"; return ;;
    iproute2) set -- iproute2 ;;
    iptables) set -- iproute2 iptables ;;
    *) echo "no such machine: $1" >&2; return 1 ;;
  esac
  essential=$(dpkg-query -Wf '${Essential} ${Package}\n' | sed -n 's/^yes //p') || return 1
  # Words: a list of names.
  # shellcheck disable=SC2086
  closure "${compiler[@]}" $essential "$@"
}

# Unpacks the packages of a machine, once.
unpack() {
  local root=$place/$1 debs=$place/packages package names missing=()
  [ ! -e "$root.done" ] || return 0
  rm -rf "$root"
  mkdir -p "$debs" "$root"/{usr/{bin,sbin,lib,lib64},etc,dev,proc,sys,rust,cargo/registry,source,target} || return 1
  for package in bin sbin lib lib64; do ln -s "usr/$package" "$root/$package" || return 1; done
  mkdir -m 1777 "$root/tmp" && mkdir -m 755 "$root/root" || return 1
  echo 'root:x:0:0::/root:/bin/sh
nobody:x:65534:65534::/tmp:/bin/sh' >"$root/etc/passwd"
  echo '127.0.0.1 localhost
::1 localhost' >"$root/etc/hosts"
  # A virtual package has no candidate.
  names=$(packages "$1") || return 1
  # shellcheck disable=SC2086
  names=$(apt-cache policy $names | awk '/^[a-z0-9]/ { name = $1 } /Candidate:/ && $2 != "(none)" { print name }' | tr -d :)
  for package in $names; do
    compgen -G "$debs/${package}_*" >/dev/null || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] ||
    (cd "$debs" && apt-get -q -o APT::Sandbox::User=root download "${missing[@]}" >/dev/null) || return 1
  for package in $names; do
    dpkg-deb --fsys-tarfile "$debs/${package}"_*.deb | tar --keep-directory-symlink -xf - -C "$root" || return 1
  done
  # Like the package's script, which does not run here.
  ln -s gcc "$root/usr/bin/cc" || return 1
  chmod 1777 "$root/cargo"
  touch "$root.done"
}

# on MACHINE USER COMMAND: runs the command there.
on() {
  local root=$place/$1 id=0
  [ "$2" = root ] || id=65534
  chown -R "$id:$id" "$place/target" || return 1
  # A move to the root of the namespace instead of a chroot: a chroot refuses user namespaces.
  # shellcheck disable=SC2016
  timeout "${minutes}m" unshare --mount --pid --fork --kill-child sh -c '
    set -e
    root=$1 id=$2 rust=$3 place=$4 crates=$5 command=$6
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount -t tmpfs -o mode=755 dev "$root/dev"
    for node in null:3 zero:5 full:7 random:8 urandom:9; do
      mknod -m 666 "$root/dev/${node%:*}" c 1 "${node#*:}"
    done
    ln -s /proc/self/fd "$root/dev/fd"
    bind() { mount --bind "$1" "$2" && mount -o remount,bind,ro "$2"; }
    bind "$rust" "$root/rust"
    bind "$crates" "$root/cargo/registry"
    bind "$place/source" "$root/source"
    mount --bind "$place/target" "$root/target"
    cd "$root"
    mount --move . /
    exec chroot --userspec="$id:$id" --groups= . /usr/bin/env -i PATH=/rust/bin:/usr/bin:/usr/sbin \
      HOME=/tmp CARGO_HOME=/cargo CARGO_NET_OFFLINE=true CARGO_TARGET_DIR=/target \
      sh -c "cd /source && $command"
  ' sh "$root" "$id" "$(rustc --print sysroot)" "$place" \
    "${CARGO_HOME:-$HOME/.cargo}/registry" "$3" </dev/null
}

# try MACHINE USER ROUND NAME COMMAND: runs and reports it.
try() {
  local log=$place/logs/$1-$2-$3-$4.log start=$SECONDS result=ok
  on "$1" "$2" "$5" >"$log" 2>&1 || { result=FAILED; status=1; }
  printf '%-9s %-7s round %s  %-6s %-6s %4d s' "$1" "$2" "$3" "$4" "$result" $((SECONDS - start))
  awk '/^test result:/ { n += $4; failed += $6 } /^SKIPPED/ { skipped++ }
    END { if (n) printf "  %d tests passed, %d failed, %d skipped", n, failed, skipped; print "" }' "$log"
  [ "$result" = ok ] || grep -anE 'panicked at|\.\.\. FAILED|^error' "$log" | head -n 20 | sed 's/^/    /'
}

[ "$(id -u)" = 0 ] || { echo "must be root"; exit 1; }
[ $# -gt 0 ] || set -- bare iproute2 iptables
rm -rf "$place/logs" "$place/source"
mkdir -p "$place"/{logs,source,target} || exit 1
cargo fetch --locked -q || exit 1
tar --exclude=./target --exclude=./.git -cf - . | tar -xf - -C "$place/source" || exit 1
status=0
for machine in "$@"; do
  unpack "$machine" || { echo "no packages for $machine"; exit 1; }
done
loops=()
trap '[ ${#loops[@]} = 0 ] || kill "${loops[@]}" 2>/dev/null' EXIT
for machine in "$@"; do
  # Build times are not judged.
  on "$machine" root 'cargo test --workspace --no-run && cargo build --release -p migration_sender' \
    >"$place/logs/$machine-build.log" 2>&1 || { echo "cannot build on $machine"; exit 1; }
  for ((i = 0; i < busy; i++)); do
    timeout "$((minutes * 2 * rounds * ${#users[@]}))m" sh -c 'while :; do :; done' &
    loops+=($!)
  done
  for user in "${users[@]}"; do
    for ((round = 1; round <= rounds; round++)); do
      try "$machine" "$user" "$round" main 'cargo run --release -p migration_sender'
      try "$machine" "$user" "$round" tests 'cargo test --workspace --no-fail-fast'
    done
  done
  kill "${loops[@]}"
  loops=()
done
exit $status
