//! Many streams in one runtime.

use std::{net::TcpListener as StdListener, time::Duration};

use pinbuf::{Pool, tokio::Stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    common::{assert_same, fill, process::alone, wait_until_all_free, zero_copy},
    counted, runtimes, soon,
};

const STREAMS: usize = 200;
const SENDS: usize = 5;
const LEN: usize = 32 << 10;

/// Answers each connection with what comes, by other means than this library's.
async fn echo(listener: TcpListener) {
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let (mut read, mut write) = socket.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            write.shutdown().await.unwrap();
        });
    }
}

/// Sends and reads what comes back. Returns the number of polls of both tasks.
async fn exchange(address: std::net::SocketAddr, pool: Pool, number: usize) -> usize {
    let socket = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = Stream::adopt(zero_copy(), socket).unwrap().into_split();
    let mut expected = vec![0; SENDS * LEN];
    fill(&mut expected, number);
    let sent = expected.clone();
    let sending = tokio::spawn(counted(async move {
        for part in sent.chunks(LEN) {
            let mut buf = pool.alloc_async(LEN).await.unwrap();
            buf.extend_from_slice(part);
            soon(write.send(buf)).await.unwrap();
        }
        assert!(soon(write.close(Some(Duration::from_secs(60)))).await.drained);
    }));
    let mut arrived = vec![0; SENDS * LEN];
    let (read, polls) = counted(soon(async {
        read.read_exact(&mut arrived).await?;
        assert_eq!(read.read(&mut [0]).await?, 0);
        std::io::Result::Ok(())
    }))
    .await;
    read.unwrap();
    assert_same(&arrived, &expected);
    polls + sending.await.unwrap().1
}

#[test]
fn hundreds_of_streams_share_a_pool() {
    alone(|| {
        for runtime in runtimes() {
            let pool = Pool::builder().class(LEN, 64).sender_quota(4).build().unwrap();
            let polls: usize = runtime.block_on(async {
                let listener = StdListener::bind("127.0.0.1:0").unwrap();
                listener.set_nonblocking(true).unwrap();
                let listener = TcpListener::from_std(listener).unwrap();
                let address = listener.local_addr().unwrap();
                let echo = tokio::spawn(echo(listener));
                let exchanges = (0..STREAMS)
                    .map(|number| tokio::spawn(exchange(address, pool.clone(), number)));
                let mut polls = 0;
                for exchange in Vec::from_iter(exchanges) {
                    polls += exchange.await.unwrap();
                }
                echo.abort();
                polls
            });
            // For each send: a buffer, room, the acceptance. For the reader: each arrival.
            let most = STREAMS * SENDS * (3 + 8);
            assert!(polls <= most, "{polls} of {most}");
            wait_until_all_free(&pool);
        }
    });
}
