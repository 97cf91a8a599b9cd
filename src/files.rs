//! The files that a configuration names: read whole and within bounds, and told from what they were.
//!
//! **What is absent:** nothing here knows what a certificate or a password is for.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tracing::debug;
use zeroize::Zeroizing;

/// By what a file is told from what it was: time of change, length and place on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    seconds: i64,
    nanoseconds: i64,
    len: u64,
    device: u64,
    inode: u64,
}

/// A file that a configuration names and that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("could not read {}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A section of it does not begin, end or decode as PEM (RFC 7468) does.
    #[error("{} is not well-formed PEM", file.display())]
    Malformed {
        /// Which.
        file: PathBuf,
    },
    /// There is no certificate in it.
    #[error("there is no certificate in {}", file.display())]
    NoCertificate {
        /// Which.
        file: PathBuf,
    },
    /// There is no private key in it.
    #[error("there is no private key in {}", file.display())]
    NoKey {
        /// Which.
        file: PathBuf,
    },
    /// A certificate in it cannot vouch for others.
    #[error("a certificate in {} cannot be used", file.display())]
    Certificate {
        /// Which.
        file: PathBuf,
        /// What the TLS library said.
        #[source]
        source: rustls::Error,
    },
    /// A certificate of ours is not that of the key, or either cannot be used.
    #[error("{} is no key for {}", key.display(), certificate.display())]
    Mismatch {
        /// Where the certificate is.
        certificate: PathBuf,
        /// Where the key is.
        key: PathBuf,
        /// What the TLS library said.
        #[source]
        source: rustls::Error,
    },
}

impl Mark {
    /// That of the file that is there now, if there is one. Blocks.
    pub fn at(path: &Path) -> Option<Self> {
        fs::metadata(path).map(|it| Self::of(&it)).ok()
    }

    /// That of a file.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
            len: metadata.len(),
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// Opens a file and reads no more of it than may be in one. Blocks.
///
/// # Errors
///
/// When it cannot be read, is no regular file, or is larger than any of its kind.
pub fn read(file: &Path) -> Result<Vec<u8>, Error> {
    let read = || -> io::Result<Vec<u8>> {
        // As large as it is at once: what grows leaves copies behind, of keys too.
        let size = usize::try_from(fs::metadata(file)?.len().min(FILE_BYTES_MAX));
        let mut bytes = Vec::with_capacity(size.unwrap_or(0) + 1);
        // Opening a pipe waits for whoever is to write into it.
        if !fs::metadata(file)?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        File::open(file)?
            .take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes)
    };
    read().map_err(|source| Error::Unreadable {
        file: file.to_owned(),
        source,
    })
}

/// A distribution's whole bundle of roots is some 200 KiB.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The machine's own roots, or the ones that came with the program where the machine has none. Blocks.
pub fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        debug!(error = %error, "part of the machine's certificate roots could not be read");
    }
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

/// A certificate, those that vouch for it, and its key. Blocks.
///
/// # Errors
///
/// When one of the files is not what it should be, or the key is not that of the certificate.
pub fn certified(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Error> {
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_slice(&Zeroizing::new(read(key)?)).map_err(|error| {
        if matches!(error, pem::Error::NoItemsFound) {
            let file = key.to_owned();
            return Error::NoKey { file };
        }
        malformed(key)
    })?;
    CertifiedKey::from_der(chain, private, provider).map_err(|source| Error::Mismatch {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    })
}

/// Adds the certificates in a file to those that vouch for others. Blocks.
///
/// # Errors
///
/// When the file is not what it should be, or one of them cannot vouch for others.
pub fn authorities(file: &Path, roots: &mut RootCertStore) -> Result<(), Error> {
    for certificate in certificates(file)? {
        let added = roots.add(certificate);
        added.map_err(|source| Error::Certificate {
            file: file.to_owned(),
            source,
        })?;
    }
    Ok(())
}

/// The certificates in a file, of which there is at least one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = read(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|_| malformed(file))?;
    if certificates.is_empty() {
        let file = file.to_owned();
        return Err(Error::NoCertificate { file });
    }
    Ok(certificates)
}

/// What the parser says about it may quote the file, which may be a key.
fn malformed(file: &Path) -> Error {
    Error::Malformed {
        file: file.to_owned(),
    }
}
