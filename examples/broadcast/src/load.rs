//! Many clients in one process, for a try.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, copy, sink},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::sleep,
};

use crate::{Load, at};

/// A stalled client looks for its end so often.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) async fn load(options: &Load) -> io::Result<()> {
    let mut clients = JoinSet::new();
    for number in 0..options.clients {
        let stalls = number < options.stall;
        let socket = TcpSocket::new_v4()?;
        if stalls {
            // Before the connection: its start fixes the window.
            socket.set_recv_buffer_size(16 << 10)?;
        }
        let socket = at("no connection to the server", socket.connect(options.server).await)?;
        clients.spawn(async move {
            (stalls, if stalls { stall(socket).await } else { read(socket).await })
        });
    }
    let (mut read_to_end, mut reset) = (Vec::new(), 0);
    while let Some(client) = clients.join_next().await {
        match client? {
            (false, Ok(bytes)) => read_to_end.push(bytes),
            (_, Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => reset += 1,
            (_, result) => {
                result?;
            }
        }
    }
    let (count, least, most) = (
        read_to_end.len(),
        read_to_end.iter().min().unwrap_or(&0),
        read_to_end.iter().max().unwrap_or(&0),
    );
    println!("{count} clients read to the end, {least} to {most} bytes; {reset} were cut off");
    Ok(())
}

async fn read(mut socket: TcpStream) -> io::Result<u64> {
    copy(&mut socket, &mut sink()).await
}

/// Reads nothing until the server has ended the connection.
async fn stall(mut socket: TcpStream) -> io::Result<u64> {
    loop {
        sleep(LOOK).await;
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        if socket.peek(&mut [0]).await? == 0 {
            return socket.read(&mut [0]).await.map(|bytes| bytes as u64);
        }
    }
}
