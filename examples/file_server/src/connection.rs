//! One connection: requests are read and answered in turn.

use std::{
    fmt, io,
    io::Write,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use httpdate::fmt_http_date;
use tokio::{io::AsyncReadExt, sync::watch, task::spawn_blocking, time::timeout};

use crate::{
    answer::{Answer, Body},
    pieces::Piece,
    request::{MOST_HEAD_BYTES, Request},
    server::{Phase, Shared},
    status::Status,
    transport::Transport,
};

/// A connection with a client.
pub(crate) struct Connection {
    transport: Transport,
    client: SocketAddr,
    shared: Arc<Shared>,
    phase: watch::Receiver<Phase>,
    /// Bytes behind the last request.
    received: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(transport: Transport, client: SocketAddr, shared: Arc<Shared>) -> Self {
        let phase = shared.phase.subscribe();
        Self { transport, client, shared, phase, received: Vec::new() }
    }

    /// Serves the client to the end of the connection, or of the server.
    pub(crate) async fn serve(mut self) {
        let mut phase = self.phase.clone();
        let serving = async {
            self.answer_all().await?;
            self.transport.close().await
        };
        let served = tokio::select! {
            served = serving => served,
            _ = phase.wait_for(|phase| *phase == Phase::Aborting) => {
                Err(io::ErrorKind::TimedOut.into())
            }
        };
        if served.is_err() {
            self.transport.abort();
        }
    }

    /// Answers requests in turn. An error leaves an answer incomplete.
    async fn answer_all(&mut self) -> io::Result<()> {
        loop {
            match self.next_request().await {
                Ok(None) => return Ok(()),
                Ok(Some(request)) => {
                    let keep_alive = request.keep_alive && *self.phase.borrow() == Phase::Running;
                    let shared = Arc::clone(&self.shared);
                    let answering =
                        spawn_blocking(move || (Answer::to(&request, &shared.root), request));
                    let (answer, request) = answering.await?;
                    self.answer(answer, &request.line, request.wants_body, keep_alive).await?;
                    if !keep_alive {
                        return Ok(());
                    }
                }
                Err(status) => return self.answer(Answer::of(status), "-", true, false).await,
            }
        }
    }

    /// Reads the head of the next request. `None`: the client, its time or the server has come to an end.
    async fn next_request(&mut self) -> Result<Option<Request>, Status> {
        let shared = Arc::clone(&self.shared);
        if self.received.is_empty() {
            let mut phase = self.phase.clone();
            tokio::select! {
                is_more = timeout(shared.settings.idle_timeout(), self.read_more()) => {
                    if !is_more.unwrap_or(false) {
                        return Ok(None);
                    }
                }
                _ = phase.wait_for(|phase| *phase != Phase::Running) => return Ok(None),
            }
        }
        let reading = async {
            loop {
                if let Some((request, len)) = Request::parse(&self.received)? {
                    self.received.drain(..len);
                    return Ok(Some(request));
                }
                if !self.read_more().await {
                    return Ok(None);
                }
            }
        };
        // For the head as a whole: a client that sends a byte now and then gains no time.
        let read = timeout(shared.settings.head_timeout(), reading).await;
        read.unwrap_or(Err(Status::REQUEST_TIMEOUT))
    }

    /// Returns `false` at the end of the stream.
    async fn read_more(&mut self) -> bool {
        let room = MOST_HEAD_BYTES - self.received.len();
        self.received.reserve(room.min(1024));
        let mut transport = (&mut self.transport).take(room as u64);
        transport.read_buf(&mut self.received).await.is_ok_and(|read| read > 0)
    }

    async fn answer(
        &mut self,
        answer: Answer,
        line: &str,
        wants_body: bool,
        keep_alive: bool,
    ) -> io::Result<()> {
        let mut sent = 0;
        let result = self.send(&answer, wants_body, keep_alive, &mut sent).await;
        self.shared.requests.fetch_add(1, Ordering::Relaxed);
        if !self.shared.settings.quiet {
            let failure = result.as_ref().err();
            Entry { client: self.client, line, status: answer.status, sent, failure }.write();
        }
        result
    }

    async fn send(
        &mut self,
        answer: &Answer,
        wants_body: bool,
        keep_alive: bool,
        sent: &mut u64,
    ) -> io::Result<()> {
        let mut pieces = vec![Piece::Owned(answer.head(keep_alive))];
        match &answer.body {
            Body::Text(text) if wants_body => {
                pieces.push(Piece::Owned(text.clone().into_bytes()));
                *sent = answer.body.len();
            }
            Body::File(file, range) if wants_body => {
                let mut left = range.clone();
                while !left.is_empty() {
                    let piece = self.shared.pieces.read(file, left.clone()).await?;
                    let len = piece.len() as u64;
                    pieces.push(piece);
                    self.transport.send(std::mem::take(&mut pieces)).await?;
                    left.start += len;
                    *sent += len;
                }
            }
            _ => {}
        }
        match pieces[..] {
            [] => Ok(()),
            _ => self.transport.send(pieces).await,
        }
    }
}

/// A line of the log, in the common format.
struct Entry<'a> {
    client: SocketAddr,
    line: &'a str,
    status: Status,
    sent: u64,
    failure: Option<&'a io::Error>,
}

impl Entry<'_> {
    fn write(&self) {
        // A closed log stops no server.
        let _ = io::stdout().write_all(self.to_string().as_bytes());
    }
}

impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, line, status: Status(code), sent, failure } = self;
        let date = fmt_http_date(SystemTime::now());
        write!(f, "{client} - - [{date}] \"{}\" {code} {sent}", line.escape_debug())?;
        if let Some(failure) = failure {
            write!(f, " cut short: {failure}")?;
        }
        writeln!(f)
    }
}
