//! What is sent: each shape is one thing that is wrong, or odd, and what must come of it.

use std::fmt::Write;

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use crate::exchange::{Delivery, Exchange, Expected};
use crate::harness::APP;
use crate::log::FORGED;
use crate::{Target, choices};

/// Exchanges, as they follow from a seed.
pub(crate) struct Shapes {
    random: SmallRng,
    blob: String,
}

/// One odd request.
struct Odd {
    shape: &'static str,
    bytes: Vec<u8>,
    is_head: bool,
    statuses: &'static [u16],
    then: Then,
}

/// What the connection does behind it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It is as good as before.
    GoesOn,
    /// Nothing more is answered on it.
    Ends,
    /// The request is not whole, so nothing can be behind it.
    Hangs,
}

use Then::{Ends, GoesOn, Hangs};

impl Shapes {
    pub(crate) fn new(seed: u64, target: &Target) -> Self {
        Self {
            random: choices(seed),
            blob: target.blob.clone(),
        }
    }

    /// The next exchange: an odd request between good ones.
    pub(crate) fn next(&mut self) -> Exchange {
        let odd = match self.random.random_range(0..13) {
            0 | 1 => self.framing(),
            2 => self.head(),
            3 => self.line_feed(),
            4 => self.host(),
            5 => self.target(),
            6 => self.method(),
            7 | 8 => self.path(),
            9 => self.namespace(),
            10 => self.size(),
            11 => self.fields(),
            _ => self.ranges(),
        };
        let odd = match self.random.random_range(0..25) {
            0 if odd.bytes.len() < 8192 => self.unfinished(&odd),
            _ => odd,
        };
        self.between_good_ones(odd)
    }

    /// A good request, changed anywhere, and another one behind it.
    pub(crate) fn changed(&mut self) -> Exchange {
        let blob = self.blob.clone();
        let good = [
            format!("/v2/{APP}/manifests/v1?ns=one.example"),
            format!("/v2/one.example/{APP}/manifests/v1"),
            format!("/v2/{APP}/blobs/{blob}"),
            format!("/v2/{APP}/tags/list?n=2&last=a%00b"),
            format!("/v2/{APP}/referrers/{blob}?artifactType=a%2Fb"),
            "/v2/".to_owned(),
            format!("/token?service=cache&scope=repository:{APP}:pull&account=ann"),
        ];
        let target = self.one_of(&good);
        let fields = self.one_of(&HARMLESS.map(str::to_owned));
        let shown = ["Bearer smuggled".to_owned(), format!("Basic {PASSWORD}")];
        let shown = self.one_of(&shown);
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: cache\r\n{fields}\r\nX-Smuggled: 1\r\nAuthorization: {shown}\r\n\r\n"
        );
        let mut bytes = request.into_bytes();
        for _ in 0..self.random.random_range(1..5) {
            self.change(&mut bytes);
        }
        bytes.extend_from_slice(
            b"\r\n\r\nGET /v2/ HTTP/1.1\r\nHost: cache\r\nConnection: close\r\n\r\n",
        );
        let any = Expected {
            is_head: false,
            statuses: &[],
        };
        Exchange {
            shape: "changed at random",
            bytes,
            delivery: Delivery::AtOnce,
            expected: vec![any; 40],
            may_be_silent: true,
        }
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.random.random_range(0..bytes.len());
        let to = bytes.len().min(at + self.random.random_range(1..20));
        match self.random.random_range(0..5) {
            0 => bytes[at] = self.random.random(),
            1 => bytes[at] ^= 1 << self.random.random_range(0..8),
            2 if bytes.len() > 40 => drop(bytes.drain(at..to)),
            3 => {
                let again = bytes[at..to].to_owned();
                bytes.splice(at..at, again);
            }
            _ => {
                let word = self.one_of(&WORDS.map(str::to_owned));
                bytes.splice(at..at, word.into_bytes());
            }
        }
    }

    fn between_good_ones(&mut self, odd: Odd) -> Exchange {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        // What is read together with a bare line feed is not trusted either.
        let has_bare_feed = odd.bytes.iter().enumerate().any(|(at, byte)| {
            *byte == b'\n' && at.checked_sub(1).is_none_or(|it| odd.bytes[it] != b'\r')
        });
        let before = match self.random.random_range(0..20) {
            _ if has_bare_feed => 0,
            0 => self.random.random_range(2..40),
            1..8 => 1,
            _ => 0,
        };
        for _ in 0..before {
            let is_head = self.random.random();
            let method = if is_head { "HEAD" } else { "GET" };
            let ping = format!("{method} /v2/ HTTP/1.1\r\nHost: cache\r\n\r\n");
            bytes.extend_from_slice(ping.as_bytes());
            let statuses = &[200];
            expected.push(Expected { is_head, statuses });
        }
        let is_long = odd.bytes.len() > 60_000;
        bytes.extend(odd.bytes);
        expected.push(Expected {
            is_head: odd.is_head,
            statuses: odd.statuses,
        });
        if odd.then != Hangs {
            bytes.extend_from_slice(
                b"GET /v2/ HTTP/1.1\r\nHost: cache\r\nConnection: close\r\n\r\n",
            );
        }
        if odd.then == GoesOn {
            expected.push(Expected {
                is_head: false,
                statuses: &[200],
            });
        }
        let delivery = match self.random.random_range(0..20) {
            0..4 if !is_long => Delivery::Pieces(bytes.len().div_ceil(200)),
            4..8 => Delivery::Pieces(self.random.random_range(64..4096).max(bytes.len() / 200)),
            8 => Delivery::HalfClosed,
            9 => Delivery::Gone,
            _ => Delivery::AtOnce,
        };
        Exchange {
            shape: odd.shape,
            bytes,
            delivery,
            expected,
            may_be_silent: odd.then == Hangs
                || delivery == Delivery::HalfClosed
                || odd.shape == NO_HTTP,
        }
    }

    /// Where it ends is said twice, wrongly, or at all.
    fn framing(&mut self) -> Odd {
        let field = self.one_of(&LENGTHS.map(str::to_owned));
        let field = self.in_any_case(&field);
        let method = self
            .one_of(&["GET", "HEAD", "GET", "PUT", "POST", "PATCH", "DELETE"].map(str::to_owned));
        let target = self.harmless_target();
        let body = self.one_of(
            &[
                "0\r\n\r\n",
                "5\r\nhello\r\n0\r\n\r\n",
                "5;a=\"\r\nhello\r\n0\r\nHost: y\r\n\r\n",
                "ffffffffffffffffff\r\nhello",
                "-1\r\nhello\r\n0\r\n\r\n",
                "0x5\r\nhello\r\n0\r\n\r\n",
                "hello",
                "",
            ]
            .map(str::to_owned),
        );
        let bytes = format!("{method} {target} HTTP/1.1\r\nHost: cache\r\n{field}\r\n\r\n{body}");
        let is_pull = method == "GET" || method == "HEAD";
        Odd {
            shape: "framing",
            bytes: bytes.into_bytes(),
            is_head: method == "HEAD",
            statuses: if is_pull {
                &[400, 431]
            } else {
                &[400, 405, 431]
            },
            then: Ends,
        }
    }

    /// What is not HTTP/1.
    fn head(&mut self) -> Odd {
        let mut bytes = HEADS.choose(&mut self.random).unwrap().to_vec();
        if self.random.random_ratio(1, 10) {
            bytes = (0..self.random.random_range(1..400))
                .map(|_| self.random.random_range(0x80..=0xff))
                .collect();
            bytes.extend_from_slice(b" / HTTP/1.1\r\n\r\n");
        }
        Odd {
            shape: NO_HTTP,
            bytes,
            is_head: false,
            statuses: &[400],
            then: Ends,
        }
    }

    /// One of its lines ends in a bare line feed.
    fn line_feed(&mut self) -> Odd {
        let is_head = self.random.random();
        let method = if is_head { "HEAD" } else { "GET" };
        let (target, field) = (self.harmless_target(), self.harmless_field());
        let lines = [
            format!("{method} {target} HTTP/1.1"),
            "Host: cache".to_owned(),
            field,
            String::new(),
        ];
        let bare = self.random.random_range(0..lines.len());
        let mut text = String::new();
        for (n, line) in lines.iter().enumerate() {
            let end = if n == bare { "\n" } else { "\r\n" };
            text += &format!("{line}{end}");
        }
        Odd {
            shape: "bare line feed",
            bytes: text.into_bytes(),
            is_head,
            statuses: &[400],
            then: Ends,
        }
    }

    /// Nobody can say for which host it is.
    fn host(&mut self) -> Odd {
        let hosts = self.one_of(&HOSTS.map(str::to_owned));
        let target = self.harmless_target();
        let field = self.harmless_field();
        Odd {
            shape: "host",
            bytes: format!("GET {target} HTTP/1.1\r\n{hosts}{field}\r\n\r\n").into_bytes(),
            is_head: false,
            statuses: &[400],
            then: Ends,
        }
    }

    /// A target of another form.
    fn target(&mut self) -> Odd {
        let (target, statuses, then): (&str, &[u16], Then) =
            *TARGETS.choose(&mut self.random).unwrap();
        Odd {
            shape: "target",
            bytes: format!("GET {target} HTTP/1.1\r\nHost: cache\r\n\r\n").into_bytes(),
            is_head: false,
            statuses,
            then,
        }
    }

    /// Nothing that pulls.
    fn method(&mut self) -> Odd {
        let long = "M".repeat(self.random.random_range(20..20_000));
        let methods = [
            "CONNECT",
            "OPTIONS",
            "TRACE",
            "get",
            "Get",
            "GETT",
            "M-SEARCH",
            "PRI",
            "!#$%&'*+-.^_`|~",
            &long,
        ];
        let method = self.one_of(&methods.map(str::to_owned));
        let target = match method.as_str() {
            "CONNECT" => "evil.example:443".to_owned(),
            "OPTIONS" => "*".to_owned(),
            _ => self.harmless_target(),
        };
        Odd {
            shape: "method",
            bytes: format!("{method} {target} HTTP/1.1\r\nHost: cache\r\n\r\n").into_bytes(),
            is_head: false,
            statuses: &[405],
            then: Ends,
        }
    }

    /// A name, tag or digest that is none.
    fn path(&mut self) -> Odd {
        let bad_name = self.one_of(&NAMES.map(str::to_owned));
        let bad_name = match self.random.random_range(0..4) {
            0 => format!(
                "{}/{bad_name}",
                "a".repeat(self.random.random_range(1..300))
            ),
            1 => format!("{bad_name}/b"),
            _ => bad_name,
        };
        let digest = self.blob.clone();
        let rest = match self.random.random_range(0..3) {
            0 => "manifests/v1".to_owned(),
            1 => format!("blobs/{digest}"),
            _ => "tags/list".to_owned(),
        };
        let bad_rest = self.one_of(&ENDS.map(str::to_owned));
        let path = if self.random.random() {
            format!("/v2/{bad_name}/{rest}")
        } else {
            format!("/v2/{APP}/{bad_rest}")
        };
        self.refused_pull("path", &path)
    }

    /// An upstream that is none.
    fn namespace(&mut self) -> Odd {
        let mut namespace = self.one_of(&NAMESPACES.map(str::to_owned));
        if self.random.random_ratio(1, 10) {
            namespace = "n".repeat(self.random.random_range(256..50_000));
        }
        let target = self.harmless_path();
        self.refused_pull("namespace", &format!("{target}?a=b&ns={namespace}"))
    }

    fn refused_pull(&mut self, shape: &'static str, target: &str) -> Odd {
        let is_head = self.random.random();
        let method = if is_head { "HEAD" } else { "GET" };
        let field = self.harmless_field();
        let request = format!("{method} {target} HTTP/1.1\r\nHost: cache\r\n{field}\r\n\r\n");
        Odd {
            shape,
            bytes: request.into_bytes(),
            is_head,
            statuses: &[400, 404],
            then: GoesOn,
        }
    }

    /// Too much of something.
    fn size(&mut self) -> Odd {
        let long = "x".repeat(self.random.random_range(66_000..200_000));
        let many = self.random.random_range(101..2000);
        let mut fields = String::new();
        for n in 0..many {
            write!(fields, "X-{n}: y\r\n").unwrap();
        }
        let few: String = fields.split_inclusive('\n').take(99).collect();
        let (text, statuses, then): (String, &[u16], Then) = match self.random.random_range(0..5) {
            0 => (
                format!("GET /v2/{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
                &[414, 431],
                Ends,
            ),
            1 => (
                format!("GET /v2/?{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
                &[414, 431],
                Ends,
            ),
            2 => (
                format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n"),
                &[431],
                Ends,
            ),
            3 => (
                format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{fields}\r\n"),
                &[431],
                Ends,
            ),
            _ => (
                format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{few}\r\n"),
                &[200],
                GoesOn,
            ),
        };
        Odd {
            shape: "size",
            bytes: text.into_bytes(),
            is_head: false,
            statuses,
            then,
        }
    }

    /// Fields that mean nothing here, or mean to come back in the answer or the log.
    fn fields(&mut self) -> Odd {
        let fields: Vec<String> = (0..self.random.random_range(1..8))
            .map(|_| self.harmless_field())
            .collect();
        let target = match self.random.random() {
            true => "/v2/".to_owned(),
            false => self.harmless_target(),
        };
        let fields = fields.join("\r\n");
        Odd {
            shape: "fields",
            bytes: format!("GET {target} HTTP/1.1\r\nHost: cache\r\n{fields}\r\n\r\n").into_bytes(),
            is_head: false,
            statuses: &[200, 206, 304, 416],
            then: GoesOn,
        }
    }

    /// Parts of what is here.
    fn ranges(&mut self) -> Odd {
        let mut ranges = Vec::new();
        for _ in 0..self.random.random_range(0..2000) {
            let numbers = [
                "0",
                "1",
                "17",
                "4095",
                "4096",
                "99999999999999999999999",
                "-1",
                "x",
                "",
            ];
            let [first, last] = [0, 1].map(|_| *numbers.choose(&mut self.random).unwrap());
            ranges.push(format!("{first}-{last}"));
            if self.random.random_ratio(1, 3) {
                break;
            }
        }
        let unit =
            self.one_of(&["bytes", "bytes", "bytes", "BYTES", "items", ""].map(str::to_owned));
        let (ranges, digest) = (ranges.join(","), &self.blob);
        Odd {
            shape: "ranges",
            bytes: format!(
                "GET /v2/{APP}/blobs/{digest} HTTP/1.1\r\nHost: cache\r\nRange: {unit}={ranges}\r\n\r\n"
            )
            .into_bytes(),
            is_head: false,
            statuses: &[200, 206, 400, 416],
            then: GoesOn,
        }
    }

    /// The first part of another one.
    fn unfinished(&mut self, odd: &Odd) -> Odd {
        let head = odd.bytes.windows(4).position(|it| it == b"\r\n\r\n");
        let whole = head.map_or(odd.bytes.len(), |end| end + 3);
        let cut = self.random.random_range(1..=whole);
        Odd {
            shape: "unfinished",
            bytes: odd.bytes[..cut].to_owned(),
            is_head: false,
            statuses: &[400, 405, 408, 414, 431],
            then: Hangs,
        }
    }

    fn harmless_path(&mut self) -> String {
        let blob = self.blob.clone();
        self.one_of(&[
            format!("/v2/{APP}/manifests/v1"),
            format!("/v2/{APP}/blobs/{blob}"),
        ])
    }

    /// What is in the cache.
    fn harmless_target(&mut self) -> String {
        let path = self.harmless_path();
        let query = [
            "",
            "?ns=one.example",
            "?ns=ONE.example.",
            "?x=%0d%0aX-Injected:%20y",
            "?ns=one.example&%00",
        ];
        path + query.choose(&mut self.random).unwrap()
    }

    fn harmless_field(&mut self) -> String {
        self.one_of(&HARMLESS.map(str::to_owned))
    }

    fn in_any_case(&mut self, text: &str) -> String {
        let mut of = |it: char| match self.random.random() {
            true => it.to_ascii_uppercase(),
            false => it.to_ascii_lowercase(),
        };
        text.chars().map(&mut of).collect()
    }

    fn one_of(&mut self, texts: &[String]) -> String {
        let text = texts.choose(&mut self.random).unwrap();
        // A line of a log, if somebody took it for one.
        text.replace(
            "FORGED",
            &format!("{{\"level\":\"ERROR\",\"message\":\"{FORGED}\"}}"),
        )
    }
}

/// `ann:hunter2`
pub(crate) const PASSWORD: &str = "YW5uOmh1bnRlcjI=";

const NO_HTTP: &str = "no HTTP";

const LENGTHS: [&str; 28] = [
    "Content-Length: 5",
    "Content-Length: 64",
    "Content-Length:5",
    "Content-Length:\t5 ",
    "Content-Length: 005",
    "Content-Length: +5",
    "Content-Length: -5",
    "Content-Length: 0x5",
    "Content-Length: 5, 5",
    "Content-Length: 5 5",
    "Content-Length: five",
    "Content-Length: 18446744073709551615",
    "Content-Length: 99999999999999999999999",
    "Content-Length: 5\r\nContent-Length: 5",
    "Content-Length: 5\r\nContent-Length: 6",
    "Content-Length: 0\r\nContent-Length: 5",
    "Content-Length: 5\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 5",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding:\tchunked\t",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nExpect: 100-continue",
    "Transfer-Encoding : chunked",
    "X: y\r\n Transfer-Encoding: chunked",
];

const HEADS: &[&[u8]] = &[
    b"GET /v2/\r\n\r\n",
    b"GET /v2/ HTTP/0.9\r\nHost: x\r\n\r\n",
    b"GET /v2/ HTTP/1.2\r\nHost: x\r\n\r\n",
    b"GET /v2/ HTTP/2.0\r\nHost: x\r\n\r\n",
    b"GET /v2/ HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET /v2/ http/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/ HTTP/1.1x\r\nHost: x\r\n\r\n",
    b"GET  /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET\t/v2/\tHTTP/1.1\r\nHost: x\r\n\r\n",
    b" GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/a b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/\x7f HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/<script> HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"G(T /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"G\xc3\x89T /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: y\r\n\tfolded\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX Y: z\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX\0: y\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX\xc3\xbc: y\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: y\0z\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: y\rz\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\nUser-Agent: \x1b[31mforged\r\n\r\n",
    b"GET /v2/ HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n",
    b"\0\0\0\0\r\n\r\n",
    b"SSH-2.0-x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
];

const HOSTS: [&str; 19] = [
    "",
    "Host: a\r\nHost: a\r\n",
    "Host: a\r\nHost: b\r\n",
    "Host: a\r\nhost:\r\n",
    "Host: a b\r\n",
    "Host: a, b\r\n",
    "Host: user@a\r\n",
    "Host: user:pass@a:80\r\n",
    "Host: http://a\r\n",
    "Host: a/v2\r\n",
    "Host: a?b\r\n",
    "Host: a#b\r\n",
    "Host: a:65536\r\n",
    "Host: a:x\r\n",
    "Host: a:80:80\r\n",
    "Host: :80\r\n",
    "Host: [::1\r\n",
    "Host: [a]\r\n",
    "Host: \u{fc}.example\r\n",
];

const TARGETS: &[(&str, &[u16], Then)] = &[
    ("http://user@cache/v2/", &[400], Ends),
    ("http://cache@evil.example/v2/", &[400], Ends),
    ("http://cache:99999/v2/", &[400], Ends),
    ("ftp://cache/v2/", &[400], Ends),
    ("gopher://cache:70/v2/", &[400], Ends),
    ("user@cache:80", &[400], Ends),
    ("http://evil.example/v2/", &[200], GoesOn),
    ("https://169.254.169.254/v2/", &[200], GoesOn),
    ("http://evil.example/latest/meta-data/", &[404], GoesOn),
    ("http://evil.example", &[404], GoesOn),
    (
        "http://evil.example/v2/a/manifests/v1?ns=evil.example",
        &[404],
        GoesOn,
    ),
    ("evil.example:443", &[404], GoesOn),
    ("*", &[404], GoesOn),
    ("/", &[404], GoesOn),
    ("//evil.example/v2/", &[404], GoesOn),
    ("/v2/_catalog", &[404], GoesOn),
    ("/v2/%2e%2e/metrics", &[404], GoesOn),
    ("/metrics", &[404], GoesOn),
    ("/purge", &[404], GoesOn),
    ("/v1/_ping", &[404], GoesOn),
];

const NAMES: [&str; 34] = [
    "..",
    ".",
    "a/../b",
    "a/./b",
    "%2e%2e",
    "%2e%2e%2f%2e%2e",
    "..%2f..%2fetc",
    "a%2fb",
    "a%2Fb",
    "a%5cb",
    "a\\..\\b",
    "a%00b",
    "a%0d%0aX-Injected:%20y",
    "a%250d%250a",
    "%252e%252e%252f",
    "%c0%ae%c0%ae%c0%af",
    "%e0%80%ae",
    "%uff0e",
    "%",
    "%zz",
    "A",
    "a//b",
    "-a",
    "a-",
    "a..b",
    "a___b",
    "a@b",
    "a;b",
    "~root",
    "\u{fc}",
    "a\u{202e}b\u{2028}",
    "\u{9b}31mforged",
    "FORGED",
    "a\u{ff0f}b",
];

const ENDS: [&str; 22] = [
    "manifests/..",
    "manifests/%76%31",
    "manifests/v1%00",
    "manifests/v1%0d%0aX-Injected:%20y",
    "manifests/.v1",
    "manifests/-v1",
    "manifests/",
    "manifests/a:b",
    "manifests/md5:d41d8cd98f00b204e9800998ecf8427e",
    "manifests/sha256:00",
    "manifests/\u{202e}1v",
    "manifests/FORGED",
    "manifests/latest;x=y",
    "manifests/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "blobs/sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
    "blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b8550",
    "blobs/sha256:../../../../../../../../../../../../../../../../../../../../etc/passwd",
    "blobs/sha256%3ae3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "blobs/v1",
    "blobs/uploads/",
    "tags/list/",
    "referrers/latest",
];

const NAMESPACES: [&str; 22] = [
    "",
    "evil.example",
    "169.254.169.254",
    "169.254.169.254:80",
    "127.0.0.1:22",
    "localhost:1",
    "[::1]",
    "[::1]:80",
    "0x7f.1",
    "http://one.example",
    "https://user:pass@one.example/",
    "user@one.example",
    "one.example/..",
    "one.example%2f..",
    "one.example%00",
    "one.example%0d%0aX-Injected:%20y",
    "one.example%20",
    "one.example:99999",
    "one.example&ns=one.example",
    "one.example&n%73=two.example",
    "%ff%fe",
    "\u{fc}.example\u{202e}",
];

/// Nothing is refused because of these.
const HARMLESS: [&str; 30] = [
    "X: y",
    "Accept: */*",
    "Accept: text/html, FORGED",
    "Accept-Encoding: zstd, gzip, br",
    "User-Agent: \u{9b}31m\u{202e}forged",
    "User-Agent: FORGED",
    "User-Agent:",
    "X-Request-Id: forged",
    "X-Request-Id: a\r\nX-Request-Id: b",
    "OCI-Namespace: evil.example",
    "Cache-Status: forged; hit",
    "X-Forwarded-For: 1.1.1.1, \u{fc}, FORGED",
    "X-Forwarded-Host: evil.example",
    "Forwarded: for=1.1.1.1;host=evil.example",
    "X-Original-URL: /metrics",
    "X-HTTP-Method-Override: DELETE",
    "Expect: 100-continue",
    "Expect: magic",
    "TE: trailers",
    "Trailer: Host",
    "Content-Length: 0",
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x",
    "Connection: Host, X-Request-Id, keep-alive",
    "Authorization: Basic !!!!",
    "Cookie: FORGED",
    "If-None-Match: \", , W/\"x\", \"\"",
    "If-Range: \"x\"\r\nRange: bytes=0-0",
    "If-Modified-Since: never",
    "Range: bytes=9999999999999999999999-",
];

const WORDS: [&str; 26] = [
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    " ",
    "\t",
    ":",
    "/",
    "?",
    "&",
    "#",
    "%2f",
    "%00",
    "..",
    "\0",
    "\u{fc}",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Host: a\r\n",
    "Connection: close\r\n",
    "Range: bytes=",
    "ns=169.254.169.254",
    "HTTP/1.0",
    "X-Smuggled",
    "sha256:",
    "\u{202e}",
];
