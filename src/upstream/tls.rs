//! Whose certificates we trust, and which one is ours.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};

use super::config::TlsConfig;
use super::credential::CredentialError;
use crate::files;

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
    /// A file of certificates or keys is not.
    #[error(transparent)]
    Pem(#[from] files::Error),
}

impl Tls {
    /// Reads the files that the configuration names. Blocks.
    ///
    /// # Errors
    ///
    /// When one of them is not what it should be.
    pub(super) fn load(config: &TlsConfig) -> Result<Self, FileError> {
        let provider = Arc::new(default_provider());
        let mut roots = files::roots();
        if let Some(file) = &config.ca_file {
            files::authorities(file, &mut roots)?;
        }
        let ours = config.client.as_ref();
        let ours = ours.map(|it| files::certified(&it.certificate, &it.key, &provider));
        Ok(Self {
            ours: ours.transpose()?.map(Arc::new),
            roots: Arc::new(roots),
            provider,
        })
    }

    /// Whether the same certificates are trusted, and the same one is ours. Its key is then the same, too.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let ours = |tls: &Self| tls.ours.as_ref().map(|it| it.cert.clone());
        self.roots.roots == other.roots.roots && ours(self) == ours(other)
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
