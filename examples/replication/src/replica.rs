//! The replica. It has one connection and needs no runtime.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    net::TcpStream,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

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
    /// Seconds without a primary after which the replica gives up.
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
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset};
    let kinds = [BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset];
    kinds.contains(&error.kind()) || error.kind() == ErrorKind::UnexpectedEof
}

/// Follows the primary over one connection.
fn follow(config: &Config, mut primary: &TcpStream, file: &mut File) -> io::Result<Position> {
    primary.set_nodelay(true)?;
    let block_bytes = read_message(primary, &[Kind::Welcome])?.number;
    let mut data = vec![0; block_bytes as usize];
    let mut position = cut(file, &mut data)?;
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
                file.sync_all()?;
                return Ok(position);
            }
            Kind::Block if message.number <= block_bytes && !is_last => {}
            _ => return Err(invalid(format!("{message:?} behind {position:?}"))),
        }
        let data = &mut data[..message.number as usize];
        primary.read_exact(data)?;
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

/// Cuts a file to whole blocks, and returns its end.
fn cut(file: &mut File, block: &mut [u8]) -> io::Result<Position> {
    let mut position = Position::default();
    file.seek(SeekFrom::Start(0))?;
    loop {
        match file.read_exact(block) {
            Ok(()) => position = position.behind(block),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    let len = position.blocks * block.len() as u64;
    file.set_len(len)?;
    file.seek(SeekFrom::Start(len))?;
    Ok(position)
}

fn read_message(mut primary: &TcpStream, kinds: &[Kind]) -> io::Result<Message> {
    let mut bytes = [0; Message::LEN];
    primary.read_exact(&mut bytes)?;
    Message::decode(&bytes, kinds)
}
