//! Names that mean something else a moment later: what is checked is what is dialled.

use std::net::IpAddr;

use crate::harness::token::basic;
use crate::harness::{
    APP, Blob, FakeRegistry, KIB, PasswordFile, ProxyBuilder, TestProxy, TokenServer, any,
};

const REGISTRY: &str = "registry.example.com";
const CDN: &str = "cdn.example.net";
const AUTH: &str = "auth.example.com";
/// Where the registry is, and somebody else on the Internet.
const OURS: &str = "192.0.2.1";
const PUBLIC: &str = "198.51.100.1";

/// Addresses that a name has when somebody wants to get in.
const INSIDE: [&str; 5] = [
    "127.0.0.1",
    "10.0.0.7",
    "169.254.169.254",
    "::ffff:10.0.0.7",
    "fd00:ec2::254",
];

/// A proxy whose registry is on the Internet, in truth the fake.
fn placed(upstream: &FakeRegistry) -> ProxyBuilder {
    let url = format!("http://{REGISTRY}:{}", upstream.address().port());
    TestProxy::in_front_of(upstream)
        .set("timeouts.first_byte", "2s")
        .upstream("url", url)
        .name(REGISTRY, &[OURS])
        .stand_in(OURS, upstream.address().ip())
}

/// What a pull comes to that the registry sends to the other name, at this port.
async fn led(upstream: &FakeRegistry, proxy: &TestProxy, servers: [&FakeRegistry; 2]) -> u16 {
    let blob = Blob::random(KIB);
    servers.iter().for_each(|it| it.serve_blob("bucket", &blob));
    let (port, digest) = (servers[0].address().port(), blob.digest());
    let location = format!("http://{CDN}:{port}/v2/bucket/blobs/{digest}");
    upstream.redirect(any(digest), 307, location);
    proxy.blob(APP, digest).whole().await.head.status
}

/// Breaks the connections that are kept, so that the next request looks again.
async fn forget(server: &FakeRegistry) {
    server.stop().await;
    server.restart();
}

#[tokio::test]
async fn pitfall_32_a_name_that_means_something_else_a_moment_later_gains_nothing() {
    for inside in INSIDE {
        let [host, hostile] = FakeRegistry::two_at(["127.0.0.2", "127.0.0.1"]).await;
        let upstream = FakeRegistry::start().await;
        let answers: [&[&str]; 4] = [&[PUBLIC], &[inside], &[PUBLIC, inside], &[inside, inside]];
        let proxy = placed(&upstream)
            .answers(CDN, &answers)
            .stand_in(PUBLIC, host.address().ip())
            .stand_in(inside, hostile.address().ip());
        let proxy = proxy.start().await;
        // One look for one connection: a second one would have found the other address.
        for (nth, status) in [200, 502, 200, 502, 502].into_iter().enumerate() {
            let found = led(&upstream, &proxy, [&host, &hostile]).await;
            assert_eq!(found, status, "{inside} at look {nth}");
            forget(&host).await;
        }
        assert_eq!(hostile.connections(), 0, "{inside}");
    }
}

#[tokio::test]
async fn pitfall_31_a_token_server_that_moves_inside_receives_no_password() {
    for inside in INSIDE {
        let tokens = TokenServer::start_at("127.0.0.2").await;
        let upstream = FakeRegistry::start().await;
        let hostile = FakeRegistry::start_at("127.0.0.3").await;
        let file = PasswordFile::new("s3cr3t-password");
        tokens.lock("robot", "s3cr3t-password");
        let port = tokens.address().port();
        let challenge = format!(r#"Bearer realm="http://{AUTH}:{port}/token",service="fake""#);
        upstream.challenge(&tokens, &challenge);
        let here: IpAddr = hostile.address().ip();
        let proxy = placed(&upstream)
            .upstream("username", "robot")
            .upstream("password_file", file.path())
            .answers(AUTH, &[&[PUBLIC], &[inside]])
            .stand_in(PUBLIC, tokens.address().ip())
            .stand_in(inside, here);
        let proxy = proxy.start().await;
        let pull = async || {
            let blob = Blob::random(KIB);
            upstream.serve_blob(APP, &blob);
            proxy.blob(APP, blob.digest()).whole().await.head.status
        };
        assert_eq!(pull().await, 200);
        forget(&tokens).await;
        tokens.expire();
        assert_eq!(pull().await, 502, "{inside}");
        let shown: Vec<_> = tokens.log();
        assert_eq!(shown.len(), 1);
        let password = basic("robot", "s3cr3t-password");
        assert_eq!(shown[0].header("authorization"), Some(&*password));
        assert_eq!(hostile.connections(), 0);
    }
}

#[tokio::test]
async fn pitfall_32_a_registry_that_was_elsewhere_before_leads_to_neither_place() {
    let upstream = FakeRegistry::start().await;
    let hostile = FakeRegistry::start().await;
    for answers in [[&[OURS][..], &["10.0.0.1"]], [&["10.0.0.1"], &[OURS]]] {
        let proxy = placed(&upstream)
            .answers(REGISTRY, &answers)
            .stand_in("10.0.0.1", upstream.address().ip())
            .name(CDN, &["10.0.0.7"])
            .stand_in("10.0.0.7", hostile.address().ip());
        let proxy = proxy.start().await;
        let blob = Blob::random(KIB);
        upstream.serve_blob(APP, &blob);
        proxy.pull_blob(APP, &blob).await;
        forget(&upstream).await;
        let found = led(&upstream, &proxy, [&hostile, &hostile]).await;
        assert_eq!((found, hostile.connections()), (502, 0), "{answers:?}");
    }
}
