#!/usr/bin/env bash
# Plays the same histories with the library of an earlier revision and with today's, and compares the traces
# (tests/differential):
#
#     benches/differential.sh [--quick] [REV [FIRST_SEED [HISTORIES]]]
#
# Prints the number of equal histories, and the first difference of the first unequal one. 2000 histories by
# default, 200 with --quick; fails at any difference or panic. By default REV is the last revision before the
# rebuild of the sender, with no expected difference.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/earlier.sh

histories=2000
if [ "${1-}" = --quick ]; then histories=200; shift; fi
check_out "${1-a0410b1}"
first=${2-1}
histories=${3-$histories}

then=$(program "$earlier" test --test differential)
now=$(program "$PWD" test --test differential)
[ -x "$then" ] && [ -x "$now" ] || { cat target/earlier/log; exit 1; }
play() {
  PINBUF_TRACE=$2 PINBUF_SIM_SEED=$first PINBUF_TRACE_HISTORIES=$histories \
    timeout 600 "$1" -q >"$2.log" 2>&1 || { cat "$2.log"; exit 1; }
}
play "$then" target/earlier/then.trace
play "$now" target/earlier/now.trace

awk -v earlier="$(git -C "$earlier" rev-parse --short HEAD)" '
  FNR == 1 { file++ }
  $1 == "history" { seed = $2; at = 0; if (file == 1) seeds[++count] = seed }
  { line[file, seed, ++at] = $0; lines[file, seed] = at; calls += file == 1 && $2 == "calls" }
  END {
    for (n = 1; n <= count; n++) {
      seed = seeds[n]
      for (at = 1; at <= lines[1, seed] || at <= lines[2, seed]; at++)
        if (line[1, seed, at] != line[2, seed, at]) break
      if (at > lines[1, seed] && at > lines[2, seed]) { same++; continue }
      if (differ++) continue
      print "history " seed " differs in line " at ", behind"
      for (back = at > 6 ? at - 6 : 1; back < at; back++) print "    " line[1, seed, back]
      print "then  " line[1, seed, at]
      print "now   " line[2, seed, at]
    }
    print same + 0 " of " count " histories agree with " earlier ", with " calls " calls"
    exit differ > 0
  }' target/earlier/then.trace target/earlier/now.trace
