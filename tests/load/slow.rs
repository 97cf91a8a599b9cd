//! Clients that take their time over a body.

use crate::crowd::{SlowReaders, blob_head};
use crate::harness::{
    APP, At, Authority, Binary, Blob, FakeRegistry, KIB, MIB, NAME, ProxyBuilder, TestProxy, get,
};
use crate::process::{Usage, eventually, is_as_before, open_files, turn, waiting_bytes};

#[tokio::test]
async fn pitfall_26_a_thousand_slow_readers_keep_nobody_waiting() {
    let _turn = turn().await;
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("timeouts.write_idle", "10s");
    let binary = Binary::start(&builder).await;
    let [hit, cold, other] = [(); 3].map(|()| Blob::random(48 * MIB));
    for blob in [&hit, &cold, &other] {
        upstream.serve_blob(APP, blob);
    }
    binary.wait_for_hit(APP, &hit).await;
    let before = Usage::of(&binary);

    let mut of_hit = SlowReaders::start(binary.registry, READERS / 2, &hit).await;
    let gate = upstream.hold(get(cold.digest()), At::Byte(24 * MIB));
    let mut of_cold = SlowReaders::start(binary.registry, READERS / 2, &cold).await;
    gate.reached().await;
    eventually("all to follow", async || {
        let followers = binary.metric("layerhold_followers", &[]).await;
        let all = (READERS / 2) as f64;
        (followers >= all)
            .then_some(())
            .ok_or(followers.to_string())
    })
    .await;
    gate.open();
    // The fill goes at its own speed, and so does everybody else.
    binary.wait_for_fills("published", 2.0).await;
    binary.pull_blob(APP, &cold).await;
    binary.pull_blob(APP, &other).await;

    // Several times as long as a client may take nothing.
    eventually("all to be served", async || {
        let least = of_hit.least().min(of_cold.least());
        (least >= 28 * KIB).then_some(()).ok_or(least.to_string())
    })
    .await;
    let usage = Usage::of(&binary);
    usage.costs(before, ("slow readers", READERS), 256 * KIB, 1.0);
    let waiting = waiting_bytes(binary.registry);
    let (all, most) = (waiting.iter().sum::<usize>(), waiting.iter().max().unwrap());
    println!(
        "{READERS} slow readers: {} KiB each in the kernel",
        all / READERS / KIB
    );
    assert!(*most <= 512 * KIB, "{most}");
    drop((of_hit, of_cold));
    is_as_before(&binary, before).await;
}

#[tokio::test]
async fn pitfall_49_a_thousand_slow_readers_of_one_file_cost_little() {
    let _turn = turn().await;
    let scene = Scene::start(|it| it).await;
    let pull = async |blob: &Blob| {
        scene.binary.pull_blob(APP, blob).await;
    };
    let before = scene.before(&pull).await;
    let readers = SlowReaders::start(scene.binary.registry, READERS, &scene.blob).await;
    // What is sent from a file is in no memory of ours.
    let crowd = ("slow readers of a file", 64 * KIB, 14 * KIB);
    scene.cost(before, crowd, readers, &pull).await;
}

#[tokio::test]
async fn pitfall_49_a_thousand_slow_readers_over_tls_cost_their_buffers() {
    let _turn = turn().await;
    let authority = Authority::new();
    let identity = authority.vouch(&[NAME]);
    let scene = Scene::start(|it| {
        let certificate = it.write("tls.crt", &identity.certificate_pem);
        let key = it.write("tls.key", &identity.key_pem);
        it.set("tls.certificate", certificate).set("tls.key", key)
    })
    .await;
    let tls = authority.client();
    let pull = async |blob: &Blob| {
        let mut connection = tls.open(scene.binary.registry).await;
        connection.write(blob_head(blob).as_bytes()).await.unwrap();
        connection.head("GET").await.is(blob).await;
    };
    let before = scene.before(&pull).await;
    let readers = SlowReaders::start_tls(scene.binary.registry, READERS, (&scene.blob, &tls));
    // Two pieces of the file, as one that is not sent from there; what TLS has of them, encrypted; and what is its own.
    let crowd = ("slow readers over TLS", (256 + 128 + 64) * KIB, 224 * KIB);
    scene.cost(before, crowd, readers.await, &pull).await;
}

/// A proxy that has a blob far larger than what any socket holds.
struct Scene {
    upstream: FakeRegistry,
    binary: Binary,
    blob: Blob,
    other: Blob,
}

impl Scene {
    async fn start(with: impl FnOnce(ProxyBuilder) -> ProxyBuilder) -> Self {
        let upstream = FakeRegistry::start().await;
        let builder = TestProxy::in_front_of(&upstream).set("timeouts.write_idle", "10s");
        let binary = Binary::start(&with(builder)).await;
        let [blob, other] = [(); 2].map(|()| Blob::random(48 * MIB));
        upstream.serve_blob(APP, &blob);
        upstream.serve_blob(APP, &other);
        Self {
            upstream,
            binary,
            blob,
            other,
        }
    }

    /// What the process has when there is nobody but the blob.
    async fn before(&self, pull: impl AsyncFn(&Blob)) -> Usage {
        pull(&self.blob).await;
        self.binary.wait_for_fills("published", 1.0).await;
        pull(&self.blob).await;
        Usage::of(&self.binary)
    }

    /// Checks what each of the readers costs, at most so much memory of the process, while all of them wait.
    async fn cost(
        &self,
        before: Usage,
        (kind, memory, taken): (&str, usize, usize),
        mut readers: SlowReaders,
        pull: impl AsyncFn(&Blob),
    ) {
        // Nobody waits for them.
        pull(&self.other).await;
        pull(&self.blob).await;
        // Longer than a client may take nothing.
        eventually("all to be served", async || {
            let least = readers.least();
            (least >= taken).then_some(()).ok_or(least.to_string())
        })
        .await;
        let usage = Usage::of(&self.binary);
        usage.costs(before, (kind, READERS), memory, 1.0);
        // It is opened once for all of them.
        let files = open_files(&self.binary, self.blob.digest());
        assert_eq!(files, 1);
        let waiting = waiting_bytes(self.binary.registry);
        let (all, most) = (waiting.iter().sum::<usize>(), waiting.iter().max().unwrap());
        println!(
            "{READERS} {kind}: {} KiB each wait in the kernel, {} at most",
            all / READERS / KIB,
            most / KIB
        );
        // What may be unsent, and what is begun of one more packet, which is 64 KiB on this way (`TCP_NOTSENT_LOWAT` is looked
        // at before a packet is begun).
        assert!(*most <= (128 + 64) * KIB + 16 * KIB, "{most}");
        drop(readers);
        is_as_before(&self.binary, before).await;
        // Nobody came more than once for them.
        assert_eq!(self.upstream.count(&get(self.blob.digest())), 1);
    }
}

const READERS: usize = 1000;
