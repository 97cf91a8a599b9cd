//! What a certificate says: whose it is, and until when it is good.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Who a client is by its certificate, which the TLS library has verified: the first URI among its alternative names, else the
/// first DNS name, else the first e-mail address, else the subject's common name. `None` where it has none of them, or
/// one that is too long or has characters that would not be seen.
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
    let name = match first {
        Some(
            GeneralName::URI(name) | GeneralName::DNSName(name) | GeneralName::RFC822Name(name),
        ) => *name,
        // A directory name or an address says nothing of the kind.
        Some(_) | None => {
            let mut common = certificate.subject().iter_common_name();
            common.next()?.as_str().ok()?
        }
    };
    let is_name = !name.is_empty() && name.len() <= NAME_BYTES_MAX;
    (is_name
        && name
            .bytes()
            .all(|it| it.is_ascii_graphic() || it == b' ' || !it.is_ascii()))
    .then_some(name)
    .filter(|it| !it.contains(char::is_control))
    .map(Arc::from)
}

/// When a certificate is no longer good, in seconds since 1970.
pub(super) fn expiry(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// No name of a host, person or workload is longer; a SPIFFE ID may be of 2048 bytes, and none is.
const NAME_BYTES_MAX: usize = 512;
