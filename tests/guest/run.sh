#!/usr/bin/env bash
# tests/guest/run.sh [KERNEL...]: runs tests over real sockets inside guests with other kernels (Debian's 6.1 and 6.12
# unless named), and prints a table kernel x test.
#
# flagship runs between two vmxnet3 devices on one QEMU hub, which do not copy, with delay and loss (netem); the others,
# which TESTS names, over the guest's loopback device, once as it is and once with delay. A line says how many tests passed
# and how many said that they cannot run there; what they print is kept in target/guest. Ends with 1 if one failed.
#
# It needs qrun (QRUN names it), which boots a Debian kernel under QEMU with programs beside it: see its header. Without it
# nothing is run.
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
qrun=${QRUN:-../shared/qemu/qrun}
[ -x "$qrun" ] || qrun=$(command -v qrun) || { echo "SKIPPED tests/guest: no qrun (set QRUN)" >&2; exit 0; }
kernels=("$@")
[ $# -gt 0 ] || kernels=(6.1. 6.12)
PATH=$PATH:/usr/sbin:/sbin
tools=()
for tool in ip tc iptables-legacy; do
  where=$(command -v $tool) || { echo "SKIPPED tests/guest: no $tool" >&2; exit 0; }
  tools+=(--bin "$where:$tool")
done
# What iptables loads when it is asked to.
for file in /usr/lib/*/xtables/{libxt_standard,libxt_statistic,libxt_tcp}.so; do
  [ ! -e "$file" ] || tools+=(--file "$file:${file#/}")
done
modules=()
for module in vmxnet3 sch_netem sch_tbf ip_tables iptable_filter xt_statistic xt_tcpudp; do
  modules+=(--mod $module)
done
hub='-netdev hubport,hubid=0,id=h0 -device vmxnet3,netdev=h0,romfile=,mac=52:54:00:00:00:01'
hub+=' -netdev hubport,hubid=0,id=h1 -device vmxnet3,netdev=h1,romfile=,mac=52:54:00:00:00:02'

logs=$PWD/target/guest
mkdir -p "$logs"
binaries=$(cargo test --no-run --message-format=json --test flagship --test ending --test tcp --test negative_control |
  sed -n 's/.*"name":"\([a-z_]*\)".*"test":true.*"executable":"\([^"]*\)".*/\1=\2/p') || exit 1
failed=0

# row KERNEL TEST HOW COMMAND: runs a command in a guest, and prints the line of the table.
row() {
  local kernel=$1 test=$2 how=$3 command=$4 binary log result passed
  binary=$(sed -n "s/^$test=//p" <<<"$binaries")
  log=$logs/$test-$kernel-${how//[^a-z0-9]/-}.log
  "$qrun" --kernel "$kernel" --mem 1024 --timeout 400 "${modules[@]}" --qemu "$hub" "${tools[@]}" \
    --bin "$binary:$test" -- "uname -r; $command" >"$log" 2>&1
  result=$?
  passed=$(sed -nE 's/^test result: .* ([0-9]+) passed.*/\1/p' "$log" | tail -n 1)
  case $result in
    0) result=ok ;;
    126) result='skipped: qrun' ;;
    *) failed=1 result="FAILED ($result)" ;;
  esac
  printf '%-30s %-17s %-32s %s, %d tests' "$(head -n 1 "$log" | tr -d '\r')" "$test" "$how" "$result" "${passed:-0}"
  printf ', %d skips\n' "$(grep -a '^SKIPPED' "$log" | sort -u | wc -l)"
}

devices='ip link set eth0 up; ip link set eth1 up'
course='delay 10ms 5ms loss 1%'
run='--test-threads=1 --nocapture'
for kernel in "${kernels[@]}"; do
  row "$kernel" flagship "vmxnet3, $course" "echo 20 >/proc/sys/vm/nr_hugepages; $devices
    PINBUF_TEST_DEVICES='eth0 eth1' PINBUF_TEST_NETEM='$course' flagship $run"
  for test in ${TESTS-negative_control ending tcp}; do
    row "$kernel" $test 'lo' "$test $run"
    row "$kernel" $test 'lo, delay 2ms' "/t/tc qdisc add dev lo root netem delay 2ms; $test $run"
  done
done
exit $failed
