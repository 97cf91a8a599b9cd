//! What a disk does when it is broken, on order: for tests, which cannot break one at a chosen moment. Outside of tests the
//! script is empty, and asking it is one comparison.

use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

/// Something that is done in the cache directory and can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Making a file.
    Create,
    /// Writing to one.
    Write,
    /// Writing a file's bytes through to the disk.
    Sync,
    /// Giving a file another name; its area is where it goes.
    Rename,
    /// Writing a folder's names through to the disk.
    SyncFolder,
    /// Making a folder.
    MakeFolder,
    /// Opening a file to read it.
    Open,
    /// Asking what a file is.
    Stat,
    /// Reading from one.
    Read,
    /// Removing one.
    Remove,
    /// Reading a folder.
    List,
    /// Asking how much room there is; its area is [`Area::Blobs`].
    Space,
}

/// Where in the cache directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// What is coming in.
    Staging,
    /// What is published.
    Blobs,
    /// What is remembered of repositories.
    Records,
}

/// The faults of one disk. Clones are of the same disk; without a script there are none.
#[derive(Clone, Default)]
pub struct Faults {
    script: Option<Arc<Mutex<Script>>>,
}

#[derive(Debug, Default)]
struct Script {
    rules: Vec<Rule>,
    struck: u64,
}

#[derive(Debug)]
struct Rule {
    operation: Operation,
    area: Area,
    error: i32,
    /// How many calls still go well.
    skip: u64,
    /// How many calls fail after those.
    take: u64,
}

impl Faults {
    /// A disk that works until it is told otherwise.
    pub fn scripted() -> Self {
        Self {
            script: Some(Arc::default()),
        }
    }

    /// From the next call on, less `skip` that still go well, the operation fails in this area until the disk is healed.
    /// `error` is the system's number (`EIO` is 5).
    pub fn fail(&self, operation: Operation, area: Area, error: i32, skip: u64) {
        self.add(Rule {
            operation,
            area,
            error,
            skip,
            take: u64::MAX,
        });
    }

    /// One call fails, after `skip` that go well.
    pub fn fail_once(&self, operation: Operation, area: Area, error: i32, skip: u64) {
        self.add(Rule {
            operation,
            area,
            error,
            skip,
            take: 1,
        });
    }

    /// Everything works again.
    pub fn heal(&self) {
        if let Some(script) = &self.script {
            script.lock().rules.clear();
        }
    }

    /// How many calls have failed so far.
    pub fn struck(&self) -> u64 {
        self.script.as_ref().map_or(0, |it| it.lock().struck)
    }

    /// Whether the next call may fail. None is counted.
    pub(super) fn may_fail(&self, operation: Operation, area: Area) -> bool {
        self.script.as_ref().is_some_and(|script| {
            let rules = &script.lock().rules;
            let is_of = |rule: &Rule| rule.operation == operation && rule.area == area;
            rules.iter().any(|rule| is_of(rule) && rule.take > 0)
        })
    }

    fn add(&self, rule: Rule) {
        if let Some(script) = &self.script {
            script.lock().rules.push(rule);
        }
    }

    /// Whether the operation goes well this time; to be asked right before it is done.
    pub(super) fn check(&self, operation: Operation, area: Area) -> io::Result<()> {
        match &self.script {
            None => Ok(()),
            Some(script) => script.lock().check(operation, area),
        }
    }
}

impl Script {
    fn check(&mut self, operation: Operation, area: Area) -> io::Result<()> {
        let rules = self.rules.iter_mut();
        for rule in rules.filter(|it| it.operation == operation && it.area == area) {
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if rule.take > 0 {
                rule.take -= 1;
                self.struck += 1;
                return Err(io::Error::from_raw_os_error(rule.error));
            }
        }
        Ok(())
    }
}

impl PartialEq for Faults {
    /// Whether these are the faults of the same disk.
    fn eq(&self, other: &Self) -> bool {
        match (&self.script, &other.script) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults")
            .field("scripted", &self.script.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_where_and_when_it_was_told_to() {
        let disk = Faults::scripted();
        let write = |area| disk.check(Operation::Write, area).is_err();
        disk.fail(Operation::Write, Area::Staging, 5, 2);
        assert!(!write(Area::Blobs));
        let struck: Vec<bool> = (0..4).map(|_| write(Area::Staging)).collect();
        assert_eq!(struck, [false, false, true, true]);
        disk.heal();
        assert!(!write(Area::Staging));
        disk.fail_once(Operation::Write, Area::Blobs, 5, 1);
        let struck: Vec<bool> = (0..3).map(|_| write(Area::Blobs)).collect();
        assert_eq!(struck, [false, true, false]);
        assert_eq!(disk.struck(), 3);
        assert_ne!(disk, Faults::scripted());
        assert_eq!(Faults::default(), Faults::default());
    }
}
