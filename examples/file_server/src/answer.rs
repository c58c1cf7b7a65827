//! Answers: the status, the fields and the body.

use std::{fmt::Write, io, ops::Range, sync::Arc, time::SystemTime};

use httpdate::fmt_http_date;

use crate::{
    conditions::{Part, Validators, Verdict},
    request::{Request, Target},
    root::{Found, OpenFile, Root},
    status::Status,
};

/// An answer, before its body is read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    fields: String,
    pub(crate) body: Body,
}

#[derive(Debug)]
pub(crate) enum Body {
    Text(String),
    File(Arc<OpenFile>, Range<u64>),
}

impl Body {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::File(_, range) => range.end - range.start,
        }
    }
}

impl Answer {
    fn new(status: Status, body: Body) -> Self {
        Self { status, fields: String::new(), body }
    }

    /// A status, with a page of one line.
    pub(crate) fn of(status: Status) -> Self {
        let answer = Self::new(status, Body::Text(format!("{status}\n")));
        let answer = answer.field("Content-Type", "text/plain; charset=utf-8");
        match status {
            Status::METHOD_NOT_ALLOWED => answer.field("Allow", "GET, HEAD"),
            _ => answer,
        }
    }

    fn field(mut self, name: &str, value: &str) -> Self {
        let _ = write!(self.fields, "{name}: {value}\r\n");
        self
    }

    /// The answer to a request. Blocks.
    pub(crate) fn to(request: &Request, root: &Root) -> Self {
        let found = match &request.target {
            Err(status) => return Self::of(*status),
            Ok(target) => root.find(target).map(|found| (target, found)),
        };
        match found {
            Ok((_, Found::File(file))) => Self::file(file, request),
            Ok((_, Found::Listing(page))) => {
                let answer = Self::new(Status::OK, Body::Text(page));
                answer.field("Content-Type", "text/html; charset=utf-8")
            }
            Ok((Target { query, .. }, Found::Folder(path))) => {
                Self::of(Status::MOVED_PERMANENTLY).field("Location", &(path + query))
            }
            Err(error) => Self::of(match error.kind() {
                io::ErrorKind::PermissionDenied => Status::FORBIDDEN,
                io::ErrorKind::NotFound
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::InvalidFilename => Status::NOT_FOUND,
                // A circle of links.
                _ if error.raw_os_error() == Some(libc::ELOOP) => Status::NOT_FOUND,
                _ => Status::INTERNAL_ERROR,
            }),
        }
    }

    fn file(file: OpenFile, request: &Request) -> Self {
        let (len, mime) = (file.version.len, file.mime.clone());
        let validators = Validators::new(len, file.version.modified, SystemTime::now());
        let part = match request.conditions.evaluate(&validators) {
            Verdict::Failed => return Self::of(Status::PRECONDITION_FAILED),
            Verdict::NotModified => {
                let answer = Self::new(Status::NOT_MODIFIED, Body::Text(String::new()));
                return answer.field("ETag", &validators.etag);
            }
            // A range is defined for GET alone.
            Verdict::Send if !request.wants_body => Part::Whole,
            Verdict::Send => request.conditions.part(&validators, len),
        };
        let of_file = |status, range| Self::new(status, Body::File(Arc::new(file), range));
        let answer = match part {
            Part::Unsatisfiable => {
                let answer = Self::of(Status::RANGE_NOT_SATISFIABLE);
                return answer.field("Content-Range", &format!("bytes */{len}"));
            }
            Part::Whole => of_file(Status::OK, 0..len),
            Part::Bytes(range) => {
                let field = format!("bytes {}-{}/{len}", range.start, range.end - 1);
                of_file(Status::PARTIAL_CONTENT, range).field("Content-Range", &field)
            }
        };
        answer
            .field("Content-Type", &mime)
            .field("ETag", &validators.etag)
            .field("Last-Modified", &validators.modified.to_string())
            .field("Accept-Ranges", "bytes")
    }

    /// The head, up to the empty line.
    pub(crate) fn head(&self, keep_alive: bool) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {}\r\n", self.status);
        let _ = write!(head, "Date: {}\r\n{}", fmt_http_date(SystemTime::now()), self.fields);
        if self.status != Status::NOT_MODIFIED {
            // A browser must not find another type in the bytes.
            head += "X-Content-Type-Options: nosniff\r\n";
            let _ = write!(head, "Content-Length: {}\r\n", self.body.len());
        }
        // HTTP/1.0 needs the first word, HTTP/1.1 the second.
        head += if keep_alive { "Connection: keep-alive\r\n" } else { "Connection: close\r\n" };
        (head + "\r\n").into_bytes()
    }
}
