//! Digests: content addressed by what it is.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use foldhash::fast::RandomState;
use sha2::{Digest as _, Sha256, Sha512};

/// A digest algorithm that the OCI image spec registers ("Digest algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, which everybody uses.
    Sha256,
    /// SHA-512, which the spec also has.
    Sha512,
}

/// The digest of some bytes. It is made from them, is unique, and names them for ever.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// By SHA-256.
    Sha256([u8; 32]),
    /// By SHA-512.
    Sha512([u8; 64]),
}

/// What is known of each of many digests, looked up with every request. Its hashing has a secret of the process, so that
/// digests cannot be made beforehand to meet in it.
pub type DigestMap<V> = HashMap<Digest, V, DigestState>;

/// How digests are hashed to be looked up.
pub type DigestState = RandomState;

/// A digest in the making.
#[derive(Clone, Debug)]
pub struct Digester {
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

/// Why a text is no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// Not `algorithm:encoded`.
    #[error("a digest is an algorithm, a colon and hexadecimal digits")]
    Form,
    /// An algorithm that is not supported.
    #[error("the digest algorithm is not supported: sha256 and sha512 are")]
    Algorithm,
    /// Not the algorithm's number of lower-case hexadecimal digits.
    #[error("the digest is not the right number of lower-case hexadecimal digits")]
    Encoded,
}

impl Algorithm {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// The name that stands before the colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl Digest {
    /// Parses `algorithm:encoded` as the image spec has it: lower case, full length.
    ///
    /// # Errors
    ///
    /// When it is anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidDigest> {
        let (algorithm, encoded) = text.split_once(':').ok_or(InvalidDigest::Form)?;
        match algorithm {
            "sha256" => decode(encoded).map(Self::Sha256),
            "sha512" => decode(encoded).map(Self::Sha512),
            _ => Err(InvalidDigest::Algorithm),
        }
    }

    /// The digest of these bytes.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut digester = Digester::new(algorithm);
        digester.update(bytes);
        digester.finish()
    }

    /// The algorithm that made it.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// What stands behind the colon.
    pub fn hex(&self) -> String {
        self.encode(&mut [0; HEX_BYTES_MAX]).to_owned()
    }

    /// The whole, in quotation marks: an entity tag (RFC 9110 §8.8.3).
    pub fn quoted(&self) -> String {
        let algorithm = self.algorithm().as_str();
        let mut buffer = [0; HEX_BYTES_MAX];
        ["\"", algorithm, ":", self.encode(&mut buffer), "\""].concat()
    }

    fn encode<'a>(&self, buffer: &'a mut [u8; HEX_BYTES_MAX]) -> &'a str {
        let (pairs, _) = buffer.as_chunks_mut::<2>();
        let mut length = 0;
        for (pair, byte) in pairs.iter_mut().zip(self.bytes()) {
            *pair = [byte >> 4, byte & 15].map(|it| DIGITS[usize::from(it)]);
            length += 2;
        }
        // Digits are text.
        str::from_utf8(&buffer[..length]).unwrap_or_default()
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm().as_str())?;
        f.write_str(":")?;
        f.write_str(self.encode(&mut [0; HEX_BYTES_MAX]))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        Self::parse(text)
    }
}

impl Digester {
    /// Of no bytes yet.
    pub fn new(algorithm: Algorithm) -> Self {
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        };
        Self { state }
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of all that was taken in.
    pub fn finish(self) -> Digest {
        match self.state {
            State::Sha256(state) => Digest::Sha256(state.finalize().into()),
            State::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }
}

fn decode<const N: usize>(encoded: &str) -> Result<[u8; N], InvalidDigest> {
    let (pairs, rest) = encoded.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return Err(InvalidDigest::Encoded);
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = value(*high)? << 4 | value(*low)?;
    }
    Ok(bytes)
}

const fn value(digit: u8) -> Result<u8, InvalidDigest> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(InvalidDigest::Encoded),
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// Those of the longest digest.
const HEX_BYTES_MAX: usize = 128;

/// Parses anything without panicking, and renders what it accepts back as it was.
pub fn fuzz_digest(input: &[u8]) {
    if let Ok(text) = str::from_utf8(input)
        && let Ok(digest) = Digest::parse(text)
    {
        assert_eq!(
            digest.to_string(),
            text,
            "a digest renders as it was parsed"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests_are_found() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(Algorithm::Sha256, b"").to_string(), empty);
        let abc = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
        assert_eq!(Digest::of(Algorithm::Sha512, b"abc").to_string(), abc);
    }

    #[test]
    fn a_digest_renders_as_it_was_parsed() {
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, b"layer");
            assert_eq!(digest.to_string().parse(), Ok(digest));
            fuzz_digest(digest.to_string().as_bytes());
        }
    }

    #[test]
    fn malformed_digests_are_refused() {
        let hex = "0".repeat(64);
        let cases = [
            (String::new(), InvalidDigest::Form),
            (hex.clone(), InvalidDigest::Form),
            (format!("md5:{hex}"), InvalidDigest::Algorithm),
            (format!("SHA256:{hex}"), InvalidDigest::Algorithm),
            (format!("sha512:{hex}"), InvalidDigest::Encoded),
            (format!("sha256:{hex}0"), InvalidDigest::Encoded),
            (format!("sha256:{}", &hex[1..]), InvalidDigest::Encoded),
            (format!("sha256:A{}", &hex[1..]), InvalidDigest::Encoded),
            (format!("sha256:g{}", &hex[1..]), InvalidDigest::Encoded),
        ];
        for (text, expected) in cases {
            assert_eq!(Digest::parse(&text), Err(expected), "{text}");
        }
    }
}
