//! Decodes the control data of a message of the error queue. Any bytes must be decoded without a
//! panic, and with at most as many records as fit.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pinbuf::__internals::{Record, decode};

/// A header and a `sock_extended_err`, without padding.
const LEAST_BYTES: usize = size_of::<usize>() + 8 + 16;

fuzz_target!(|bytes: &[u8]| {
    let mut records = 0;
    decode(bytes, &mut |record| {
        records += 1;
        if let Record::Released { lo, hi, .. } = record {
            // Both are in the bytes unchanged.
            let stands = |id: u32| bytes.windows(4).any(|window| window == id.to_ne_bytes());
            assert!(stands(lo) && stands(hi));
        }
    });
    assert!(records * LEAST_BYTES <= bytes.len());
});
