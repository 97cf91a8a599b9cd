//! The PROXY protocol, version 2: a balancer that forwards bytes says first whose they are (the specification is
//! `proxy-protocol.txt` of HAProxy).
//!
//! ```text
//!   signature (12) │ version, command │ family, transport │ length (2) │ addresses │ TLVs …
//!   └──────────────────────── 16 bytes ───────────────────────────────┘└── length bytes ──┘
//! ```
//!
//! The header says how long it is within its first 16 bytes, so a reader need not take a byte that is not of it. Version
//! 1, a line of text whose end has to be looked for, is not read. Neither are TLVs, the checksum among them: the bytes
//! came by TCP from somebody who is believed.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::networks::unmapped_address;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// A header's beginning.
    Partial {
        /// The header is of at least so many bytes.
        wanted: usize,
    },
    /// A whole header.
    Whole {
        /// Whose connection it is.
        source: ProxySource,
        /// How many bytes it is of.
        len: usize,
    },
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxySource {
    /// That of the proxy itself, as when it asks whether we live; or of somebody whose address it cannot tell.
    Peer,
    /// That of whoever has this address.
    Client(SocketAddr),
}

/// Why bytes are no header that can be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProxyHeader {
    /// They begin with something else.
    #[error("no PROXY header")]
    Signature,
    /// They are a header of version 1.
    #[error("a PROXY header of version 1, where version 2 is wanted")]
    Text,
    /// They are a header of a version there is not.
    #[error("a PROXY header of version {0}, where version 2 is wanted")]
    Version(u8),
    /// A command there is not; a receiver must not guess.
    #[error("a PROXY header with the unknown command {0}")]
    Command(u8),
    /// The connection is said to be no TCP connection.
    #[error("a PROXY header of address family and transport {0:#04x}, which is not TCP")]
    Family(u8),
    /// There are fewer bytes than the addresses take, or more than anybody needs.
    #[error("a PROXY header of a length of {0}")]
    Length(u16),
}

impl ProxyHeader {
    /// Parses the first bytes of a connection. Bytes that can no longer become a header are refused at once.
    ///
    /// # Errors
    ///
    /// When they are no header of version 2, or are one for something else than TCP.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidProxyHeader> {
        let known = bytes.len().min(SIGNATURE.len());
        if bytes.get(..known) != SIGNATURE.get(..known) {
            return Err(if bytes.starts_with(b"PROXY ") {
                InvalidProxyHeader::Text
            } else {
                InvalidProxyHeader::Signature
            });
        }
        let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED_BYTES>() else {
            let wanted = FIXED_BYTES;
            return Ok(Self::Partial { wanted });
        };
        let [.., version_and_command, family, high, low] = *fixed;
        let len = u16::from_be_bytes([high, low]);
        let addresses = Addresses::of(version_and_command, family)?;
        if !(addresses.bytes()..=REST_BYTES_MAX).contains(&len) {
            return Err(InvalidProxyHeader::Length(len));
        }
        let len = FIXED_BYTES + usize::from(len);
        let is_whole = bytes.len() >= len;
        Ok(match addresses.source(rest).filter(|_| is_whole) {
            Some(source) => Self::Whole { source, len },
            None => Self::Partial { wanted: len },
        })
    }
}

/// What kind of addresses follow.
#[derive(Clone, Copy)]
enum Addresses {
    None,
    V4,
    V6,
}

impl Addresses {
    fn of(version_and_command: u8, family: u8) -> Result<Self, InvalidProxyHeader> {
        let (version, command) = (version_and_command >> 4, version_and_command & 0xf);
        match (version, command, family) {
            // The family of what is local is to be ignored.
            (2, 0, _) | (2, 1, 0x00) => Ok(Self::None),
            (2, 1, 0x11) => Ok(Self::V4),
            (2, 1, 0x21) => Ok(Self::V6),
            (2, 1, _) => Err(InvalidProxyHeader::Family(family)),
            (2, ..) => Err(InvalidProxyHeader::Command(command)),
            _ => Err(InvalidProxyHeader::Version(version)),
        }
    }

    /// Two addresses and two ports.
    fn bytes(self) -> u16 {
        match self {
            Self::None => 0,
            Self::V4 => 2 * (4 + 2),
            Self::V6 => 2 * (16 + 2),
        }
    }

    /// The first of the addresses with the first of the ports; `None` where the bytes end before.
    fn source(self, bytes: &[u8]) -> Option<ProxySource> {
        let address = match self {
            Self::None => return Some(ProxySource::Peer),
            Self::V4 => {
                let (address, rest) = bytes.split_first_chunk::<4>()?;
                let (_, rest) = rest.split_first_chunk::<4>()?;
                let port = u16::from_be_bytes(*rest.first_chunk()?);
                SocketAddr::from((Ipv4Addr::from(*address), port))
            }
            Self::V6 => {
                let (address, rest) = bytes.split_first_chunk::<16>()?;
                let (_, rest) = rest.split_first_chunk::<16>()?;
                let port = u16::from_be_bytes(*rest.first_chunk()?);
                SocketAddr::from((Ipv6Addr::from(*address), port))
            }
        };
        Some(ProxySource::Client(unmapped_address(address)))
    }
}

/// Chosen so that no request begins like it.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const FIXED_BYTES: usize = 16;
/// Addresses and TLVs: some hundred bytes in the field, and a few thousand where a client's certificate is among them.
const REST_BYTES_MAX: u16 = 4096;

/// Parses anything without panicking; more bytes never change what fewer have said.
pub fn fuzz_proxy_header(input: &[u8]) {
    let all = ProxyHeader::parse(input);
    for len in 0..input.len() {
        match ProxyHeader::parse(input.get(..len).unwrap_or_default()) {
            Ok(ProxyHeader::Partial { wanted }) => {
                let most = FIXED_BYTES + usize::from(REST_BYTES_MAX);
                assert!(
                    (len + 1..=most).contains(&wanted),
                    "more, but not without end"
                );
            }
            Ok(whole) => assert_eq!(Ok(whole), all, "a header stays what it is"),
            Err(_) => assert!(all.is_err(), "what is no header becomes none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// The signature, these bytes of version, command and family, a length, and that many bytes.
    fn header(version_and_command: u8, family: u8, rest: &[&[u8]]) -> Vec<u8> {
        let rest = rest.concat();
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[version_and_command, family], &len, &rest].concat()
    }

    fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[kind], &len[..], value].concat()
    }

    /// From 203.0.113.9:51442 to 192.0.2.80:443.
    const V4: &[u8] = &[203, 0, 113, 9, 192, 0, 2, 80, 0xc8, 0xf2, 0x01, 0xbb];

    /// From [2001:db8::9]:51442 to [2001:db8::80]:443.
    const V6: &[u8] = &[
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x09, //
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, //
        0xc8, 0xf2, 0x01, 0xbb,
    ];

    /// Headers of each form that is met, and whom they name.
    fn headers() -> Vec<(&'static str, Vec<u8>, Option<&'static str>)> {
        let client4 = Some("203.0.113.9:51442");
        let client6 = Some("[2001:db8::9]:51442");
        // AWS's balancers add a checksum, what they call the endpoint, and padding; HAProxy what the client said in TLS.
        let checksum = tlv(0x03, &[0xde, 0xad, 0xbe, 0xef]);
        let endpoint = tlv(0xea, b"\x01vpce-0123456789abcdef0");
        let padding = tlv(0x04, &[0; 36]);
        let name = tlv(0x02, b"cache.example");
        let tls = tlv(
            0x20,
            &[&[7, 0, 0, 0, 0][..], &tlv(0x22, b"client")].concat(),
        );
        let mapped = [&[0; 10][..], &[0xff, 0xff], &V4[..4], &V6[16..]].concat();
        vec![
            ("haproxy send-proxy-v2", header(0x21, 0x11, &[V4]), client4),
            ("the same over IPv6", header(0x21, 0x21, &[V6]), client6),
            (
                "haproxy send-proxy-v2-ssl-cn",
                header(0x21, 0x11, &[V4, &name, &tls]),
                client4,
            ),
            (
                "AWS NLB",
                header(0x21, 0x11, &[V4, &checksum, &endpoint, &padding]),
                client4,
            ),
            (
                "the same over IPv6",
                header(0x21, 0x21, &[V6, &checksum, &endpoint]),
                client6,
            ),
            (
                "no TLVs but bytes",
                header(0x21, 0x11, &[V4, &[0xff; 2]]),
                client4,
            ),
            (
                "IPv4 carried by IPv6",
                header(0x21, 0x21, &[&mapped]),
                client4,
            ),
            (
                "haproxy asks whether we live",
                header(0x20, 0x00, &[]),
                None,
            ),
            (
                "with addresses that mean nothing",
                header(0x20, 0x11, &[V4]),
                None,
            ),
            (
                "and with a family that means nothing",
                header(0x20, 0xff, &[&[9; 3]]),
                None,
            ),
            ("nobody it can name", header(0x21, 0x00, &[]), None),
            ("the same, TLV", header(0x21, 0x00, &[&checksum]), None),
            (
                "the longest",
                header(0x21, 0x11, &[V4, &[0; 4084]]),
                client4,
            ),
        ]
    }

    #[test]
    fn headers_name_the_client_or_nobody() {
        for (what, header, client) in headers() {
            let source = client.map_or(ProxySource::Peer, |it| {
                ProxySource::Client(it.parse().unwrap())
            });
            let len = header.len();
            let whole = Ok(ProxyHeader::Whole { source, len });
            assert_eq!(ProxyHeader::parse(&header), whole, "{what}");
            // What follows is not of it.
            let followed = [&header[..], b"GET /v2/ HTTP/1.1\r\n"].concat();
            assert_eq!(ProxyHeader::parse(&followed), whole, "{what}");
        }
    }

    #[test]
    fn what_is_wanted_never_exceeds_the_header() {
        for (what, header, _) in headers() {
            for len in 0..header.len() {
                let parsed = ProxyHeader::parse(&header[..len]);
                let wanted = if len < FIXED_BYTES {
                    FIXED_BYTES
                } else {
                    header.len()
                };
                assert_eq!(
                    parsed,
                    Ok(ProxyHeader::Partial { wanted }),
                    "{len} of {what}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused_as_what_it_is() {
        use InvalidProxyHeader::{Command, Family, Length, Signature, Text, Version};
        let unix = [0; 216];
        for (bytes, error) in [
            (b"GET /v2/ HTTP/1.1\r\n".to_vec(), Signature),
            (b"\x16\x03\x01\x02\x00".to_vec(), Signature),
            (b"G".to_vec(), Signature),
            (b"\r\n\r\nGET".to_vec(), Signature),
            (
                b"PROXY TCP4 203.0.113.9 192.0.2.80 51442 443\r\n".to_vec(),
                Text,
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), Text),
            (header(0x11, 0x11, &[V4]), Version(1)),
            (header(0x31, 0x11, &[V4]), Version(3)),
            (header(0x01, 0x11, &[V4]), Version(0)),
            (header(0x22, 0x11, &[V4]), Command(2)),
            (header(0x2f, 0x00, &[]), Command(15)),
            (header(0x21, 0x12, &[V4]), Family(0x12)),
            (header(0x21, 0x22, &[V6]), Family(0x22)),
            (header(0x21, 0x31, &[&unix]), Family(0x31)),
            (header(0x21, 0x10, &[V4]), Family(0x10)),
            (header(0x21, 0x01, &[V4]), Family(0x01)),
            (header(0x21, 0x41, &[V4]), Family(0x41)),
            (header(0x21, 0x11, &[]), Length(0)),
            (header(0x21, 0x11, &[&V4[..11]]), Length(11)),
            (header(0x21, 0x21, &[V4]), Length(12)),
            (header(0x21, 0x21, &[&V6[..35]]), Length(35)),
            (header(0x21, 0x11, &[V4, &[0; 4085]]), Length(4097)),
            (header(0x20, 0x00, &[&[0; 65535]]), Length(65535)),
        ] {
            assert_eq!(ProxyHeader::parse(&bytes), Err(error), "{bytes:02x?}");
            // The first 16 bytes are enough to know.
            let first = &bytes[..bytes.len().min(FIXED_BYTES)];
            assert_eq!(ProxyHeader::parse(first), Err(error), "{first:02x?}");
        }
    }

    #[test]
    fn no_bytes_panic_a_parser() {
        let headers = headers();
        let mut random = SmallRng::seed_from_u64(23);
        for _ in 0..5_000 {
            let (_, header, _) = &headers[random.random_range(0..headers.len() - 1)];
            let mut bytes = header.clone();
            for _ in 0..random.random_range(0..4) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            bytes.truncate(random.random_range(0..=bytes.len()));
            bytes.extend((0..random.random_range(0..4)).map(|_| random.random::<u8>()));
            fuzz_proxy_header(&bytes);
        }
        for len in 0..64 {
            let noise: Vec<u8> = (0..len).map(|_| random.random()).collect();
            fuzz_proxy_header(&noise);
            let fixed = [&SIGNATURE[..], &noise].concat();
            fuzz_proxy_header(&fixed);
        }
    }
}
