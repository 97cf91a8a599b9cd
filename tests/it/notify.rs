//! What a service manager is told, and when.

use std::io::ErrorKind;

use tempfile::TempDir;
use tokio::net::UnixDatagram;

use crate::harness::{APP, At, Binary, Blob, FakeRegistry, MIB, TestProxy, get, within};

/// A service manager that only listens.
struct Manager {
    socket: UnixDatagram,
    // Apart, since a socket's path is limited to some hundred bytes.
    dir: TempDir,
}

impl Manager {
    fn start() -> Self {
        let dir = TempDir::with_prefix("manager-").unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        Self { socket, dir }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("notify")
    }

    /// What it is told next.
    async fn told(&self) -> String {
        let mut buffer = [0; 256];
        let told = within("a word to the manager", self.socket.recv(&mut buffer));
        let len = told.await.unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    /// Whether it was told nothing more by whoever is gone.
    fn was_told_nothing(&self) -> bool {
        let told = self.socket.try_recv(&mut [0; 256]);
        matches!(told, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

#[tokio::test]
async fn the_manager_is_told_ready_when_the_ports_answer_and_stopping_before_the_drain() {
    let upstream = FakeRegistry::start().await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(4 * MIB));
    let manager = Manager::start();
    let builder = TestProxy::in_front_of(&upstream);

    let proxy = Binary::start_notifying(&builder, &manager.path()).await;
    assert_eq!(manager.told().await.trim_end(), "READY=1");
    assert_eq!(proxy.get("/v2/").whole().await.head.status, 200);
    assert_eq!(proxy.admin("/livez").await.head.status, 200);

    let mut answer = proxy.blob(APP, blob.digest()).send().await;
    answer.read(MIB).await;
    gate.reached().await;
    proxy.terminate();
    // The response under way cannot have ended yet.
    assert_eq!(manager.told().await.trim_end(), "STOPPING=1");
    gate.open();
    answer.continues(&blob, MIB).await;
    assert_eq!(proxy.exited().await.code(), Some(0));
    assert!(manager.was_told_nothing());
}

#[tokio::test]
async fn the_manager_is_not_told_ready_where_a_port_is_taken() {
    let upstream = FakeRegistry::start().await;
    let manager = Manager::start();
    for key in ["listen", "admin_listen"] {
        let taken = upstream.address().to_string();
        let builder = TestProxy::in_front_of(&upstream).set(key, taken);
        let status = Binary::refused_notifying(&builder, &manager.path()).await;
        assert_eq!(status.code(), Some(1), "{key}");
        assert!(manager.was_told_nothing(), "{key}");
    }
}

#[tokio::test]
async fn a_manager_that_is_gone_is_a_warning() {
    let upstream = FakeRegistry::start().await;
    let manager = Manager::start();
    let path = manager.path();
    drop(manager);
    let builder = TestProxy::in_front_of(&upstream);
    let proxy = Binary::start_notifying(&builder, &path).await;
    let warned = |line: &serde_json::Value| {
        line["level"] == "WARN" && line["message"] == "could not tell the service manager"
    };
    proxy.wait_for_log(warned).await;
    assert_eq!(proxy.get("/v2/").whole().await.head.status, 200);
    proxy.terminate();
    assert_eq!(proxy.exited().await.code(), Some(0));
}
