//! An error and its causes in one line.

use std::error::Error;
use std::fmt::{self, Write};

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
                for character in text.chars() {
                    f.write_char(if character.is_control() {
                        ' '
                    } else {
                        character
                    })?;
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

const LINKS_MAX: usize = 16;

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
}
