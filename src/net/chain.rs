//! An error and its causes in one line.

use std::error::Error;
use std::fmt::{self, Write};

use super::shown::is_plain;

/// Shows an error and, link by link, what caused it: `could not reach a.example: connection refused`.
#[derive(Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut link = Some(self.0);
        let mut former = String::new();
        for n in 0..LINKS_MAX {
            let Some(error) = link else { break };
            let text = error.to_string();
            // A transparent link says what its cause says.
            if text != former {
                if n > 0 {
                    f.write_str(": ")?;
                }
                for character in text.chars().take(LINK_CHARACTERS_MAX) {
                    write_plain(f, character)?;
                }
            }
            former = text;
            link = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a character is in a line that others read: itself, a space, or an escape of it.
fn write_plain(f: &mut fmt::Formatter<'_>, character: char) -> fmt::Result {
    if is_plain(character) {
        f.write_char(character)
    } else if character.is_control() {
        f.write_char(' ')
    } else {
        write!(f, "{}", character.escape_unicode())
    }
}

const LINKS_MAX: usize = 16;
/// How much of a link is said. Others may have a part in its text: whom a redirect names, what a parser did not expect.
const LINK_CHARACTERS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("upper\nlink")]
    struct Upper(#[source] io::Error);

    #[test]
    fn every_link_is_said_once_and_in_one_line() {
        let error = Upper(io::Error::other("lower link"));
        assert_eq!(Chain(&error).to_string(), "upper link: lower link");
    }

    #[test]
    fn a_link_is_plain_and_bounded_whoever_wrote_it() {
        let said = |text: &str| Chain(&io::Error::other(text.to_owned())).to_string();
        assert_eq!(said("a\r\n\u{1b}[31m\u{9b}b"), "a   [31m b");
        assert_eq!(said("a\u{202e}b\u{2028}"), "a\\u{202e}b\\u{2028}");
        assert_eq!(said("\u{fc}\u{2026}"), "\u{fc}\u{2026}");
        assert_eq!(said(&"x".repeat(100_000)).len(), LINK_CHARACTERS_MAX);
    }
}
