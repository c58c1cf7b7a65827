#!/usr/bin/env bash
# tests/guest/run.sh [KERNEL...]: runs the tests over real sockets inside guests with other kernels (Debian's 6.1 and
# 6.12 unless named), and prints a table test x kernel: how many passed, how many said that they cannot run there.
#
#   wire     between two vmxnet3 devices on one QEMU hub, which do not copy; twice, and both must print the same, byte for
#            byte, netem's dice included (or two of three: a busy host can disturb a run)
#   lab      the network lab between them
#   course   flagship between them, with delay and loss (netem) under all of it
#   lo       over the guest's loopback device
#   late     over it, with delay
#   nobody   as late, as an ordinary user
#
# WAYS names some of these, TESTS some of the tests (a pattern of grep -E). What they print is kept in target/guest. Ends
# with 1 if one failed. WAYS=bench runs benches/migration.rs instead, as wire: a nanosecond is an instruction there.
#
# It needs qrun (QRUN names it), which boots a Debian kernel under QEMU with programs beside it: see its header. Without it
# nothing is run.
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
PATH=$PATH:/usr/sbin:/sbin
qrun=${QRUN:-../shared/qemu/qrun}
[ -x "$qrun" ] || qrun=$(command -v qrun) || { echo "SKIPPED tests/guest: no qrun (set QRUN)" >&2; exit 0; }
kernels=("$@")
[ $# -gt 0 ] || kernels=(6.1. 6.12)

logs=$PWD/target/guest
rm -rf "$logs"
mkdir -p "$logs/bin"
parts=()
for tool in ip tc iptables-legacy unshare setpriv; do
  where=$(command -v $tool) || { echo "SKIPPED tests/guest: no $tool" >&2; exit 0; }
  parts+=(--bin "$where:$tool")
done
# What iptables loads when it is asked to.
for file in /usr/lib/*/xtables/libxt_{standard,statistic,tcp}.so; do
  parts+=(--file "$file:${file#/}")
done
for module in vmxnet3 veth ifb:numifbs=0 sch_netem sch_tbf sch_htb ip_tables iptable_filter xt_statistic xt_tcpudp af_packet; do
  parts+=(--mod $module)
done
for nic in 1 2; do
  parts+=(--qemu "-netdev hubport,hubid=0,id=h$nic -device vmxnet3,netdev=h$nic,romfile=,mac=52:54:00:00:00:0$nic")
done
# Tests that read the source, run the example or simulate a kernel are not about kernels.
tests=$(cargo test --no-run --message-format=json --tests |
  sed -n 's/.*"kind":\["test"\].*"name":"\([a-z_]*\)".*"executable":"\([^"]*\)".*/\1 \2/p' |
  grep -vE '^(import_map|claims|simulation|migration|migration_units|doctor) ') || exit 1
while read -r test binary; do
  strip -o "$logs/bin/$test" "$binary" || exit 1
  parts+=(--bin "$logs/bin/$test")
done <<<"$tests"
all=$(cut -d ' ' -f 1 <<<"$tests" | sort)

# boot KERNEL WAY COMMAND: runs a command in a guest and keeps what it prints. Repeatable to the instruction; the guest's
# clock counts instructions, so that no time-out comes early because the host is busy.
boot() {
  local log=$logs/$1:$2
  "$qrun" --kernel "$1" --mem 2048 --timeout 900 --det --cpu qemu64 "${parts[@]}" -- "$3" >"$log" 2>"$log.err" </dev/null ||
    printf '== guest\n== %s\n' $? >>"$log"
}

# rows KERNEL WAY TESTS PREPARATION [ROLE]: runs tests in one guest, one after the other, each through ROLE.
rows() {
  local kernel=$1 way=$2 tests prepare=$4 role=${5-}
  [[ " ${WAYS-$way} " == *" $way "* ]] || return 0
  tests=$(grep -xE "${TESTS-.*}" <<<"$3" | tr '\n' ' ')
  [ -n "$tests" ] || return 0
  echo "$kernel $way: $tests" >&2
  boot "$kernel" "$way" "$prepare
    echo 20 >/proc/sys/vm/nr_hugepages
    chmod 1777 /tmp
    ulimit -n 65536
    for test in $tests; do
      echo \"== \$test\"
      timeout 300 $role /t/\$test --test-threads=1 --nocapture
      echo \"== \$?\"
    done"
}

devices='ip link set eth0 up; ip link set eth1 up; export PINBUF_TEST_DEVICES="eth0 eth1"'
course='export PINBUF_TEST_NETEM="delay 10ms 5ms loss 1%"'
late='/t/tc qdisc add dev lo root netem delay 2ms'
nobody='/t/setpriv --reuid 65534 --regid 65534 --clear-groups'
wire=$(printf 'flagship\nnetem')
plain=$(grep -xE 'negative_control|ending|tcp|udp|limits|shared|split|waiting|mapped' <<<"$all")
guests() {
  local kernel=$1 log=$logs/$1:wire try differ=1
  rows "$kernel" wire "$wire" "$devices"
  for try in 1 2; do
    [ -e "$log" ] && [ $differ = 1 ] || break
    mv "$log" "$log.$try"
    rows "$kernel" wire "$wire" "$devices"
    if cmp -s "$log" "$log.1" || cmp -s "$log" "$log.2"; then differ=0; fi
  done
  [ ! -e "$log" ] || printf '== repeats\n1 passed\n== %s\n' $differ >>"$log"
  rows "$kernel" lab lab "$devices"
  rows "$kernel" course flagship "$devices; $course"
  rows "$kernel" lo "$(grep -vxE 'flagship|netem|lab' <<<"$all")" ''
  rows "$kernel" late "$plain" "$late"
  rows "$kernel" nobody "$plain" "$late" "$nobody"
}
if [ "${WAYS-}" = bench ]; then
  bench=$(cargo bench --no-run --message-format=json --bench migration |
    sed -n 's/.*"kind":\["bench"\].*"executable":"\([^"]*\)".*/\1/p') || exit 1
  strip -o "$logs/bin/bench" "$bench" || exit 1
  parts+=(--bin "$logs/bin/bench")
  for kernel in "${kernels[@]}"; do
    boot "$kernel" bench "$devices; /t/bench --bench"
    cat "$logs/$kernel:bench"
  done
  exit
fi
for kernel in "${kernels[@]}"; do
  guests "$kernel" &
done
wait

# The table, from the lines that begin with "==" and what stands between them.
cd "$logs" && awk -v kernels="${kernels[*]}" '
  { sub(/\r$/, "") }
  /^== [0-9]/ {
    cell = $2 == 0 ? "ok" : $2 == 126 ? "no qrun" : "FAILED " $2
    bad += $2 != 0 && $2 != 126
    cells[row, kernel] = sprintf("%s, %d tests, %d skips", cell, passed, skips)
    tests += passed
    skipped += skips
    next
  }
  /^== / {
    split(substr(FILENAME, 3), name, ":")
    kernel = name[1]
    row = sprintf("%-8s%s", name[2], $2)
    if (!(row in seen)) rows[++count] = row
    seen[row]
    passed = skips = 0
    delete said
  }
  # The last is the whole; the others are of tests that ran themselves in a process of their own.
  match($0, /[0-9]+ passed/) { passed = substr($0, RSTART) + 0 }
  match($0, /SKIPPED [a-z0-9_:]+: /) && !said[substr($0, RSTART, RLENGTH)]++ { skips++ }
  END {
    columns = split(kernels, column, " ")
    printf "%-28s", ""
    for (k = 1; k <= columns; k++) printf "  %-28s", column[k]
    print ""
    for (r = 1; r <= count; r++) {
      printf "%-28s", rows[r]
      for (k = 1; k <= columns; k++) printf "  %-28s", cells[rows[r], column[k]]
      print ""
    }
    printf "%d tests passed, %d skipped, %d programs failed\n", tests, skipped, bad
    exit bad > 0
  }' $(ls -d ./*:{wire,lab,course,lo,late,nobody} 2>/dev/null)
