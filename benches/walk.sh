#!/usr/bin/env bash
# Counts the functions of a send and of a release, and the files of src/sender that they pass:
#
#   benches/walk.sh
#
# The lists are kept by hand, in order, for a lone buffer that goes without copy under a grant. Accessors
# of one expression and functions outside of the crate are left out. The script refuses a list with a
# function that its file does not have; a missing one it cannot see.
set -euo pipefail
cd "$(dirname "$0")/.."

send='
sender/handle.rs send          # Sender::send
sender/driver.rs send          # Core::send
sender/driver.rs offer_one
sender/driver.rs is_forked
sender/driver.rs enter
sender/driver.rs entered
sender/machine/sending.rs settle_left
tracker.rs settle
sender/machine/admission.rs granted
sender/budget.rs charge
sender/driver.rs offer_zero_copy
tracker.rs has_place
sender/machine/sending.rs begin_zero_copy
sender/machine/ledger.rs open
tracker.rs insert_issued
lease.rs new
sender/machine/sending.rs begin_call
sender/driver.rs call_lone
sender/machine/sending.rs leave_end
lock/left.rs arm
sender/kernel.rs send
sys/socket.rs send'

release='
sender/driver.rs read_queue
sender/kernel.rs read_notes
sys/errqueue.rs recv
sys/errqueue.rs decode
sender/machine/reading.rs record
sender/machine/in_flight.rs release
tracker.rs release
sender/machine/ledger.rs released
lease.rs try_recycle
raw/slotref.rs try_recycle_leased
raw/threads.rs with_magazine
raw/magazine.rs push_if
raw/state.rs try_recycle_leased'

count() {
  local name=$1 list=$2 file function rest functions=0
  while read -r file function rest; do
    [ -n "$file" ] || continue
    grep -q "fn $function\b" "src/$file" || { echo "src/$file has no $function"; exit 1; }
    functions=$((functions + 1))
  done <<<"$list"
  files() { sed '/^$/d; s/ .*//' <<<"$list" | sort -u; }
  echo "$name: $functions functions, $(files | grep -c '^sender/') files of sender," \
    "$(files | grep -vc '^sender/') others: $(files | grep -v '^sender/' | xargs)"
}

count 'a send, to the system call' "$send"
count 'a release, from the error queue to the recycled slot' "$release"
