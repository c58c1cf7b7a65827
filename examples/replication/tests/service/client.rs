//! A replica by hand.

use std::{io, net::SocketAddr};

use replication::wire::{Kind, Message, Position};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::within;

pub(crate) struct Client {
    pub(crate) socket: TcpStream,
    pub(crate) position: Position,
}

impl Client {
    /// Connects with a small receive buffer, so that a client that does not read stalls its feed.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        let socket = socket.connect(address).await.unwrap();
        let mut client = Self { socket, position: Position::default() };
        assert_eq!(client.message().await.unwrap().kind, Kind::Welcome);
        client
    }

    pub(crate) async fn join(address: SocketAddr, id: u32) -> Self {
        let mut client = Self::connect(address).await;
        client.hello(id).await;
        client
    }

    pub(crate) async fn hello(&mut self, id: u32) {
        let hello = Message { kind: Kind::Hello, number: id, position: self.position };
        self.socket.write_all(&hello.encode()).await.unwrap();
    }

    pub(crate) async fn message(&mut self) -> io::Result<Message> {
        let mut bytes = [0; Message::LEN];
        within(self.socket.read_exact(&mut bytes)).await?;
        Message::decode(&bytes, &[Kind::Welcome, Kind::Block, Kind::End, Kind::Refusal])
    }

    /// The data of the next block, or `None` at the end of the stream.
    pub(crate) async fn block(&mut self) -> Option<Vec<u8>> {
        let message = self.message().await.unwrap();
        if message.kind == Kind::End {
            assert_eq!(message.position, self.position);
            return None;
        }
        assert_eq!(message.kind, Kind::Block);
        let mut data = vec![0; message.number as usize];
        within(self.socket.read_exact(&mut data)).await.unwrap();
        self.position = self.position.behind(&data);
        assert_eq!(message.position, self.position);
        Some(data)
    }

    pub(crate) async fn acknowledge(&mut self) {
        let message = Message { kind: Kind::Acknowledgement, number: 0, position: self.position };
        self.socket.write_all(&message.encode()).await.unwrap();
    }

    /// The reason of the primary's refusal.
    pub(crate) async fn refusal(mut self) -> String {
        let message = self.message().await.unwrap();
        assert_eq!(message.kind, Kind::Refusal);
        let mut reason = String::new();
        within(self.socket.read_to_string(&mut reason)).await.unwrap();
        assert_eq!(reason.len(), message.number as usize);
        reason
    }

    /// Waits until the primary has closed or reset the connection.
    pub(crate) async fn ended(mut self) {
        let _ = within(self.socket.read_to_end(&mut Vec::new())).await;
    }
}
