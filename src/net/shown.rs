//! Foreign text in a log line.

use std::fmt::Write;

/// A path as a log line shows it: what is not a visible ASCII character is escaped as a URI would have it (RFC 3986 §2.1), so
/// that a path can neither begin a line nor speak to a terminal, and all beyond `most` bytes of it is left out.
pub fn shown_path(path: &str, most: usize) -> String {
    let bytes = path.as_bytes();
    let bytes = bytes.get(..most).unwrap_or(bytes);
    // As nearly all are.
    if bytes
        .iter()
        .fold(true, |all, it| all & it.is_ascii_graphic())
        && let Ok(text) = str::from_utf8(bytes)
    {
        return text.to_owned();
    }
    let mut shown = String::new();
    for &byte in bytes {
        if byte.is_ascii_graphic() {
            shown.push(char::from(byte));
        } else {
            // Writing to memory does not fail.
            let _ = write!(shown, "%{byte:02X}");
        }
    }
    shown
}

/// Whether a character shows as itself wherever a log is read: no control character, line separator, or mark that turns the
/// direction of what follows.
pub(super) fn is_plain(character: char) -> bool {
    // Beyond ASCII, the standard library escapes what cannot be seen, and marks that sit on other characters.
    character.is_ascii_graphic()
        || character == ' '
        || (!character.is_ascii() && character.escape_debug().count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pitfall_39_a_path_is_visible_ascii_and_bounded() {
        for (path, shown) in [
            ("/v2/a/manifests/1", "/v2/a/manifests/1"),
            ("/v2/%0a\"\\", "/v2/%0a\"\\"),
            ("/\n\r\u{1b}[31m\u{7f}\0 ", "/%0A%0D%1B[31m%7F%00%20"),
            // A terminal's control sequence in one character, and one that turns the line around.
            ("/\u{9b}31m\u{202e}x", "/%C2%9B31m%E2%80%AEx"),
        ] {
            assert_eq!(shown_path(path, 600), shown);
        }
        assert_eq!(shown_path("/aaaa\u{fc}", 6), "/aaaa%C3");
    }

    #[test]
    fn what_cannot_be_seen_is_not_plain() {
        for plain in ['a', ' ', '"', '\\', '\u{fc}', '\u{4e2d}', '\u{2026}'] {
            assert!(is_plain(plain), "{plain:?}");
        }
        for other in [
            '\n',
            '\r',
            '\t',
            '\0',
            '\u{1b}',
            '\u{7f}',
            '\u{85}',
            '\u{9b}',
            '\u{200b}',
            '\u{200e}',
            '\u{2028}',
            '\u{2029}',
            '\u{202e}',
            '\u{2066}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            assert!(!is_plain(other), "{other:?}");
        }
    }
}
