//! Which acknowledgement releases what, to the byte.

use pinbuf::{HandBack, Policy, Sender};

use crate::{
    common::{assert_all_home, filled, namespace::in_a_namespace, pool},
    fake_peer::{self, FakePeer},
};

const LEN: usize = 4096;

#[test]
fn a_send_is_released_with_its_last_byte_and_was_not_copied() {
    in_a_namespace(|| {
        fake_peer::furnish()?;
        let (near, mut peer) = FakePeer::connect();
        let pool = pool(LEN, 3);
        let builder = Sender::builder().policy(Policy::Require).threshold_bytes(1);
        let mut sender = builder.hand_back(HandBack::Return).adopt(near).unwrap();
        for seed in 0..3 {
            sender.send(filled(pool.try_alloc(LEN).unwrap(), LEN, seed)).unwrap();
        }
        for (acked, released) in
            [(2048, vec![]), (4096, vec![0]), (12_287, vec![1]), (12_288, vec![2])]
        {
            peer.ack(acked);
            sender.reap().unwrap();
            let returned = std::iter::from_fn(|| sender.next_returned());
            assert_eq!(returned.map(|it| it.sequence).collect::<Vec<_>>(), released, "{acked}");
        }
        let stats = sender.stats();
        assert_eq!((stats.notes, stats.zero_copy_calls, stats.deferred_copies), (3, 3, 0));
        assert_all_home(&pool);
        Ok(())
    });
}
