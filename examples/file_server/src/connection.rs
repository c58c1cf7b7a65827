//! One connection: requests are read and answered in turn.

use std::{
    fmt, io,
    io::Write,
    mem,
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
    shared::{Phase, Shared},
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
        while let Some(request) = self.next_request().await {
            let keep_alive = request.keep_alive && *self.phase.borrow() == Phase::Running;
            self.answer(request, keep_alive).await?;
            if !keep_alive {
                break;
            }
        }
        Ok(())
    }

    /// Reads the head of the next request. `None`: the client, its time or the server has come to an end.
    async fn next_request(&mut self) -> Option<Request> {
        let shared = Arc::clone(&self.shared);
        if self.received.is_empty() {
            let mut phase = self.phase.clone();
            tokio::select! {
                is_more = timeout(shared.settings.idle_timeout(), self.read_more()) => {
                    is_more.is_ok_and(|is_more| is_more).then_some(())?;
                }
                _ = phase.wait_for(|phase| *phase != Phase::Running) => return None,
            }
        }
        // For the head as a whole: a client that sends a byte now and then gains no time.
        let read = timeout(shared.settings.head_timeout(), self.read_head()).await;
        match read.unwrap_or(Err(Status::REQUEST_TIMEOUT)) {
            Ok(request) => request,
            Err(status) => Some(Request::refused(status)),
        }
    }

    async fn read_head(&mut self) -> Result<Option<Request>, Status> {
        loop {
            if let Some((request, len)) = Request::parse(&self.received)? {
                self.received.drain(..len);
                return Ok(Some(request));
            }
            if !self.read_more().await {
                return Ok(None);
            }
        }
    }

    /// Returns `false` at the end of the stream.
    async fn read_more(&mut self) -> bool {
        let room = MOST_HEAD_BYTES - self.received.len();
        self.received.reserve(room.min(1024));
        let mut transport = (&mut self.transport).take(room as u64);
        transport.read_buf(&mut self.received).await.is_ok_and(|read| read > 0)
    }

    async fn answer(&mut self, request: Request, keep_alive: bool) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        // One visit of a thread that may block: for a small file the only one.
        let preparing = spawn_blocking(move || {
            let answer = Answer::to(&request, &shared.root);
            let pieces = match &answer.body {
                _ if !request.wants_body => Ok(Vec::new()),
                Body::Text(text) => Ok(vec![Piece::Owned(text.clone().into_bytes())]),
                Body::File(file, range) => shared.pieces.read_now(file, range.clone(), None),
            };
            (request, answer, pieces)
        });
        let (request, answer, pieces) = preparing.await?;
        let mut left = if request.wants_body { answer.body.len() } else { 0 };
        let all = left;
        let result = match pieces {
            Ok(pieces) => self.send(&answer, keep_alive, pieces, &mut left).await,
            Err(error) => Err(error),
        };
        self.shared.requests.fetch_add(1, Ordering::Relaxed);
        if !self.shared.settings.quiet {
            let failure = result.as_ref().err();
            let (line, sent) = (&request.line, all - left);
            Entry { client: self.client, line, status: answer.status, sent, failure }.write();
        }
        result
    }

    /// Sends the head, the first pieces, and what is `left` behind these.
    async fn send(
        &mut self,
        answer: &Answer,
        keep_alive: bool,
        mut pieces: Vec<Piece>,
        left: &mut u64,
    ) -> io::Result<()> {
        let mut next = vec![Piece::Owned(answer.head(keep_alive))];
        loop {
            let len: usize = pieces.iter().map(|piece| piece.len()).sum();
            next.append(&mut pieces);
            self.transport.send(mem::take(&mut next)).await?;
            *left -= len as u64;
            match &answer.body {
                Body::File(file, range) if *left > 0 => {
                    let rest = range.end - *left..range.end;
                    pieces = self.shared.pieces.read(file, rest).await?;
                }
                _ => return Ok(()),
            }
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
