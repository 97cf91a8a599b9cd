//! Fills that are under way for one caller, and those who may not have what they bring.

use crate::harness::proxy::TWO;
use crate::harness::token::basic;
use crate::harness::{
    At, Blob, FakeRegistry, KIB, MIB, Request, TestProxy, TokenServer, Whole, get,
};

const SECRET: &str = "team/secret";
const PUBLIC: &str = "team/public";
const ANN: (&str, &str) = ("ann", "horse-a");
const BOB: (&str, &str) = ("bob", "horse-b");

fn by(request: Request, (user, password): (&str, &str)) -> Request {
    request.header("Authorization", basic(user, password))
}

/// What a client can see of an answer, but for what is another one each time.
fn seen(whole: &Whole) -> (u16, Vec<(String, String)>, String) {
    let mut headers = whole.head.headers().to_vec();
    headers.retain(|(name, _)| !matches!(&*name.to_ascii_lowercase(), "x-request-id" | "date"));
    (whole.head.status, headers, whole.text())
}

#[tokio::test]
async fn pitfall_35_what_comes_for_another_looks_like_what_is_not_here() {
    let (upstream, tokens) = (FakeRegistry::start().await, TokenServer::start().await);
    upstream.require_token(&tokens);
    tokens.permit(Some(ANN), &[SECRET, PUBLIC]);
    tokens.permit(Some(BOB), &[PUBLIC]);
    // Who shares the cache and nothing else: a registry that lets in everybody, and has another thing.
    let other = FakeRegistry::start().await;
    let (secret, public) = (Blob::random(MIB), Blob::random(KIB));
    upstream.serve_blob(SECRET, &secret);
    upstream.serve_blob(PUBLIC, &public);
    other.serve_blob(PUBLIC, &public);
    let mut answers = Vec::new();
    for is_coming in [false, true] {
        let builder = TestProxy::in_front_of(&upstream).upstream("access", "caller");
        let proxy = builder.and(TWO, &other).start().await;
        let gate = upstream.hold(get(secret.digest()), At::Byte(KIB));
        let coming = match is_coming {
            false => None,
            true => {
                let answer = by(proxy.blob(SECRET, secret.digest()), ANN).send().await;
                gate.reached().await;
                Some(answer)
            }
        };
        let (from, other_from) = (upstream.log().len(), other.log().len());
        let exchanges = tokens.exchanges();
        let mut seen_here = Vec::new();
        // With a right to the public one, and before.
        for has_a_right in [false, true] {
            if has_a_right {
                let whole = by(proxy.blob(PUBLIC, public.digest()), BOB).whole().await;
                assert_eq!(whole.head.status, 200);
            }
            let theirs = format!("{TWO}/{PUBLIC}");
            for name in [SECRET, PUBLIC, &theirs] {
                let path = format!("/v2/{name}/blobs/{}", secret.digest());
                for request in [
                    proxy.head(&path),
                    proxy.get(&path),
                    proxy.get(&path).range("bytes=0-99"),
                    proxy.get(&path).range("bytes=1048570-1048575"),
                ] {
                    let request = by(request, BOB).header("Host", "cache.example");
                    let whole = request.whole().await;
                    assert!(matches!(whole.head.status, 401 | 404), "{:?}", whole.head);
                    seen_here.push(seen(&whole));
                }
            }
        }
        let asked = [(&upstream, from), (&other, other_from)].map(|(registry, from)| {
            let since = registry.log().into_iter().skip(from);
            let since = since.map(|it| (it.method, it.path, it.status));
            since.collect::<Vec<_>>()
        });
        answers.push((seen_here, asked, tokens.exchanges() - exchanges));
        gate.open();
        if let Some(answer) = coming {
            answer.is(&secret).await;
        }
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn strangers_who_are_kept_waiting_take_no_ones_place() {
    let (upstream, tokens) = (FakeRegistry::start().await, TokenServer::start().await);
    upstream.require_token(&tokens);
    tokens.permit(Some(ANN), &[SECRET]);
    let secret = Blob::random(KIB);
    upstream.serve_blob(SECRET, &secret);
    let proxy = TestProxy::in_front_of(&upstream)
        .upstream("access", "caller")
        .set("limits.requests_per_upstream", 4)
        .start()
        .await;
    let pull = || {
        by(
            proxy.head(format!("/v2/{SECRET}/blobs/{}", secret.digest())),
            ANN,
        )
    };
    assert_eq!(pull().whole().await.head.status, 200);
    let gate = tokens.hold(TokenServer::exchange(), At::Head);
    let strangers: Vec<_> = (0..8)
        .map(|n| {
            let user = format!("eve{n}");
            let request = match n % 2 {
                0 => proxy.blob(SECRET, secret.digest()),
                _ => proxy.get(format!("/token?scope=repository:{SECRET}:pull")),
            };
            let request = by(request, (&user, "guess"));
            tokio::spawn(async move { request.whole().await.head.status })
        })
        .collect();
    gate.reached_by(2).await;
    let other = Blob::random(KIB);
    upstream.serve_blob(SECRET, &other);
    let known = by(proxy.blob(SECRET, other.digest()), ANN).send().await;
    known.is(&other).await;
    gate.open();
    for stranger in strangers {
        assert_eq!(stranger.await.unwrap(), 401);
    }
}
