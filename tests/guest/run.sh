#!/usr/bin/env bash
# tests/guest/run.sh [--short] [KERNEL...]: runs the tests over real sockets inside guests with other kernels (default:
# Debian's 6.1 and 6.12), and prints a table file x kernel, with all skips by name.
#
#     wire     flagship between two vmxnet3 devices on one QEMU hub, without copies
#     repeats  netem between the devices, in two guests: both must print the same bytes, dice and times included
#     lab      the network lab between the devices
#     course   flagship between the devices, with delay and loss (netem) under all of it
#     lo       over the guest's loopback device
#     late     over the loopback device, with delay
#     nobody   as late, as an ordinary user
#
# With --short only five files, each by one way: a build for debugging, and a minute or two instead of seven.
# WAYS names some of the ways, TESTS some of the files of tests (a pattern of grep -E for names like
# kernel::udp). The output is kept in
# target/guest. Ends with 1 after a failure. WAYS=bench runs benches/migration.rs instead, as wire: a nanosecond
# is then an instruction.
#
# `boot` beside this file runs QEMU, without root; its header lists the requirements. This script further needs
# ip, tc, iptables-legacy, unshare and setpriv. A missing tool is named, and then no test is run.
#
# The guest's clock counts instructions, its dice have a fixed seed, and no input comes from outside, so short
# runs print the same. Long runs do not always: at some point the clock of one guest leaps, and from there on
# all dice differ. QEMU seems to be the cause: its main loop can advance the clock of a halted processor before
# it has counted the last instructions (main_loop_wait, icount_start_warp_timer). So the claims of a test must
# hold in every course.
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
PATH=$PATH:/usr/sbin:/sbin
cannot() { echo "SKIPPED tests/guest: $*" >&2; }
# Emulated instructions are dear, but so is a build: the short form takes that of `cargo test --workspace`.
build=(--test api --test kernel --test memlock --test lab)
if [ "${1-}" = --short ]; then
  shift
  build+=(--workspace)
  WAYS=${WAYS-wire lo}
  TESTS=${TESTS-lab::flagship|kernel::(udp|ending)|memlock::(tcp|limits)}
else
  export CARGO_PROFILE_DEV_OPT_LEVEL=1
fi
[ $# -gt 0 ] || set -- 6.1. 6.12
kernels=()
for kernel; do
  if why=$(tests/guest/boot "$kernel" true 2>&1); then
    kernels+=("$kernel")
  else
    cannot "kernel $kernel does not boot: $(tail -n 1 <<<"$why")"
  fi
done
[ ${#kernels[@]} -gt 0 ] || exit 0

logs=$PWD/target/guest
rm -rf "$logs"
mkdir -p "$logs/bin"
parts=()
for tool in ip tc iptables-legacy unshare setpriv; do
  where=$(command -v $tool) || { cannot "no $tool"; exit 0; }
  parts+=(--program "$where:$tool")
done
# The modules that iptables loads on demand.
for file in /usr/lib/*/xtables/libxt_{standard,statistic,tcp}.so; do
  parts+=(--file "$file:${file#/}")
done
for module in vmxnet3 veth ifb:numifbs=0 sch_netem sch_tbf sch_htb sch_fq ip_tables iptable_filter xt_statistic xt_tcpudp af_packet \
  tls gcm ctr ghash-generic; do
  parts+=(--module $module)
done
for nic in 1 2; do
  parts+=(--qemu "-netdev hubport,hubid=0,id=h$nic -device vmxnet3,netdev=h$nic,romfile=,mac=52:54:00:00:00:0$nic")
done

# boot KERNEL WAY COMMAND: runs a command in a guest and keeps the output. The guest's clock counts
# instructions, so a busy host makes no timeout early.
boot() {
  local log=$logs/$1:$2
  tests/guest/boot --memory 2048 --seconds 3600 "${parts[@]}" "$1" "$3" >"$log" 2>"$log.err" </dev/null ||
    printf '== guest\n== %s\n' $? >>"$log"
}

devices='ip link set eth0 up; ip link set eth1 up; export PINBUF_TEST_DEVICES="eth0 eth1"'
if [ "${WAYS-}" = bench ]; then
  bench=$(cargo bench --no-run --message-format=json -p migration_sender --bench migration |
    sed -n 's/.*"kind":\["bench"\].*"executable":"\([^"]*\)".*/\1/p') || exit 1
  strip -o "$logs/bin/bench" "$bench" || exit 1
  parts+=(--program "$logs/bin/bench:bench")
  for kernel in "${kernels[@]}"; do
    boot "$kernel" bench "$devices; /t/bench --bench"
    cat "$logs/$kernel:bench"
  done
  exit
fi

# Tests of the source or of a simulated kernel are independent of the guest's kernel.
programs=$(cargo test "${build[@]}" --no-run --message-format=json |
  sed -n 's/.*"kind":\["test"\].*"name":"\([a-z_]*\)".*"executable":"\([^"]*\)".*/\1 \2/p') || exit 1
all=
while read -r program binary; do
  strip -o "$logs/bin/$program" "$binary" || exit 1
  parts+=(--program "$logs/bin/$program:$program")
  files=$("$binary" --list --format terse 2>"$logs/list.err" | sed -n "s/^\([a-z_]*\)::.*/$program::\1/p" | sort -u)
  all+=$files$'\n'
done <<<"$programs"
all=$(grep -vx 'api::walk' <<<"$all")

# rows KERNEL WAY FILES PREPARATION [ROLE]: runs files of tests in one guest, in sequence, each through ROLE.
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
      program=/t/\${test%%::*}
      names=\$(\$program --list --format terse | sed -n \"s/^\(\${test#*::}::.*\): test\$/\1/p\")
      timeout 300 $role \$program --exact \$names --test-threads=1 --nocapture
      echo \"== \$?\"
    done"
}

course='export PINBUF_TEST_NETEM="delay 10ms 5ms loss 1%"'
late='/t/tc qdisc add dev lo root netem delay 2ms'
nobody='/t/setpriv --reuid 65534 --regid 65534 --clear-groups'
plain=$(grep -xE 'kernel::(negative_control|ending|udp)|memlock::(tcp|limits)|api::(shared|split|waiting|mapped)' <<<"$all")
networks=$(grep -xE 'lab::(acks|datagrams|overtaking|second_user|traffic)' <<<"$all")
guests() {
  local kernel=$1 log=$logs/$1:repeats
  rows "$kernel" wire lab::flagship "$devices"
  rows "$kernel" repeats lab::netem "$devices"
  if [ -e "$log" ]; then
    mv "$log" "$log.1"
    rows "$kernel" repeats lab::netem "$devices"
    printf '== same\n== %s\n' "$(cmp -s "$log" "$log.1" && echo yes || echo no)" >>"$log"
  fi
  rows "$kernel" lab "$networks" "$devices"
  rows "$kernel" course lab::flagship "$devices; $course"
  rows "$kernel" lo "$(grep -vE '^lab::' <<<"$all"; echo lab::faults)" ''
  rows "$kernel" late "$plain" "$late"
  rows "$kernel" nobody "$plain" "$late" "$nobody"
}
for kernel in "${kernels[@]}"; do
  guests "$kernel" &
done
wait

# The table, from the lines with "==" and the lines between them.
cd "$logs" && awk -v kernels="${kernels[*]}" '
  { sub(/\r$/, "") }
  /^== [0-9yn]/ && row {
    cell = $2 ~ /[yn]/ ? $2 : $2 == 0 ? passed " passed" : "FAILED (" $2 ")"
    bad += $2 ~ /[1-9n]/
    cells[row, kernel] = cell (skips ? ", " skips " skipped" : "")
    tests += passed
    skipped += skips
    row = ""
    next
  }
  /^== / {
    split(FILENAME, name, ":")
    kernel = substr(name[1], 3)
    row = name[2] " | " $2
    if (!(row in seen)) rows[++count] = row
    seen[row]
    passed = skips = 0
    delete said
  }
  # The last result counts for the file; the others come from child processes of tests.
  match($0, /[0-9]+ passed/) { passed = substr($0, RSTART) + 0 }
  match($0, /SKIPPED [a-z0-9_:]+: .*/) {
    skip = substr($0, RSTART)
    if (!said[skip]++) {
      skips++
      if (!told[skip]) names[++named] = skip
      told[skip] = told[skip] " " kernel ":" name[2]
    }
  }
  END {
    columns = split(kernels, column, " ")
    header = "| way | file"
    for (k = 1; k <= columns; k++) header = header " | " column[k]
    print header " |"
    gsub(/[^|]+/, "---", header)
    print header "|"
    for (r = 1; r <= count; r++) {
      printf "| %s", rows[r]
      for (k = 1; k <= columns; k++) printf " | %s", cells[rows[r], column[k]]
      print " |"
    }
    print ""
    for (n = 1; n <= named; n++) print names[n] " (" substr(told[names[n]], 2) ")"
    printf "%d tests passed, %d skipped, %d files failed\n", tests, skipped, bad
    exit bad > 0
  }' $(ls -d ./*:{wire,repeats,lab,course,lo,late,nobody} 2>/dev/null)
