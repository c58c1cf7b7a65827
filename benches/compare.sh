#!/usr/bin/env bash
# Compares the rows of benches/rows.rs with the rows of an earlier revision:
#
#     benches/compare.sh [--quick] [REV [ROW...]]
#
# By default REV is the last revision before the rebuild of the sender. The two programs take turns, row by row.
# The ratio is taken within a turn; its median is printed, with the quartiles. A row of many senders also has the
# ratio of today's figure to the figure of one sender of REV. --quick takes a fifth of the turns: 2 minutes
# instead of 10, after the builds.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/earlier.sh

turns=15
if [ "${1-}" = --quick ]; then turns=3; shift; fi
check_out "${1-240196b}"
shift || true
# The time limit of a row, in case one of its threads never runs.
limit=60

# Where the linker puts a loop of ten instructions can cost a third: `bulk` was at 1.34 and at 1.09 in
# two builds of the same code. So both programs have every loop at the start of a cache line.
export RUSTFLAGS="${RUSTFLAGS-} -C llvm-args=-align-loops=64"
then=$(program "$earlier" bench --bench rows)
now=$(program "$PWD" bench --bench rows)
[ -x "$then" ] && [ -x "$now" ] || { cat target/earlier/log; exit 1; }
# A bench of the same name may replace the program.
cp "$then" target/earlier/then; cp "$now" target/earlier/now

rows=("$@")
if [ ${#rows[@]} = 0 ]; then
  mapfile -t rows < <(sed -n '/^const NAMES/,/^];/s/^ *"\(.*\)",$/\1/p' benches/rows.rs)
fi
sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -1
echo "$(nproc) processors, Linux $(uname -r), load $(cut -d' ' -f1-3 /proc/loadavg), $turns turns"
echo "earlier $(git -C "$earlier" rev-parse --short HEAD)," \
  "today $(git rev-parse --short HEAD)$(git diff --quiet HEAD -- src || echo ' and changes')"
printf '%-12s %9s %9s %7s\n' row 'then, ns' 'now, ns' ratio

figure() { timeout "$limit" "$1" "$2" | awk -v row="$2" '$1 == row { print $2 }'; }

for row in "${rows[@]}"; do
  # The cost of many senders is compared with the cost of one too.
  case $row in
  turn-* | shuffled-*) one=user-${row#*-} ;;
  *) one= ;;
  esac
  for turn in $(seq "$turns"); do
    # The programs take turns in going first.
    if ((turn % 2)); then
      a=$(figure target/earlier/then "$row" || true); b=$(figure target/earlier/now "$row" || true)
    else
      b=$(figure target/earlier/now "$row" || true); a=$(figure target/earlier/then "$row" || true)
    fi
    c=; [ -z "$one" ] || c=$(figure target/earlier/then "$one" || true)
    [ -z "$a" ] || [ -z "$b" ] || echo "$a $b $c"
  done | awk -v row="$row" -v one="$one" '
    function sort(list, count,   i, j, kept) {
      for (i = 2; i <= count; i++) {
        kept = list[i]
        for (j = i - 1; j > 0 && list[j] > kept; j--) list[j + 1] = list[j]
        list[j + 1] = kept
      }
    }
    function median(list, count) {
      sort(list, count)
      return list[int((count + 1) / 2)]
    }
    function spread(list, count,   low) {
      low = int((count + 3) / 4)
      return sprintf("%7.3f [%.3f-%.3f]", median(list, count), list[low], list[count + 1 - low])
    }
    { count++; a[count] = $1 + 0; b[count] = $2 + 0; ratio[count] = $2 / $1 }
    $3 { ones++; of_one[ones] = $2 / $3 }
    END {
      if (!count) { printf "%-12s did not run\n", row; exit }
      printf "%-12s %9.2f %9.2f %s", row, median(a, count), median(b, count), spread(ratio, count)
      if (ones) printf ", of then %s: %s", one, spread(of_one, ones)
      print ""
    }'
done
