//! What is here, what is coming, and what must go. One lock decides.
//!
//! The index is made from the directory, which is the truth: a file that is gone is a miss, a file that was not known is
//! adopted. Until the start-up scan has ended, a digest that it has not reached is looked for on disk, and nothing is
//! evicted.

use std::collections::HashSet;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::capacity::{Ledger, Space};
use super::disk::{Disk, Found};
use super::fill::{Fill, Held};
use super::lru::Lru;
use super::metrics::Metrics;
use super::order::{Order, Place};
use super::purges::PurgeError;
use super::staged::StagedFile;
use super::uses::{PENDING_MAX, Saved, Uses};
use crate::oci::{Digest, DigestMap};

/// The index of the store.
#[derive(Debug)]
pub(super) struct Index {
    state: Mutex<State>,
    /// Told whenever a digest leaves `State::unlinking`, and when the scan has ended.
    changed: Condvar,
    opened_at: Instant,
    /// Whether the directory is a successor's; held for reading while something is written, so that handing over waits.
    closed: RwLock<bool>,
    pub(super) disk: Arc<Disk>,
    pub(super) metrics: Metrics,
}

/// An open published file. While one is held the blob is being read, and is not evicted.
#[derive(Debug)]
pub(super) struct BlobFile {
    pub(super) digest: Digest,
    pub(super) file: Arc<File>,
    pub(super) size: u64,
    /// Set when the name is gone but the bytes still count.
    removed: AtomicBool,
    index: Weak<Index>,
}

/// Bytes set aside; dropped, they are given back.
#[derive(Debug)]
pub(super) struct Reservation {
    pub(super) index: Arc<Index>,
    pub(super) bytes: u64,
    /// What of them the file system knows of.
    pub(super) written: u64,
}

/// There is no room, and no eviction could make it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// What became of asking for a digest.
#[derive(Debug)]
pub(super) enum Joined {
    Present,
    Following(Arc<Fill>),
    /// The caller must bring it.
    First(Arc<Fill>),
}

/// The smallest consistent whole: `order` holds exactly the present entries, each at its own place, and `ledger.used` is
/// the sum of their sizes, of metadata, and of what is removed but still read.
#[derive(Debug)]
struct State {
    entries: DigestMap<Entry>,
    order: Order,
    ledger: Ledger,
    /// Evicted digests whose name is about to be removed; nothing is published under one.
    unlinking: HashSet<Digest>,
    /// Digests purged before the scan ended, which may have seen the files.
    purged: HashSet<Digest>,
    /// Recently read files, open; bounded, since descriptors are.
    open: Lru<Digest, Arc<BlobFile>>,
    uses: Uses,
    scanned: bool,
}

#[derive(Debug)]
enum Entry {
    Filling(Arc<Fill>),
    Present(Present),
}

#[derive(Debug)]
struct Present {
    size: u64,
    place: Place,
    saved: Saved,
    file: Weak<BlobFile>,
}

/// A blob that is present no more.
#[derive(Debug)]
pub(super) struct TakenOut {
    pub(super) size: u64,
    /// Bytes that count no more, and are on disk until the name is removed.
    pub(super) going: u64,
    /// Given back because its last handle must not be dropped under the lock.
    _file: Option<Arc<BlobFile>>,
}

impl Index {
    pub(super) fn new(disk: Arc<Disk>, ledger: Ledger, metrics: Metrics) -> Arc<Self> {
        let state = State {
            entries: DigestMap::default(),
            order: Order::new(ledger.limit()),
            ledger,
            unlinking: HashSet::new(),
            purged: HashSet::new(),
            open: Lru::new(OPEN_FILES_MAX),
            uses: Uses::default(),
            scanned: false,
        };
        let index = Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            opened_at: Instant::now(),
            closed: RwLock::new(false),
            disk,
            metrics,
        };
        index.report(&index.state.lock());
        Arc::new(index)
    }

    /// Whether the start-up scan has ended.
    pub(super) fn is_scanned(&self) -> bool {
        self.state.lock().scanned
    }

    /// Whether the digest is present or filling, as far as the index knows.
    pub(super) fn knows(&self, digest: &Digest) -> bool {
        self.state.lock().entries.contains_key(digest)
    }

    /// The size of a published blob. No use of it is counted.
    pub(super) fn size_of(&self, digest: &Digest) -> Option<u64> {
        match self.state.lock().entries.get(digest) {
            Some(Entry::Present(present)) => Some(present.size),
            Some(Entry::Filling(_)) | None => None,
        }
    }

    /// Present, followed, or the caller's to bring; decided at once.
    pub(super) fn join(&self, digest: &Digest, begin: impl FnOnce() -> Arc<Fill>) -> Joined {
        let mut state = self.state.lock();
        match state.entries.get(digest) {
            Some(Entry::Present(_)) => {
                state.touch(digest);
                Joined::Present
            }
            Some(Entry::Filling(fill)) => Joined::Following(Arc::clone(fill)),
            None => {
                let fill = begin();
                state
                    .entries
                    .insert(*digest, Entry::Filling(Arc::clone(&fill)));
                Joined::First(fill)
            }
        }
    }

    /// Counts a use of a published blob.
    pub(super) fn touch(&self, digest: &Digest) {
        self.state.lock().touch(digest);
    }

    /// The open file of a published blob, when there is one.
    pub(super) fn open_already(&self, digest: &Digest) -> Option<Arc<BlobFile>> {
        let mut state = self.state.lock();
        if let Some(file) = state.open.touch(digest) {
            return Some(Arc::clone(file));
        }
        match state.entries.get(digest) {
            Some(Entry::Present(present)) => present.file.upgrade(),
            Some(Entry::Filling(_)) | None => None,
        }
    }

    /// Keeps a name that is nobody's from being published under until it is removed. Whether it is nobody's.
    pub(super) fn claim_stray(&self, digest: &Digest) -> bool {
        let mut state = self.state.lock();
        !state.entries.contains_key(digest) && state.unlinking.insert(*digest)
    }

    /// Removes a published blob, also one that is being read: its readers have it to its end, and until then its bytes
    /// count. One that is coming is not disturbed. Gives the size of what was here. May block.
    pub(super) fn purge(&self, digest: &Digest) -> Result<Option<u64>, PurgeError> {
        let _writing = self.writing().ok_or(PurgeError::HandedOver)?;
        let mut state = self.state.lock();
        let Some(Entry::Present(Present { size, .. })) = state.entries.get(digest) else {
            return Ok(None);
        };
        let size = *size;
        let victim = state.take_out(digest);
        if !state.scanned {
            state.purged.insert(*digest);
        }
        self.report(&state);
        drop(state);
        let going = victim.map_or(0, |victim| victim.going);
        let removed = self.disk.remove_blob(digest);
        self.unlinking_done(digest, going);
        removed?;
        Ok(Some(size))
    }

    /// Adopts a file that the scan, or a look-up before it, found on disk.
    pub(super) fn found(&self, found: &Found) {
        Self::add_found(&mut self.state.lock(), found);
    }

    /// Whether that is new.
    fn add_found(state: &mut State, found: &Found) -> bool {
        if state.entries.contains_key(&found.digest) || state.purged.contains(&found.digest) {
            return false;
        }
        let (digest, size) = (found.digest, found.size);
        let place = state.order.adopt(digest, size, found.used_at);
        state.uses.found(found.used_at);
        state.add(digest, size, place);
        true
    }

    /// Every digest that is present, and their bytes in all.
    pub(super) fn present(&self) -> (Vec<Digest>, u64) {
        let state = self.state.lock();
        let sizes = state.entries.values().map(|entry| match entry {
            Entry::Present(present) => present.size,
            Entry::Filling(_) => 0,
        });
        (state.order.digests().collect(), sizes.sum())
    }

    /// Bytes that count.
    pub(super) fn used(&self) -> u64 {
        self.state.lock().ledger.used
    }

    /// Forgets a present digest whose file is not there. Whether that was so. May block.
    pub(super) fn forget_missing(&self, digest: &Digest) -> bool {
        let place = |state: &State| match state.entries.get(digest) {
            Some(Entry::Present(present)) => Some(present.place),
            Some(Entry::Filling(_)) | None => None,
        };
        let before = place(&self.state.lock());
        if before.is_none() || !matches!(self.disk.open_blob(digest), Ok(None)) {
            return false;
        }
        // What was evicted meanwhile, and perhaps has come again, was not missing.
        if place(&self.state.lock()) != before {
            return false;
        }
        self.forget_present(digest);
        true
    }

    /// Whether a file of this name is nobody's: neither present, nor coming, nor about to be removed.
    pub(super) fn is_stray(&self, digest: &Digest) -> bool {
        let state = self.state.lock();
        !state.entries.contains_key(digest) && !state.unlinking.contains(digest)
    }

    /// Adopts a file that lies on disk and that the scan has missed. Whether there was one. May block.
    pub(super) fn adopt(&self, digest: &Digest) -> bool {
        // As long as the name is claimed nothing comes or goes under it, so that what is seen is still there.
        if !self.claim_stray(digest) {
            return false;
        }
        let found = self.disk.find(digest).ok().flatten();
        let mut state = self.state.lock();
        let adopted = found.is_some_and(|found| Self::add_found(&mut state, &found));
        // Under the same lock, since from now on it can be evicted.
        state.unlinking.remove(digest);
        self.report(&state);
        drop(state);
        self.changed.notify_all();
        adopted
    }

    /// From here on the index knows everything, and the budget holds.
    pub(super) fn scan_ended(&self) {
        let mut state = self.state.lock();
        state.scanned = true;
        state.purged = HashSet::new();
        drop(state);
        self.changed.notify_all();
        // What a smaller budget than last time has no room for goes now, before anybody is told of it.
        let writing = self.writing();
        let nothing = |_: &mut Ledger, _| ();
        let made = writing.is_some_and(|_writing| self.make_room(0, nothing, nothing).is_ok());
        if !made {
            self.report(&self.state.lock());
        }
    }

    /// Sets bytes aside, evicting what must go. May block.
    ///
    /// # Errors
    ///
    /// When no eviction could make the room, or the directory is a successor's.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, NoRoom> {
        self.wait_for_scan();
        let _writing = self.writing().ok_or(NoRoom)?;
        let undo = |ledger: &mut Ledger, bytes| ledger.release(bytes, 0);
        self.make_room(bytes, Ledger::reserve, undo)?;
        let reservation = Reservation {
            index: Arc::clone(self),
            bytes,
            written: 0,
        };
        // The names of what was evicted go one after the other: no byte comes before there is room for it on disk, too.
        let mut state = self.state.lock();
        while state.ledger.is_overdrawn() {
            self.changed.wait(&mut state);
        }
        drop(state);
        Ok(reservation)
    }

    /// Waits until it is known what there is, unless that takes long.
    fn wait_for_scan(&self) {
        let patience = (self.opened_at + SCAN_PATIENCE).into_std();
        let mut state = self.state.lock();
        while !state.scanned && !self.changed.wait_until(&mut state, patience).timed_out() {}
    }

    /// Whether all that counts is within the budget, after evicting what must go. May block.
    pub(super) fn fits(&self) -> bool {
        self.writing()
            .is_none_or(|_writing| self.make_room(0, |_, _| (), |_, _| ()).is_ok())
    }

    /// Whether so many bytes more could be reserved if nothing were stored.
    pub(super) fn could_fit(&self, bytes: u64) -> bool {
        let state = self.state.lock();
        state.ledger.reserved.saturating_add(bytes) <= state.ledger.limit()
    }

    /// The steps in which room is made for a blob whose size nobody knows: a small part of a small budget.
    pub(super) fn growth(&self) -> u64 {
        (self.state.lock().ledger.limit() / GROWTH_SHARE).clamp(1, GROWTH_BYTES_MAX)
    }

    /// Counts bytes of metadata in or out, evicting what must go. May block.
    ///
    /// # Errors
    ///
    /// When there is no room; then nothing was counted.
    pub(super) fn charge(&self, more: u64, less: u64) -> Result<(), NoRoom> {
        if more <= less {
            self.count(|ledger| ledger.used = ledger.used.saturating_sub(less - more));
            return Ok(());
        }
        let _writing = self.writing().ok_or(NoRoom)?;
        let more = more - less;
        let undo = |ledger: &mut Ledger, more| ledger.used = ledger.used.saturating_sub(more);
        self.make_room(more, |ledger, more| ledger.used += more, undo)
    }

    /// Counts bytes of metadata that are there already.
    pub(super) fn recount(&self, now: u64, before: u64) {
        self.count(|ledger| ledger.used = (ledger.used + now).saturating_sub(before));
    }

    /// Makes a verified file official, and the digest present. May block. An error loses the copy and nothing else.
    pub(super) fn publish(
        self: &Arc<Self>,
        fill: &Arc<Fill>,
        staged: StagedFile,
        reservation: Reservation,
        size: u64,
    ) -> std::io::Result<()> {
        let handed_over = || std::io::Error::other("the cache directory was handed over");
        let _writing = self.writing().ok_or_else(handed_over)?;
        let digest = fill.digest;
        {
            let mut state = self.state.lock();
            while state.unlinking.contains(&digest) {
                self.changed.wait(&mut state);
            }
        }
        let file = staged.publish(&digest, size)?;
        let removed = AtomicBool::new(false);
        let index = Arc::downgrade(self);
        let file = Arc::new(BlobFile {
            digest,
            file,
            size,
            removed,
            index,
        });
        let mut state = self.state.lock();
        reservation.spend(&mut state.ledger);
        // Whatever stood there was this fill, or nothing.
        state.entries.remove(&digest);
        state.publish(&file);
        self.report(&state);
        drop(state);
        // Whoever still follows the fill reads this file.
        *fill.held.lock() = Some(Box::new(file));
        Ok(())
    }

    /// Forgets a fill that did not end in a published blob.
    pub(super) fn forget_fill(&self, fill: &Arc<Fill>) {
        let mut state = self.state.lock();
        if let Some(Entry::Filling(current)) = state.entries.get(&fill.digest)
            && Arc::ptr_eq(current, fill)
        {
            state.entries.remove(&fill.digest);
        }
        self.report(&state);
    }

    /// Writes down the last uses that the disk does not know of. May block.
    pub(super) fn save_uses(&self) {
        loop {
            let mut state = self.state.lock();
            // Before its end the scan may find a later stamp.
            if !state.scanned {
                return;
            }
            let uses = state.uses.take();
            if uses.is_empty() {
                return;
            }
            let stamped = state.stamp(uses);
            drop(state);
            self.write_uses(stamped);
        }
    }

    /// Writes down the order of what was used most recently, all anew. May block.
    pub(super) fn save_order(&self) {
        let mut state = self.state.lock();
        if !state.scanned {
            return;
        }
        let newest = state.order.newest(PENDING_MAX);
        let stamped = state.stamp(newest);
        drop(state);
        self.write_uses(stamped);
    }

    fn write_uses(&self, stamped: Vec<(Digest, u64)>) {
        let Some(_writing) = self.writing() else {
            return;
        };
        for (digest, stamp) in stamped {
            // Gone since: then nobody needs to know.
            let _ = self.disk.write_last_use(&digest, stamp);
        }
    }

    /// Stops writing for good: from here on the directory is a successor's. Waits for what is being published.
    pub(super) fn close(&self) {
        *self.closed.write() = true;
    }

    /// The right to write to the directory; `None` when it is a successor's. While it is held nobody hands it over.
    pub(super) fn writing(&self) -> Option<RwLockReadGuard<'_, bool>> {
        // Recursive, because one write may ask for another, and must not wait for a close that waits for it.
        let closed = self.closed.read_recursive();
        (!*closed).then_some(closed)
    }

    /// Keeps the open file of a present digest for the next reader. `None` when it is present no more.
    pub(super) fn keep_open(
        self: &Arc<Self>,
        digest: Digest,
        file: File,
        size: u64,
    ) -> Option<Arc<BlobFile>> {
        let (removed, file) = (AtomicBool::new(false), Arc::new(file));
        let file = Arc::new(BlobFile {
            digest,
            file,
            size,
            removed,
            index: Arc::downgrade(self),
        });
        let mut state = self.state.lock();
        let Some(Entry::Present(present)) = state.entries.get_mut(&digest) else {
            drop(state);
            return None;
        };
        if let Some(other) = present.file.upgrade() {
            drop(state);
            return Some(other);
        }
        present.file = Arc::downgrade(&file);
        let squeezed_out = state.open.insert(digest, Arc::clone(&file));
        // The last handle of a file takes the lock when it goes.
        drop(state);
        drop(squeezed_out);
        Some(file)
    }

    /// Closes the least recently used of the files that are kept open and that nobody reads. Whether there was one.
    pub(super) fn close_one(&self) -> bool {
        let mut state = self.state.lock();
        let closed = state.open.remove_first(|file| Arc::strong_count(file) == 1);
        // As above.
        drop(state);
        closed.is_some()
    }

    /// Forgets a present digest, whose file is gone.
    pub(super) fn forget_present(&self, digest: &Digest) {
        if let Some(victim) = self.take_out(digest) {
            self.unlinking_done(digest, victim.going);
        }
    }

    /// Takes a present digest out, whose file the caller removes; to be followed by [`Index::unlinking_done`].
    pub(super) fn take_out(&self, digest: &Digest) -> Option<TakenOut> {
        let mut state = self.state.lock();
        let victim = state.take_out(digest);
        self.report(&state);
        victim
    }

    /// What was taken out is still there, since its file could not be removed: it counts as before, and is the next to go.
    /// To be called before [`Index::unlinking_done`].
    pub(super) fn put_back(&self, digest: &Digest, size: u64) {
        let mut state = self.state.lock();
        // One that is coming will take its place.
        if !state.entries.contains_key(digest) {
            let place = state.order.adopt(*digest, size, 0);
            state.add(*digest, size, place);
        }
        self.report(&state);
    }

    /// Evicts until `bytes` more fit, and lets `admit` take them under the same lock; `undo` gives them back when the disk
    /// does not let go of what was evicted.
    fn make_room(
        &self,
        bytes: u64,
        admit: fn(&mut Ledger, u64),
        undo: fn(&mut Ledger, u64),
    ) -> Result<(), NoRoom> {
        let (free, total) = self.disk.space().map_err(|_| NoRoom)?;
        let space = Space { free, total };
        let mut state = self.state.lock();
        if !state.scanned {
            // What is used is not known yet: only what is free for certain is given out, no more in all than eviction can
            // make room for later, and nothing is evicted.
            let short_of_space = state.ledger.short_of_space(bytes, space) > 0;
            if short_of_space || !state.ledger.could_hold(bytes) {
                return Err(self.no_room(short_of_space, bytes));
            }
            admit(&mut state.ledger, bytes);
            self.report(&state);
            return Ok(());
        }
        let short_of_space = state.ledger.short_of_space(bytes, space) > 0;
        let shortfall = state.ledger.shortfall(bytes, space);
        let shortfall = shortfall.ok_or_else(|| self.no_room(short_of_space, bytes))?;
        let victims = state.order.victims(shortfall, |it| state.is_read(it));
        let victims = victims.ok_or_else(|| self.no_room(short_of_space, bytes))?;
        for (digest, _) in &victims {
            // Nobody reads it: its last handle, if it is kept open, may go under the lock.
            let _ = state.take_out(digest);
        }
        admit(&mut state.ledger, bytes);
        self.report(&state);
        drop(state);
        if self.evict(&victims) < shortfall.required {
            self.disk.condition().failed();
            let mut state = self.state.lock();
            undo(&mut state.ledger, bytes);
            self.report(&state);
            drop(state);
            self.changed.notify_all();
            return Err(NoRoom);
        }
        Ok(())
    }

    /// Removes the files of what was taken out, and says how many bytes that were. A disk that refuses one is not asked to
    /// remove the others.
    fn evict(&self, victims: &[(Digest, u64)]) -> u64 {
        let (mut blobs, mut bytes, mut refused) = (0, 0, false);
        for (digest, size) in victims {
            refused = refused || self.disk.remove_blob(digest).is_err();
            if refused {
                self.put_back(digest, *size);
            } else {
                self.metrics.evicted(*size);
                (blobs, bytes) = (blobs + 1, bytes + size);
            }
            self.unlinking_done(digest, *size);
        }
        if blobs > 0 {
            debug!(blobs, bytes, "evicted");
        }
        bytes
    }

    /// No room in the budget is the operator's choice; no room on the file system is trouble.
    fn no_room(&self, short_of_space: bool, bytes: u64) -> NoRoom {
        if short_of_space {
            warn!("the file system has no room above the floor");
            self.disk.condition().short_of(bytes);
        }
        NoRoom
    }

    /// Whether so many bytes could be set aside now; nothing is evicted to find out. May block.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let Ok((free, total)) = self.disk.space() else {
            return false;
        };
        let space = Space { free, total };
        self.state.lock().ledger.shortfall(bytes, space).is_some()
    }

    /// The name of what was taken out is gone, with so many bytes.
    pub(super) fn unlinking_done(&self, digest: &Digest, bytes: u64) {
        let mut state = self.state.lock();
        state.unlinking.remove(digest);
        state.ledger.going = state.ledger.going.saturating_sub(bytes);
        drop(state);
        self.changed.notify_all();
    }

    /// Changes what is counted.
    pub(super) fn count(&self, change: impl FnOnce(&mut Ledger)) {
        let mut state = self.state.lock();
        change(&mut state.ledger);
        self.report(&state);
    }

    fn report(&self, state: &MutexGuard<'_, State>) {
        let ledger = &state.ledger;
        self.metrics.ledger(
            ledger.used,
            ledger.reserved,
            ledger.limit(),
            state.order.len(),
        );
    }
}

impl State {
    fn add(&mut self, digest: Digest, size: u64, place: Place) {
        self.ledger.used += size;
        let present = Present {
            size,
            place,
            saved: Saved::default(),
            file: Weak::new(),
        };
        self.entries.insert(digest, Entry::Present(present));
    }

    fn publish(&mut self, file: &Arc<BlobFile>) {
        let (digest, size) = (file.digest, file.size);
        let place = self.order.admit(digest, size);
        self.add(digest, size, place);
        if let Some(Entry::Present(present)) = self.entries.get_mut(&digest) {
            present.file = Arc::downgrade(file);
            self.uses.published(&digest, &mut present.saved);
        }
    }

    fn touch(&mut self, digest: &Digest) {
        if let Some(Entry::Present(present)) = self.entries.get_mut(digest) {
            present.place = self.order.touch(present.place);
            self.uses.note(digest, &mut present.saved);
        }
    }

    /// Stamps uses in the order in which they were.
    fn stamp(&mut self, uses: Vec<Digest>) -> Vec<(Digest, u64)> {
        let place = |digest| match self.entries.get(&digest) {
            Some(Entry::Present(present)) => Some((present.place, digest)),
            Some(Entry::Filling(_)) | None => None,
        };
        let mut uses: Vec<_> = uses.into_iter().filter_map(place).collect();
        uses.sort();
        let stamped = uses.into_iter();
        stamped
            .map(|(_, digest)| (digest, self.uses.stamp()))
            .collect()
    }

    /// Takes a present digest out, whose name is about to be removed. Its bytes stop counting, unless it is being read: then
    /// when its last reader is done.
    fn take_out(&mut self, digest: &Digest) -> Option<TakenOut> {
        if !matches!(self.entries.get(digest), Some(Entry::Present(_))) {
            return None;
        }
        let Some(Entry::Present(present)) = self.entries.remove(digest) else {
            return None;
        };
        self.order.remove(present.place);
        self.unlinking.insert(*digest);
        let kept = self.open.remove(digest);
        let is_read = present.file.strong_count() > usize::from(kept.is_some());
        let file = kept.or_else(|| present.file.upgrade());
        let going = match file.as_ref().filter(|_| is_read) {
            Some(file) => {
                file.removed.store(true, Ordering::Release);
                0
            }
            None => {
                self.ledger.evict(present.size);
                present.size
            }
        };
        Some(TakenOut {
            size: present.size,
            going,
            _file: file,
        })
    }

    /// Whether somebody reads it, besides it being kept open for the next who does.
    fn is_read(&self, digest: &Digest) -> bool {
        let kept_open = usize::from(self.open.peek(digest).is_some());
        match self.entries.get(digest) {
            Some(Entry::Present(present)) => present.file.strong_count() > kept_open,
            Some(Entry::Filling(_)) | None => false,
        }
    }
}

impl Reservation {
    /// Gives it back, under the lock under which the bytes become used.
    fn spend(mut self, ledger: &mut Ledger) {
        ledger.release(self.bytes, self.written);
        self.bytes = 0;
        self.written = 0;
    }
}

impl Held for Reservation {}

impl Held for Arc<BlobFile> {}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        self.index
            .count(|ledger| ledger.release(self.bytes, self.written));
    }
}

impl BlobFile {
    /// Whether it is read, but published no more.
    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }
}

impl Drop for BlobFile {
    fn drop(&mut self) {
        if !self.is_removed() {
            return;
        }
        if let Some(index) = self.index.upgrade() {
            index.count(|ledger| ledger.used = ledger.used.saturating_sub(self.size));
        }
    }
}

const GROWTH_BYTES_MAX: u64 = 16 << 20;
const GROWTH_SHARE: u64 = 64;
/// Open files kept for the next reader.
pub const OPEN_FILES_MAX: usize = 512;
/// How long after the start room is not given away before the scan has ended: most scans end sooner.
const SCAN_PATIENCE: Duration = Duration::from_secs(1);
