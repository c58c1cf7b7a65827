//! The connections of the primary.

use std::{fmt, io, net::SocketAddr, pin::pin, sync::Arc};

use pinbuf::{
    SharedBuf,
    sender::CloseReport,
    tokio::{ReadHalf, Stream, WriteHalf},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy, sink},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

use crate::{
    ledger::Seat,
    shared::Shared,
    wire::{Kind, MAX_REASON, Message, Position, invalid},
};

type Socket = std::net::TcpStream;

impl Shared {
    fn stream(&self, socket: TcpStream) -> io::Result<(ReadHalf<Socket>, WriteHalf<Socket>)> {
        socket.set_nodelay(true)?;
        Ok(Stream::adopt(self.config.sender(), socket)?.into_split())
    }

    /// A connection of a replica.
    pub(crate) async fn replica(self: Arc<Self>, socket: TcpStream, peer: SocketAddr) {
        let result = async {
            let (mut read, mut write) = self.stream(socket)?;
            let hello = self.greet(&mut read, &mut write).await?;
            match self.admit(&hello, peer).await {
                Ok(seat) => self.replicate(seat, hello.position, read, write).await,
                Err(error) => self.refuse(write, &error).await?,
            }
            io::Result::Ok(())
        };
        if let Err(error) = result.await {
            eprintln!("replica port: {peer}: {error}");
        }
    }

    async fn greet(
        &self,
        read: &mut ReadHalf<Socket>,
        write: &mut WriteHalf<Socket>,
    ) -> io::Result<Message> {
        let (number, position) = (self.config.block_bytes, Position::default());
        let welcome = Message { kind: Kind::Welcome, number, position };
        let greeting = async {
            write.write_all(&welcome.encode()).await?;
            let mut hello = [0; Message::LEN];
            read.read_exact(&mut hello).await?;
            Message::decode(&hello, &[Kind::Hello])
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no hello");
        timeout(self.config.patience(), greeting).await.unwrap_or_else(|_| Err(late()))
    }

    /// Checks that the file of a replica is a beginning of this stream.
    async fn admit(&self, hello: &Message, peer: SocketAddr) -> io::Result<Seat> {
        let &Message { number: id, position, .. } = hello;
        let (blocks, accepted) = (position.blocks, self.ledger.accepted().borrow().blocks);
        if blocks > accepted {
            return Err(invalid(format!("{blocks} blocks are more than the {accepted} accepted")));
        }
        if self.log.position(blocks).await? != position {
            return Err(invalid(format!("the {blocks} blocks are not the first of this stream")));
        }
        let seat = self.ledger.join(id, blocks, format!("connected from {peer}"));
        let seat = seat.ok_or_else(|| invalid(format!("no replica has the number {id}")))?;
        eprintln!("replica {id}: connected from {peer}, {blocks} blocks are there");
        Ok(seat)
    }

    async fn refuse(&self, mut write: WriteHalf<Socket>, error: &io::Error) -> io::Result<()> {
        let (mut reason, position) = (error.to_string(), Position::default());
        reason.truncate(MAX_REASON as usize);
        let message = Message { kind: Kind::Refusal, number: reason.len() as u32, position };
        write.write_all(&message.encode()).await?;
        write.write_all(reason.as_bytes()).await?;
        let _ = write.close(Some(self.config.patience())).await;
        Err(invalid(format!("refused: {reason}")))
    }

    /// Sends everything behind `from`, and enters the acknowledgements.
    async fn replicate(
        &self,
        seat: Seat,
        from: Position,
        mut read: ReadHalf<Socket>,
        mut write: WriteHalf<Socket>,
    ) {
        // The channel is the window: its places are the blocks without an acknowledgement.
        let (sent, unacknowledged) = mpsc::channel(self.config.window as usize);
        let result = {
            let mut acknowledging = pin!(acknowledge(&seat, &mut read, unacknowledged));
            tokio::select! {
                () = seat.replaced() => Err(invalid("another connection took the place")),
                result = &mut acknowledging => {
                    result.and(Err(io::Error::other("the replica left before the end")))
                }
                result = self.feed(&mut write, from, sent) => match result {
                    Ok(()) => acknowledging.await,
                    Err(error) => Err(error),
                }
            }
        };
        let stats = write.stats();
        let report = match result {
            Ok(()) => Ok(write.close(Some(self.config.patience())).await),
            Err(error) => {
                let _ = write.abort();
                Err(error)
            }
        };
        seat.leave(format!("{}; {stats}", Outcome(&report)));
    }

    /// Sends all blocks behind `from`, and the end.
    async fn feed(
        &self,
        write: &mut WriteHalf<Socket>,
        from: Position,
        sent: mpsc::Sender<Position>,
    ) -> io::Result<()> {
        let (mut position, mut accepted) = (from, self.ledger.accepted());
        loop {
            // First the place in the window: a wait for the replica must not hold a buffer.
            let place = sent.reserve().await.map_err(|_| io::ErrorKind::NotConnected)?;
            let Some(block) = self.next(position.blocks, &mut accepted).await? else { break };
            position = block.position;
            place.send(position);
            write.send(SharedBuf::clone(block.record())).await?;
        }
        write.write_all(&Message { kind: Kind::End, number: 0, position }.encode()).await
    }

    /// A connection of a client of the tail port.
    pub(crate) async fn tail(self: Arc<Self>, socket: TcpStream, peer: SocketAddr) {
        let result = async {
            let (mut read, mut write) = self.stream(socket)?;
            let feed = async {
                let (mut number, mut committed) = (0, self.ledger.committed());
                while let Some(block) = self.next(number, &mut committed).await? {
                    write.send(block.data()).await?;
                    number += 1;
                }
                io::Result::Ok(())
            };
            // Unread bytes would turn the close into a reset. The end of the client's bytes is not its end.
            let mut ignored = sink();
            let ignore = copy(&mut read, &mut ignored);
            tokio::select! {
                result = feed => result?,
                Err(error) = ignore => return Err(error),
            }
            Ok(write.close(Some(self.config.patience())).await)
        };
        eprintln!("tail port: {peer}: {}", Outcome(&result.await));
    }
}

/// Enters acknowledgements until the replica closes the connection with all blocks acknowledged.
async fn acknowledge(
    seat: &Seat,
    read: &mut ReadHalf<Socket>,
    mut unacknowledged: mpsc::Receiver<Position>,
) -> io::Result<()> {
    let mut bytes = [0; Message::LEN];
    loop {
        match read.read_exact(&mut bytes).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return match unacknowledged.len() {
                    0 => Ok(()),
                    blocks => Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!("the replica left {blocks} blocks without an acknowledgement"),
                    )),
                };
            }
            read => read?,
        };
        let acknowledged = Message::decode(&bytes, &[Kind::Acknowledgement])?.position;
        loop {
            match unacknowledged.try_recv() {
                Ok(sent) if sent == acknowledged => break,
                // An acknowledgement stands for all blocks before.
                Ok(sent) if sent.blocks < acknowledged.blocks => {}
                _ => return Err(invalid("an acknowledgement of a block that was not sent")),
            }
        }
        seat.acknowledge(acknowledged.blocks);
    }
}

/// The end of a connection, for the log.
struct Outcome<'a>(&'a io::Result<CloseReport>);

impl fmt::Display for Outcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(report) => report.fmt(f),
            Err(error) => write!(f, "failed: {error}"),
        }
    }
}
