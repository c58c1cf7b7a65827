#!/usr/bin/env bash
# Compares the rows of benches/rows.rs with those of an earlier revision:
#
#   benches/compare.sh [--quick] [REV [ROW...]]
#
# REV is the revision before the sender was rebuilt unless told. Both programs take turns, row by row;
# the ratio is taken within a turn, and its median is printed, with the quartiles. --quick takes a
# fifth of the turns: 2 minutes instead of 10, once both are built.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/earlier.sh

turns=15
if [ "${1-}" = --quick ]; then turns=3; shift; fi
check_out "${1-240196b}"
shift || true
# The time that a row may take, if a thread of it never gets to run.
limit=60

then=$(program "$earlier" bench --bench rows)
now=$(program "$PWD" bench --bench rows)
[ -x "$then" ] && [ -x "$now" ] || { cat target/earlier/log; exit 1; }
# A bench of the same name may replace it.
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
  for turn in $(seq "$turns"); do
    # Another one begins each time.
    if ((turn % 2)); then
      a=$(figure target/earlier/then "$row" || true); b=$(figure target/earlier/now "$row" || true)
    else
      b=$(figure target/earlier/now "$row" || true); a=$(figure target/earlier/then "$row" || true)
    fi
    [ -z "$a" ] || [ -z "$b" ] || echo "$a $b"
  done | awk -v row="$row" '
    function sort(list, count,   i, j, kept) {
      for (i = 2; i <= count; i++) {
        kept = list[i]
        for (j = i - 1; j > 0 && list[j] > kept; j--) list[j + 1] = list[j]
        list[j + 1] = kept
      }
    }
    { count++; a[count] = $1 + 0; b[count] = $2 + 0; ratio[count] = $2 / $1 }
    END {
      if (!count) { printf "%-12s did not run\n", row; exit }
      sort(a, count); sort(b, count); sort(ratio, count)
      middle = int((count + 1) / 2); low = int((count + 3) / 4); high = count + 1 - low
      printf "%-12s %9.2f %9.2f %7.3f [%.3f-%.3f]\n", row, a[middle], b[middle],
        ratio[middle], ratio[low], ratio[high]
    }'
done
