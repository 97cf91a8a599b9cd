//! How TLS is spoken with clients.

use crate::server::{ClientCertificates, TlsConfig};

use super::error::Error;
use super::file;
use super::given::{Given, Sources};

/// What of a table is read: `[tls]`, or `[admin_tls]`, which has no `http2`.
pub(super) fn read(
    sources: &Sources<'_>,
    name: &str,
    table: Option<file::Tls>,
) -> Result<Option<TlsConfig>, Error> {
    let Some(table) = table else { return Ok(None) };
    let key = |key: &str| format!("{name}.{key}");
    let required = |name: &str, value| {
        let place = sources.key(&key(name), value);
        place.required(sources.at(&key(name)), FILE)
    };
    let certificate = required("certificate", table.certificate)?;
    let private = required("key", table.key)?;
    let ca_file = sources.key(&key("client_ca_file"), table.client_ca_file);
    let wanted = sources.key(&key("client_certificates"), table.client_certificates);
    let clients = match (ca_file.given(), wanted.given()) {
        (None, None) => ClientCertificates::None,
        (Some(file), Some(wanted)) => clients(&wanted, &file)?,
        // Who lists authorities means that they decide something.
        (Some(_), None) => {
            return Err(Error::Missing {
                at: sources.at(&key("client_certificates")),
                wanted: "`required` or `optional`, since client_ca_file is given",
            });
        }
        (None, Some(wanted)) if wanted.str(WANTED)? == "none" => ClientCertificates::None,
        (None, Some(wanted)) => {
            if !matches!(wanted.str(WANTED)?, "optional" | "required") {
                return Err(wanted.wrong(WANTED));
            }
            return Err(Error::Missing {
                at: sources.at(&key("client_ca_file")),
                wanted: "a file of those who vouch for clients, since client_certificates is given",
            });
        }
    };
    let http2 = sources.key(&key("http2"), table.http2).given();
    Ok(Some(TlsConfig {
        certificate: certificate.str(FILE)?.into(),
        key: private.str(FILE)?.into(),
        clients,
        http2: http2.map_or(Ok(false), |given| given.bool())?,
    }))
}

fn clients(wanted: &Given, file: &Given) -> Result<ClientCertificates, Error> {
    let path = file.str(FILE)?.into();
    match wanted.str(WANTED)? {
        "optional" => Ok(ClientCertificates::Optional(path)),
        "required" => Ok(ClientCertificates::Required(path)),
        // It would be read by nobody, and clients let in that nobody vouches for.
        _ => Err(wanted.wrong("`required` or `optional`, since client_ca_file is given")),
    }
}

const FILE: &str = "a file such as `/etc/layerhold/tls.crt`";
const WANTED: &str = "`none`, `optional` or `required`";

#[cfg(test)]
mod tests {
    use crate::config::load::tests::{load, refusal};

    #[test]
    fn tables_are_read_as_they_are_meant() {
        for (text, expected) in [
            ("", ""),
            (
                "[tls]\ncertificate = '/c'\nkey = '/k'",
                "[tls]\ncertificate = \"/c\"\nkey = \"/k\"\nclient_certificates = \"none\"\nhttp2 = false\n",
            ),
            (
                "[tls]\ncertificate = '/c'\nkey = '/k'\nclient_ca_file = '/a'\nclient_certificates = 'optional'\nhttp2 = true",
                "client_certificates = \"optional\"\nclient_ca_file = \"/a\"\nhttp2 = true\n",
            ),
            (
                "[admin_tls]\ncertificate = '/c'\nkey = '/k'\nclient_ca_file = '/a'\nclient_certificates = 'required'",
                "[admin_tls]\ncertificate = \"/c\"\nkey = \"/k\"\nclient_certificates = \"required\"\nclient_ca_file = \"/a\"\n",
            ),
        ] {
            let report = load(text).unwrap().report();
            assert!(report.contains(expected), "{text}: {report}");
            assert_eq!(report.contains("tls]"), !text.is_empty());
            assert_eq!(load(&report).unwrap().report(), report);
        }
    }

    #[test]
    fn half_a_table_is_refused_with_what_is_missing() {
        for (text, message) in [
            ("", "tls.certificate: missing: give a file such as"),
            (
                "certificate = '/c'",
                "tls.key: missing: give a file such as",
            ),
            (
                "key = '/k'",
                "tls.certificate: missing: give a file such as",
            ),
            (
                "certificate = ''\nkey = '/k'",
                "tls.certificate: \"\": not a file such as",
            ),
            (
                "certificate = '/c'\nkey = '/k'\nclient_ca_file = '/a'",
                "tls.client_certificates: missing: give `required` or `optional`",
            ),
            (
                "certificate = '/c'\nkey = '/k'\nclient_ca_file = '/a'\nclient_certificates = 'none'",
                "tls.client_certificates: \"none\": not `required` or `optional`",
            ),
            (
                "certificate = '/c'\nkey = '/k'\nclient_certificates = 'required'",
                "tls.client_ca_file: missing: give a file of those",
            ),
            (
                "certificate = '/c'\nkey = '/k'\nclient_certificates = 'yes'",
                "tls.client_certificates: \"yes\": not `none`, `optional` or",
            ),
            (
                "certificate = '/c'\nkey = '/k'\nhttp2 = 'on'",
                "tls.http2: \"on\": not true or false",
            ),
        ] {
            let refusal = refusal(&format!("[tls]\n{text}"));
            let start = format!("layerhold.toml: {message}");
            assert!(refusal.starts_with(&start), "{refusal}");
        }
        let refusal = refusal("[admin_tls]\nhttp2 = true");
        assert!(refusal.contains("unknown key `http2`"), "{refusal}");
    }
}
