//! What each repository was proven to hold, and what its tags last said; remembered on disk, bounded in number.
//!
//! Grants are lines of `blob digest [size]` and `manifest digest media-type` in a file that is only appended to; of two
//! lines for one digest the later one counts. A torn or foreign line is passed over, which at worst costs one more question
//! to upstream. A size is one that the bytes had when they were right.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tracing::debug;

use super::clock;
use super::disk::Disk;
use super::index::Index;
use super::layout::Repository;
use super::lru::Lru;
use super::purges::{Moment, PurgeError, Purged, Purges};
use crate::oci::{Digest, DigestMap, MediaType, Tag, declared_media_type};

/// A digest that a repository was proven to hold, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// At the blobs endpoint, with this size when that is known for certain.
    Blob(Option<u64>),
    /// At the manifests endpoint, with this type.
    Manifest(MediaType),
}

/// The last stored answer of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRecord {
    /// The manifest's digest.
    pub digest: Digest,
    /// Its type as upstream gave it.
    pub media_type: MediaType,
    /// Its size in bytes.
    pub size: u64,
    /// How long ago upstream last confirmed it, as far as it is known: a wall clock that was set back hides it.
    pub age: Option<Duration>,
}

/// The metadata of all repositories.
#[derive(Debug)]
pub(super) struct Repositories {
    known: Mutex<Lru<Repository, Arc<Mutex<Metadata>>>>,
    index: Arc<Index>,
    disk: Arc<Disk>,
    purges: Purges,
}

/// One repository's metadata. `grants` is `None` until it is read from disk; what is granted before that waits in
/// neither place, since granting reads first.
#[derive(Debug, Default)]
struct Metadata {
    grants: Option<Grants>,
    /// Bytes on disk, as counted against the budget.
    bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Grants {
    blobs: DigestMap<Option<u64>>,
    manifests: DigestMap<MediaType>,
}

impl Repositories {
    pub(super) fn new(max: usize, index: Arc<Index>, disk: Arc<Disk>, purges: Purges) -> Self {
        Self {
            known: Mutex::new(Lru::new(max)),
            index,
            disk,
            purges,
        }
    }

    /// What is granted, when that can be said at once: `None` when the disk may have to be asked.
    pub(super) fn granted_in_memory(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Option<Granted> {
        let metadata = Arc::clone(self.known.lock().touch(repository)?);
        // Held while the disk is read or written: then it is as if it had to be read.
        let metadata = metadata.try_lock()?;
        metadata.grants.as_ref().map(|grants| grants.of(digest))
    }

    /// What is granted. May block.
    pub(super) fn granted(&self, repository: &Repository, digest: &Digest) -> io::Result<Granted> {
        let known = self.known.lock().touch(repository).map(|it| Arc::clone(it));
        if let Some(metadata) = known {
            let mut metadata = metadata.lock();
            return Ok(self.grants(&mut metadata, repository)?.of(digest));
        }
        // Not known: the scan has not come here yet, or there is nothing. Only what exists is remembered, so that asking
        // for repositories that are not there costs no memory.
        let text = self.disk.read_grants(repository)?;
        if text.is_empty() {
            return Ok(Granted::default());
        }
        let metadata = self.known_or_new(repository);
        let mut metadata = metadata.lock();
        Ok(self.grants(&mut metadata, repository)?.of(digest))
    }

    /// Records a grant that was asked for at that moment, in memory for certain and on disk if it takes it. Whether it
    /// says something new. May block.
    pub(super) fn grant(
        &self,
        repository: &Repository,
        digest: &Digest,
        grant: &Grant,
        asked: Moment,
    ) -> bool {
        let metadata = self.known_or_new(repository);
        let mut metadata = metadata.lock();
        if self.purges.hit_repository(asked, repository) {
            return false;
        }
        if self.grants(&mut metadata, repository).is_err() {
            // Unreadable: start over in memory. What was proven can be proven again.
            metadata.grants = Some(Grants::default());
        }
        let Some(grants) = metadata.grants.as_mut() else {
            return false;
        };
        if !grants.insert(digest, grant) {
            return false;
        }
        let Some(_writing) = self.index.writing() else {
            return true;
        };
        let line = line(digest, grant);
        let bytes = line.len() as u64;
        // What has no room, or cannot be written, is known until the restart and proven again after it.
        if self.index.charge(bytes, 0).is_err() {
            return true;
        }
        match self.disk.append_grants(repository, &line) {
            Ok(()) => metadata.bytes += bytes,
            Err(_) => self.index.recount(0, bytes),
        }
        true
    }

    /// The stored answer of a tag. May block.
    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> io::Result<Option<TagRecord>> {
        Ok(parse_tag(&self.disk.read_tag(repository, tag)?))
    }

    /// Stores a tag's answer that was asked for at that moment. May block.
    pub(super) fn store_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        record: &TagRecord,
        asked: Moment,
    ) -> io::Result<()> {
        let Some(_writing) = self.index.writing() else {
            return Ok(());
        };
        let metadata = self.known_or_new(repository);
        let mut metadata = metadata.lock();
        if self.purges.hit_tag(asked, repository, tag) {
            return Ok(());
        }
        let former = self.disk.tag_bytes(repository, tag);
        let text = tag_text(record);
        let bytes = text.len() as u64;
        let no_room = |_| io::Error::from(io::ErrorKind::StorageFull);
        self.index.charge(bytes, former).map_err(no_room)?;
        if let Err(error) = self.disk.write_tag(repository, tag, &text) {
            self.index.recount(former, bytes);
            return Err(error);
        }
        metadata.bytes = (metadata.bytes + bytes).saturating_sub(former);
        Ok(())
    }

    /// Forgets a tag's answer. May block.
    pub(super) fn forget_tag(&self, repository: &Repository, tag: &Tag) -> io::Result<()> {
        // Most that is gone never was: asking for what is not there must not squeeze out what is.
        if self.disk.read_tag(repository, tag)?.is_empty() {
            return Ok(());
        }
        let metadata = self.known_or_new(repository);
        let mut metadata = metadata.lock();
        let former = self.disk.read_tag(repository, tag)?.len() as u64;
        let Some(_writing) = self.index.writing().filter(|_| former > 0) else {
            return Ok(());
        };
        self.disk.remove_tag(repository, tag)?;
        self.uncount(&mut metadata, former);
        Ok(())
    }

    /// Counts bytes out that are not on disk any more; the scan may not have counted them in yet.
    fn uncount(&self, metadata: &mut Metadata, bytes: u64) {
        let before = metadata.bytes;
        metadata.bytes = before.saturating_sub(bytes);
        self.index.recount(metadata.bytes, before);
    }

    /// Removes a tag's record. May block.
    pub(super) fn purge_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Purged, PurgeError> {
        let _writing = self.index.writing().ok_or(PurgeError::HandedOver)?;
        let Some(metadata) = self.known_if_there(repository) else {
            return Ok(Purged::default());
        };
        let mut metadata = metadata.lock();
        let bytes = self.disk.read_tag(repository, tag)?.len() as u64;
        self.disk.remove_tag(repository, tag)?;
        self.uncount(&mut metadata, bytes);
        Ok(Purged {
            tags: u64::from(bytes > 0),
            bytes,
            ..Purged::default()
        })
    }

    /// Removes all that is remembered of a repository; deeper repositories keep theirs. Gives the manifests among what it
    /// was proven to hold, too. May block.
    pub(super) fn purge_repository(
        &self,
        repository: &Repository,
    ) -> Result<(Purged, Vec<Digest>), PurgeError> {
        let _writing = self.index.writing().ok_or(PurgeError::HandedOver)?;
        let Some(metadata) = self.known_if_there(repository) else {
            return Ok((Purged::default(), Vec::new()));
        };
        let mut metadata = metadata.lock();
        let tags = self.disk.tags(repository);
        let before = self.disk.metadata_bytes(repository);
        // What cannot be read is removed all the same.
        let _ = self.grants(&mut metadata, repository);
        let grants = metadata
            .grants
            .replace(Grants::default())
            .unwrap_or_default();
        let removed = self.disk.remove_repository(repository);
        // Measured, because after an error anything may be left.
        let left = self.disk.metadata_bytes(repository);
        self.index.recount(left, metadata.bytes);
        metadata.bytes = left;
        removed?;
        let purged = Purged {
            tags,
            grants: grants.len() as u64,
            bytes: before.saturating_sub(left),
            ..Purged::default()
        };
        Ok((purged, grants.manifests.into_keys().collect()))
    }

    /// Takes in what is on disk, oldest first, so that the bound holds across restarts. May block.
    pub(super) fn scan(&self) {
        let mut found = Vec::new();
        self.disk
            .scan_repositories(&mut |repository, used_at| found.push((used_at, repository)));
        found.sort();
        for (_, repository) in found {
            let metadata = self.known_or_new(&repository);
            let mut metadata = metadata.lock();
            // Measured under the lock under which it is written: what was used before the scan came is in it.
            let bytes = self.disk.metadata_bytes(&repository);
            self.index.recount(bytes, metadata.bytes);
            metadata.bytes = bytes;
        }
    }

    /// Counts what is on disk now, after the directory was replaced. What was proven is still known. May block.
    pub(super) fn recount(&self) {
        let mut known = Vec::new();
        for (repository, metadata) in self.known.lock().iter() {
            known.push((repository.clone(), Arc::clone(metadata)));
        }
        for (repository, metadata) in known {
            let mut metadata = metadata.lock();
            let bytes = self.disk.metadata_bytes(&repository);
            self.index.recount(bytes, metadata.bytes);
            metadata.bytes = bytes;
        }
        self.scan();
    }

    /// Reads all records of a repository, and drops those that are broken if that is asked for and the directory is ours to
    /// write to. A torn line or a record that nobody can read costs a question to upstream, and nothing else. Where content is
    /// `damaged`, what it is now is no word on records. May block.
    pub(super) fn check(
        &self,
        repository: &Repository,
        repair: bool,
        damaged: &HashSet<Digest>,
    ) -> Records {
        // It is on disk, so it may as well be known: what is written meanwhile is written under this lock.
        let metadata = self.known_or_new(repository);
        let mut metadata = metadata.lock();
        let writing = self.index.writing().filter(|_| repair);
        let mut records = Records::default();
        let text = self.disk.read_grants(repository).unwrap_or_else(|_| {
            let what = "what it was proven to hold".to_owned();
            records.unreadable.push(what);
            String::new()
        });
        let (good, broken): (Vec<_>, Vec<_>) = text.split_inclusive('\n').partition(|line| {
            let grant = whole(line).and_then(parse_line);
            grant.is_some_and(|grant| damaged.contains(&grant.0) || self.agrees(&grant))
        });
        records.grants = good.len() as u64;
        if !broken.is_empty() {
            let dropped = writing.is_some();
            let dropped = dropped && self.disk.rewrite_grants(repository, &good.concat()).is_ok();
            if dropped {
                // To be read again: what was read before is as broken.
                metadata.grants = None;
            }
            let lines = broken.len();
            let plural = if lines == 1 { "" } else { "s" };
            records.broken.push((
                format!("{lines} broken line{plural} of what it was proven to hold"),
                dropped,
            ));
        }
        for tag in self.disk.tag_names(repository) {
            let Ok(text) = self.disk.read_tag(repository, &tag) else {
                records.unreadable.push(format!("tag {tag}"));
                continue;
            };
            let is_right = |record: &TagRecord| {
                let size = self.index.size_of(&record.digest);
                let agrees = size.is_none_or(|size| size == record.size)
                    && self.is_of_type(&record.digest, &record.media_type);
                agrees || damaged.contains(&record.digest)
            };
            if parse_tag(&text).as_ref().is_some_and(is_right) {
                records.tags += 1;
                continue;
            }
            let dropped = writing.is_some() && self.disk.remove_tag(repository, &tag).is_ok();
            records.broken.push((format!("tag {tag}"), dropped));
        }
        records.bytes = self.disk.metadata_bytes(repository);
        if writing.is_some() {
            self.index.recount(records.bytes, metadata.bytes);
            metadata.bytes = records.bytes;
        }
        records
    }

    /// Whether a grant does not contradict what is here.
    fn agrees(&self, (digest, grant): &(Digest, Grant)) -> bool {
        match grant {
            Grant::Blob(Some(size)) => {
                let here = self.index.size_of(digest);
                here.is_none_or(|here| here == *size)
            }
            Grant::Blob(None) => true,
            Grant::Manifest(media_type) => self.is_of_type(digest, media_type),
        }
    }

    /// Whether a manifest says of itself that it is of this type, or says nothing, or is not here to be asked.
    fn is_of_type(&self, digest: &Digest, media_type: &MediaType) -> bool {
        let is_small = |size| size <= MANIFEST_READ_BYTES_MAX;
        if !self.index.size_of(digest).is_some_and(is_small) {
            return true;
        }
        let Ok(Some((file, _))) = self.disk.open_blob(digest) else {
            return true;
        };
        let mut bytes = Vec::new();
        // It was hashed a moment ago; what cannot be read now contradicts nothing.
        if file
            .take(MANIFEST_READ_BYTES_MAX)
            .read_to_end(&mut bytes)
            .is_err()
        {
            return true;
        }
        let declared = declared_media_type(&bytes).ok().flatten();
        declared.is_none_or(|it| it == *media_type)
    }

    /// The metadata of a repository that has some: asking for what is not there must not squeeze out what is.
    fn known_if_there(&self, repository: &Repository) -> Option<Arc<Mutex<Metadata>>> {
        let known = self.known.lock().touch(repository).map(|it| Arc::clone(it));
        let is_there = || self.disk.metadata_bytes(repository) > 0;
        known.or_else(|| is_there().then(|| self.known_or_new(repository)))
    }

    fn known_or_new(&self, repository: &Repository) -> Arc<Mutex<Metadata>> {
        let mut known = self.known.lock();
        if let Some(metadata) = known.touch(repository) {
            return Arc::clone(metadata);
        }
        let metadata = Arc::new(Mutex::new(Metadata::default()));
        let squeezed_out = known.insert(repository.clone(), Arc::clone(&metadata));
        drop(known);
        if let Some((oldest, metadata)) = squeezed_out {
            debug!(namespace = %oldest.namespace, repository = %oldest.name, "forgot a repository's metadata");
            let bytes = std::mem::take(&mut metadata.lock().bytes);
            if let Some(_writing) = self.index.writing()
                && self.disk.remove_repository(&oldest).is_ok()
            {
                self.index.recount(0, bytes);
            }
        }
        metadata
    }

    /// The grants, read from disk when they are not here yet; compacted when much of the file says nothing new.
    fn grants<'a>(
        &self,
        metadata: &'a mut Metadata,
        repository: &Repository,
    ) -> io::Result<&'a Grants> {
        if metadata.grants.is_none() {
            let text = self.disk.read_grants(repository)?;
            let grants = Grants::parse(&text);
            let lines = text.lines().count();
            let torn = !text.is_empty() && !text.ends_with('\n');
            if (torn || lines > 2 * grants.len() + COMPACTION_LINES)
                && let Some(_writing) = self.index.writing()
            {
                // The former file is as good, only longer.
                let _ = self.disk.rewrite_grants(repository, &grants.text());
            }
            metadata.grants = Some(grants);
            // The scan may not have come here, or could not.
            let bytes = self.disk.metadata_bytes(repository);
            self.index.recount(bytes, metadata.bytes);
            metadata.bytes = bytes;
        }
        metadata
            .grants
            .as_ref()
            .ok_or_else(|| io::Error::other("grants were just read"))
    }
}

/// What a repository's records are.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) grants: u64,
    pub(super) tags: u64,
    /// Bytes of all of them.
    pub(super) bytes: u64,
    /// What is broken, and whether it was dropped.
    pub(super) broken: Vec<(String, bool)>,
    /// What the disk does not give.
    pub(super) unreadable: Vec<String>,
}

/// What one digest is granted as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// Whether it may be had at the blobs endpoint.
    pub blob: bool,
    /// The size that it had there when it was right, if that was written down.
    pub size: Option<u64>,
    /// The type under which it may be had at the manifests endpoint.
    pub manifest: Option<MediaType>,
}

impl Granted {
    pub(super) fn has(&self, grant: &Grant) -> bool {
        match grant {
            Grant::Blob(size) => self.blob && (size.is_none() || *size == self.size),
            Grant::Manifest(media_type) => self.manifest.as_ref() == Some(media_type),
        }
    }
}

impl Grants {
    fn parse(text: &str) -> Self {
        let mut grants = Self::default();
        let lines = text.split_inclusive('\n').filter_map(whole);
        for (digest, grant) in lines.filter_map(parse_line) {
            grants.insert(&digest, &grant);
        }
        grants
    }

    fn text(&self) -> String {
        let blobs = self.blobs.iter();
        let blobs = blobs.map(|(digest, size)| line(digest, &Grant::Blob(*size)));
        let manifests = self.manifests.iter();
        let manifests = manifests
            .map(|(digest, media_type)| line(digest, &Grant::Manifest(media_type.clone())));
        blobs.chain(manifests).collect()
    }

    fn of(&self, digest: &Digest) -> Granted {
        Granted {
            blob: self.blobs.contains_key(digest),
            size: self.blobs.get(digest).copied().flatten(),
            manifest: self.manifests.get(digest).cloned(),
        }
    }

    /// Whether this says something new.
    fn insert(&mut self, digest: &Digest, grant: &Grant) -> bool {
        if self.len() >= GRANTS_MAX {
            return false;
        }
        match grant {
            Grant::Blob(size) => {
                let former = self.blobs.get(digest).copied();
                self.blobs.insert(*digest, size.or(former.flatten()));
                former.is_none_or(|former| size.is_some() && *size != former)
            }
            Grant::Manifest(media_type) => {
                let former = self.manifests.insert(*digest, media_type.clone());
                former.as_ref() != Some(media_type)
            }
        }
    }

    fn len(&self) -> usize {
        self.blobs.len() + self.manifests.len()
    }
}

/// Grants of one repository; what comes after is proven each time.
const GRANTS_MAX: usize = 1 << 20;
/// What is larger than any manifest that registries take is not read to see of which type it is.
const MANIFEST_READ_BYTES_MAX: u64 = 16 << 20;
/// Lines that may say nothing new before the file is written anew.
const COMPACTION_LINES: usize = 64;

/// A line without its end. Without one it may be any beginning of a line.
fn whole(line: &str) -> Option<&str> {
    line.strip_suffix('\n')
}

fn parse_line(line: &str) -> Option<(Digest, Grant)> {
    let words: Vec<&str> = line.split(' ').collect();
    match *words.as_slice() {
        ["blob", digest] => Some((Digest::parse(digest).ok()?, Grant::Blob(None))),
        ["blob", digest, size] => {
            let size = Some(size.parse().ok()?);
            Some((Digest::parse(digest).ok()?, Grant::Blob(size)))
        }
        ["manifest", digest, media_type] => {
            let media_type = MediaType::parse(media_type).ok();
            let media_type = media_type.filter(MediaType::is_manifest)?;
            Some((Digest::parse(digest).ok()?, Grant::Manifest(media_type)))
        }
        _ => None,
    }
}

fn line(digest: &Digest, grant: &Grant) -> String {
    match grant {
        Grant::Blob(None) => format!("blob {digest}\n"),
        Grant::Blob(Some(size)) => format!("blob {digest} {size}\n"),
        Grant::Manifest(media_type) => format!("manifest {digest} {media_type}\n"),
    }
}

/// When what is of an unknown age was stamped.
const LONG_AGO: u64 = 0;

fn tag_text(record: &TagRecord) -> String {
    let TagRecord {
        digest,
        media_type,
        size,
        age,
    } = record;
    let checked_at = age.map_or(LONG_AGO, clock::stamp_of);
    format!("{digest} {media_type} {size} {checked_at}\n")
}

fn parse_tag(text: &str) -> Option<TagRecord> {
    let mut words = text.strip_suffix('\n')?.split(' ');
    let record = TagRecord {
        digest: Digest::parse(words.next()?).ok()?,
        media_type: MediaType::parse(words.next()?).ok()?,
        size: words.next()?.parse().ok()?,
        age: clock::age_of(words.next()?.parse().ok()?),
    };
    words.next().is_none().then_some(record)
}

/// Reads any file of grants without panicking; what is understood of it is understood the same when it is written anew.
/// Whether anything is.
pub fn fuzz_grants(input: &[u8]) -> bool {
    let grants = Grants::parse(&String::from_utf8_lossy(input));
    let again = Grants::parse(&grants.text());
    assert_eq!(again, grants, "grants are read as they are written");
    assert!(grants.manifests.values().all(MediaType::is_manifest));
    grants.len() > 0
}

/// Reads any record of a tag without panicking; what is understood of it is understood the same when it is written anew, and
/// no younger. Whether anything is.
pub fn fuzz_tag_record(input: &[u8]) -> bool {
    let Some(record) = parse_tag(&String::from_utf8_lossy(input)) else {
        return false;
    };
    let again = parse_tag(&tag_text(&record));
    let is_same = again.is_some_and(|again| {
        let rest = TagRecord {
            age: record.age,
            ..again.clone()
        };
        rest == record && again.age >= record.age
    });
    assert!(is_same, "a record is read as it is written");
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn damaged_lines_are_passed_over() {
        let digest = Digest::of(Algorithm::Sha256, b"layer");
        let media_type = MediaType::parse("application/vnd.oci.image.manifest.v1+json").unwrap();
        let mut grants = Grants::default();
        assert!(grants.insert(&digest, &Grant::Blob(None)));
        assert!(!grants.insert(&digest, &Grant::Blob(None)));
        assert!(grants.insert(&digest, &Grant::Manifest(media_type.clone())));
        let text = grants.text();
        let damaged = format!(
            "manifest {digest}\nblob sha256:12\n\u{fffd}\n{text}blob {digest} x y\nblob {digest} 5x\nmanifest {digest} a/b\nblob sha"
        );
        assert_eq!(Grants::parse(&damaged), grants);
        // A line that was cut off in the middle of its type is none.
        let torn = text.replace("+json\n", "");
        assert!(Grants::parse(&torn).manifests.is_empty());
    }

    #[test]
    fn a_size_is_kept_once_it_is_known() {
        let digest = Digest::of(Algorithm::Sha256, b"layer");
        let mut grants = Grants::default();
        let mut log = String::new();
        for (size, is_new, known) in [
            (None, true, None),
            (Some(5), true, Some(5)),
            (Some(5), false, Some(5)),
            (None, false, Some(5)),
            (Some(6), true, Some(6)),
        ] {
            let grant = Grant::Blob(size);
            assert_eq!(grants.of(&digest).has(&grant), !is_new, "{size:?}");
            assert_eq!(grants.insert(&digest, &grant), is_new, "{size:?}");
            assert_eq!(grants.of(&digest).size, known, "{size:?}");
            if is_new {
                log.push_str(&line(&digest, &grant));
            }
        }
        assert_eq!(Grants::parse(&log), grants);
        assert_eq!(Grants::parse(&grants.text()), grants);
        // A line of before sizes were written down.
        let old = Grants::parse(&format!("blob {digest}\n")).of(&digest);
        assert!(old.blob && old.size.is_none());
    }

    #[test]
    fn a_tag_record_is_read_as_it_was_written() {
        let record = TagRecord {
            digest: Digest::of(Algorithm::Sha512, b"manifest"),
            media_type: MediaType::parse("application/vnd.oci.image.index.v1+json").unwrap(),
            size: 1234,
            age: Some(Duration::from_secs(60)),
        };
        let read = parse_tag(&tag_text(&record)).unwrap();
        assert_eq!((read.digest, read.size), (record.digest, record.size));
        let age = read.age.unwrap();
        assert!((60..63).contains(&age.as_secs()));
        // Whatever is cut off: it must not be fresh for longer because it was read from disk.
        for millis in [0, 1, 999, 1500, 1999] {
            let age = Some(Duration::from_millis(millis));
            let record = TagRecord {
                age,
                ..record.clone()
            };
            let read = parse_tag(&tag_text(&record)).unwrap();
            assert!(read.age > age, "{:?} was {age:?}", read.age);
        }
        for damaged in ["", "\n", "sha256:00 a/b 1 2\n", &tag_text(&record)[..40]] {
            assert_eq!(parse_tag(damaged), None, "{damaged:?}");
        }
    }
}
