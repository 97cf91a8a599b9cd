//! What lies around in the cache directory and is none of ours.

use std::fs::DirEntry;
use std::path::{Path, PathBuf};

use super::disk::{Disk, is_dir, tag_of};
use super::layout::Layout;
use crate::oci::Algorithm;

/// What lies around in the directory besides what is ours.
#[derive(Debug, Default)]
pub(super) struct Around {
    pub(super) foreign: Vec<PathBuf>,
    /// Folders that the disk does not give.
    pub(super) unreadable: Vec<PathBuf>,
}

impl Around {
    fn list(&mut self, disk: &Disk, dir: &Path) -> Vec<DirEntry> {
        let listed = disk.listed(dir);
        listed.unwrap_or_else(|_| {
            self.unreadable.push(dir.to_owned());
            Vec::new()
        })
    }
}

impl Disk {
    /// What lies where only our folders should be, and is none. What lies within a folder of published files is told by
    /// [`Disk::stored_in`].
    pub(super) fn around(&self) -> Around {
        let mut around = Around::default();
        let algorithms = Algorithm::ALL.map(|algorithm| self.layout.blobs(algorithm));
        let blobs = algorithms.first().and_then(|it| it.parent());
        for entry in blobs.map(|it| around.list(self, it)).unwrap_or_default() {
            if !algorithms.contains(&entry.path()) || !is_dir(&entry) {
                around.foreign.push(entry.path());
            }
        }
        for algorithm in &algorithms {
            for entry in around.list(self, algorithm) {
                if Layout::folder_of(&entry.file_name()).is_none() || !is_dir(&entry) {
                    around.foreign.push(entry.path());
                }
            }
        }
        self.around_records(&self.layout.upstreams(), &mut around);
        around
    }

    fn around_records(&self, dir: &Path, around: &mut Around) {
        let is_repository = self.layout.repository_at(dir).is_some();
        for entry in around.list(self, dir) {
            let (name, path) = (entry.file_name(), entry.path());
            match (Layout::is_own(&name) && is_repository, is_dir(&entry)) {
                (false, true) => self.around_records(&path, around),
                (true, false) if Layout::is_grants(&name) => {}
                (true, true) if !Layout::is_grants(&name) => {
                    let tags = around.list(self, &path).into_iter();
                    let other = tags.filter(|it| is_dir(it) || tag_of(it).is_none());
                    around.foreign.extend(other.map(|it| it.path()));
                }
                _ => around.foreign.push(path),
            }
        }
    }
}
