//! Documents: what registries, token servers, helpers and operators send, and what is read back from the disk.

use std::time::Duration;

use layerhold::oci::MediaType;
use layerhold::operator;
use layerhold::server::{PurgeReport, VerifyLine};
use layerhold::upstream::media_type_of;
use serde_json::Value;

use super::{Target, text};

pub(super) const MANIFEST: Target = Target {
    name: "manifest",
    run: manifest,
    seeds: &[
        br#"application/vnd.oci.image.manifest.v1+json
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":2},"layers":[]}"#,
        br#"application/vnd.oci.image.index.v1+json
{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":7,"platform":{"architecture":"amd64","os":"linux"}}]}"#,
        br#"application/json
{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json"}"#,
        br#"
{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[]}"#,
        br#"application/vnd.docker.distribution.manifest.v1+prettyjws
{"schemaVersion":1,"name":"a","tag":"b","fsLayers":[]}"#,
        b"text/html\n<html>",
    ],
    words: &[
        b"{", b"}", b"[", b"]", b"\"", b":", b",", b"\n", b"null", b"1", b"\"mediaType\"",
        b"\"schemaVersion\"", b"application/json", b"application/vnd.oci.image.index.v1+json", b"\\u0061",
        b";", b"\xff", b"1e400", b"-0",
    ],
};

fn manifest(input: &[u8]) -> bool {
    let line = input.iter().position(|byte| *byte == b'\n');
    let (announced, body) = input.split_at(line.unwrap_or(0));
    let body = body.get(1..).unwrap_or_default();
    let announced = text(announced).and_then(|it| MediaType::parse(it).ok());
    let Ok(found) = media_type_of(body, announced.as_ref()) else {
        return false;
    };
    assert!(found.is_manifest() && !found.is_schema1(), "{found}");
    // What is passed over may be of no characters.
    let body = String::from_utf8_lossy(body);
    if let Ok(document) = serde_json::from_str::<Value>(&body) {
        assert!(document.is_object(), "a manifest is an object");
        assert_ne!(document["schemaVersion"], 1, "schema 1");
        let declared = document["mediaType"].as_str();
        let declared = declared.map(|it| MediaType::parse(it).unwrap());
        assert!(declared.is_none_or(|it| it == found), "the body's own word");
    }
    let generic = |it: &MediaType| it.as_str() == "application/json";
    let announced = announced.filter(|it| !generic(it));
    assert!(announced.is_none_or(|it| it == found), "upstream's word");
    true
}

const JSON: &[&[u8]] = &[
    b"{", b"}", b"[", b"]", b"\"", b":", b",", b"null", b"true", b"1", b"-1", b"1e999", b"\\n",
    b"\\u0000", b"\\ud800", b"\xff",
];

pub(super) const TOKEN: Target = Target {
    name: "token",
    run: layerhold::upstream::fuzz_token,
    seeds: &[
        br#"{"token":"eyJhbGciOiJSUzI1NiJ9.e30.x","expires_in":300,"issued_at":"2026-11-23T00:00:00Z"}"#,
        br#"{"access_token":"b","expires_in":"299.5","scope":"","refresh_token":"r"}"#,
        br#"{"token":"","access_token":"b","expires_in":1e300}"#,
        br#"{"token":"a\nb"}"#,
        br#"["a",null,300]"#,
        br#"{"errors":[{"code":"UNAUTHORIZED"}]}"#,
        b"<html>",
    ],
    words: TOKEN_WORDS,
};

const TOKEN_WORDS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"null",
    b"-1",
    b"1e999",
    b"\"NaN\"",
    b"\"token\":",
    b"\"access_token\":",
    b"\"expires_in\":",
    b"\\n",
    b"\\u0000",
    b"\\u00fc",
    b"\"a\"",
];

pub(super) const CREDENTIAL_HELPER: Target = Target {
    name: "credential_helper",
    run: layerhold::upstream::fuzz_credential_helper,
    seeds: &[
        br#"{"ServerURL":"ghcr.io","Username":"u","Secret":"s"}"#,
        br#"{"ServerURL":"","Username":"","Secret":""}"#,
        br#"{"Username":"<token>","Secret":"identity"}"#,
        br#"{"Username":"a:b","Secret":"s"}"#,
        br#"["u","s"]"#,
        b"credentials not found in native keychain\n",
    ],
    words: &[
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"",
        b":",
        b",",
        b"null",
        b"\"Username\":",
        b"\"Secret\":",
        b"<token>",
        b"\\n",
        b"\\u0000",
        b"\"s\"",
    ],
};

pub(super) const GZIP: Target = Target {
    name: "gzip",
    run: layerhold::upstream::fuzz_gzip,
    seeds: &[
        b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x4b\x4c\x4a\x06\0\xc2\x41\x24\x35\x03\0\0\0",
        b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x4b\x4c\x4a\x06\0\xc2\x41\x24\x35\x03\0\0\0\x1f\x8b\x08\0\0\0\0\0\0\xff\x4b\x4c\x4a\x06\0\xc2\x41\x24\x35\x03\0\0\0",
        b"\x1f\x8b\x08\x08\0\0\0\0\0\xff\x78\0\x03\0\0\0\0\0\0\0\0\0",
        b"\x1f\x8b",
        b"{}",
    ],
    words: &[b"\x1f\x8b\x08", b"\0\0\0\0", b"\xff", b"\x4b\x4c\x4a\x06\0", b"\x03\0"],
};

pub(super) const LISTING: Target = Target {
    name: "listing",
    run: layerhold::proxy::fuzz_listing,
    seeds: &[
        b"n=100&ns=ghcr.io\nlast=12&n=100\n{\"name\":\"a\",\"tags\":[\"1\",\"2\"]}",
        b"ns=a%3A1\nnext_page=gAAAA%3D%3D&n=50\n{\"tags\":null}",
        b"n=99999999999999999999\nlast=a%0d%0ab&n=1\n{\"tags\":[],\"name\":7}",
        b"\nopaque\n{\"tags\":[]}",
        b"last=%ff%fe+x\nlast=%C3%BC\n{\"tags\":[]}",
        b"\n\n<html>",
    ],
    words: &[
        b"&",
        b"=",
        b"%",
        b"%0d%0a",
        b"%ff",
        b"+",
        b"ns=",
        b"n=",
        b"last=",
        b"\n",
        b"{\"tags\":[]}",
        b"\"",
        b"{",
        b"}",
        b"[",
        b"]",
        b"1e999",
        b"<",
        b">",
        b";",
    ],
};

pub(super) const PURGE_ORDER: Target = Target {
    name: "purge_order",
    run: layerhold::server::fuzz_purge_order,
    seeds: &[
        br#"{"reference": "docker.io/library/debian:12"}"#,
        br#"{"reference": ["ghcr.io/a/b", "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}"#,
        br#"{"reference": []}"#,
        br#"{"reference": "debian\n"}"#,
        br#"["docker.io/a"]"#,
        br#"{"reference": "a.io/b", "force": true}"#,
    ],
    words: &[
        b"{", b"}", b"[", b"]", b"\"", b":", b",", b"\"reference\":", b"a.io/b", b"\\n", b"\\u202e", b"@",
    ],
};

pub(super) const VERIFY_ORDER: Target = Target {
    name: "verify_order",
    run: layerhold::server::fuzz_verify_order,
    seeds: &[
        br#"{"rate": 67108864, "repair": false}"#,
        b"{}",
        br#"{"rate": null, "repair": true}"#,
        b"[]",
        b"[1, true]",
    ],
    words: JSON,
};

pub(super) const PURGE_REPORT: Target = Target {
    name: "purge_report",
    run: |input| {
        let report: Option<PurgeReport> = serde_json::from_slice(input).ok();
        for purged in report.iter().flat_map(|it| &it.purged) {
            let line = operator::told(purged);
            assert!(!line.contains(char::is_control), "one line: {line:?}");
        }
        report.is_some()
    },
    seeds: &[
        br#"{"purged":[{"reference":"docker.io/library/debian:12","kind":"tag","tags":1,"grants":0,"blobs":0,"bytes":180}]}"#,
        br#"{"purged":[]}"#,
        br#"{"purged":[{"reference":"a\u001b[31m","kind":"","tags":0,"grants":18446744073709551615,"blobs":0,"bytes":0}]}"#,
        br#"{"message":"no"}"#,
    ],
    words: JSON,
};

pub(super) const VERIFY_LINE: Target = Target {
    name: "verify_line",
    run: |input| {
        let line: Option<VerifyLine> = serde_json::from_slice(input).ok();
        let lines = match &line {
            Some(VerifyLine::Progress(progress)) => {
                let elapsed = Duration::from_millis(input.len() as u64);
                operator::told_progress(*progress, elapsed)
            }
            Some(VerifyLine::Report(report)) => operator::told_report(report),
            None => return false,
        };
        for line in lines.lines() {
            assert!(!line.contains(char::is_control), "one line: {line:?}");
        }
        true
    },
    seeds: &[
        br#"{"progress":{"done":1024,"total":4096}}"#,
        br#"{"progress":{"done":18446744073709551615,"total":0}}"#,
        br#"{"report":{"finished":true,"blobs":3,"bytes":2048,"repositories":1,"grants":3,"tags":1,"accounted_bytes":2300,"stored_bytes":2300,"wrong":1,"repaired":1,"findings":[{"kind":"damaged","what":"sha256:ab","repaired":true}]}}"#,
        br#"{"report":{"finished":false,"blobs":0,"bytes":0,"repositories":0,"grants":0,"tags":0,"accounted_bytes":0,"stored_bytes":0,"wrong":0,"repaired":0,"findings":[]}}"#,
    ],
    words: JSON,
};

pub(super) const GRANTS: Target = Target {
    name: "grants",
    run: layerhold::cache::fuzz_grants,
    seeds: &[
        b"blob sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 2\nmanifest sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 application/vnd.oci.image.manifest.v1+json\n",
        b"blob sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nblob sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 3\n",
        b"blob sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 2\nblob sha2",
        b"\0\0\0\0\n",
    ],
    words: RECORD_WORDS,
};

const RECORD_WORDS: &[&[u8]] = &[
    b"blob ",
    b"manifest ",
    b"\n",
    b" ",
    b"\r",
    b"+5",
    b"sha256:",
    b"18446744073709551615",
    b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"application/vnd.oci.image.index.v1+json",
    b"\0",
    b"\xff",
];

pub(super) const TAG_RECORD: Target = Target {
    name: "tag_record",
    run: layerhold::cache::fuzz_tag_record,
    seeds: &[
        b"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 application/vnd.oci.image.manifest.v1+json 1234 1763800000\n",
        b"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 application/vnd.oci.image.manifest.v1+json 0 0\n",
        b"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 a/b 18446744073709551615 18446744073709551615\n",
        b"sha256:00 a/b 1 2\n",
    ],
    words: RECORD_WORDS,
};
