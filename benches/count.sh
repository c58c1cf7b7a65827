#!/usr/bin/env bash
# Counts the code lines of a folder (default: src/sender): neither empty nor comments alone, and outside of
# tests.
#
#     benches/count.sh [FOLDER [REV]]
#
# Tests are files named tests.rs or fake.rs, and modules behind `#[cfg(test)]` up to their end. With a revision,
# the lines of the revision are counted.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1-src/sender}
revision=${2-}

files() {
  if [ -n "$revision" ]; then
    git ls-tree -r --name-only "$revision" "$folder"
  else
    find "$folder" -name '*.rs'
  fi | grep '\.rs$' | grep -v -e '/tests\.rs$' -e '/fake\.rs$' -e '/tests/' | sort
}

for file in $(files); do
  if [ -n "$revision" ]; then git show "$revision:$file"; else cat "$file"; fi |
    awk -v file="$file" '
      skipped { if ($0 ~ /^}/) skipped = 0; next }
      /^#\[cfg\((all\()?test/ { pending = 1; next }
      pending && /^#\[/ { next }
      pending { pending = 0; skipped = !/;[ ]*$/ && !/}[ ]*$/; next }
      /^[ \t]*$/ || /^[ \t]*\/\// { next }
      { count++ }
      END { printf "%6d %s\n", count, file }'
done | awk '{ total += $1; print } END { printf "%6d in all\n", total }'
