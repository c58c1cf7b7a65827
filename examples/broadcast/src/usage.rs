//! What this process has used.

use std::{fs, io, time::Duration};

/// Processor time, and memory in use in bytes.
pub(crate) fn usage() -> io::Result<(Duration, u64)> {
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    let memory = fs::read_to_string("/proc/self/statm")?;
    let pages = number(memory.split(' ').nth(1).unwrap_or_default())?;
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = Vec::from_iter(stat.rsplit(')').next().unwrap_or_default().split(' '));
    // utime and stime, the fields 14 and 15 of proc(5), in hundredths of a second.
    let ticks = number(fields[12])? + number(fields[13])?;
    Ok((Duration::from_millis(ticks * 10), pages * 4096))
}
