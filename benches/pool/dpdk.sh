#!/usr/bin/env bash
# Makes target/bench/dpdk.so: `cargo bench --bench pool` then has DPDK's mempool too. Needs DPDK's headers:
# apt-get install libdpdk-dev.
set -eu
cd "$(dirname "$0")/../.."
dir=${CARGO_TARGET_DIR:-target}/bench
mkdir -p "$dir"
# shellcheck disable=SC2046 # words are wanted
cc -O3 -shared -fPIC -Wall $(pkg-config --cflags libdpdk) benches/pool/dpdk.c \
  -o "$dir/dpdk.so" -lrte_eal -lrte_mempool -lrte_mempool_ring
