//! A second user of `MSG_ZEROCOPY` on a sender's socket, with the sender's datagrams in a queue
//! below: the notification of the second user's datagram overtakes theirs.

use std::{net::UdpSocket, os::fd::AsFd};

use pinbuf::{
    Policy, Pool, Sender,
    sender::{CopyReason, Poison},
};

use crate::{
    common::{
        assert_all_free, census, duplicate, eventually, filled, namespace::in_a_namespace, optmem,
        pool, road::Road, send_static,
    },
    fake_peer,
    overtaking::{LEN, far_socket, received},
};

static FOREIGN: [u8; LEN] = [0xEE; LEN];

/// A road with a queue for datagrams to its far end, and none for datagrams to [`fake_peer::FAR`];
/// a sender to the far end, and the socket there.
fn furnish(policy: Policy) -> Result<(Road, Sender<UdpSocket>, UdpSocket), String> {
    let road = Road::build()?;
    road.limit_packets(9000)?;
    // Two datagrams pass at once, then one in a second and a half.
    road.queue("tbf rate 20kbit burst 10kb limit 1mb")?;
    fake_peer::furnish_here()?;
    let far = far_socket(&road);
    let near = UdpSocket::bind("0.0.0.0:0").unwrap();
    near.connect(far.local_addr().unwrap()).unwrap();
    let sender = Sender::builder().policy(policy).threshold_bytes(LEN).adopt(near).unwrap();
    Ok((road, sender, far))
}

fn open(road: &Road) {
    road.queue("tbf rate 100mbit burst 100kb limit 1mb").unwrap();
}

fn send(sender: &mut Sender<UdpSocket>, pool: &Pool, seed: usize) {
    sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
}

/// The second user takes an id, and its notification comes at once.
fn intrude(sender: &Sender<UdpSocket>) {
    let other = UdpSocket::from(duplicate(sender));
    let peer = other.peer_addr().unwrap();
    other.connect((fake_peer::FAR, 9)).unwrap();
    send_static(other.as_fd(), &FOREIGN).unwrap();
    other.connect(peer).unwrap();
}

fn is_poisoned(sender: &Sender<UdpSocket>, id: u32) -> bool {
    let poison = Poison::UnknownIds { lo: id, hi: id };
    sender.capabilities().reason == Some(CopyReason::Poisoned(poison))
}

#[test]
fn a_notification_releases_nothing_after_a_foreign_one() {
    const SENDS: usize = 12;
    in_a_namespace(|| {
        let (road, mut sender, far) = furnish(Policy::Require)?;
        let pool = pool(LEN, SENDS);
        (0..SENDS).for_each(|seed| send(&mut sender, &pool, seed));
        intrude(&sender);
        eventually("the sender is poisoned", || {
            sender.reap().unwrap();
            is_poisoned(&sender, SENDS as u32)
        });
        let [free, _, _, quarantined] = census(&pool);
        assert!(quarantined > 0 && free + quarantined == SENDS, "{:?}", census(&pool));
        let before = sender.stats().notifications;
        eventually("another notification is read", || {
            sender.reap().unwrap();
            sender.stats().notifications > before
        });
        // The queued datagrams still hold option memory, so nothing is proven.
        let quarantined_now = census(&pool)[3];
        assert!(optmem(&sender) > 0, "the queue is empty already");
        assert_eq!(quarantined_now, quarantined);
        open(&road);
        eventually("all sends are released", || {
            sender.reap().unwrap();
            sender.stats().leases == 0
        });
        assert_all_free(&pool);
        assert_eq!(received(&far), ((0..SENDS).collect(), 0));
        Ok(())
    });
}

#[test]
fn sends_of_a_poisoned_sender_read_its_notifications() {
    in_a_namespace(|| {
        let (road, mut sender, far) = furnish(Policy::Auto)?;
        let pool = pool(LEN, 1);
        let other = UdpSocket::from(duplicate(&sender));
        (0..3).for_each(|_| _ = other.send(&FOREIGN).unwrap());
        // The first call probes the route. All others go by copy meanwhile.
        send(&mut sender, &pool, 0);
        intrude(&sender);
        other.connect((fake_peer::FAR, 9)).unwrap();
        eventually("the sender is poisoned", || {
            sender.send(&FOREIGN[..]).unwrap();
            is_poisoned(&sender, 1)
        });
        assert_eq!(census(&pool), [0, 0, 0, 1], "the queue is empty already");
        open(&road);
        eventually("the buffer is free", || {
            sender.send(&FOREIGN[..]).unwrap();
            census(&pool) == [1, 0, 0, 0]
        });
        assert_eq!(sender.stats().zero_copy_calls, 1);
        drop(far);
        Ok(())
    });
}
