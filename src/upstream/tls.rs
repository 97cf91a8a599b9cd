//! Whose certificates we trust, and which one is ours.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use tracing::debug;

use super::config::{ClientCertificate, TlsConfig};
use super::credential::CredentialError;

/// How TLS is spoken with one upstream, and with whomever it or the operator names besides it.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    roots: Arc<RootCertStore>,
    ours: Option<Arc<CertifiedKey>>,
    provider: Arc<CryptoProvider>,
}

/// A file that an upstream's configuration names and that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A password's file is not what it should be.
    #[error(transparent)]
    Password(#[from] CredentialError),
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

impl Tls {
    /// Reads the files that the configuration names. Blocks.
    ///
    /// # Errors
    ///
    /// When one of them is not what it should be.
    pub(super) fn load(config: &TlsConfig) -> Result<Self, FileError> {
        let provider = Arc::new(default_provider());
        let ours = config.client.as_ref().map(|it| certified(it, &provider));
        Ok(Self {
            ours: ours.transpose()?.map(Arc::new),
            roots: Arc::new(roots(config.ca_file.as_deref())?),
            provider,
        })
    }

    /// For the upstream itself, which is shown our certificate when it asks for one.
    ///
    /// # Errors
    ///
    /// When the TLS library refuses its own defaults.
    pub(super) fn for_own(&self) -> Result<ClientConfig, rustls::Error> {
        let mut client = self.for_others()?;
        if let Some(ours) = &self.ours {
            let shown = SingleCertAndKey::from(Arc::clone(ours));
            client.client_auth_cert_resolver = Arc::new(shown);
        }
        Ok(client)
    }

    /// For everybody else: we have no certificate.
    ///
    /// # Errors
    ///
    /// When the TLS library refuses its own defaults.
    pub(super) fn for_others(&self) -> Result<ClientConfig, rustls::Error> {
        Ok(
            ClientConfig::builder_with_provider(Arc::clone(&self.provider))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(Arc::clone(&self.roots))
                .with_no_client_auth(),
        )
    }
}

/// Opens a file and reads no more of it than may be in one.
fn read(file: &Path) -> Result<Vec<u8>, FileError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
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
    read().map_err(|source| FileError::Unreadable {
        file: file.to_owned(),
        source,
    })
}

/// A distribution's whole bundle of roots is some 200 KiB.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The machine's own roots, or the ones that came with the program where the machine has none; and those of a file.
fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        debug!(error = %error, "part of the machine's certificate roots could not be read");
    }
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(file) = ca_file {
        for certificate in certificates(file)? {
            let added = roots.add(certificate);
            added.map_err(|source| FileError::Certificate {
                file: file.to_owned(),
                source,
            })?;
        }
    }
    Ok(roots)
}

fn certified(
    ours: &ClientCertificate,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, FileError> {
    let chain = certificates(&ours.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&ours.key)?).map_err(|error| {
        if matches!(error, pem::Error::NoItemsFound) {
            let file = ours.key.clone();
            return FileError::NoKey { file };
        }
        malformed(&ours.key)
    })?;
    CertifiedKey::from_der(chain, key, provider).map_err(|source| FileError::Mismatch {
        certificate: ours.certificate.clone(),
        key: ours.key.clone(),
        source,
    })
}

/// The certificates in a file, of which there is at least one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let bytes = read(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|_| malformed(file))?;
    if certificates.is_empty() {
        let file = file.to_owned();
        return Err(FileError::NoCertificate { file });
    }
    Ok(certificates)
}

/// What the parser says about it may quote the file, which may be a key.
fn malformed(file: &Path) -> FileError {
    FileError::Malformed {
        file: file.to_owned(),
    }
}
