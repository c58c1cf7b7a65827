//! The replica. It has one connection and needs no runtime.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    net::TcpStream,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use socket2::{SockRef, TcpKeepalive};

use crate::{
    open,
    wire::{Kind, Message, Position, invalid},
};

/// Be a replica: write the stream of a primary to a file.
#[derive(Clone, Debug, clap::Parser)]
pub struct Config {
    /// The primary.
    #[arg(long, default_value = "127.0.0.1:4700")]
    pub connect: String,
    /// The number of this replica.
    #[arg(long)]
    pub id: u32,
    /// The file; the replica goes on where the file ends.
    #[arg(long)]
    pub output: PathBuf,
    /// Acknowledge a block only when the disk has it, and not already when the file has it.
    #[arg(long)]
    pub sync: bool,
    /// Seconds without a primary, or without an answer of its host, after which the replica gives up.
    #[arg(long, default_value_t = 30)]
    pub patience: u64,
}

/// Follows the primary to the end of the stream, over as many connections as needed. Returns the end.
///
/// # Errors
///
/// `InvalidData` if the primary refuses this replica or breaks the protocol, the errors of the file, and the
/// error of the connection when the patience is at its end.
pub fn run(config: &Config) -> io::Result<Position> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = open(&options, &config.output)?;
    let mut connected = Instant::now();
    loop {
        let result = TcpStream::connect(&config.connect).and_then(|primary| {
            let result = follow(config, &primary, &mut file);
            connected = Instant::now();
            result
        });
        match result {
            Err(error) if is_lost(&error) && connected.elapsed().as_secs() < config.patience => {
                eprintln!("replica {}: {error}; connecting again", config.id);
                thread::sleep(Duration::from_millis(100));
            }
            result => return result,
        }
    }
}

/// Returns `true` if another connection may work.
fn is_lost(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::TimedOut
            | ErrorKind::UnexpectedEof
    )
}

/// Follows the primary over one connection.
fn follow(config: &Config, mut primary: &TcpStream, file: &mut File) -> io::Result<Position> {
    primary.set_nodelay(true)?;
    // A primary that vanished says nothing, and nor does one whose input is idle.
    let silence = Duration::from_secs(config.patience.max(4) / 4);
    let keepalive = TcpKeepalive::new().with_time(silence).with_interval(silence).with_retries(3);
    SockRef::from(primary).set_tcp_keepalive(&keepalive)?;
    let block_bytes = read_message(primary, &[Kind::Welcome])?.number;
    let mut data = vec![0; block_bytes as usize];
    let (mut position, rest) = whole_blocks(file, data.len())?;
    let mut rest = Some(rest);
    let hello = Message { kind: Kind::Hello, number: config.id, position };
    primary.write_all(&hello.encode())?;
    let mut is_last = false;
    loop {
        let message = read_message(primary, &[Kind::Block, Kind::End, Kind::Refusal])?;
        match message.kind {
            Kind::Refusal => {
                let mut reason = vec![0; message.number as usize];
                primary.read_exact(&mut reason)?;
                return Err(invalid(String::from_utf8_lossy(&reason)));
            }
            Kind::End if message.position == position => {
                cut(file, position, rest.take(), &[])?;
                file.sync_all()?;
                return Ok(position);
            }
            Kind::Block if message.number <= block_bytes && !is_last => {}
            _ => return Err(invalid(format!("{message:?} behind {position:?}"))),
        }
        let data = &mut data[..message.number as usize];
        primary.read_exact(data)?;
        cut(file, position, rest.take(), data)?;
        position = position.behind(data);
        if message.position != position {
            return Err(invalid(format!("{message:?} with data of {position:?}")));
        }
        is_last = message.number < block_bytes;
        file.write_all(data)?;
        if config.sync {
            file.sync_data()?;
        }
        let acknowledgement = Message { kind: Kind::Acknowledgement, number: 0, position };
        primary.write_all(&acknowledgement.encode())?;
    }
}

/// Returns the end of the last whole block of a file, and the rest behind, where a write was torn. Leaves the file
/// at that end.
fn whole_blocks(file: &mut File, block_bytes: usize) -> io::Result<(Position, Vec<u8>)> {
    let (mut position, mut block) = (Position::default(), Vec::with_capacity(block_bytes));
    file.seek(SeekFrom::Start(0))?;
    loop {
        block.clear();
        file.take(block_bytes as u64).read_to_end(&mut block)?;
        if block.len() < block_bytes {
            file.seek(SeekFrom::Current(-(block.len() as i64)))?;
            return Ok((position, block));
        }
        position = position.behind(&block);
    }
}

/// Cuts off the rest behind the last whole block, now that the primary has admitted this replica: the digest of
/// the blocks is of its stream. A file with less than a block must begin as the first block does.
fn cut(file: &File, from: Position, rest: Option<Vec<u8>>, next: &[u8]) -> io::Result<()> {
    let Some(rest) = rest else { return Ok(()) };
    let bytes = rest.len() as u64;
    if from.blocks == 0 && !next.starts_with(&rest) {
        return Err(invalid(format!("the {bytes} bytes of the file are not of this stream")));
    }
    file.set_len(file.metadata()?.len() - bytes)
}

fn read_message(mut primary: &TcpStream, kinds: &[Kind]) -> io::Result<Message> {
    let mut bytes = [0; Message::LEN];
    primary.read_exact(&mut bytes)?;
    Message::decode(&bytes, kinds)
}
