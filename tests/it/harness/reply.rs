//! What the fake registry says: first the right answer, then the spoiling of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use bytes::Bytes;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::blob::{Manifest, sha256};
use super::registry::Seen;
use super::script::Fault;

/// What one repository holds.
#[derive(Debug, Default)]
pub(super) struct Repository {
    pub(super) blobs: BTreeMap<String, Bytes>,
    pub(super) manifests: BTreeMap<String, Manifest>,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) referrers: BTreeMap<String, Bytes>,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
    /// Where in the content the body begins.
    pub(super) offset: usize,
}

/// How an answer goes over the wire.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) reply: Reply,
    /// What happens after how many bytes of body.
    pub(super) trouble: Option<(usize, Trouble)>,
    /// Whether the head is all.
    pub(super) bodiless: bool,
    /// The declared length; none is chunked.
    length: Option<usize>,
}

/// What may happen in the middle of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The connection closes.
    Cut,
    /// Nothing more comes.
    Stall,
}

/// How a request for a range is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ranges {
    Honoured,
    Ignored,
    Confused,
    Late,
}

impl Delivery {
    /// The answer to a request, as the fault wants it.
    pub(super) fn of(
        repositories: &BTreeMap<String, Repository>,
        seen: &Seen,
        fault: Option<Fault>,
    ) -> Self {
        let ranges = match fault {
            Some(Fault::NoRange) => Ranges::Ignored,
            Some(Fault::WrongRange) => Ranges::Confused,
            Some(Fault::LateRange) => Ranges::Late,
            _ => Ranges::Honoured,
        };
        let reply = Reply::to(repositories, seen).ranged(seen, ranges);
        Self::whole(reply, seen, fault)
    }

    /// This answer to a request, as the fault wants it.
    pub(super) fn whole(reply: Reply, seen: &Seen, fault: Option<Fault>) -> Self {
        let mut delivery = Self {
            length: Some(reply.body.len()),
            bodiless: seen.method == "HEAD",
            trouble: None,
            reply,
        };
        if let Some(fault) = fault {
            delivery.spoil(fault);
        }
        if delivery.reply.status == 206 {
            delivery.length = delivery.length.map(|it| it.min(delivery.reply.body.len()));
        }
        delivery
    }

    pub(super) fn head(&self) -> String {
        let Reply {
            status, headers, ..
        } = &self.reply;
        let mut text = format!("HTTP/1.1 {status} Whatever\r\n");
        for (name, value) in headers {
            write!(text, "{name}: {value}\r\n").unwrap();
        }
        match self.length {
            Some(length) => write!(text, "Content-Length: {length}\r\n\r\n").unwrap(),
            None => text.push_str("Transfer-Encoding: chunked\r\n\r\n"),
        }
        text
    }

    /// Writes a piece of the body.
    pub(super) async fn write(&self, stream: &mut TcpStream, piece: Bytes) -> io::Result<()> {
        if self.length.is_some() {
            return stream.write_all(&piece).await;
        }
        let size = format!("{:x}\r\n", piece.len());
        stream.write_all(size.as_bytes()).await?;
        stream.write_all(&piece).await?;
        stream.write_all(b"\r\n").await
    }

    /// Writes what ends the body.
    pub(super) async fn finish(&self, stream: &mut TcpStream) -> io::Result<()> {
        match self.length {
            Some(_) => Ok(()),
            None => stream.write_all(b"0\r\n\r\n").await,
        }
    }

    fn spoil(&mut self, fault: Fault) {
        let reply = &mut self.reply;
        match fault {
            Fault::Status(status) => *self = self.instead(Reply::error(status)),
            Fault::RateLimit(seconds) => {
                let reply = Reply::error(429).with("Retry-After", &seconds.to_string());
                *self = self.instead(reply);
            }
            Fault::Html200 => {
                let reply = Reply::new(200, "text/html; charset=utf-8", "<html>Please log in");
                *self = self.instead(reply);
            }
            Fault::Redirect => {
                let reply = Reply::new(307, "text/plain", "").with("Location", "/elsewhere?secret");
                *self = self.instead(reply);
            }
            Fault::CutAfter(n) => self.trouble = Some((n, Trouble::Cut)),
            Fault::CutAs(n, etag) => {
                reply.set("ETag", etag);
                self.trouble = Some((n, Trouble::Cut));
            }
            Fault::CutUnmeasured(n) => {
                self.length = None;
                self.trouble = Some((n, Trouble::Cut));
            }
            Fault::StallAfter(n) => self.trouble = Some((n, Trouble::Stall)),
            Fault::ShortLength => {
                reply.body.truncate(reply.body.len() / 2);
                self.length = Some(reply.body.len());
            }
            Fault::LongLength => {
                self.length = Some(reply.body.len() + 1000);
                self.trouble = Some((reply.body.len(), Trouble::Cut));
            }
            Fault::NoLength => self.length = None,
            Fault::PartUnasked(n) if reply.status == 200 => reply.become_part(n, true),
            Fault::PartOfUnknown(n) if reply.status == 200 => reply.become_part(n, false),
            Fault::Gzip => {
                reply.body = gzip(&reply.body).into();
                reply.set("Content-Encoding", "gzip");
                self.length = Some(reply.body.len());
            }
            Fault::Corrupt(at) => {
                let mut bytes = reply.body.to_vec();
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = !*byte;
                }
                reply.body = bytes.into();
            }
            Fault::WrongDigestHeader => reply.set(DIGEST, &sha256(b"something else")),
            Fault::OtherAlgorithmHeader => {
                reply.set(DIGEST, &format!("sha512:{}", "ab".repeat(64)));
            }
            Fault::BadDigestHeader => reply.set(DIGEST, "sha256:nonsense"),
            Fault::NoDigestHeader => reply.headers.retain(|(name, _)| name != DIGEST),
            Fault::Type(media_type) => reply.set("Content-Type", media_type),
            Fault::Refuse
            | Fault::Silence
            | Fault::PartUnasked(_)
            | Fault::PartOfUnknown(_)
            | Fault::NoRange
            | Fault::WrongRange
            | Fault::LateRange => {}
        }
    }

    fn instead(&self, reply: Reply) -> Self {
        Self {
            length: Some(reply.body.len()),
            bodiless: self.bodiless,
            trouble: None,
            reply,
        }
    }
}

impl Reply {
    /// The whole answer that a good registry would give.
    fn to(repositories: &BTreeMap<String, Repository>, seen: &Seen) -> Self {
        if seen.path == "/v2/" || seen.path == "/v2" {
            return Self::new(200, "application/json", "{}");
        }
        let Some((rest, last)) = seen.path.rsplit_once('/') else {
            return Self::error(404);
        };
        let found = rest
            .strip_prefix("/v2/")
            .and_then(|rest| rest.rsplit_once('/'))
            .and_then(|(name, kind)| Some((name, kind, repositories.get(name)?)));
        let Some((name, kind, repository)) = found else {
            return Self::error(404);
        };
        let reply = match (kind, last) {
            ("blobs", digest) => repository.blob(digest),
            ("manifests", reference) => repository.manifest(reference),
            ("tags", "list") => Some(repository.tags(name, seen.query.as_deref())),
            ("referrers", digest) => repository.referrers(digest),
            _ => None,
        };
        reply.unwrap_or_else(|| Self::error(404))
    }

    pub(super) fn new(status: u16, media_type: &str, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            headers: vec![("Content-Type".to_owned(), media_type.to_owned())],
            body: body.into(),
            offset: 0,
        }
    }

    pub(super) fn error(status: u16) -> Self {
        let body = json!({ "errors": [{ "code": "FAKE", "message": "the fake's own words" }] });
        let reply = Self::new(status, "application/json", body.to_string());
        match status {
            401 => reply.with(
                CHALLENGE,
                r#"Bearer realm="http://token.invalid/",service="fake""#,
            ),
            _ => reply,
        }
    }

    fn content(media_type: &str, digest: &str, body: &Bytes) -> Self {
        Self::new(200, media_type, body.clone())
            .with(DIGEST, digest)
            .with("ETag", &format!("\"{digest}\""))
            .with("Accept-Ranges", "bytes")
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(it, _)| it != name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    /// The first `n` bytes alone.
    fn become_part(&mut self, n: usize, is_size_said: bool) {
        let size = match is_size_said {
            true => self.body.len().to_string(),
            false => "*".to_owned(),
        };
        self.body.truncate(n);
        self.status = 206;
        let place = format!("bytes 0-{}/{size}", self.body.len() - 1);
        self.set("Content-Range", &place);
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(it, _)| it == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The part that was asked for.
    fn ranged(mut self, seen: &Seen, ranges: Ranges) -> Self {
        let len = self.body.len();
        let condition = seen.header("if-range");
        let fits = condition.is_none_or(|it| self.header("ETag") == Some(it));
        let honoured = fits && ranges != Ranges::Ignored;
        let wanted = seen
            .header("range")
            .and_then(|range| range.strip_prefix("bytes="))
            .and_then(|range| range.split_once('-'));
        let Some((first, last)) = wanted.filter(|_| honoured && self.status == 200) else {
            return self;
        };
        let (mut start, end) = match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) => (first, len.min(last.saturating_add(1))),
            (Ok(first), Err(_)) => (first, len),
            (Err(_), Ok(suffix)) => (len.saturating_sub(suffix), len),
            (Err(_), Err(_)) => return self,
        };
        if start >= end {
            return Self::error(416).with("Content-Range", &format!("bytes */{len}"));
        }
        match ranges {
            Ranges::Confused => start /= 2,
            Ranges::Late => start = (start + 1).min(end - 1),
            Ranges::Honoured | Ranges::Ignored => {}
        }
        let place = format!("bytes {start}-{}/{len}", end - 1);
        self.body = self.body.slice(start..end);
        self.offset = start;
        self.status = 206;
        self.with("Content-Range", &place)
    }
}

impl Repository {
    fn blob(&self, digest: &str) -> Option<Reply> {
        let bytes = self.blobs.get(digest)?;
        Some(Reply::content("application/octet-stream", digest, bytes))
    }

    fn manifest(&self, reference: &str) -> Option<Reply> {
        let digest = self.tags.get(reference).map_or(reference, String::as_str);
        let it = self.manifests.get(digest)?;
        Some(Reply::content(it.media_type(), digest, it.bytes()))
    }

    /// The tags in order, in pages of `n` after `last`.
    fn tags(&self, name: &str, query: Option<&str>) -> Reply {
        let asked = |key: &str| {
            let mut pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(it, _)| *it == key).map(|(_, value)| value)
        };
        let n = asked("n").and_then(|n| n.parse().ok()).unwrap_or(100);
        let last = asked("last").unwrap_or_default();
        let mut tags = self.tags.keys().filter(|tag| tag.as_str() > last);
        let page: Vec<&String> = tags.by_ref().take(n).collect();
        let body = json!({ "name": name, "tags": page });
        let reply = Reply::new(200, "application/json", body.to_string());
        match (page.last(), tags.next()) {
            (Some(last), Some(_)) => {
                let next = format!("</v2/{name}/tags/list?last={last}&n={n}>; rel=\"next\"");
                reply.with("Link", &next)
            }
            _ => reply,
        }
    }

    fn referrers(&self, digest: &str) -> Option<Reply> {
        let listing = self.referrers.get(digest)?.clone();
        let reply = Reply::new(200, "application/vnd.oci.image.index.v1+json", listing);
        Some(reply.with("OCI-Filters-Applied", "artifactType"))
    }
}

pub(super) const CHALLENGE: &str = "WWW-Authenticate";
const DIGEST: &str = "Docker-Content-Digest";

/// These bytes as gzip, not made any smaller.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut blocks = bytes.chunks(usize::from(u16::MAX)).peekable();
    while let Some(block) = blocks.next() {
        let len = u16::try_from(block.len()).unwrap();
        out.push(u8::from(blocks.peek().is_none()));
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(block);
    }
    // Not by a loop of ours, which unoptimised keeps a whole machine from answering anything else.
    let mut checksum = flate2::Crc::new();
    checksum.update(bytes);
    out.extend(checksum.sum().to_le_bytes());
    out.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
    out
}
