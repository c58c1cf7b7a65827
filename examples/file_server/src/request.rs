//! The head of a request.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStringExt,
};

use httparse::{EMPTY_HEADER, Error, Header};
use percent_encoding::percent_decode;

use crate::{conditions::Conditions, status::Status};

/// The most bytes of a head.
pub(crate) const MOST_HEAD_BYTES: usize = 16 << 10;
/// The most header fields of a head.
const MOST_FIELDS: usize = 100;

/// What the server has to know of a request.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Request {
    /// The request line, for the log.
    pub(crate) line: String,
    /// `false`: the head of the answer alone is wanted.
    pub(crate) wants_body: bool,
    /// The resource, or the refusal.
    pub(crate) target: Result<Target, Status>,
    pub(crate) conditions: Conditions,
    /// The client takes further answers on the connection.
    pub(crate) keep_alive: bool,
}

/// The path of a resource below the root, decoded.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Target {
    pub(crate) segments: Vec<OsString>,
    /// The path ends with a slash, and so names a directory.
    pub(crate) ends_with_slash: bool,
    /// From the question mark on.
    pub(crate) query: String,
}

impl Request {
    /// Stands for bytes that are no request.
    pub(crate) fn refused(status: Status) -> Self {
        Self {
            line: "-".to_owned(),
            wants_body: true,
            target: Err(status),
            conditions: Conditions::default(),
            keep_alive: false,
        }
    }

    /// Parses the first head in `bytes`, and returns its length. `None`: a part is missing.
    ///
    /// An error is one of framing: no further request of the connection can be trusted.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Status> {
        let mut fields = [EMPTY_HEADER; MOST_FIELDS];
        let mut head = httparse::Request::new(&mut fields);
        let len = match head.parse(bytes) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if bytes.len() < MOST_HEAD_BYTES => return Ok(None),
            Ok(httparse::Status::Partial) if head.path.is_none() => {
                return Err(Status::URI_TOO_LONG);
            }
            Ok(httparse::Status::Partial) | Err(Error::TooManyHeaders) => {
                return Err(Status::HEADERS_TOO_LARGE);
            }
            Err(Error::Version) => return Err(Status::VERSION_NOT_SUPPORTED),
            Err(_) => return Err(Status::BAD_REQUEST),
        };
        let (method, path) = (head.method.unwrap_or_default(), head.path.unwrap_or_default());
        let is_1_1 = head.version == Some(1);
        let fields = Fields(head.headers);
        if is_1_1 && fields.count("host") != 1 {
            return Err(Status::BAD_REQUEST);
        }
        let has_body = fields.announce_a_body(is_1_1)?;
        let target = match method {
            "GET" | "HEAD" if has_body => Err(Status::CONTENT_TOO_LARGE),
            "GET" | "HEAD" => Target::parse(path),
            "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" | "TRACE" | "CONNECT" => {
                Err(Status::METHOD_NOT_ALLOWED)
            }
            _ => Err(Status::NOT_IMPLEMENTED),
        };
        let request = Self {
            line: format!("{method} {path} HTTP/1.{}", u8::from(is_1_1)),
            wants_body: method != "HEAD",
            target,
            conditions: Conditions::new(|name| fields.value(name)),
            // No body is ever read: what follows would be taken for a request.
            keep_alive: !has_body
                && if is_1_1 {
                    !fields.connection("close")
                } else {
                    fields.connection("keep-alive")
                },
        };
        Ok(Some((request, len)))
    }
}

struct Fields<'a>(&'a [Header<'a>]);

impl Fields<'_> {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|f| f.value)
    }

    fn count(&self, name: &str) -> usize {
        self.values(name).count()
    }

    /// The values of all fields of this name, as one list. `None` if there is none, or if one is not
    /// visible ASCII.
    fn value(&self, name: &str) -> Option<String> {
        let values: Result<Vec<_>, _> = self.values(name).map(str::from_utf8).collect();
        values.ok().filter(|values| !values.is_empty()).map(|values| values.join(", "))
    }

    fn connection(&self, option: &str) -> bool {
        let options = self.value("connection").unwrap_or_default();
        options.split(',').any(|word| word.trim().eq_ignore_ascii_case(option))
    }

    /// Returns `true` if a body follows the head. An ambiguous length is an error: a proxy in front may
    /// read it differently, and take the rest for another client's request.
    fn announce_a_body(&self, is_1_1: bool) -> Result<bool, Status> {
        let (length, coded) = (self.count("content-length"), self.count("transfer-encoding") > 0);
        if coded && (length > 0 || !is_1_1) {
            return Err(Status::BAD_REQUEST);
        }
        if length == 0 {
            return Ok(coded);
        }
        let value = self.value("content-length").unwrap_or_default();
        if value.is_empty() || !value.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(Status::BAD_REQUEST);
        }
        Ok(value.bytes().any(|digit| digit != b'0'))
    }
}

impl Target {
    /// Parses a request target in origin form or absolute form.
    fn parse(target: &str) -> Result<Self, Status> {
        let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
        let path = match path.split_once("://") {
            Some((scheme, rest)) if !scheme.contains('/') => {
                rest.find('/').map_or("/", |slash| &rest[slash..])
            }
            _ => path,
        };
        let (Some(path), true) = (path.strip_prefix('/'), is_encoded_well(path.as_bytes())) else {
            return Err(Status::BAD_REQUEST);
        };
        let mut segments = Vec::new();
        for segment in path.split('/').filter(|segment| !segment.is_empty()) {
            let segment: Vec<u8> = percent_decode(segment.as_bytes()).collect();
            if segment.contains(&0) {
                return Err(Status::BAD_REQUEST);
            }
            // One rule for `..` and for `.git`: such names are not served. An encoded slash is part of
            // no name.
            if is_hidden(OsString::from_vec(segment.clone()).as_os_str()) || segment.contains(&b'/')
            {
                return Err(Status::NOT_FOUND);
            }
            segments.push(OsString::from_vec(segment));
        }
        let ends_with_slash = path.is_empty() || path.ends_with('/');
        Ok(Self { segments, ends_with_slash, query: query.to_owned() })
    }
}

/// Returns `true` for names that are neither served nor listed: those with a dot in front, except
/// `.well-known` of RFC 8615.
pub(crate) fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".") && name != ".well-known"
}

/// Returns `true` if two hexadecimal digits follow each percent sign.
fn is_encoded_well(path: &[u8]) -> bool {
    let mut pieces = path.split(|byte| *byte == b'%').skip(1);
    pieces.all(|piece| piece.len() >= 2 && piece[..2].iter().all(u8::is_ascii_hexdigit))
}
