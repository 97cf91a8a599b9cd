//! Opening what is published, and what becomes of it when it is not what was published.
//!
//! A file of the wrong size, one that the disk has lost, and a small one whose bytes are not those of its digest are set
//! aside in `staging/`, and fetched again by the next pull. A large one is served as it is until the scrub has read it.

use std::fs::File;
use std::sync::Arc;

use tracing::{debug, warn};

use super::check;
use super::condition::is_lost;
use super::index::{BlobFile, Index};
use crate::oci::Digest;

impl Index {
    /// Opens a published blob. May block. `None` when it is not here any more, or not what was published: then it is
    /// forgotten, and set aside if there is something to set aside.
    pub(super) fn open(self: &Arc<Self>, digest: &Digest) -> Option<Arc<BlobFile>> {
        if let Some(file) = self.open_already(digest) {
            return Some(file);
        }
        let close_another = || self.close_one();
        let opened = self.disk.open_blob_or_make_room(digest, close_another);
        let size = self.size_of(digest)?;
        match opened {
            Ok(Some((file, found))) if found == size && self.is_right(digest, &file, size) => {
                self.keep_open(*digest, file, size)
            }
            Ok(Some(_)) => {
                self.quarantine(digest);
                None
            }
            Ok(None) => {
                debug!(%digest, "published file is gone");
                self.forget_present(digest);
                None
            }
            Err(error) => {
                if is_lost(&error) {
                    self.quarantine(digest);
                }
                None
            }
        }
    }

    /// Whether a file that was just opened has the bytes of its digest, as far as that is looked at. Where the disk gives no
    /// answer it is not found wrong.
    fn is_right(&self, digest: &Digest, file: &File, size: u64) -> bool {
        let right = check::is_right(digest, file, size, self.disk.faults());
        let right = self.disk.counted("read", right);
        right.unwrap_or_else(|error| !is_lost(&error))
    }

    /// Sets a published file aside: its bytes are not those that were published. Whether it is out of the way; where the
    /// disk refuses that, it is still there and still counts. May block.
    pub(super) fn quarantine(&self, digest: &Digest) -> bool {
        warn!(%digest, "published file is not what was published");
        if self.claim_stray(digest) {
            let is_aside = self.set_aside(digest);
            self.unlinking_done(digest, 0);
            return is_aside;
        }
        let Some(victim) = self.take_out(digest) else {
            // Another one was faster.
            return true;
        };
        let is_aside = self.set_aside(digest);
        if !is_aside {
            self.put_back(digest, victim.size);
        }
        self.unlinking_done(digest, victim.going);
        is_aside
    }

    /// Moves a file that is nobody's now, and counts that.
    fn set_aside(&self, digest: &Digest) -> bool {
        let writing = self.writing();
        let is_aside = writing.is_some() && self.disk.quarantine(digest).is_ok();
        if is_aside {
            self.metrics.quarantined();
        }
        is_aside
    }
}
