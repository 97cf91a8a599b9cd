//! Registries that send for blobs to somebody else: who is followed, with what, and whose word counts.

use std::time::Duration;

use tokio::time::Instant;

use crate::harness::binary::field;
use crate::harness::host::SIGNATURE;
use crate::harness::script::Turns;
use crate::harness::token::TOKEN;
use crate::harness::{
    APP, At, Binary, Blob, BlobHost, FakeRegistry, Fault, Image, KIB, MIB, ProxyBuilder, TestProxy,
    TokenServer, any, get, head, pair,
};

/// A registry that has a blob of which it sends everybody to a blob host.
async fn scene() -> (FakeRegistry, BlobHost, TestProxy, Blob) {
    scene_with(|it| it).await
}

/// The same with a proxy that loses patience quickly.
async fn brief_scene() -> (FakeRegistry, BlobHost, TestProxy, Blob) {
    scene_with(|it| {
        it.set("timeouts.answer", "3s")
            .set("timeouts.first_byte", "300ms")
            .set("timeouts.idle", "300ms")
    })
    .await
}

async fn scene_with(
    settings: impl FnOnce(ProxyBuilder) -> ProxyBuilder,
) -> (FakeRegistry, BlobHost, TestProxy, Blob) {
    let upstream = FakeRegistry::start().await;
    let host = BlobHost::start().await;
    let proxy = settings(TestProxy::in_front_of(&upstream)).start().await;
    let blob = Blob::random(2 * MIB);
    upstream.redirect(any("/blobs/"), 307, host.serve(&blob));
    (upstream, host, proxy, blob)
}

/// What a proxy answers when its upstream sends for a blob to `location`, and how long it took.
async fn answered(location: &str) -> (u16, Duration) {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("timeouts.answer", "20s")
        .set("timeouts.connect", "20s")
        .start()
        .await;
    upstream.redirect(get("/blobs/"), 307, location);
    let blob = Blob::random(KIB);
    let began = Instant::now();
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    let text = whole.text();
    assert!(!text.contains("s3cr3t"), "{text}");
    // Refused, and not for having failed: the registry was asked once.
    assert_eq!(upstream.log().len(), 1, "{location}");
    (whole.head.status, began.elapsed())
}

/// A HEAD of a blob through the proxy: its length as the proxy says it.
async fn size_of(proxy: &TestProxy, blob: &Blob) -> Option<usize> {
    let target = format!("/v2/{APP}/blobs/{}", blob.digest());
    let answer = proxy.head(target).whole().await;
    answer.is(200, b"").content_length()
}

#[tokio::test]
async fn pitfall_44_every_status_that_redirects_is_followed() {
    for status in [301, 302, 303, 307, 308] {
        let (upstream, host, proxy, blob) = scene().await;
        let digest = blob.digest();
        upstream.redirect(any(digest), status, host.link(digest));
        let head = proxy.pull_blob(APP, &blob).await;
        assert_eq!(head.cache_status(), "layerhold; fwd=miss; stored");
        proxy.wait_for_hit(APP, &blob).await;
        assert_eq!(upstream.count(&get(digest)), 1, "{status}");
        assert_eq!(host.sent(&get(digest)), blob.len(), "{status}");
    }
}

#[tokio::test]
async fn pitfall_44_a_location_may_be_relative() {
    let digest = Blob::random(KIB).digest().to_owned();
    let folder = format!("/v2/{APP}/blobs");
    for (location, path, query) in [
        ("/hop/1", "/hop/1".to_owned(), None),
        ("/hop#fragment", "/hop".to_owned(), None),
        ("../hop", format!("/v2/{APP}/hop"), None),
        ("./hop", format!("{folder}/hop"), None),
        ("?hop", format!("{folder}/{digest}"), Some("hop")),
        (
            "hop?url=http://elsewhere.invalid/",
            format!("{folder}/hop"),
            Some("url=http://elsewhere.invalid/"),
        ),
    ] {
        let (upstream, proxy) = pair().await;
        upstream.redirect(any(&*digest), 307, location);
        proxy.blob(APP, &digest).whole().await;
        let hop = upstream.log().into_iter().nth(1);
        let hop = hop.map(|it| (it.path, it.query));
        let expected = (path, query.map(str::to_owned));
        assert_eq!(hop, Some(expected), "{location}");
    }
}

#[tokio::test]
async fn a_location_may_leave_out_its_scheme() {
    let (upstream, host, proxy, blob) = scene().await;
    let link = host.link(blob.digest());
    let location = link.strip_prefix("http:").unwrap();
    upstream.redirect(any("/blobs/"), 307, location);
    proxy.pull_blob(APP, &blob).await;
}

#[tokio::test]
async fn five_redirects_are_followed_and_six_are_not() {
    for (hops, status) in [(5, 200), (6, 502)] {
        let (upstream, host, proxy, blob) = scene().await;
        upstream.redirect(any("/blobs/"), 307, "/hop/1");
        for hop in 1..hops {
            let location = if hop + 1 == hops {
                host.link(blob.digest())
            } else {
                format!("/hop/{}", hop + 1)
            };
            upstream.redirect(any(format!("/hop/{hop}")), 302, location);
        }
        let whole = proxy.blob(APP, blob.digest()).whole().await;
        assert_eq!(whole.head.status, status, "{hops}: {:?}", whole.head);
        assert_eq!(host.log().len(), usize::from(status == 200));
    }
}

#[tokio::test]
async fn a_redirect_to_itself_comes_to_an_end() {
    let (upstream, _host, proxy, blob) = scene().await;
    let itself = format!("/v2/{APP}/blobs/{}", blob.digest());
    upstream.redirect(any("/blobs/"), 307, itself);
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert_eq!(whole.head.status, 502, "{}", whole.text());
    assert!(upstream.log().len() <= 6, "{}", upstream.log().len());
}

#[tokio::test]
async fn pitfall_32_a_token_stays_with_the_registry() {
    let tokens = TokenServer::start().await;
    let (upstream, host, proxy, blob) = scene().await;
    upstream.require_token(&tokens);
    // The blob host fails the test when it sees the token.
    proxy.pull_blob(APP, &blob).await;
    assert_eq!(host.sent(&get(blob.digest())), blob.len());

    // On the way through the registry's own house the token is shown, and not after that.
    let other = Blob::random(KIB);
    upstream.redirect(any("/hop"), 307, host.serve(&other));
    upstream.redirect(any(other.digest()), 307, "/hop");
    proxy.pull_blob(APP, &other).await;
    let hop = &upstream.seen(&get("/hop"))[0];
    assert!(hop.header("authorization").is_some(), "{hop:?}");
    assert_eq!(tokens.exchanges(), 1);
}

#[tokio::test]
async fn pitfall_32_a_token_does_not_come_back_once_it_was_left() {
    let tokens = TokenServer::start().await;
    let (upstream, host, proxy, blob) = scene().await;
    upstream.require_token(&tokens);
    let back = format!("http://{}/back", upstream.address());
    host.redirect(any(""), 307, back);
    // Nor is what is not there the registry's word on what it was asked.
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert_eq!(whole.head.status, 502);
    let back = &upstream.seen(&get("/back"))[0];
    assert_eq!(back.header("authorization"), None);
}

#[tokio::test]
async fn a_redirect_as_the_answer_to_head_is_proof_and_is_not_followed() {
    let (upstream, host, proxy, blob) = scene().await;
    proxy.pull_blob(APP, &blob).await;
    proxy.wait_for_hit(APP, &blob).await;
    let moved = host.log().len();

    let elsewhere = "team/elsewhere";
    let head = proxy.pull_blob(elsewhere, &blob).await;
    assert_eq!(head.content_length(), Some(blob.len()));
    let asked = upstream.seen(&any(elsewhere));
    let asked: Vec<_> = asked.iter().map(|it| (&*it.method, it.status)).collect();
    assert_eq!(asked, [("HEAD", 307)]);
    assert_eq!(host.log().len(), moved);
}

#[tokio::test]
async fn a_cold_head_that_is_redirected_has_its_size_from_the_first_byte() {
    let (upstream, host, proxy, blob) = scene().await;
    assert_eq!(size_of(&proxy, &blob).await, Some(blob.len()));
    let asked: Vec<_> = upstream.log().into_iter().map(|it| it.method).collect();
    assert_eq!(asked, ["HEAD", "GET"]);
    let moved = host.log();
    assert_eq!(moved.len(), 1, "{moved:#?}");
    assert_eq!(moved[0].method, "GET");
    assert_eq!(moved[0].header("range"), Some("bytes=0-0"));
    assert_eq!(proxy.metric("layerhold_cache_blobs", &[]).await, 0.0);
}

#[tokio::test]
async fn a_cold_head_that_is_redirected_has_its_size_from_a_host_without_ranges_too() {
    let (_upstream, host, proxy, blob) = scene().await;
    host.always(any(""), Fault::NoRange);
    assert_eq!(size_of(&proxy, &blob).await, Some(blob.len()));
}

#[tokio::test]
async fn a_cold_head_of_the_empty_blob_is_redirected_and_has_its_size() {
    let (upstream, host, proxy, _) = scene().await;
    let empty = Blob::of("");
    upstream.redirect(any(empty.digest()), 307, host.serve(&empty));
    assert_eq!(size_of(&proxy, &empty).await, Some(0));
    proxy.pull_blob(APP, &empty).await;
}

#[tokio::test]
async fn pitfall_44_a_head_that_is_refused_and_a_get_that_is_redirected_work() {
    for status in [401, 405] {
        let tokens = TokenServer::start().await;
        let (upstream, _host, proxy, blob) = scene().await;
        upstream.require_token(&tokens);
        upstream.always(head("/blobs/"), Fault::Status(status));
        assert_eq!(size_of(&proxy, &blob).await, Some(blob.len()), "{status}");
        proxy.pull_blob(APP, &blob).await;
        proxy.wait_for_hit(APP, &blob).await;
        // As a proof too, which has no use for the size.
        proxy.pull_blob("team/elsewhere", &blob).await;
    }
}

#[tokio::test]
async fn pitfall_42_the_word_of_a_blob_host_is_not_the_registrys() {
    for (fault, status) in [
        (Fault::Status(401), 502),
        (Fault::Status(403), 502),
        (Fault::Status(404), 502),
        (Fault::Status(410), 502),
        (Fault::Status(500), 502),
        (Fault::Refuse, 502),
        (Fault::Silence, 504),
    ] {
        let (_upstream, host, proxy, blob) = brief_scene().await;
        host.always(any(""), fault);
        let whole = proxy.blob(APP, blob.digest()).whole().await;
        assert_eq!(whole.head.status, status, "{fault:?}: {}", whole.text());
        assert_eq!(whole.head.all("www-authenticate"), [""; 0]);
        assert!(!whole.text().contains("s3cr3t"), "{}", whole.text());
        let target = format!("/v2/{APP}/blobs/{}", blob.digest());
        let whole = proxy.head(target).whole().await;
        assert_eq!(whole.head.status, status, "{fault:?}: {:?}", whole.head);

        // Nor is it remembered.
        host.heal();
        proxy.pull_blob(APP, &blob).await;
    }
}

#[tokio::test]
async fn pitfall_42_a_blob_host_that_cannot_be_reached_is_a_502() {
    let (_upstream, host, proxy, blob) = scene().await;
    host.stop().await;
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert_eq!(whole.head.status, 502, "{}", whole.text());
}

#[tokio::test]
async fn a_blob_host_that_sends_other_bytes_is_found_out() {
    let (upstream, host, proxy, _) = scene().await;
    let (wanted, other) = (Blob::random(KIB), Blob::random(KIB));
    upstream.redirect(any(wanted.digest()), 307, host.serve(&other));
    let whole = proxy.blob(APP, wanted.digest()).whole().await;
    assert_eq!(whole.head.status, 502, "{:?}", whole.head);
    assert_eq!(proxy.metric("layerhold_cache_blobs", &[]).await, 0.0);
}

#[tokio::test]
async fn pitfall_33_what_breaks_off_at_a_blob_host_goes_on_with_a_new_signature() {
    for fault in [Fault::CutAfter(MIB), Fault::StallAfter(MIB)] {
        let (upstream, host, proxy, blob) = brief_scene().await;
        host.once(get(""), fault);
        proxy.pull_blob(APP, &blob).await;
        assert_eq!(upstream.count(&get(blob.digest())), 2, "{fault:?}");
        let asked = host.log();
        let turns: Vec<_> = asked.iter().filter_map(|it| it.query.as_deref()).collect();
        let signed = [0, 1].map(|turn| format!("{SIGNATURE}&turn={turn}"));
        assert_eq!(turns, signed, "{fault:?}");
        let range = format!("bytes={MIB}-");
        assert_eq!(asked[1].header("range"), Some(range.as_str()));
        assert_eq!(host.sent(&any("")), blob.len(), "{fault:?}");
    }
}

#[tokio::test]
async fn pitfall_33_a_signature_that_ended_meanwhile_is_asked_for_anew() {
    let (upstream, host, proxy, blob) = scene().await;
    host.script(get(""), Turns::nth(2), Fault::Status(403));
    host.once(get(""), Fault::CutAfter(MIB));
    let pulled = proxy.blob(APP, blob.digest()).whole().await;
    // One signed address, one request: nobody asks twice with the first.
    let mut turns: Vec<_> = host.log().into_iter().filter_map(|it| it.query).collect();
    let asked = turns.len();
    turns.dedup();
    assert_eq!((turns.len(), upstream.count(&get(""))), (asked, asked));
    assert!(blob.bytes().starts_with(&pulled.bytes));
}

#[tokio::test]
async fn a_transfer_is_shared_through_a_redirect() {
    let (upstream, host, proxy, blob) = scene().await;
    let gate = host.hold(get(""), At::Byte(MIB));
    let first = proxy.blob(APP, blob.digest()).send().await;
    gate.reached().await;
    let second = proxy.blob(APP, blob.digest()).send().await;
    gate.open();
    first.is(&blob).await;
    second.is(&blob).await;
    assert_eq!((upstream.count(&get("")), host.log().len()), (1, 1));
}

#[tokio::test]
async fn manifests_may_be_redirected_too() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image("moved/app", "v1", &image);
    upstream.redirect(
        any(format!("/v2/{APP}/")),
        301,
        "/v2/moved/app/manifests/v1",
    );
    let pulled = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(pulled.bytes, image.manifest.bytes());
}

#[tokio::test]
async fn pitfall_32_nobody_is_led_where_the_registry_is_not() {
    // The machine takes the unspecified address for itself: this one would be reached.
    let here = FakeRegistry::start().await;
    let port = here.address().port();
    for host in [
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "2852039166",
        "0xa9fea9fe",
        "10.0.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "[fd00::1]",
        "[fe80::1]",
        "0.0.0.0",
        "0",
        "[::]",
        "255.255.255.255",
        "224.0.0.1",
    ] {
        let location = format!("http://{host}:{port}/latest/meta-data?{SIGNATURE}");
        let (status, took) = answered(&location).await;
        assert_eq!(status, 502, "{host}");
        assert!(took < Duration::from_secs(5), "{host}: {took:?}");
    }
    assert_eq!(here.connections(), 0);
}

/// A proxy whose registry is `http://registry.example.com` at `address`, in truth the fake.
fn placed(upstream: &FakeRegistry, address: &str) -> ProxyBuilder {
    let url = format!("http://registry.example.com:{}", upstream.address().port());
    TestProxy::in_front_of(upstream)
        .upstream("url", url)
        .name("registry.example.com", &[address])
        .stand_in(address, upstream.address().ip())
}

/// What a pull comes to that the registry sends to `host`, where somebody serves the blob to whoever comes.
async fn led(upstream: &FakeRegistry, proxy: &TestProxy, host: &str, server: &FakeRegistry) -> u16 {
    let blob = Blob::random(KIB);
    server.serve_blob("loot", &blob);
    let (port, digest) = (server.address().port(), blob.digest());
    let location = format!("http://{host}:{port}/v2/loot/blobs/{digest}");
    upstream.redirect(any(digest), 307, location);
    proxy.blob(APP, digest).whole().await.head.status
}

#[tokio::test]
async fn pitfall_32_a_public_registry_leads_nobody_to_this_machine() {
    for (listens, hosts) in [
        (
            "127.0.0.1",
            &[
                "127.0.0.1",
                "[::ffff:127.0.0.1]",
                "0.0.0.0",
                "localhost",
                "2130706433",
                "0x7f000001",
                "127.1",
            ][..],
        ),
        ("::1", &["[::1]", "[::]"]),
    ] {
        let hostile = FakeRegistry::start_at(listens).await;
        let upstream = FakeRegistry::start().await;
        let proxy = placed(&upstream, "192.0.2.1").start().await;
        for host in hosts {
            let status = led(&upstream, &proxy, host, &hostile).await;
            assert_eq!(status, 502, "{host}");
        }
        assert_eq!(upstream.log().len(), hosts.len());
        assert_eq!(hostile.connections(), 0);
        // It would have had something to give.
        let own = FakeRegistry::start().await;
        let proxy = TestProxy::in_front_of(&own).start().await;
        let status = led(&own, &proxy, hosts[0], &hostile).await;
        assert_eq!((status, hostile.connections()), (200, 1));
    }
}

/// Addresses that nobody is led to from the Internet.
const NOT_PUBLIC: [&str; 21] = [
    "10.0.0.7",
    "172.16.0.1",
    "192.168.0.1",
    "100.64.0.1",
    "169.254.169.254",
    "0.1.2.3",
    "224.0.0.1",
    "fd00::1",
    "fe80::1",
    "::ffff:10.0.0.7",
    "64:ff9b::a9fe:a9fe",
    "2002:a00:7::",
    "::ffff:0:10.0.0.7",
    "::ffff:0.0.0.0",
    "198.18.0.1",
    "2001:0:a00:7::1",
    // Metadata services, wherever else they look like.
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd20:ce::254",
];

#[tokio::test]
async fn pitfall_32_a_public_registry_leads_nobody_into_a_private_network() {
    let hostile = FakeRegistry::start().await;
    let upstream = FakeRegistry::start().await;
    for address in NOT_PUBLIC {
        let proxy = placed(&upstream, "192.0.2.1")
            .name("inside.example", &[address])
            .stand_in(address, hostile.address().ip());
        let proxy = proxy.start().await;
        let literal = if address.contains(':') {
            format!("[{address}]")
        } else {
            address.to_owned()
        };
        for host in [&literal, "inside.example", "INSIDE.example"] {
            let status = led(&upstream, &proxy, host, &hostile).await;
            assert_eq!(status, 502, "{host} at {address}");
        }
    }
    assert_eq!(upstream.log().len(), 3 * NOT_PUBLIC.len());
    assert_eq!(hostile.connections(), 0);
}

#[tokio::test]
async fn pitfall_32_a_second_hop_leads_no_further_than_the_first() {
    let hostile = FakeRegistry::start().await;
    let upstream = FakeRegistry::start().await;
    let host = BlobHost::start().await;
    let proxy = placed(&upstream, "192.0.2.1")
        .name("cdn.example", &["198.51.100.1"])
        .stand_in("198.51.100.1", host.address().ip())
        .start()
        .await;
    let blob = Blob::random(KIB);
    let link = host.serve(&blob);
    let place = format!("cdn.example:{}", host.address().port());
    let link = link.replace(&host.address().to_string(), &place);
    upstream.redirect(any(blob.digest()), 307, link);
    proxy.pull_blob(APP, &blob).await;

    let other = Blob::random(KIB);
    let link = format!("http://{place}/?{SIGNATURE}");
    upstream.redirect(any(other.digest()), 307, link);
    let inside = format!("http://{}/", hostile.address());
    host.redirect(any(""), 307, inside);
    let whole = proxy.blob(APP, other.digest()).whole().await;
    assert_eq!(whole.head.status, 502, "{}", whole.text());
    assert_eq!(host.log().len(), 2);
    assert_eq!(hostile.connections(), 0);
}

#[tokio::test]
async fn pitfall_32_of_a_name_with_several_addresses_only_the_allowed_are_dialled() {
    // Whoever controls a name can put both into one answer, or one into each.
    for order in [["10.0.0.7", "198.51.100.1"], ["198.51.100.1", "10.0.0.7"]] {
        let [host, hostile] = FakeRegistry::two_at(["127.0.0.2", "127.0.0.1"]).await;
        let upstream = FakeRegistry::start().await;
        let proxy = placed(&upstream, "192.0.2.1")
            .name("cdn.example", &order)
            .stand_in("198.51.100.1", host.address().ip())
            .stand_in("10.0.0.7", hostile.address().ip())
            .start()
            .await;
        let status = led(&upstream, &proxy, "cdn.example", &host).await;
        assert_eq!(status, 200, "{order:?}");
        // The other one is not what is left when the first has failed.
        host.stop().await;
        let status = led(&upstream, &proxy, "cdn.example", &hostile).await;
        assert_eq!(status, 502, "{order:?}");
        assert_eq!(hostile.connections(), 0, "{order:?}");
    }
}

#[tokio::test]
async fn a_registry_leads_to_where_it_is_itself_and_not_beyond() {
    for (own, target, status) in [
        ("10.0.0.1", "10.0.0.7", 200),
        ("10.0.0.1", "192.168.0.1", 200),
        ("fd00::1", "10.0.0.7", 200),
        ("10.0.0.1", "198.51.100.1", 200),
        ("100.64.0.1", "100.100.0.1", 200),
        ("10.0.0.1", "100.64.0.1", 502),
        ("10.0.0.1", "127.0.0.1", 502),
        ("127.0.0.9", "10.0.0.7", 502),
        // Where machines keep their secrets.
        ("10.0.0.1", "169.254.169.254", 502),
        ("169.254.1.1", "169.254.169.254", 502),
        ("fd00::1", "fd00:ec2::254", 502),
        ("100.64.0.1", "100.100.100.200", 502),
        ("168.63.129.1", "168.63.129.16", 502),
        ("192.0.0.192", "192.0.0.192", 502),
        ("0.0.0.0", "0.0.0.0", 502),
    ] {
        let (upstream, host) = (FakeRegistry::start().await, FakeRegistry::start().await);
        let proxy = placed(&upstream, own).stand_in(target, host.address().ip());
        let proxy = proxy.start().await;
        let found = led(&upstream, &proxy, target, &host).await;
        let expected = (status, usize::from(status == 200));
        assert_eq!((found, host.connections()), expected, "{own} to {target}");
    }
}

#[tokio::test]
async fn a_registry_that_is_here_and_there_leads_to_neither() {
    // Its name may be in the hands of whoever then redirects.
    for order in [["192.0.2.1", "127.0.0.1"], ["127.0.0.1", "192.0.2.1"]] {
        let hostile = FakeRegistry::start().await;
        let upstream = FakeRegistry::start().await;
        let proxy = placed(&upstream, "192.0.2.1").name("registry.example.com", &order);
        let proxy = proxy.start().await;
        let status = led(&upstream, &proxy, "127.0.0.1", &hostile).await;
        assert_eq!((status, hostile.connections()), (502, 0), "{order:?}");
    }
}

#[tokio::test]
async fn networks_that_are_listed_may_be_led_to() {
    for (networks, target, status) in [
        (&["10.0.0.0/8"][..], "10.0.0.7", 200),
        (&["10.0.0.0/8"], "::ffff:10.0.0.7", 200),
        (&["192.168.0.0/16", "fd00::/8"], "fd00::7", 200),
        (&["169.254.0.0/16"], "169.254.1.1", 200),
        (&["169.254.169.254"], "169.254.169.254", 200),
        // Whoever means the place where a cloud keeps secrets says so.
        (&["169.254.0.0/16"], "169.254.169.254", 502),
        (&["168.63.129.16"], "168.63.129.16", 200),
        (&["0.0.0.0/0"], "168.63.129.16", 502),
        (&["100.64.0.0/10"], "100.100.100.200", 502),
        (&["fd00::/8"], "fd00:ec2::254", 502),
        (&["fd00:ec2::254"], "fd00:ec2::254", 200),
        (&["::/0"], "64:ff9b::a9fe:a9fe", 502),
        (&["10.0.0.0/8"], "192.168.0.1", 502),
        (&["10.0.0.0/8"], "64:ff9b::a00:7", 502),
        (&["0.0.0.0/0"], "fd00::7", 502),
    ] {
        let (upstream, host) = (FakeRegistry::start().await, FakeRegistry::start().await);
        let proxy = placed(&upstream, "192.0.2.1")
            .upstream("redirect_networks", networks.to_vec())
            .name("inside.example", &[target])
            .stand_in(target, host.address().ip());
        let proxy = proxy.start().await;
        let found = led(&upstream, &proxy, "inside.example", &host).await;
        let expected = (status, usize::from(status == 200));
        assert_eq!((found, host.connections()), expected, "{target}");
    }
}

#[tokio::test]
async fn pitfall_31_a_token_server_that_is_named_is_where_the_registry_may_lead() {
    for (address, keys, expected) in [
        ("198.51.100.1", None, 1),
        ("10.0.0.7", None, 0),
        ("169.254.169.254", None, 0),
        ("10.0.0.7", Some("redirect_networks"), 1),
        // Whom the operator listed may be anywhere.
        ("10.0.0.7", Some("token_realms"), 1),
        ("169.254.169.254", Some("token_realms"), 1),
    ] {
        let tokens = TokenServer::start().await;
        let upstream = FakeRegistry::start().await;
        let realm = format!("http://auth.example.com:{}", tokens.address().port());
        let challenge = format!(r#"Bearer realm="{realm}/token",service="fake",scope="{{scope}}""#);
        upstream.challenge(&tokens, &challenge);
        let mut proxy = placed(&upstream, "192.0.2.1")
            .name("auth.example.com", &[address])
            .stand_in(address, tokens.address().ip());
        if let Some(key) = keys {
            let value = if key == "token_realms" {
                realm
            } else {
                "10.0.0.0/8".to_owned()
            };
            proxy = proxy.upstream(key, vec![value]);
        }
        let proxy = proxy.start().await;
        let blob = Blob::random(KIB);
        upstream.serve_blob(APP, &blob);
        let whole = proxy.blob(APP, blob.digest()).whole().await;
        let status = if expected == 1 { 200 } else { 502 };
        assert_eq!(whole.head.status, status, "{address} {keys:?}");
        assert_eq!(tokens.connections(), expected, "{address} {keys:?}");
    }
}

#[tokio::test]
async fn a_token_server_that_is_listed_does_not_say_where_the_registry_is() {
    let tokens = TokenServer::start().await;
    let (upstream, hostile) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let realm = format!("http://auth.example.com:{}", tokens.address().port());
    let challenge = format!(r#"Bearer realm="{realm}/token",service="fake",scope="{{scope}}""#);
    upstream.challenge(&tokens, &challenge);
    let proxy = placed(&upstream, "192.0.2.1")
        .upstream("token_realms", vec![realm])
        .name("auth.example.com", &["127.0.0.1"])
        .start()
        .await;
    let status = led(&upstream, &proxy, "127.0.0.1", &hostile).await;
    assert_eq!((status, tokens.exchanges()), (502, 1));
    assert_eq!(hostile.connections(), 0);
}

#[tokio::test]
async fn a_location_that_is_no_place_to_go_to_is_refused() {
    let elsewhere = FakeRegistry::start().await;
    let address = elsewhere.address();
    for location in [
        "file:///etc/passwd".to_owned(),
        "file:/etc/passwd".to_owned(),
        format!("ftp://{address}/"),
        format!("gopher://{address}/"),
        format!("http://user:s3cr3t@{address}/"),
        format!("http://user@{address}/"),
        format!("http://@{address}/"),
        "http://".to_owned(),
        "http:".to_owned(),
        "data:text/plain,x".to_owned(),
        "mailto:nobody".to_owned(),
    ] {
        let (status, took) = answered(&location).await;
        assert_eq!(status, 502, "{location}");
        assert!(took < Duration::from_secs(5), "{location}: {took:?}");
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn pitfall_32_pitfall_38_neither_signatures_nor_tokens_are_told_to_anybody() {
    let tokens = TokenServer::start().await;
    let upstream = FakeRegistry::start().await;
    upstream.require_token(&tokens);
    let host = BlobHost::start().await;
    let names = ["good", "cut", "gone", "led", "user", "other"];
    let blobs = names.map(|_| Blob::random(2 * MIB));
    for blob in &blobs {
        upstream.redirect(any(blob.digest()), 307, host.serve(blob));
    }
    let [good, cut, gone, led, user, other] = &blobs;
    host.once(get(cut.digest()), Fault::CutAfter(MIB));
    host.always(any(gone.digest()), Fault::Status(403));
    for (blob, place) in [(led, "10.0.0.1"), (user, "user:s3cr3t@127.0.0.1")] {
        let location = format!("http://{place}/?{SIGNATURE}");
        upstream.redirect(any(blob.digest()), 307, location);
    }
    upstream.redirect(any(other.digest()), 307, host.link(good.digest()));
    let image = Image::random(&[KIB]);
    upstream.tag(APP, "v1", &image.manifest);
    let builder = TestProxy::in_front_of(&upstream).set("log_level", "trace");
    let binary = Binary::start(&builder).await;

    let mut said = String::new();
    for request in [good, cut, gone, led, user, other].map(|it| binary.blob(APP, it.digest())) {
        let whole = request.send().await.whole().await;
        said += &format!("{:?}", whole.head);
        if whole.head.status != 200 {
            said += &whole.text();
        }
    }
    binary.pull_manifest(APP, "v1").await;
    tokens.expire();
    tokens.always(any(""), Fault::Html200);
    let late = Blob::random(KIB);
    let whole = binary.blob(APP, late.digest()).whole().await;
    assert_eq!(whole.head.status, 502, "{}", whole.text());
    said += &whole.text();
    said += &binary.metrics().await;

    // The log is of the level that was asked for, and has the reason for the one that was not dialled.
    let is_redirect = |line: &serde_json::Value| {
        field(line, "message").and_then(serde_json::Value::as_str) == Some("redirected")
    };
    binary.wait_for_log(is_redirect).await;
    binary
        .wait_for_log(|line| line.to_string().contains("may not lead to"))
        .await;
    for line in binary.log() {
        said += &line.to_string();
    }
    for secret in ["s3cr3t", TOKEN, SIGNATURE] {
        assert!(!said.contains(secret), "{secret}: {said}");
    }
}
