//! A certificate that signs itself, for those who are to speak TLS.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};

/// What is in `tls.crt` and `tls.key` of a directory.
pub(crate) struct Certificate {
    pub(crate) pem: String,
    dir: PathBuf,
}

impl Certificate {
    /// What it is for.
    pub(crate) const NAME: &str = "cache.example";

    pub(crate) fn write(dir: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![Self::NAME.to_owned()]).unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        fs::write(dir.join("tls.crt"), &pem).unwrap();
        fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
        Self {
            pem,
            dir: dir.to_owned(),
        }
    }

    /// The table `[tls]` of a configuration, with further keys.
    pub(crate) fn keys(&self, more: &str) -> String {
        let dir = self.dir.display();
        format!("\n[tls]\ncertificate = \"{dir}/tls.crt\"\nkey = \"{dir}/tls.key\"\n{more}\n")
    }
}
