//! The bytes that came back, as answers; strictly.

use serde_json::Value;

use crate::exchange::Expected;

/// What came back on one connection.
#[derive(Debug)]
pub(crate) struct Answers(pub(crate) Vec<Answer>);

#[derive(Debug)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// Reads all of it, to the last byte, as the answers that are expected and no more. What is cut may end anywhere.
pub(crate) fn answers(
    bytes: &[u8],
    expected: &[Expected],
    is_cut: bool,
) -> Result<Answers, String> {
    let mut answers = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let Some(expected) = expected.get(answers.len()) else {
            return Err(format!("more than was asked for: {}", shown(rest)));
        };
        match answer(rest, expected.is_head) {
            Ok((answer, after)) => {
                answers.push(answer);
                rest = after;
            }
            Err(wrong) if is_cut && wrong == SHORT => break,
            Err(wrong) => return Err(format!("{wrong}: {}", shown(rest))),
        }
    }
    Ok(Answers(answers))
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(it, _)| it == name);
        found.next().map(|(_, value)| value.as_str())
    }

    /// Whether it is one of those that are expected, and one of ours in all of its parts.
    pub(crate) fn is_sane(&self, expected: &Expected) -> Result<(), String> {
        let known = if expected.statuses.is_empty() {
            STATUSES
        } else {
            expected.statuses
        };
        if !known.contains(&self.status) {
            return Err(format!("{} is none of {known:?}", self.status));
        }
        if let Some((name, _)) = self
            .headers
            .iter()
            .find(|(it, _)| !HEADERS.contains(&it.as_str()))
        {
            return Err(format!("header {name}"));
        }
        let mut names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        names.sort();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("a header twice".to_owned());
        }
        // Only what could not be read has an answer that is not ours.
        let is_ours = self.header("x-request-id").is_some();
        if !is_ours && (!self.body.is_empty() || !matches!(self.status, 400 | 408 | 414 | 431)) {
            return Err("not an answer of ours".to_owned());
        }
        let has_body = is_ours && !expected.is_head && self.status >= 400 && self.status != 416;
        if has_body && !is_error_body(&self.body) {
            return Err("no error body".to_owned());
        }
        Ok(())
    }
}

/// One answer, and what comes behind it.
fn answer(bytes: &[u8], is_head: bool) -> Result<(Answer, &[u8]), &'static str> {
    let end = bytes.windows(4).position(|it| it == b"\r\n\r\n");
    let end = end.ok_or(SHORT)?;
    let head = str::from_utf8(&bytes[..end]).map_err(|_| "a head that is no text")?;
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| first.strip_prefix("HTTP/1.0 "));
    let status = status.and_then(|it| it.get(..3)?.parse().ok());
    let status: u16 = status.ok_or("no status line")?;
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or("no header line")?;
        let is_name = |it: u8| it.is_ascii_alphanumeric() || it == b'-';
        let is_value = |it: u8| it.is_ascii_graphic() || it == b' ';
        if !name.bytes().all(is_name) || !value.bytes().all(is_value) {
            return Err("a header line that was not meant");
        }
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut answer = Answer {
        status,
        headers,
        body: Vec::new(),
    };
    let rest = &bytes[end + 4..];
    if is_head || matches!(status, 204 | 304) {
        return Ok((answer, rest));
    }
    if answer.header("transfer-encoding") == Some("chunked") {
        let (body, rest) = chunks(rest)?;
        answer.body = body;
        return Ok((answer, rest));
    }
    let length = answer
        .header("content-length")
        .and_then(|it| it.parse().ok());
    let length: usize = length.ok_or("no length")?;
    let (body, rest) = rest.split_at_checked(length).ok_or(SHORT)?;
    answer.body = body.to_owned();
    Ok((answer, rest))
}

/// A body of unknown length, and what comes behind it.
fn chunks(mut rest: &[u8]) -> Result<(Vec<u8>, &[u8]), &'static str> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|it| it == b"\r\n").ok_or(SHORT)?;
        let size = str::from_utf8(&rest[..end]).ok();
        let size = size.and_then(|it| usize::from_str_radix(it, 16).ok());
        let size = size.ok_or("no size of a chunk")?;
        let (chunk, after) = rest[end + 2..].split_at_checked(size).ok_or(SHORT)?;
        body.extend_from_slice(chunk);
        let end = after.split_at_checked(2).ok_or(SHORT)?;
        if end.0 != b"\r\n" {
            return Err("no end of a chunk");
        }
        rest = end.1;
        if size == 0 {
            return Ok((body, rest));
        }
    }
}

fn is_error_body(body: &[u8]) -> bool {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let errors = body["errors"].as_array().filter(|it| it.len() == 1);
    errors.is_some_and(|it| it[0]["message"].as_str().is_some_and(|it| it.is_ascii()))
}

fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(500)].escape_ascii().to_string()
}

const SHORT: &str = "an answer that ends early";

/// What an answer to anything may be.
const STATUSES: &[u16] = &[
    200, 206, 304, 400, 401, 403, 404, 405, 408, 414, 416, 431, 502, 503, 504,
];

const HEADERS: &[&str] = &[
    "accept-ranges",
    "allow",
    "cache-control",
    "cache-status",
    "connection",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "docker-content-digest",
    "docker-distribution-api-version",
    "etag",
    "link",
    "oci-filters-applied",
    "oci-namespace",
    "retry-after",
    "transfer-encoding",
    "www-authenticate",
    "x-request-id",
];
