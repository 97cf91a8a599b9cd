//! Certificates, signatures and base64, all by `openssl`.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::wait::{bounded, run};

/// An authority that no machine trusts by itself.
pub(crate) struct Authority {
    dir: PathBuf,
    /// Its own certificate (PEM).
    pub(crate) certificate: PathBuf,
    key: PathBuf,
}

/// Somebody's certificate and key (PEM).
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    /// A new one, in `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        let Identity { certificate, key } = self_signed(dir, "authority", EC);
        Self {
            dir: dir.to_owned(),
            certificate,
            key,
        }
    }

    /// A certificate for whoever is at 127.0.0.1, as a server or as a client.
    pub(crate) fn issue(&self, name: &str) -> Identity {
        self.issue_at(name, Ipv4Addr::LOCALHOST.into())
    }

    /// A certificate for whoever is at this address.
    pub(crate) fn issue_at(&self, name: &str, address: IpAddr) -> Identity {
        let file = |extension| self.dir.join(name).with_extension(extension);
        let (request, certificate, key) = (file("csr"), file("pem"), file("key"));
        let mut req = bounded("openssl");
        req.args(["req", "-new", "-nodes", "-newkey"]).args(EC);
        req.args(["-subj", &format!("/CN={name}")]);
        req.args(["-addext", &format!("subjectAltName=IP:{address}")]);
        req.args(["-addext", "extendedKeyUsage=serverAuth,clientAuth"]);
        run(req.arg("-keyout").arg(&key).arg("-out").arg(&request));
        let mut x509 = bounded("openssl");
        x509.args(["x509", "-req", "-days", DAYS, "-copy_extensions", "copy"]);
        x509.arg("-CA").arg(&self.certificate);
        x509.arg("-CAkey").arg(&self.key).arg("-CAcreateserial");
        run(x509.arg("-in").arg(&request).arg("-out").arg(&certificate));
        Identity { certificate, key }
    }
}

/// A certificate that vouches for itself, and whose RSA key signs.
pub(crate) fn signer(dir: &Path, name: &str) -> Identity {
    self_signed(dir, name, RSA)
}

/// The RSA signature of some bytes (PKCS #1 v1.5 with SHA-256, which JWT calls RS256).
pub(crate) fn sign(bytes: &[u8], by: &Identity) -> Vec<u8> {
    let key = by.key.to_str().unwrap();
    openssl(&["dgst", "-sha256", "-sign", key, "-binary"], bytes)
}

/// Bytes in base64, in one line.
pub(crate) fn base64(bytes: &[u8]) -> String {
    String::from_utf8(openssl(&["base64", "-A"], bytes)).unwrap()
}

fn self_signed(dir: &Path, name: &str, algorithm: &[&str]) -> Identity {
    let file = |extension| dir.join(name).with_extension(extension);
    let (certificate, key) = (file("pem"), file("key"));
    let mut req = bounded("openssl");
    req.args(["req", "-x509", "-nodes", "-days", DAYS, "-newkey"]);
    req.args(algorithm).args(["-subj", &format!("/CN={name}")]);
    run(req.arg("-keyout").arg(&key).arg("-out").arg(&certificate));
    Identity { certificate, key }
}

fn openssl(args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = bounded("openssl");
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // All that goes through here fits in a pipe; the handle is dropped and thereby closed.
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", output.status);
    output.stdout
}

const EC: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
const RSA: &[&str] = &["rsa:2048"];

/// No test runs that long.
const DAYS: &str = "2";
