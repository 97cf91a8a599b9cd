//! TLS for clients that cost next to nothing: rustls shakes hands, and what comes after it is taken record by record, without
//! being opened unless somebody looks at it.
//!
//! A record says its length in the clear, and how much longer it is than what is in it is known (TLS 1.3, no padding). So a
//! client that only counts opens the first record of each answer, which has the head, and skips the others. A client that
//! opened all would be half of the machine's work.

use std::net::TcpStream;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::crypto::cipher::{Iv, Nonce as RecordNonce};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ConnectionTrafficSecrets, RootCertStore};

/// How clients come to speak TLS: 1.3 with AES-128-GCM.
pub(crate) struct Sealing {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// TLS on one connection.
pub(crate) struct Sealed {
    ours: Secrets,
    theirs: Secrets,
    /// The record that is coming: its header, as far as it is here, and all of it where it will be opened.
    record: Vec<u8>,
    /// Whether it will be.
    opens: bool,
    /// Bytes of it that are still to come; `None` before its header is whole.
    left: Option<usize>,
}

/// A record of the application's bytes.
pub(crate) enum Record<'a> {
    /// These.
    Open(&'a [u8]),
    /// So many.
    Skipped(u64),
}

/// One direction.
struct Secrets {
    key: LessSafeKey,
    iv: Iv,
    number: u64,
}

impl Sealing {
    /// With a server that shows this certificate under this name.
    pub(crate) fn with(certificate: &str, name: &'static str) -> Self {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        roots.add(certificate).unwrap();
        let mut provider = default_provider();
        provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.enable_secret_extraction = true;
        Self {
            config: Arc::new(config),
            name: ServerName::try_from(name).unwrap(),
        }
    }

    /// Shakes hands.
    pub(crate) fn shake(&self, stream: &mut TcpStream) -> Sealed {
        let mut session =
            ClientConnection::new(Arc::clone(&self.config), self.name.clone()).unwrap();
        while session.is_handshaking() {
            session.complete_io(stream).unwrap();
        }
        // Tickets come after the client's last word, so that nothing was read of what comes now.
        let secrets = session.dangerous_extract_secrets().unwrap();
        Sealed {
            ours: Secrets::of(secrets.tx),
            theirs: Secrets::of(secrets.rx),
            record: Vec::new(),
            opens: false,
            left: None,
        }
    }
}

impl Sealed {
    /// A record with these bytes.
    pub(crate) fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut sealed = [bytes, &[APPLICATION_DATA]].concat();
        let len = u16::try_from(sealed.len() + TAG_BYTES)
            .unwrap()
            .to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, len[0], len[1]];
        let nonce = self.ours.nonce();
        let key = &self.ours.key;
        key.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed)
            .unwrap();
        [&header, &*sealed].concat()
    }

    /// Takes from what came in until the end of a record, which is opened if so it is wanted at its beginning. `None` when
    /// that end is still to come, or it was a record that is not the application's.
    pub(crate) fn next(&mut self, bytes: &mut &[u8], opens: bool) -> Option<Record<'_>> {
        let left = match self.left {
            Some(left) => left,
            None => {
                if self.record.len() >= HEADER_BYTES {
                    self.record.clear();
                }
                let missing = HEADER_BYTES - self.record.len();
                self.record.extend_from_slice(cut(bytes, missing));
                let header = self.record.first_chunk::<HEADER_BYTES>()?;
                assert_eq!(header[0], APPLICATION_DATA, "an alert, or no TLS at all");
                self.opens = opens;
                usize::from(u16::from_be_bytes([header[3], header[4]]))
            }
        };
        let taken = cut(bytes, left);
        if self.opens {
            self.record.extend_from_slice(taken);
        }
        self.left = Some(left - taken.len()).filter(|it| *it > 0);
        if self.left.is_some() {
            return None;
        }
        let header = *self.record.first_chunk::<HEADER_BYTES>()?;
        let nonce = self.theirs.nonce();
        if !self.opens {
            let len = u16::from_be_bytes([header[3], header[4]]);
            return Some(Record::Skipped(u64::from(len) - 1 - TAG_BYTES as u64));
        }
        let sealed = &mut self.record[HEADER_BYTES..];
        let key = &self.theirs.key;
        let opened = key.open_in_place(nonce, Aad::from(header), sealed).unwrap();
        match opened.split_last().unwrap() {
            (&APPLICATION_DATA, bytes) => Some(Record::Open(bytes)),
            (&HANDSHAKE, _) => None,
            (other, _) => unreachable!("a record of type {other}"),
        }
    }
}

impl Secrets {
    fn of((number, secrets): (u64, ConnectionTrafficSecrets)) -> Self {
        let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
            unreachable!("nothing else was offered");
        };
        let key = UnboundKey::new(&AES_128_GCM, key.as_ref()).unwrap();
        Self {
            key: LessSafeKey::new(key),
            iv,
            number,
        }
    }

    /// Of the next record.
    fn nonce(&mut self) -> Nonce {
        let nonce = RecordNonce::new(&self.iv, self.number);
        self.number += 1;
        Nonce::assume_unique_for_key(nonce.0)
    }
}

/// Takes up to so many bytes.
fn cut<'a>(bytes: &mut &'a [u8], max: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(bytes.len().min(max));
    *bytes = rest;
    taken
}

/// RFC 8446 §5: what a record has before and behind its bytes, and the types of two.
const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
