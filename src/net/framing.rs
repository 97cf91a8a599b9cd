//! Where a request ends: whatever two parsers in a row may read differently is no request (RFC 9112 §11.2).

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method};

/// A request whose end is in doubt to somebody. Only a closed connection after it is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFraming {
    /// It says that it has a body, which a GET or HEAD has no use for (RFC 9110 §9.3.1): whoever does not expect one takes it
    /// for the next request.
    #[error("a GET or HEAD comes with a body")]
    Body,
    /// One of its lines ends without a carriage return, which is an end to some and part of a value to others (RFC 9112
    /// §2.2).
    #[error("a line of the request ends in a bare line feed")]
    LineFeed,
}

/// Whether a request to read something ends with its head. Others are not judged: what follows them is not read.
///
/// # Errors
///
/// When it has a length that is not zero, or any `Transfer-Encoding`, however that is written.
pub fn check_framing(method: &Method, headers: &HeaderMap) -> Result<(), InvalidFraming> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let is_empty = lengths.all(|it| it.as_bytes().iter().all(|byte| *byte == b'0'));
    if is_empty && !headers.contains_key(TRANSFER_ENCODING) {
        Ok(())
    } else {
        Err(InvalidFraming::Body)
    }
}

/// Looks for line feeds that no carriage return comes before, in bytes that come piece by piece.
#[derive(Clone, Copy, Debug, Default)]
pub struct LineEnds {
    after_return: bool,
}

impl LineEnds {
    /// Whether these bytes, which come after those that were shown before, have one.
    pub fn has_bare_feed(&mut self, bytes: &[u8]) -> bool {
        let mut before = self.after_return;
        let mut is_bare = false;
        for byte in bytes {
            is_bare |= *byte == b'\n' && !before;
            before = *byte == b'\r';
        }
        self.after_return = before;
        is_bare
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn pitfall_39_what_only_reads_ends_with_its_head() {
        for (field, value, is_right) in [
            ("x", "y", true),
            ("content-length", "0", true),
            ("content-length", "00", true),
            ("content-length", "5", false),
            ("content-length", "+0", false),
            ("content-length", "0x0", false),
            ("content-length", "0, 0", false),
            ("transfer-encoding", "chunked", false),
            ("transfer-encoding", "identity", false),
            ("transfer-encoding", "", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(field, HeaderValue::from_static(value));
            for method in [Method::GET, Method::HEAD] {
                let checked = check_framing(&method, &headers);
                assert_eq!(checked.is_ok(), is_right, "{method} {field}: {value}");
            }
            assert_eq!(check_framing(&Method::PUT, &headers), Ok(()));
        }
    }

    #[test]
    fn a_line_feed_is_bare_wherever_the_pieces_are_cut() {
        for (text, expected) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", false),
            ("a\nb", true),
            ("\n", true),
            ("\r\n\n", true),
            ("\r\r\n", false),
            ("a\rb\n", true),
        ] {
            for cut in 0..=text.len() {
                let (first, second) = text.as_bytes().split_at(cut);
                let mut ends = LineEnds::default();
                let found = [ends.has_bare_feed(first), ends.has_bare_feed(second)];
                assert_eq!(found.contains(&true), expected, "{text:?} at {cut}");
            }
        }
    }
}
