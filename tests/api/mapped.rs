//! Sends of user-mapped memory, also with a shrinking file.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    sync::Arc,
    time::Duration,
};

use memmap2::{MmapOptions, MmapRaw};
use pinbuf::{Fate, MappedSlice, Payload, SendError};

use crate::common::{self, TIGHT, assert_same, pair, pair_at, pattern, reader, soon};

/// A file, removed at the end of the test, and the mapping.
fn mapped_file(name: &str, contents: &[u8]) -> (File, Arc<MmapRaw>) {
    let path = std::env::temp_dir().join(format!("pinbuf-{name}-{}", std::process::id()));
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
    let mut file = options.unwrap();
    fs::remove_file(path).unwrap();
    file.write_all(contents).unwrap();
    let map = MmapOptions::new().map_raw_read_only(&file).unwrap();
    (file, Arc::new(map))
}

#[test]
fn a_mapped_file_arrives_in_any_pieces() {
    let data = pattern(1 << 20, 1);
    let (_file, map) = mapped_file("pieces", &data);
    let (near, far) = pair_at("127.0.0.1:0", TIGHT);
    let peer = reader(far, Duration::ZERO);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    let whole = MappedSlice::new(Arc::clone(&map), 0..1 << 20).unwrap();
    let (head, rest) = whole.split_at(12_345);
    let (body, tail) = rest.split_at(700_001);
    let mut bufs: Vec<Payload> = [head, body, tail].map(Payload::from).into();
    let ticket = sender.send_vectored(&mut bufs).unwrap();
    let fate = sender.wait(ticket, soon()).unwrap();
    assert!(matches!(fate, Fate::Released { accepted: 1_048_576, .. }), "{fate:?}");
    drop((whole, rest));
    assert_eq!(Arc::strong_count(&map), 1, "the sender's holds ended");
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &data);
}

#[test]
fn a_truncated_file_is_a_bad_address() {
    let (file, map) = mapped_file("truncated", &pattern(256 << 10, 1));
    let (near, far) = pair();
    let peer = reader(far, Duration::ZERO);
    let mut sender = common::zero_copy().adopt(near).unwrap();
    file.set_len(0).unwrap();
    // By zero copy and by copy.
    for len in [256 << 10, 100] {
        let slice = MappedSlice::new(Arc::clone(&map), 0..len).unwrap();
        match sender.send(slice) {
            Err(SendError::BadAddress(slice)) => assert_eq!(slice.len(), len),
            other => panic!("{other:?}"),
        }
        let stats = sender.stats();
        assert_eq!((stats.in_flight_calls, stats.in_flight_bytes, stats.leases), (0, 0, 0));
    }
    assert_eq!(sender.connection_error(), None);
    let data = pattern(100_000, 2);
    let ticket = sender.send(data.clone()).unwrap();
    assert_eq!(ticket.sequence(), 0, "no send was accepted before");
    assert!(matches!(sender.wait(ticket, soon()), Ok(Fate::Released { .. })));
    assert!(sender.close(soon()).drained);
    assert_same(&peer.join().unwrap(), &data);
}

#[test]
fn a_file_truncated_during_a_send_ends_the_connection() {
    let data = pattern(1 << 20, 1);
    let (file, map) = mapped_file("middle", &data);
    let (near, far) = pair();
    let peer = std::thread::spawn(move || read_until_reset(far));
    let mut sender = common::zero_copy().adopt(near).unwrap();
    file.set_len(512 << 10).unwrap();
    let slice = MappedSlice::new(Arc::clone(&map), 0..1 << 20).unwrap();
    let (ticket, error) = match sender.send(slice) {
        Err(SendError::Truncated { ticket, error }) => (ticket, error),
        other => panic!("{other:?}"),
    };
    assert_eq!(error.raw(), libc::EFAULT);
    let fate = sender.wait(ticket, soon()).unwrap();
    let Fate::Truncated { accepted, len: 1_048_576, .. } = fate else { panic!("{fate:?}") };
    assert!(accepted > 0 && accepted <= 512 << 10, "{accepted}");
    assert_eq!(sender.connection_error(), Some(error));
    let refused = sender.send(pattern(10, 2)).unwrap_err();
    assert!(matches!(refused, SendError::Connection { .. }), "{refused}");
    assert_eq!(Arc::strong_count(&map), 1);
    let report = sender.close(soon());
    assert_eq!((report.drained, report.quarantined, report.error), (false, 0, Some(error)));
    let (got, reset) = peer.join().unwrap();
    assert_same(&got, &data[..got.len()]);
    assert!(
        reset,
        "a truncated stream must not end in order: {} bytes, then an orderly end",
        got.len()
    );
}

/// The received bytes, and `true` after a reset.
fn read_until_reset(mut far: std::net::TcpStream) -> (Vec<u8>, bool) {
    let mut got = Vec::new();
    let result = std::io::Read::read_to_end(&mut far, &mut got);
    (got, result.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset))
}
