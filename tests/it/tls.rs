//! TLS between clients and us: certificates of both sides, versions, rotation, and all that holds in the clear.

use std::io;
use std::net::SocketAddr;

use rcgen::SanType;
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::tls::{TLS12, TLS13};
use crate::harness::{
    APP, At, Authority, Binary, Blob, Connection, End, FakeRegistry, Fault, Identity, KIB, MIB,
    NAME, ProxyBuilder, TestProxy, TlsClient, get, poll, within,
};

/// What a proxy shows, and who vouches for it.
struct Scene {
    upstream: FakeRegistry,
    authority: Authority,
    builder: ProxyBuilder,
}

impl Scene {
    async fn new() -> Self {
        let upstream = FakeRegistry::start().await;
        let authority = Authority::new();
        let builder = TestProxy::in_front_of(&upstream);
        let builder = encrypted(builder, "tls", &authority.vouch(&[NAME]));
        Self {
            upstream,
            authority,
            builder,
        }
    }

    /// Asks clients for certificates that `clients` vouches for.
    fn asking(mut self, wanted: &str, clients: &Authority) -> Self {
        let file = self.builder.write("clients.crt", &clients.pem());
        self.builder = self
            .builder
            .set("tls.client_certificates", wanted)
            .set("tls.client_ca_file", file);
        self
    }
}

/// With these files in a table.
fn encrypted(builder: ProxyBuilder, table: &str, identity: &Identity) -> ProxyBuilder {
    let (certificate, key) = write(&builder, table, identity);
    builder
        .set(&format!("{table}.certificate"), certificate)
        .set(&format!("{table}.key"), key)
}

/// Writes a certificate and its key where this table has them.
fn write(builder: &ProxyBuilder, table: &str, identity: &Identity) -> (String, String) {
    let certificate = builder.write(&format!("{table}.crt"), &identity.certificate_pem);
    let key = builder.write(&format!("{table}.key"), &identity.key_pem);
    (certificate, key)
}

const PING: &[u8] = b"GET /v2/ HTTP/1.1\r\nHost: cache.example\r\n\r\n";

/// The status of a ping, if it comes to that. With TLS 1.3 a client learns only then that it was refused.
async fn ping(client: &TlsClient, address: SocketAddr) -> io::Result<u16> {
    let mut connection = Connection::over(client.try_open(address).await?);
    connection.write(PING).await?;
    Ok(connection.try_head("GET").await?.head.status)
}

#[tokio::test]
async fn pulls_over_tls_are_like_any_other() {
    let Scene {
        upstream,
        authority,
        builder,
    } = Scene::new().await;
    let proxy = builder.start().await;
    let blob = Blob::random(3 * MIB + 17);
    upstream.serve_blob(APP, &blob);
    for versions in [TLS12, TLS13] {
        for protocols in [&[][..], &["http/1.1"], &["h2", "http/1.1"]] {
            let client = authority.client().speaking(versions).offering(protocols);
            let pull = proxy.blob(APP, blob.digest());
            let answer = pull.send_on(client.open(proxy.registry).await).await;
            let (whole, connection) = answer.whole_and_connection().await;
            whole.is(200, blob.bytes());
            let part = pull.range("bytes=1048570-2097160");
            let (part, connection) = part.send_on(connection).await.whole_and_connection().await;
            part.is(206, &blob.bytes()[1_048_570..=2_097_160]);
            let head = proxy.head(format!("/v2/{APP}/blobs/{}", blob.digest()));
            let whole = head.send_on(connection).await.whole().await;
            assert_eq!(whole.is(200, b"").content_length(), Some(blob.len()));
        }
    }
    let sent = proxy.metric("layerhold_response_bytes_total", &[]).await;
    let part = 2_097_161 - 1_048_570;
    assert_eq!(sent, ((blob.len() + part) * 6) as f64);
    let ends = |end| [("port", "registry"), ("end", end)];
    let handshakes = "layerhold_tls_handshakes_total";
    assert_eq!(proxy.metric(handshakes, &ends("complete")).await, 6.0);
    let expiry = "layerhold_tls_certificate_expiry_timestamp_seconds";
    assert!(proxy.metric(expiry, &[("port", "registry")]).await > 1.8e9);
    // Who wants nothing else than HTTP/2 is not served what it does not speak.
    let client = authority.client().offering(&["h2"]);
    assert!(ping(&client, proxy.registry).await.is_err());
    assert_eq!(proxy.metric(handshakes, &ends("failed")).await, 1.0);
}

#[tokio::test]
async fn who_makes_room_for_another_gets_the_rest_of_its_answer() {
    let Scene {
        upstream,
        authority,
        builder,
    } = Scene::new().await;
    let proxy = builder.set("limits.connections_per_source", 1);
    let proxy = proxy.start().await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    let client = authority.client();
    let mut pull = client.try_open(proxy.registry).await.unwrap();
    let target = format!("/v2/{APP}/blobs/{}", blob.digest());
    let head = format!("GET {target} HTTP/1.1\r\nHost: cache\r\n\r\n");
    pull.write_all(head.as_bytes()).await.unwrap();
    pull.flush().await.unwrap();
    // Until all of it was handed over: what is missing is on its way, and some of it has not left.
    let (mut received, mut piece) = (Vec::new(), vec![0; 64 * KIB]);
    let complete = [("end", "complete")];
    while proxy.metric("layerhold_responses_total", &complete).await < 1.0 {
        let read = within("a piece", pull.read(&mut piece)).await.unwrap();
        received.extend_from_slice(&piece[..read]);
    }
    assert!(received.len() < blob.bytes().len());
    assert_eq!(ping(&client, proxy.registry).await.unwrap(), 200);
    let head = received
        .windows(4)
        .position(|it| it == b"\r\n\r\n")
        .unwrap()
        + 4;
    let mut rest = vec![0; head + blob.bytes().len() - received.len()];
    within("the rest", pull.read_exact(&mut rest))
        .await
        .unwrap();
    received.extend_from_slice(&rest);
    assert!(received.ends_with(blob.bytes()));
}

#[tokio::test]
async fn nothing_older_than_tls_1_2_is_spoken() {
    let proxy = Scene::new().await.builder.start().await;
    // A ClientHello of TLS 1.1 (RFC 4346 §7.4.1.2) with one cipher suite.
    let mut hello = vec![3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x13, 1, 0]);
    let len = u8::try_from(hello.len()).unwrap();
    let mut record = vec![22, 3, 1, 0, len + 4, 1, 0, 0, len];
    record.extend(hello);
    let mut connection = Connection::open(proxy.registry).await;
    connection.write(&record).await.unwrap();
    let said = connection.rest().await;
    // A fatal alert (2), and nothing but that: protocol_version (70), or handshake_failure (40).
    assert!(
        matches!(said[..], [21, 3, _, 0, 2, 2, 70 | 40]),
        "{said:02x?}"
    );
}

#[tokio::test]
async fn pitfall_48_a_renewed_certificate_is_shown_without_a_restart() {
    let Scene {
        authority, builder, ..
    } = Scene::new().await;
    let proxy = builder.start().await;
    let kept = authority.client().open(proxy.registry).await;

    let other = Authority::new();
    write(proxy.builder(), "tls", &other.vouch(&[NAME]));
    assert_eq!(ping(&other.client(), proxy.registry).await.unwrap(), 200);
    assert!(ping(&authority.client(), proxy.registry).await.is_err());
    // What is there already goes on.
    let whole = proxy.get("/v2/").send_on(kept).await.whole().await;
    whole.is(200, b"{}");
}

#[tokio::test]
async fn pitfall_48_half_a_renewal_changes_nothing_and_is_told_once() {
    let Scene {
        authority, builder, ..
    } = Scene::new().await;
    let binary = Binary::start(&builder).await;
    let client = authority.client();
    let told = |message: &str| {
        let log = binary.log();
        log.iter().filter(|it| it["message"] == message).count()
    };
    let kept = "certificate could not be read again, the last one is used";
    let next = authority.vouch(&[NAME]);
    for broken in [
        &next.certificate_pem,
        "",
        "-----BEGIN CERTIFICATE-----\nnot done",
    ] {
        let before = told(kept);
        builder.write("tls.crt", broken);
        for _ in 0..3 {
            assert_eq!(ping(&client, binary.registry).await.unwrap(), 200);
        }
        poll("the complaint", async || {
            (told(kept) > before).then_some(())
        })
        .await;
        assert_eq!(told(kept), before + 1);
    }
    assert_eq!(told("certificate read again"), 0);
    write(&builder, "tls", &next);
    assert_eq!(ping(&client, binary.registry).await.unwrap(), 200);
    poll("the news", async || {
        (told("certificate read again") == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_reload_takes_the_files_that_the_tables_then_name() {
    let Scene {
        authority, builder, ..
    } = Scene::new().await;
    let binary = Binary::start(&builder).await;
    let other = Authority::new();
    let next = other.vouch(&[NAME]);
    let certificate = builder.write("next.crt", &next.certificate_pem);
    let key = builder.write("next.key", &next.key_pem);
    let next = builder.clone().set("tls.certificate", certificate);
    next.file();
    binary.hang_up();
    let line = binary
        .wait_for_log(|it| it["level"] == "ERROR" && it["error"].is_string())
        .await;
    let error = line["error"].as_str().unwrap();
    assert!(
        error.starts_with("tls: ") && error.contains("is no key for"),
        "{error}"
    );
    assert_eq!(
        ping(&authority.client(), binary.registry).await.unwrap(),
        200
    );

    next.set("tls.key", key).file();
    binary.hang_up();
    binary
        .wait_for_log(|it| it["message"] == "configuration reloaded")
        .await;
    assert_eq!(ping(&other.client(), binary.registry).await.unwrap(), 200);
}

#[tokio::test]
async fn files_that_do_not_belong_together_are_refused_with_both_names() {
    let scene = Scene::new().await;
    let other = scene.authority.vouch(&[NAME]);
    for table in ["tls", "admin_tls"] {
        let builder = encrypted(
            scene.builder.clone(),
            table,
            &scene.authority.vouch(&[NAME]),
        );
        builder.write(&format!("{table}.key"), &other.key_pem);
        let (status, text) = Binary::refused(&builder).await;
        assert_eq!(status.code(), Some(64), "{text}");
        let start = format!("layerhold: {table}: ");
        assert!(
            text.starts_with(&start) && text.lines().count() == 1,
            "{text}"
        );
        let names = [format!("{table}.key is no key for"), format!("{table}.crt")];
        assert!(names.iter().all(|it| text.contains(it)), "{text}");
        assert_eq!(Binary::check(&builder).await.0.code(), Some(64));
        write(&builder, table, &other);
        assert_eq!(Binary::check(&builder).await.0.code(), Some(0));
    }
}

#[tokio::test]
async fn clients_show_a_certificate_where_they_must() {
    let clients = Authority::new();
    let good = clients.vouch(&["node.example"]);
    let ended = clients.vouched_once(&["node.example"]);
    let strange = Authority::new().vouch(&["node.example"]);
    for (wanted, nobody_may) in [("optional", true), ("required", false)] {
        let scene = Scene::new().await.asking(wanted, &clients);
        let proxy = scene.builder.start().await;
        for versions in [TLS12, TLS13] {
            let client = scene.authority.client().speaking(versions);
            for (shown, may) in [
                (None, nobody_may),
                (Some(&good), true),
                (Some(&ended), false),
                (Some(&strange), false),
            ] {
                let client = shown.map_or(client.clone(), |it| client.clone().showing(it));
                // Nor is a second try a way around it.
                for _ in 0..2 {
                    let is_let_in = ping(&client, proxy.registry).await.is_ok();
                    assert_eq!(is_let_in, may, "{wanted} {}", shown.is_some());
                }
            }
        }
        let refused = proxy
            .metric("layerhold_tls_handshakes_total", &[("end", "certificate")])
            .await;
        assert_eq!(refused, if nobody_may { 8.0 } else { 12.0 });
    }
}

#[tokio::test]
async fn who_has_the_key_of_a_port_may_not_pull_by_it() {
    let clients = Authority::new();
    for wanted in ["optional", "required"] {
        let scene = Scene::new().await.asking(wanted, &clients);
        let ours = scene.authority.vouch(&[NAME]);
        write(&scene.builder, "tls", &ours);
        let proxy = scene.builder.start().await;
        let client = scene.authority.client().showing(&ours);
        assert!(ping(&client, proxy.registry).await.is_err(), "{wanted}");
    }
}

#[tokio::test]
async fn pitfall_48_those_who_vouch_for_clients_are_changed_without_a_restart() {
    let (former, next) = (Authority::new(), Authority::new());
    let scene = Scene::new().await.asking("required", &former);
    let proxy = scene.builder.clone().start().await;
    let of = |vouching: &Authority| {
        let client = scene.authority.client();
        client.showing(&vouching.vouch(&["node.example"]))
    };
    let (early, late) = (of(&former), of(&next));
    assert_eq!(ping(&early, proxy.registry).await.unwrap(), 200);
    assert!(ping(&late, proxy.registry).await.is_err());
    // Both, while certificates are exchanged, and then only the new one.
    let both = format!("{}{}", former.pem(), next.pem());
    scene.builder.write("clients.crt", &both);
    for client in [&early, &late] {
        assert_eq!(ping(client, proxy.registry).await.unwrap(), 200);
    }
    scene.builder.write("clients.crt", &next.pem());
    assert!(ping(&early, proxy.registry).await.is_err());
    assert_eq!(ping(&late, proxy.registry).await.unwrap(), 200);
}

#[tokio::test]
async fn pitfall_48_a_mounted_secret_is_exchanged_as_one() {
    let Scene {
        authority, builder, ..
    } = Scene::new().await;
    let volume = tempfile::tempdir().unwrap();
    // As Kubernetes does: each version in a folder of its own, all names through one link that is replaced.
    let publish = |version: &str, identity: &Identity| {
        let folder = volume.path().join(version);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("tls.crt"), &identity.certificate_pem).unwrap();
        std::fs::write(folder.join("tls.key"), &identity.key_pem).unwrap();
        let link = volume.path().join("..data_tmp");
        std::os::unix::fs::symlink(version, &link).unwrap();
        rustix::fs::rename(&link, volume.path().join("..data")).unwrap();
    };
    publish("..1", &authority.vouch(&[NAME]));
    let mut builder = builder;
    for (key, file) in [("tls.certificate", "tls.crt"), ("tls.key", "tls.key")] {
        let name = volume.path().join(file);
        std::os::unix::fs::symlink(format!("..data/{file}"), &name).unwrap();
        builder = builder.set(key, name.to_str().unwrap());
    }
    let proxy = builder.start().await;
    assert_eq!(
        ping(&authority.client(), proxy.registry).await.unwrap(),
        200
    );
    let other = Authority::new();
    publish("..2", &other.vouch(&[NAME]));
    std::fs::remove_dir_all(volume.path().join("..1")).unwrap();
    assert_eq!(ping(&other.client(), proxy.registry).await.unwrap(), 200);
}

#[tokio::test]
async fn invariant_10_a_source_has_so_many_places_over_tls_as_well() {
    let scene = Scene::new().await;
    let builder = scene.builder.set("limits.connections_per_source", 2);
    let proxy = builder.start().await;
    // One says nothing at all, one is within its handshake.
    let silent = Connection::open(proxy.registry).await;
    proxy
        .wait_for_metric("layerhold_connections", &[], |it| it == 1.0)
        .await;
    let mut dawdling = Connection::open(proxy.registry).await;
    dawdling.write(&[22, 3, 1, 2]).await.unwrap();
    proxy
        .wait_for_metric("layerhold_connections", &[], |it| it == 2.0)
        .await;
    let client = scene.authority.client();
    let first = client.open(proxy.registry).await;
    assert!(silent.closed().await);
    let mut second = client.open(proxy.registry).await;
    assert_ne!(dawdling.end().await, End::Complete);
    // Who asks for something waits less long than who does not.
    let whole = proxy
        .get("/v2/")
        .send_on(first)
        .await
        .whole_and_connection();
    let (_, first) = whole.await;
    let third = client.open(proxy.registry).await;
    assert!(second.write(PING).await.is_err() || second.closed().await);
    for connection in [first, third] {
        let whole = proxy.get("/v2/").send_on(connection).await.whole().await;
        whole.is(200, b"{}");
    }
}

#[tokio::test]
async fn who_has_not_the_key_of_a_certificate_is_nobody() {
    let clients = Authority::new();
    let theirs = clients.vouch(&["node.example"]);
    for wanted in ["optional", "required"] {
        let scene = Scene::new().await.asking(wanted, &clients);
        let proxy = scene.builder.start().await;
        for versions in [TLS12, TLS13] {
            let client = scene.authority.client().speaking(versions);
            let honest = client.clone().showing(&theirs);
            assert_eq!(ping(&honest, proxy.registry).await.unwrap(), 200);
            let pretended = client.pretending(&theirs);
            assert!(ping(&pretended, proxy.registry).await.is_err(), "{wanted}");
        }
    }
}

#[tokio::test]
async fn a_session_is_taken_up_again_only_where_nobody_shows_a_certificate() {
    let clients = Authority::new();
    let theirs = clients.vouch(&["node.example"]);
    for wanted in [None, Some("optional"), Some("required")] {
        let scene = Scene::new().await;
        let scene = match wanted {
            Some(wanted) => scene.asking(wanted, &clients),
            None => scene,
        };
        let again = match wanted {
            Some(_) => HandshakeKind::Full,
            None => HandshakeKind::Resumed,
        };
        let proxy = scene.builder.start().await;
        for versions in [TLS12, TLS13] {
            let client = scene.authority.client().speaking(versions);
            let client = client.showing(&theirs).remembering();
            for expected in [HandshakeKind::Full, again] {
                let stream = client.try_open(proxy.registry).await.unwrap();
                let kind = stream.get_ref().1.handshake_kind();
                assert_eq!(kind, Some(expected), "{wanted:?}");
                // What it can be taken up with comes before the answer.
                let mut connection = Connection::over(stream);
                connection.write(PING).await.unwrap();
                assert_eq!(connection.try_head("GET").await.unwrap().head.status, 200);
            }
        }
    }
}

#[tokio::test]
async fn the_log_has_the_name_of_who_asks() {
    let clients = Authority::new();
    let scene = Scene::new().await.asking("optional", &clients);
    let binary = Binary::start(&scene.builder).await;
    let text = |it: &str| it.try_into().unwrap();
    let dns = || SanType::DnsName(text("node.example"));
    let uri = || SanType::URI(text("spiffe://example/node"));
    let mail = || SanType::Rfc822Name(text("ops@example.com"));
    for (seen, (common, names, expected)) in [
        ("robot", vec![], Some("robot")),
        ("robot", vec![mail()], Some("ops@example.com")),
        ("robot", vec![mail(), dns()], Some("node.example")),
        (
            "robot",
            vec![dns(), mail(), uri()],
            Some("spiffe://example/node"),
        ),
        (
            "robot",
            vec![SanType::IpAddress([127, 0, 0, 1].into())],
            Some("robot"),
        ),
        // One kind of name is not given out as another.
        ("spiffe://example/node", vec![], None),
        ("ops@example.com", vec![], None),
        (
            "robot",
            vec![SanType::DnsName(text("ops@example.com"))],
            None,
        ),
        (
            "robot",
            vec![SanType::Rfc822Name(text("spiffe://example@node"))],
            None,
        ),
        // What would tear a line apart is no name.
        ("ro\nbot", vec![], None),
    ]
    .into_iter()
    .enumerate()
    {
        let shown = clients.vouch_for(common, names);
        let client = scene.authority.client().showing(&shown);
        let status = if expected.is_some() { 200 } else { 401 };
        assert_eq!(ping(&client, binary.registry).await.unwrap(), status);
        let line = poll("the line", async || {
            let log = binary.log();
            let mut lines = log.into_iter().filter(|it| it["message"] == "request");
            lines.nth(seen)
        })
        .await;
        assert_eq!(line["certificate"].as_str(), expected, "{line}");
        assert_eq!(line["identity"].as_str(), expected, "{line}");
        assert_eq!(line["tls"], true);
    }
}

#[tokio::test]
async fn who_speaks_http_in_the_clear_is_told_to_speak_https() {
    let scene = Scene::new().await;
    let proxy = scene.builder.start().await;
    let whole = proxy.get("/v2/").whole().await;
    whole.is(400, b"this port speaks https\n");
    // Neither HTTP nor TLS, and nothing at all.
    for bytes in [&b"\0\0\0\0"[..], b""] {
        let mut connection = Connection::open(proxy.registry).await;
        connection.write(bytes).await.unwrap();
        connection.finish().await;
        assert!(connection.closed().await);
    }
    let ends = |end| [("port", "registry"), ("end", end)];
    let handshakes = "layerhold_tls_handshakes_total";
    proxy
        .wait_for_metric(handshakes, &ends("silent"), |it| it == 1.0)
        .await;
    assert_eq!(proxy.metric(handshakes, &ends("plain")).await, 2.0);
    assert_eq!(proxy.metric("layerhold_requests_total", &[]).await, 0.0);
}

#[tokio::test]
async fn who_speaks_tls_to_a_port_in_the_clear_is_not_kept() {
    let (_upstream, proxy) = crate::harness::pair().await;
    let client = Authority::new().client();
    let error = client.try_open(proxy.registry).await.unwrap_err();
    assert_ne!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    proxy
        .wait_for_metric("layerhold_connections", &[], |it| it == 0.0)
        .await;
}

#[tokio::test]
async fn invariant_10_a_client_that_dawdles_over_its_handshake_is_dropped() {
    let scene = Scene::new().await;
    let builder = scene.builder.set("timeouts.header_read", "300ms");
    let proxy = builder.set("limits.connections", 1).start().await;
    for bytes in [&b""[..], &[22, 3, 1], &[22, 3, 1, 1, 0, 1, 0]] {
        let mut connection = Connection::open(proxy.registry).await;
        connection.write(bytes).await.unwrap();
        // The only place is its own for as long.
        assert!(connection.closed().await);
    }
    let labels = [("port", "registry"), ("end", "slow")];
    let slow = proxy
        .metric("layerhold_tls_handshakes_total", &labels)
        .await;
    assert_eq!(slow, 3.0);
    let client = scene.authority.client();
    assert_eq!(ping(&client, proxy.registry).await.unwrap(), 200);
}

#[tokio::test]
async fn invariant_12_stopping_does_not_wait_for_handshakes() {
    let proxy = Scene::new().await.builder.start().await;
    let mut connection = Connection::open(proxy.registry).await;
    connection.write(&[22, 3, 1]).await.unwrap();
    proxy
        .wait_for_metric("layerhold_connections", &[], |it| it == 1.0)
        .await;
    proxy.shut_down();
    assert!(connection.closed().await);
    proxy.stopped().await;
}

#[tokio::test]
async fn invariant_06_wrong_bytes_end_without_a_word_over_tls() {
    let Scene {
        upstream,
        authority,
        builder,
    } = Scene::new().await;
    let proxy = builder.start().await;
    for versions in [TLS12, TLS13] {
        let blob = Blob::random(2 * MIB);
        upstream.serve_blob(APP, &blob);
        upstream.once(get(blob.digest()), Fault::Corrupt(MIB));
        let client = authority.client().speaking(versions);
        let connection = client.open(proxy.registry).await;
        let pull = proxy.blob(APP, blob.digest());
        let whole = pull.send_on(connection).await.whole().await;
        // The end of TLS would come before the reset, and be a cut here.
        assert_eq!((whole.head.status, whole.end), (200, End::Reset));
        assert!(whole.bytes.len() < blob.len());
    }
    proxy.wait_for_fills("mismatch", 2.0).await;
}

#[tokio::test]
async fn invariant_06_the_tail_waits_for_the_digest_over_tls() {
    let Scene {
        upstream,
        authority,
        builder,
    } = Scene::new().await;
    let proxy = builder.start().await;
    let blob = Blob::random(2 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(blob.len() - 1));
    let connection = authority.client().open(proxy.registry).await;
    let pull = proxy.blob(APP, blob.digest());
    let mut answer = pull.send_on(connection).await;
    gate.reached().await;
    let read = answer.read(MIB).await;
    assert!(blob.bytes().starts_with(&read));
    gate.open();
    answer.continues(&blob, MIB).await;
}

#[tokio::test]
async fn invariant_10_a_client_that_takes_nothing_over_tls_is_dropped() {
    let scene = Scene::new().await;
    let builder = scene.builder.set("timeouts.write_idle", "300ms");
    let proxy = builder.start().await;
    let blob = Blob::random(32 * MIB);
    scene.upstream.serve_blob(APP, &blob);
    let client = scene.authority.client();
    let pull = proxy.blob(APP, blob.digest());
    let fast = pull.send_on(client.open(proxy.registry).await).await;
    fast.is(&blob).await;
    let mut slow = pull.send_on(client.open(proxy.registry).await).await;
    slow.read(KIB).await;
    proxy
        .wait_for_metric("layerhold_responses_total", &[("end", "abandoned")], |it| {
            it == 1.0
        })
        .await;
    let sent = proxy.metric("layerhold_response_bytes_total", &[]).await;
    assert!(sent < (2 * blob.len()) as f64);
    assert_ne!(slow.whole().await.end, End::Complete);
}

#[tokio::test]
async fn a_proxy_header_comes_before_tls() {
    let scene = Scene::new().await;
    let builder = scene
        .builder
        .set("trusted_proxies", vec!["127.0.0.1"])
        .set("proxy_protocol", true);
    let binary = Binary::start(&builder).await;
    let mut tcp = tokio::net::TcpStream::connect(binary.registry)
        .await
        .unwrap();
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend([203, 0, 113, 9, 127, 0, 0, 1, 0x10, 0xe1, 0x13, 0x88]);
    tcp.write_all(&header).await.unwrap();
    let tls = scene.authority.client().over(tcp).await.unwrap();
    let mut connection = Connection::over(tls);
    connection.write(PING).await.unwrap();
    connection.head("GET").await.whole().await.is(200, b"{}");
    let line = binary.wait_for_log(|it| it["message"] == "request").await;
    assert_eq!(line["peer"], "203.0.113.9:4321");
    // Who comes without one is not asked to speak TLS.
    assert!(
        scene
            .authority
            .client()
            .try_open(binary.registry)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn operators_commands_know_the_admin_port_by_its_files() {
    let upstream = FakeRegistry::start().await;
    let authority = Authority::new();
    let clients = Authority::new();
    // Not a name that the commands would look for.
    let identity = authority.vouch(&[NAME]);
    let builder = encrypted(TestProxy::in_front_of(&upstream), "admin_tls", &identity);
    let ca_file = builder.write("clients.crt", &clients.pem());
    let asking = builder
        .clone()
        .set("admin_tls.client_certificates", "required")
        .set("admin_tls.client_ca_file", ca_file);
    for builder in [builder, asking] {
        let binary = Binary::start(&builder).await;
        let admin = binary.admin.to_string();
        // The same file, with the port that it has now.
        let known = builder.clone().set("admin_listen", admin.as_str());
        let file = known.file();
        let config = ["--config", file.to_str().unwrap()];
        let (code, told, error) =
            Binary::command(&["purge", config[0], config[1], "one.example/team/app:v1"]).await;
        assert_eq!(code, Some(0), "{error}");
        assert!(told.contains("nothing was stored"), "{told}");
        let (code, told, error) = Binary::command(&["verify", config[0], config[1]]).await;
        assert_eq!(code, Some(0), "{error}");
        assert!(told.contains("nothing is wrong"), "{told}");
        // From elsewhere it is not known, and nothing is told to whoever it is.
        let named = format!("https://{admin}");
        let (code, _, error) = Binary::command(&["purge", "--admin", &named, "sha256:0"]).await;
        assert_ne!(code, Some(0), "{error}");
        let digest = format!("sha256:{}", "0".repeat(64));
        let (code, _, error) = Binary::command(&["purge", "--admin", &named, &digest]).await;
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains("no proxy answers at"), "{error}");
        binary.kill().await;
    }
}

#[tokio::test]
async fn the_admin_port_speaks_tls_by_a_table_of_its_own() {
    let upstream = FakeRegistry::start().await;
    let authority = Authority::new();
    let identity = authority.vouch(&[NAME]);
    let builder = encrypted(TestProxy::in_front_of(&upstream), "admin_tls", &identity);
    let proxy = builder.start().await;
    proxy.get("/v2/").whole().await.is(200, b"{}");
    let plain = proxy.admin("/livez").await;
    plain.is(400, b"this port speaks https\n");
    let mut connection = authority.client().open(proxy.admin).await;
    connection
        .write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let metrics = connection.head("GET").await.whole().await.text();
    let line = "layerhold_tls_handshakes_total{end=\"complete\",port=\"admin\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    let other = Authority::new();
    write(proxy.builder(), "admin_tls", &other.vouch(&[NAME]));
    assert!(other.client().try_open(proxy.admin).await.is_ok());
}
