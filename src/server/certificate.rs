//! What a certificate says: whose it is, and until when it is good.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Who a client is by its certificate, which the TLS library has verified: the first URI among its alternative names, else the
/// first DNS name, else the first e-mail address, else the subject's common name. `None` where it has none of them, or
/// one that is too long, has characters that would not be seen, or reads as a name of another kind: authorities that let anybody
/// have any common name are not rare, and that is no way to a URI or an address.
pub(super) fn name(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let alternative = certificate.subject_alternative_name().ok()?;
    let names = alternative.map_or(&[][..], |it| &it.value.general_names);
    let uri = |name: &_| matches!(name, GeneralName::URI(_));
    let dns = |name: &_| matches!(name, GeneralName::DNSName(_));
    let mail = |name: &_| matches!(name, GeneralName::RFC822Name(_));
    let first = names.iter().find(|it| uri(it));
    let first = first.or_else(|| names.iter().find(|it| dns(it)));
    let first = first.or_else(|| names.iter().find(|it| mail(it)));
    let (name, kind) = match first {
        Some(GeneralName::URI(name)) => (*name, Kind::Uri),
        Some(GeneralName::RFC822Name(name)) => (*name, Kind::Mail),
        Some(GeneralName::DNSName(name)) => (*name, Kind::Plain),
        // A directory name or an address says nothing of the kind.
        Some(_) | None => {
            let mut common = certificate.subject().iter_common_name();
            (common.next()?.as_str().ok()?, Kind::Plain)
        }
    };
    (is_name(name) && Kind::of(name) == kind).then(|| Arc::from(name))
}

/// What kind of name it is; one reads as of no other kind than it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Has its scheme before a colon (RFC 3986 §3), which no other kind has.
    Uri,
    /// Has an at sign (RFC 5321 §2.3.11).
    Mail,
    /// Of a host, or in words.
    Plain,
}

impl Kind {
    fn of(name: &str) -> Self {
        if name.contains(':') {
            Self::Uri
        } else if name.contains('@') {
            Self::Mail
        } else {
            Self::Plain
        }
    }
}

fn is_name(name: &str) -> bool {
    let is_seen = |it: u8| it.is_ascii_graphic() || it == b' ' || !it.is_ascii();
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(is_seen)
        && !name.contains(char::is_control)
}

/// When a certificate is no longer good, in seconds since 1970.
pub(super) fn expiry(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// No name of a host, person or workload is longer; a SPIFFE ID may be of 2048 bytes, and none is.
const NAME_BYTES_MAX: usize = 512;
