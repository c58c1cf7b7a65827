//! Many clients at once.

use crate::{
    client::Client,
    common::{pattern, random, seed},
    site::{Site, at_once},
};

const CLIENTS: usize = 60;
const REQUESTS: usize = 40;

#[test]
fn many_clients_get_their_bytes_in_bounded_memory() {
    let site = Site::new();
    let sizes = [1, 3000, 20_000, 300_000, 2_000_000];
    let files = sizes.map(|size| pattern(size, size));
    for (number, data) in files.iter().enumerate() {
        site.write(&number.to_string(), data);
    }
    let server = site.serve("--memory 16 --max-connections 40");
    let (address, first) = (server.address().to_owned(), seed());
    at_once(CLIENTS, move |number| {
        let mut random = random(first + number as u64);
        let mut client = Client::connect(&address);
        for _ in 0..REQUESTS {
            let file = random() as usize % files.len();
            let (path, data) = (format!("/{file}"), &files[file]);
            let start = random() as usize % data.len();
            if random().is_multiple_of(2) {
                assert!(client.get(&path, &[]).body == data[..]);
            } else {
                let range = format!("Range: bytes={start}-");
                assert!(client.get(&path, &[&range]).body == data[start..]);
            }
            if random().is_multiple_of(8) {
                client = Client::connect(&address);
            }
        }
    });
    // The pool, the program, and some room for stacks and heads.
    let peak_kib = server.number("status", "VmHWM:");
    assert!(peak_kib < 80 << 10, "{peak_kib} KiB");
    let log = server.end().in_order();
    assert_eq!(log.lines().count(), CLIENTS * REQUESTS);
}
