//! The words of the distribution spec, by the spec's own patterns.

use layerhold::oci::{
    Algorithm, Digest, Endpoint, EndpointPath, FullReference, MediaType, Namespace, RepositoryName,
    RepositoryPattern, Tag, fuzz_full_reference, fuzz_pattern,
};

use regex::Regex;

use super::{Pattern, Target, text, whole};

/// image-spec, "Digests", and its registered algorithms.
const DIGEST_PATTERN: &str = "sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}";
/// distribution-spec, "Pulling manifests".
const NAME_PATTERN: &str =
    r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*";
const TAG_PATTERN: &str = r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}";

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

pub(super) const DIGEST: Target = Target {
    name: "digest",
    run: digest,
    seeds: &[
        b"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        b"sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        b"sha512:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        b"sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
        b"tarsum.v1+sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b",
        b"md5:d41d8cd98f00b204e9800998ecf8427e",
        b"sha256:",
    ],
    words: &[b"sha256", b"sha512", b":", b"0", b"f", b"g", b"F", b"sha384:", b"\xc3\xa9"],
};

fn digest(input: &[u8]) -> bool {
    static PATTERN: Pattern = Pattern::new(|| whole(DIGEST_PATTERN));
    let Some(text) = text(input) else {
        return false;
    };
    let parsed = Digest::parse(text);
    assert_eq!(parsed.is_ok(), PATTERN.is_match(text), "the spec's pattern");
    let Ok(digest) = parsed else {
        return false;
    };
    assert_eq!(digest.to_string(), text);
    let is_same = |it: &Algorithm| it.as_str() == digest.algorithm().as_str();
    assert!(Algorithm::ALL.iter().any(is_same));
    assert!(text.ends_with(&digest.hex()));
    true
}

pub(super) const NAME: Target = Target {
    name: "name",
    run: name,
    seeds: &[
        b"library/debian",
        b"a",
        b"org/team/app__x/y--z.w_v",
        b"my-org/my.app_1",
        b"0/1/2",
        b"a___b",
        b"a..b",
        b"a/../b",
        b"a//b",
        b"a%2fb",
        b"Library/debian",
        b"_catalog",
        b"abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abc",
    ],
    words: NAME_WORDS,
};

const NAME_WORDS: &[&[u8]] = &[
    b"/",
    b".",
    b"_",
    b"__",
    b"-",
    b"a",
    b"0",
    b"A",
    b"..",
    b"%2f",
    b":",
    b"@",
    b"blobs",
    b"manifests",
    b"library",
    b"\0",
    b"\xc3\xa9",
];

fn name(input: &[u8]) -> bool {
    static PATTERN: Pattern = Pattern::new(|| whole(NAME_PATTERN));
    let Some(text) = text(input) else {
        return false;
    };
    let parsed = RepositoryName::parse(text);
    let expected = text.len() <= 255 && PATTERN.is_match(text);
    assert_eq!(parsed.is_ok(), expected, "the spec's pattern");
    let Ok(name) = parsed else {
        return false;
    };
    assert_eq!(name.as_str(), text);
    let library = name.clone().in_library();
    assert!(library == name || library.as_str().strip_prefix("library/") == Some(text));
    true
}

pub(super) const TAG: Target = Target {
    name: "tag",
    run: tag,
    seeds: &[
        b"latest",
        b"_",
        b"1.27.3-alpine3.20_perl",
        b"v1.2.3-rc.1",
        b"sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855.sig",
        b".hidden",
        b"-x",
        b"a:b",
    ],
    words: &[
        b".",
        b"-",
        b"_",
        b"a",
        b"Z",
        b"0",
        b"/",
        b":",
        b"%41",
        b" ",
        b"\xc3\xa9",
    ],
};

fn tag(input: &[u8]) -> bool {
    static PATTERN: Pattern = Pattern::new(|| whole(TAG_PATTERN));
    let Some(text) = text(input) else {
        return false;
    };
    let parsed = Tag::parse(text);
    assert_eq!(parsed.is_ok(), PATTERN.is_match(text), "the spec's pattern");
    parsed.is_ok_and(|tag| tag.as_str() == text)
}

pub(super) const NAMESPACE: Target = Target {
    name: "namespace",
    run: namespace,
    seeds: &[
        b"docker.io",
        b"GHCR.io.",
        b"localhost",
        b"localhost:5000",
        b"registry:443",
        b"127.0.0.1:5000",
        b"us-central1-docker.pkg.dev",
        b"123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        b"169.254.169.254",
        b"http://ghcr.io",
        b"user@ghcr.io",
        b"ghcr.io/",
        b"[::1]:5000",
        b"..",
        b"a.b:065",
        b"xn--bcher-kva.example",
    ],
    words: &[
        b".",
        b":",
        b"-",
        b"a",
        b"A",
        b"0",
        b"65535",
        b"65536",
        b"/",
        b"@",
        b"..",
        b"localhost",
        b"_",
        b"%2f",
        b"\xc3\xa9",
    ],
};

fn namespace(input: &[u8]) -> bool {
    const LABEL: &str = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";
    static PATTERN: Pattern = Pattern::new(|| {
        let host = format!(r"{LABEL}(\.{LABEL})*");
        whole(&format!(r"(?:{host})(?::[1-9][0-9]{{0,4}})?"))
    });
    let Some(namespace) = text(input).and_then(|it| Namespace::parse(it).ok()) else {
        return false;
    };
    let text = namespace.as_str();
    assert!(PATTERN.is_match(text), "a host, and perhaps a port: {text}");
    assert_eq!(Namespace::parse(text).as_ref(), Ok(&namespace));
    let authority: http::uri::Authority = text.parse().unwrap();
    let (host, port) = text.split_once(':').unwrap_or((text, ""));
    assert_eq!(authority.host(), host, "what others take for the host");
    assert_eq!(authority.port_u16(), port.parse().ok(), "and for the port");
    // Else the first segment of any name would be one.
    assert!(text.contains(['.', ':']) || text == "localhost");
    assert!(
        text.len() <= 255 && text != "." && text != "..",
        "a folder's name"
    );
    true
}

pub(super) const PATTERN: Target = Target {
    name: "pattern",
    run: pattern,
    seeds: &[
        b"library/debian",
        b"library/*",
        b"team/**",
        b"**/debuglibrary/a/debug",
        b"*a*b**xaxb/c",
        b"a***",
        b"Team/*",
        b"a?",
    ],
    words: &[
        b"/", b"*", b"**", b"-", b".", b"_", b"a", b"library", b"[", b":",
    ],
};

fn pattern(input: &[u8]) -> bool {
    static ALLOWED: Pattern = Pattern::new(|| whole(r"[a-z0-9._*-]+(/[a-z0-9._*-]+)*"));
    fuzz_pattern(input);
    let Some(text) = text(input) else {
        return false;
    };
    let parsed = RepositoryPattern::parse(text);
    let expected = text.len() <= 512 && ALLOWED.is_match(text) && !text.contains("***");
    assert_eq!(parsed.is_ok(), expected, "{text:?}");
    if let Ok(pattern) = &parsed {
        assert_eq!(pattern.as_str(), text);
    }
    parsed.is_ok()
}

pub(super) const FULL_REFERENCE: Target = Target {
    name: "full_reference",
    run: full_reference,
    seeds: &[
        b"docker.io/library/debian:12",
        b"docker.io/library/debian",
        b"localhost:5000/a/b/c:V1",
        b"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        b"ghcr.io/a/b@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        b"ghcr.io/a/b:1@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        b"debian:12",
        b"https://docker.io/a",
    ],
    words: &[
        b"/",
        b":",
        b"@",
        b"sha256:",
        HEX.as_bytes(),
        b"ghcr.io",
        b"a",
        b"12",
        b"..",
        b"localhost",
    ],
};

fn full_reference(input: &[u8]) -> bool {
    fuzz_full_reference(input);
    let Some(reference) = text(input).and_then(|it| FullReference::parse(it).ok()) else {
        return false;
    };
    let shown = reference.to_string();
    assert!(shown.is_ascii() && !shown.contains([' ', '"', '\\', '%']));
    true
}

pub(super) const ENDPOINT: Target = Target {
    name: "endpoint",
    run: endpoint,
    seeds: &[
        b"/v2/",
        b"/v2",
        b"/v2/library/debian/manifests/latest",
        b"/v2/a/b/c/manifests/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        b"/v2/blobs/manifests/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        b"/v2/ghcr.io/org/app/tags/list",
        b"/v2/a/referrers/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        b"/v2/a/blobs/uploads/",
        b"/v2/a/blobs/uploads/5d2c8ab0-7d4b-4b43-8b1c-8e1d1d5c3a7f",
        b"/v2/_catalog",
        b"/v2/../../etc/passwd",
        b"/v2/a%2f..%2fb/manifests/latest",
        b"/v2//manifests//",
        b"/v2/uploads/blobs/uploads/manifests/uploads",
    ],
    words: &[
        b"/", b"/v2/", b"manifests", b"blobs", b"tags", b"list", b"referrers", b"uploads", b"a",
        b"latest", b"sha256:", HEX.as_bytes(), b"..", b"%2f", b"localhost:5000", b"?", b"\0",
    ],
};

/// The spec's table of endpoints, as far as they pull.
pub(super) fn endpoint_pattern() -> Regex {
    whole(&format!(
        "/v2/?|/v2/(?P<name>{NAME_PATTERN})/(?:manifests/(?:{TAG_PATTERN}|{DIGEST_PATTERN})|\
         (?:blobs|referrers)/(?:{DIGEST_PATTERN})|tags/list)"
    ))
}

fn endpoint(input: &[u8]) -> bool {
    static PATTERN: Pattern = Pattern::new(endpoint_pattern);
    let Some(text) = text(input) else {
        return false;
    };
    let found = PATTERN.captures(text);
    let expected = found.is_some_and(|it| it.name("name").is_none_or(|it| it.len() <= 255));
    let path = EndpointPath::split(text);
    let parsed = path.and_then(|it| it.endpoint());
    assert_eq!(parsed.is_ok(), expected, "the spec's endpoints");
    let inner = path
        .ok()
        .and_then(|it| it.without_first_segment().endpoint().ok());
    for endpoint in parsed.iter().chain(&inner) {
        let again = EndpointPath::split(&endpoint.path()).and_then(|it| it.endpoint());
        assert_eq!(again.as_ref(), Ok(endpoint));
        assert!(endpoint.path().parse::<http::uri::PathAndQuery>().is_ok());
        let prefix = RepositoryName::parse("mirror/hub").unwrap();
        let under = endpoint.under(&prefix).map(|it| it.path());
        let is_long = endpoint.name().is_some_and(|it| it.as_str().len() > 244);
        assert!(under.is_some() != is_long, "under a prefix unless too long");
    }
    match parsed {
        Ok(Endpoint::Ping) => true,
        Ok(endpoint) => endpoint.path() == text || panic!("{} was {text}", endpoint.path()),
        Err(_) => inner.is_some(),
    }
}

pub(super) const MEDIA_TYPE: Target = Target {
    name: "media_type",
    run: media_type,
    seeds: &[
        b"application/vnd.oci.image.index.v1+json",
        b"application/vnd.docker.distribution.manifest.v2+json; charset=utf-8",
        b" Application/JSON ;x=\"a;b\"",
        b"application/vnd.docker.distribution.manifest.v1+prettyjws",
        b"text/html",
        b"*/*",
        b"a/b/c",
    ],
    words: &[
        b"/",
        b";",
        b"+json",
        b" ",
        b"\"",
        b"a",
        b"A",
        b"*",
        b"application",
        b"\r\n",
    ],
};

fn media_type(input: &[u8]) -> bool {
    static PATTERN: Pattern =
        Pattern::new(|| whole(r"[a-z0-9!#$%&'*+.^_`|~-]+/[a-z0-9!#$%&'*+.^_`|~-]+"));
    let Some(media_type) = text(input).and_then(|it| MediaType::parse(it).ok()) else {
        return false;
    };
    let text = media_type.as_str();
    assert!(PATTERN.is_match(text), "two tokens in lower case: {text}");
    assert!(text.len() <= 255);
    assert_eq!(MediaType::parse(text).as_ref(), Ok(&media_type));
    assert!(!(media_type.is_manifest() && media_type.is_schema1()));
    true
}

pub(super) const LAYOUT: Target = Target {
    name: "layout",
    run: layerhold::cache::fuzz_layout,
    seeds: &[
        b"docker.io/library/debian",
        b"localhost:5000/a/b/c",
        b"docker.io/a/_tags",
        b"docker.io/a/_granted",
        b"docker.io/../x",
        b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        b"ab",
        b"lost+found",
    ],
    words: &[
        b"/",
        b"_tags",
        b"_granted",
        b"..",
        b".",
        b"a",
        b"docker.io",
        b"\xff",
        b"\0",
    ],
};
