//! The registries that people pull from, by their real names and in their own words: who is shown what there, and whom they may
//! name.
//!
//! Each is three hosts at most, which speak TLS here as there: the registry, its token server and where its blobs are. What they
//! say is what they were heard to say (see *Credentials and isolation* and 44 in `pitfalls.rs`).

use crate::harness::token::{TOKEN, basic};
use crate::harness::{
    Authority, Blob, Demand, FakeRegistry, Fault, Image, KIB, PasswordFile, ProxyBuilder,
    TestProxy, TlsFront, TokenServer, any, get, head,
};

/// One registry.
#[derive(Clone, Copy, Debug)]
struct Shape {
    host: &'static str,
    repository: &'static str,
    /// With `{scope}`; nobody need show anything without one.
    challenge: &'static str,
    /// Where tokens are had, by host and path, and the answer with `{token}`.
    tokens: Option<(&'static str, &'static str, &'static str)>,
    /// Where blobs are, by what stands before the digest there, and what follows it.
    blobs: (u16, &'static str, &'static str),
    /// Who it names when somebody else has a hand in it: neighbours, namesakes and strangers.
    strangers: &'static [&'static str],
}

const USER: &str = "robot";
const PASSWORD: &str = "s3cr3t-password";

const SHAPES: [Shape; 10] = [
    Shape {
        host: "registry-1.docker.io",
        repository: "library/debian",
        challenge: r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="{scope}""#,
        tokens: Some((
            "auth.docker.io",
            "/token",
            r#"{"token":"{token}","access_token":"{token}","expires_in":300,"issued_at":"2026-01-01T00:00:00Z"}"#,
        )),
        blobs: (
            307,
            "https://production.cloudflare.docker.com/registry-v2/docker/registry/v2/blobs/",
            "/data?verify=1700000000-s3cr3t%3D",
        ),
        strangers: &[
            "auth.docker.com",
            "auth-docker.io",
            "registry-1.docker.io.evil.example",
        ],
    },
    Shape {
        host: "ghcr.io",
        repository: "org/app",
        challenge: r#"Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="{scope}""#,
        tokens: Some(("ghcr.io", "/token", r#"{"token":"{token}"}"#)),
        blobs: (
            307,
            "https://pkg-containers.githubusercontent.com/ghcr1/blobs/",
            "?se=2026-01-01T00%3A00%3A00Z&sig=s3cr3t%2B%3D",
        ),
        strangers: &["org.github.io", "github.com", "xn--ghr-6dd.io"],
    },
    Shape {
        host: "quay.io",
        repository: "org/app",
        challenge: r#"Bearer realm="https://quay.io/v2/auth",service="quay.io",scope="{scope}""#,
        tokens: Some(("quay.io", "/v2/auth", r#"{"token": "{token}"}"#)),
        blobs: (
            302,
            "https://cdn03.quay.io/quayio-production-s3/sha256/",
            "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=s3cr3t",
        ),
        strangers: &["quay.com", "xquay.io"],
    },
    Shape {
        host: "registry.gitlab.com",
        repository: "group/project/image",
        challenge: r#"Bearer realm="https://gitlab.com/jwt/auth",service="container_registry",scope="{scope}",error="invalid_token""#,
        tokens: Some(("gitlab.com", "/jwt/auth", r#"{"token":"{token}"}"#)),
        blobs: (
            307,
            "https://storage.googleapis.com/gitlab-gprd-registry/docker/registry/v2/blobs/",
            "/data?Expires=1700000000&Signature=s3cr3t",
        ),
        strangers: &["group.gitlab.io", "gitlab.org"],
    },
    Shape {
        host: "123456789012.dkr.ecr.eu-central-1.amazonaws.com",
        repository: "team/app",
        challenge: r#"Basic realm="https://123456789012.dkr.ecr.eu-central-1.amazonaws.com/",service="ecr.amazonaws.com""#,
        tokens: None,
        blobs: (
            307,
            "https://prod-eu-central-1-starport-layer-bucket.s3.eu-central-1.amazonaws.com/",
            "?X-Amz-Security-Token=s3cr3t&X-Amz-Signature=s3cr3t",
        ),
        strangers: &[
            "210987654321.dkr.ecr.eu-central-1.amazonaws.com",
            "evil.s3.eu-central-1.amazonaws.com",
            "search-evil.eu-central-1.es.amazonaws.com",
        ],
    },
    Shape {
        host: "europe-docker.pkg.dev",
        repository: "project/folder/app",
        challenge: r#"Bearer realm="https://europe-docker.pkg.dev/v2/token",service="europe-docker.pkg.dev",scope="{scope}""#,
        tokens: Some((
            "europe-docker.pkg.dev",
            "/v2/token",
            r#"{"expires_in":43200,"token":"{token}"}"#,
        )),
        // It sends for blobs to another path of its own.
        blobs: (
            302,
            "/artifacts-downloads/namespaces/project/repositories/folder/downloads/",
            "?s3cr3t",
        ),
        strangers: &["evil.appspot.com", "accounts.google.com"],
    },
    Shape {
        host: "team.azurecr.io",
        repository: "app",
        challenge: r#"Bearer realm="https://team.azurecr.io/oauth2/token",service="team.azurecr.io",scope="{scope}""#,
        tokens: Some((
            "team.azurecr.io",
            "/oauth2/token",
            r#"{"access_token":"{token}"}"#,
        )),
        blobs: (
            307,
            "https://weumanaged1.blob.core.windows.net/0123456789abcdef/docker/registry/v2/blobs/",
            "/data?se=2026-01-01T00%3A00%3A00Z&sig=s3cr3t%3D",
        ),
        strangers: &["evil.azurecr.io", "weumanaged1.blob.core.windows.net"],
    },
    Shape {
        host: "public.ecr.aws",
        repository: "docker/library/alpine",
        challenge: r#"Bearer realm="https://public.ecr.aws/token/",service="public.ecr.aws",scope="aws""#,
        tokens: Some(("public.ecr.aws", "/token/", r#"{"token":"{token}"}"#)),
        blobs: (
            307,
            "https://d5l0dvt14r5h8.cloudfront.net/docker/registry/v2/blobs/",
            "/data?Expires=1700000000&Signature=s3cr3t__&Key-Pair-Id=K1",
        ),
        strangers: &["evil.cloudfront.net", "public-ecr.aws"],
    },
    Shape {
        host: "registry.k8s.io",
        repository: "pause",
        challenge: "",
        tokens: None,
        blobs: (
            307,
            "https://prod-registry-k8s-io-eu-central-1.s3.dualstack.eu-central-1.amazonaws.com/containers/images/",
            "?s3cr3t",
        ),
        strangers: &[],
    },
    Shape {
        host: "mcr.microsoft.com",
        repository: "dotnet/runtime",
        challenge: "",
        tokens: None,
        blobs: (
            307,
            "https://westeurope.data.mcr.microsoft.com/01031d61e1024861afee5d512651eb9f/",
            "?s3cr3t",
        ),
        strangers: &[],
    },
];

/// A host by its real name, which nobody reaches but by TLS.
struct Place {
    name: String,
    server: TokenServer,
    front: TlsFront,
}

/// The hosts of a registry.
struct World {
    authority: Authority,
    places: Vec<Place>,
}

impl World {
    fn new() -> Self {
        Self {
            authority: Authority::new(),
            places: Vec::new(),
        }
    }

    /// The host of this name.
    async fn host(&mut self, name: &str) -> usize {
        if let Some(known) = self.places.iter().position(|it| it.name == name) {
            return known;
        }
        let server = TokenServer::start().await;
        let front = TlsFront::start(&server, &self.authority, &[name], Demand::Wish).await;
        self.places.push(Place {
            name: name.to_owned(),
            server,
            front,
        });
        self.places.len() - 1
    }

    /// A proxy in front of the first of them, to which all are where they are on the Internet, and with a password and a
    /// certificate of ours.
    fn proxy(&self, file: &PasswordFile) -> ProxyBuilder {
        let [registry, ..] = &self.places[..] else {
            panic!("there is no registry");
        };
        let proxy = TestProxy::in_front_of(&registry.server);
        let ours = self.authority.vouch(&["us.example"]);
        let ca = proxy.write("ca.pem", &self.authority.pem());
        let certificate = proxy.write("us.pem", &ours.certificate_pem);
        let key = proxy.write("us.key", &ours.key_pem);
        let proxy = proxy
            .upstream("url", format!("https://{}", registry.name))
            .upstream("username", USER)
            .upstream("password_file", file.path())
            .upstream("ca_file", ca)
            .upstream("client_certificate", certificate)
            .upstream("client_key", key);
        let numbered = self.places.iter().enumerate();
        numbered.fold(proxy, |proxy, (nth, place)| {
            let address = format!("198.51.100.{}", nth + 1);
            let proxy = proxy.name(&place.name, &[&address]);
            proxy.stand_in_at(&address, place.front.address())
        })
    }
}

/// The host in a URL; none in a path.
fn host_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    rest.split('/').next()
}

/// The path in a URL.
fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    &rest[rest.find('/').unwrap_or_default()..]
}

impl Shape {
    /// Its hosts: the registry, the token server and the blobs', of which some are one.
    async fn world(&self, challenge: &str) -> (World, [usize; 3]) {
        let mut world = World::new();
        let registry = world.host(self.host).await;
        let tokens = match self.tokens {
            Some((host, ..)) => world.host(host).await,
            None => registry,
        };
        let blobs = match host_of(self.blobs.1) {
            Some(host) => world.host(host).await,
            None => registry,
        };
        if let Some((_, path, answer)) = self.tokens {
            let server = &world.places[tokens].server;
            server.act_as(path, answer, &basic(USER, PASSWORD));
            world.places[registry].server.challenge(server, challenge);
        } else if !challenge.is_empty() {
            world.places[registry]
                .server
                .lock_and_say(USER, PASSWORD, challenge);
        }
        (world, [registry, tokens, blobs])
    }

    /// Whether tokens are had at this path.
    fn gives_tokens(&self, path: &str) -> bool {
        self.tokens.is_some_and(|(_, it, _)| it == path)
    }

    /// One token was asked for, for its service and what was pulled, where it gives any.
    fn assert_exchanged(&self, server: &TokenServer) {
        let mut exchanges = server.log();
        exchanges.retain(|it| self.gives_tokens(&it.path));
        let is_one = exchanges.len() == usize::from(self.tokens.is_some());
        assert!(is_one, "{}: {exchanges:#?}", self.host);
        for seen in exchanges {
            let query = seen.query.as_deref().unwrap_or_default();
            let pairs = form_urlencoded::parse(query.as_bytes()).into_owned();
            let pairs: Vec<(String, String)> = pairs.collect();
            let (_, service) = self.challenge.split_once("service=\"").unwrap();
            let service = service.split('"').next().unwrap_or_default();
            let scope = format!("repository:{}:pull", self.repository);
            for (name, value) in [("service", service), ("scope", &scope)] {
                let pair = (name.to_owned(), value.to_owned());
                assert!(pairs.contains(&pair), "{query}");
            }
        }
    }

    /// An image whose blobs are where this one's are.
    fn image(&self, registry: &FakeRegistry, blobs: &FakeRegistry) -> Image {
        let image = Image::random(&[KIB, KIB]);
        registry.serve_image(self.repository, "v1", &image);
        let (status, before, after) = self.blobs;
        for blob in image.blobs() {
            let location = format!("{before}{}{after}", blob.digest());
            let path = path_of(&location).split('?').next().unwrap_or_default();
            blobs.serve_at(path, blob);
            registry.redirect(any(format!("/blobs/{}", blob.digest())), status, location);
        }
        image
    }
}

#[tokio::test]
async fn pitfall_31_pitfall_32_pitfall_44_each_registry_is_shown_what_it_asks_for_and_nobody_else()
{
    for shape in SHAPES {
        let (world, [registry, tokens, blobs]) = shape.world(shape.challenge).await;
        let place = |nth: usize| &world.places[nth];
        let image = shape.image(&place(registry).server, &place(blobs).server);
        if shape.host == "public.ecr.aws" {
            place(registry)
                .server
                .always(head("/blobs/"), Fault::Status(401));
        }
        let file = PasswordFile::new(PASSWORD);
        let proxy = world.proxy(&file).start().await;
        let pulled = proxy.pull_manifest(shape.repository, "v1").await;
        assert_eq!(pulled.bytes, image.manifest.bytes());
        for blob in image.blobs() {
            let target = format!("/v2/{}/blobs/{}", shape.repository, blob.digest());
            let whole = proxy.head(target).whole().await;
            assert_eq!(whole.head.status, 200, "{}", shape.host);
            proxy.pull_blob(shape.repository, blob).await;
        }

        let password = basic(USER, PASSWORD);
        for (nth, it) in world.places.iter().enumerate() {
            let log = it.server.log();
            assert!(!log.is_empty(), "{} was asked nothing", it.name);
            // Our certificate is for the registry.
            let is_shown = it.front.shown() > 0;
            assert_eq!(is_shown, nth == registry, "{}", it.name);
            for seen in log {
                assert_eq!(seen.header("host"), Some(it.name.as_str()));
                for name in ["cookie", "proxy-authorization", "referer"] {
                    assert_eq!(seen.header(name), None, "{name} at {}", it.name);
                }
                let shown = seen.header("authorization").unwrap_or_default();
                let is_fine = if shape.gives_tokens(seen.path.as_str()) && nth == tokens {
                    shown == password
                } else if nth != registry || shown.is_empty() {
                    shown.is_empty()
                } else if shape.tokens.is_some() {
                    shown.starts_with(&format!("Bearer {TOKEN}"))
                } else {
                    shown == password && !shape.challenge.is_empty()
                };
                assert!(is_fine, "{shown} at {}: {seen:?}", it.name);
            }
        }
        // What is signed came as it was signed.
        let signed = place(blobs).server.seen(&get(path_of(shape.blobs.1)));
        let query = shape.blobs.2.split_once('?').map(|(_, query)| query);
        assert!(!signed.is_empty(), "{}", shape.host);
        assert!(
            signed.iter().all(|it| it.query.as_deref() == query),
            "{signed:?}"
        );
        shape.assert_exchanged(&place(tokens).server);
    }
}

#[tokio::test]
async fn pitfall_31_no_registry_sends_us_to_a_stranger_with_a_password() {
    for shape in SHAPES {
        let (own_host, path) = shape
            .tokens
            .map_or(("", ""), |(host, path, _)| (host, path));
        for stranger in shape.strangers {
            // In the very words of its own challenge, where it has one for tokens.
            let own = format!("https://{own_host}{path}");
            let challenge = if own_host.is_empty() {
                format!(r#"Bearer realm="https://{stranger}/token",service="x""#)
            } else {
                shape
                    .challenge
                    .replace(&own, &format!("https://{stranger}{path}"))
            };
            assert!(challenge.contains(stranger), "{challenge}");
            let (mut world, [registry, ..]) = shape.world(&challenge).await;
            let foreign = world.host(stranger).await;
            let blob = Blob::random(KIB);
            world.places[registry]
                .server
                .serve_blob(shape.repository, &blob);
            let file = PasswordFile::new(PASSWORD);
            let proxy = world.proxy(&file).start().await;
            let whole = proxy.blob(shape.repository, blob.digest()).whole().await;
            assert_eq!(whole.head.status, 401, "{} names {stranger}", shape.host);
            assert_eq!(world.places[foreign].front.connections(), 0, "{stranger}");
            for seen in world.places[registry].server.log() {
                assert_eq!(seen.header("authorization"), None, "{seen:?}");
            }
        }
    }
}

#[tokio::test]
async fn pitfall_32_whoever_is_sent_back_to_a_registry_comes_as_nobody() {
    let shape = &SHAPES[0];
    let (world, [registry, tokens, blobs]) = shape.world(shape.challenge).await;
    let place = |nth: usize| &world.places[nth];
    let blob = Blob::random(KIB);
    let host = &place(blobs).server;
    let registry = place(registry);
    let there = format!("{}{}", shape.blobs.1, blob.digest());
    registry.server.redirect(any(blob.digest()), 307, there);
    host.redirect(any(""), 307, format!("https://{}/back", shape.host));
    registry.server.serve_at("/back", &blob);
    let file = PasswordFile::new(PASSWORD);
    let proxy = world.proxy(&file).start().await;
    // What comes is what was asked for, whoever has it.
    proxy.pull_blob(shape.repository, &blob).await;
    let back = registry.server.seen(&get("/back"));
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].header("authorization"), None);
    // On a connection of its own, without our certificate.
    let front = &registry.front;
    assert_eq!(front.handshakes() - front.shown(), 1);
    assert_eq!(place(tokens).server.log().len(), 1);
}

#[tokio::test]
async fn pitfall_32_a_redirect_that_leads_down_from_https_is_not_followed() {
    let shape = &SHAPES[0];
    let (world, [registry, _, blobs]) = shape.world(shape.challenge).await;
    let (host, registry) = (&world.places[blobs], &world.places[registry]);
    let place = |it: &Place| format!("{}:{}", it.name, it.server.address().port());
    for location in [
        format!("http://{}/down?sig=s3cr3t", place(host)),
        format!("http://{}/down", place(registry)),
        format!("HTTP://{}/down", place(host)),
    ] {
        let blob = Blob::random(KIB);
        host.server.serve_at("/down", &blob);
        registry.server.serve_at("/down", &blob);
        registry
            .server
            .redirect(any(blob.digest()), 307, location.clone());
        let file = PasswordFile::new(PASSWORD);
        let proxy = world.proxy(&file).start().await;
        let whole = proxy.blob(shape.repository, blob.digest()).whole().await;
        assert_eq!(whole.head.status, 502, "{location}");
        assert!(!whole.text().contains("s3cr3t"), "{}", whole.text());
    }
    assert_eq!(host.server.connections(), 0);
    assert_eq!(registry.server.count(&get("/down")), 0);
}
