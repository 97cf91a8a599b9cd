//! Disks that stop answering, and what does not need them meanwhile.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use futures_util::future::join_all;
use rustix::fs::{Advice, fadvise};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::harness::proxy::published;
use crate::harness::{APP, Answer, Binary, Blob, FakeRegistry, Image, MIB, ProxyBuilder, poll};
use crate::scene;
use crate::volume::Volume;

/// A folder seen through a file system that is a process (bindfs), which can be stopped.
struct Glass {
    server: Child,
    at: PathBuf,
    /// What is seen.
    _behind: TempDir,
}

/// While this is there, nothing gets through.
struct Hanging(Pid);

impl Glass {
    async fn mount(at: &Path) -> Self {
        let behind = tempfile::tempdir().unwrap();
        let server = Command::new("setpriv")
            // What waits for it would wait for ever.
            .args(["--pdeathsig", "KILL", "bindfs", "-f"])
            .args([behind.path(), at])
            .spawn()
            .unwrap();
        let glass = Self {
            server,
            at: at.to_owned(),
            _behind: behind,
        };
        poll("a mount", async || {
            let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
            let at = at.to_str().unwrap();
            mounts
                .lines()
                .any(|it| it.split(' ').nth(1) == Some(at))
                .then_some(())
        })
        .await;
        glass
    }

    fn hang(&self) -> Hanging {
        let pid = Pid::from_raw(i32::try_from(self.server.id()).unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Hanging(pid)
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // One that is gone does not hang.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

impl Drop for Glass {
    fn drop(&mut self) {
        // A test that failed may have left it in use.
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Has the page cache lose a file.
fn forget(file: &Path) -> io::Result<()> {
    let file = File::open(file)?;
    file.sync_all()?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

/// Clients that wait for a blob: they have its head.
async fn waiting(proxy: &Binary, blob: &Blob) -> Vec<Answer> {
    let clients = (0..CLIENTS).map(|_| async { proxy.blob(APP, blob.digest()).send().await });
    join_all(clients).await
}

/// What needs no disk is answered.
async fn is_there(proxy: &Binary, image: &Image) {
    for _ in 0..CLIENTS {
        proxy.get("/v2/").whole().await.is(200, b"{}");
        for reference in ["v1", image.manifest.digest()] {
            let manifest = proxy.pull_manifest(APP, reference).await;
            assert!(manifest.bytes == image.manifest.bytes());
        }
    }
    assert_eq!(proxy.admin("/readyz").await.head.status, 200);
}

async fn started(upstream: &FakeRegistry, builder: ProxyBuilder) -> (Binary, Image) {
    let image = Image::random(&[8 * MIB, 8 * MIB + 1]);
    upstream.serve_image(APP, "v1", &image);
    let proxy = Binary::start(&builder.set("freshness.fresh_for", "1h")).await;
    for blob in image.blobs() {
        proxy.wait_for_hit(APP, blob).await;
    }
    proxy.pull_manifest(APP, "v1").await;
    (proxy, image)
}

#[tokio::test]
async fn a_disk_that_hangs_keeps_nobody_waiting_who_does_not_read_from_it() {
    let (upstream, builder) = scene().await;
    let dir = tempfile::tempdir().unwrap();
    let glass = Glass::mount(dir.path()).await;
    let image = dir.path().join("image");
    let volume = Volume::ext4_in(&builder.dir(), &image, 96);
    let (proxy, pulled) = started(&upstream, builder.clone()).await;
    let (hot, cold) = (&pulled.layers[0], &pulled.layers[1]);
    forget(&published(volume.at(), cold.digest())).unwrap();
    forget(&image).unwrap();
    proxy.pull_blob(APP, hot).await;

    let hanging = glass.hang();
    let readers = waiting(&proxy, cold).await;
    is_there(&proxy, &pulled).await;
    // What is in memory is no matter of the disk.
    for _ in 0..CLIENTS {
        proxy.pull_blob(APP, hot).await;
    }
    is_there(&proxy, &pulled).await;
    drop(hanging);
    for reader in readers {
        reader.is(cold).await;
    }
    proxy.kill().await;
    drop(volume);
}

#[tokio::test]
async fn a_file_system_that_cannot_say_what_is_in_memory_keeps_nobody_waiting() {
    let (upstream, builder) = scene().await;
    let glass = Glass::mount(&builder.dir()).await;
    let (proxy, pulled) = started(&upstream, builder.clone()).await;
    let cold = &pulled.layers[1];
    forget(&published(&builder.dir(), cold.digest())).unwrap();
    let mut readers = waiting(&proxy, cold).await;
    for reader in readers.drain(..) {
        reader.is(cold).await;
    }
    forget(&published(&builder.dir(), cold.digest())).unwrap();

    let hanging = glass.hang();
    let clients = (0..CLIENTS).map(|_| async { proxy.blob(APP, cold.digest()).dispatch().await });
    let readers = join_all(clients).await;
    is_there(&proxy, &pulled).await;
    drop(hanging);
    for reader in readers {
        reader.head("GET").await.is(cold).await;
    }
    proxy.kill().await;
}

/// More than there are threads that serve.
const CLIENTS: usize = 32;
