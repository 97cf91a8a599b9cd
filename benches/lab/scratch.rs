//! Where a bench writes, and how it leaves nothing behind.

use std::fs;
use std::path::Path;
use std::process::{exit, id};
use std::thread;

use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use super::process::stop_all;

/// A directory on the disk that holds the build: `/tmp` may be memory.
pub(crate) fn scratch() -> TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix()).tempdir_in(root()).unwrap()
}

/// From now on Ctrl-C and SIGTERM end the servers of this bench, and remove what it wrote.
pub(crate) fn clean_up_on_signal() {
    thread::spawn(|| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(async {
            let mut terminated = signal(SignalKind::terminate()).unwrap();
            let mut interrupted = signal(SignalKind::interrupt()).unwrap();
            // Either may be dropped while it waits; it loses nothing.
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
        });
        stop_all();
        for entry in fs::read_dir(root()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        exit(130);
    });
}

fn prefix() -> String {
    format!("bench-{}-", id())
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}
