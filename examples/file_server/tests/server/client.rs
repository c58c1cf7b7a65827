//! A small client over a raw socket.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use crate::common::soon;

pub(crate) struct Client {
    pub(crate) socket: BufReader<TcpStream>,
}

/// An answer, with the names of the fields in small letters.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: &str) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(soon()).unwrap();
        Self { socket: BufReader::new(socket) }
    }

    /// Sends bytes as they are.
    pub(crate) fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// Sends a request, with more fields.
    pub(crate) fn ask(&mut self, method: &str, path: &str, fields: &[&str]) {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        self.write(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"));
    }

    pub(crate) fn get(&mut self, path: &str, fields: &[&str]) -> Answer {
        self.ask("GET", path, fields);
        self.answer()
    }

    pub(crate) fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        let len = answer.field("content-length").map_or(0, |len| len.parse().unwrap());
        answer.body = vec![0; len];
        self.socket.read_exact(&mut answer.body).unwrap();
        answer
    }

    /// An answer, without its body.
    pub(crate) fn head(&mut self) -> Answer {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert!(self.socket.read_line(&mut line).unwrap() > 0, "closed after {lines:?}");
            match line.strip_suffix("\r\n").expect("a whole line") {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let status = lines[0].strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        let fields = lines[1..].iter().map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        });
        Answer { status, fields: fields.collect(), body: Vec::new() }
    }

    /// Asserts that the server has closed the connection, and sent nothing before.
    #[track_caller]
    pub(crate) fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        self.socket.read_to_end(&mut rest).unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }
}
