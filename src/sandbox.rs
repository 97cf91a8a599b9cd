//! Rights that this process gives away, before anybody is listened to.
//!
//! With [`confine_writes`] the kernel's Landlock lets this process, and every program that it starts, change files only
//! below the cache directory: a hole in a parser is then no way to another file of the machine, whoever this process runs
//! as. Reading is not limited (secrets, certificates, what a resolver or a credential helper reads), and nor are sockets.
//! Landlock does not know of owners, modes and times (landlock(7)): they stay with the file's rights.
//!
//! It holds for threads and processes that are started later, and cannot be taken back, so it comes before the runtime. A
//! directory is known by what it is, not by its name: one that takes its place is another one, and not written to.

use std::fs::{self, File};
use std::io;

use landlock::{
    ABI, AccessFs, LandlockStatus, PathBeneath, PathFd, RestrictSelf, RestrictSelfAttr, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError,
};

/// What holds from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confined {
    /// The version of Landlock that is in force, at least 2.
    pub version: i32,
    /// How many threads of this process were there before, and are not confined. None, where the kernel can catch them.
    pub threads_before: usize,
}

/// Why nothing is confined.
#[derive(Debug, thiserror::Error)]
pub enum Unconfined {
    /// The kernel was built without it, or a container's filter hides it.
    #[error("this kernel has no Landlock (Linux 5.19 or newer does, where it is built in)")]
    Absent,
    /// The kernel was started without it.
    #[error("Landlock is not enabled in this kernel (see its parameter lsm=)")]
    Disabled,
    /// The kernel is older than what a store needs: it lets no file be renamed from one folder to another.
    #[error("the kernel's Landlock is too old: Linux 5.19 or newer is needed")]
    Old,
    /// The kernel refused.
    #[error("Landlock refused")]
    Refused(#[from] RulesetError),
    /// What exists already could not be found out.
    #[error("/proc is not readable")]
    Threads(#[from] io::Error),
}

/// Lets this process write only below `dir`, and to `/dev/null`, from now on.
///
/// # Errors
///
/// When the kernel cannot do it; then this process may write wherever it could before.
pub fn confine_writes(dir: &File) -> Result<Confined, Unconfined> {
    // Nothing is asked of the kernel yet but which version it has.
    let kernel = RestrictSelf::default().no_new_privs(false).apply()?;
    let version = match kernel.landlock {
        LandlockStatus::NotImplemented => return Err(Unconfined::Absent),
        LandlockStatus::NotEnabled => return Err(Unconfined::Disabled),
        LandlockStatus::Available {
            effective_abi: ABI::V1,
            ..
        } => return Err(Unconfined::Old),
        LandlockStatus::Available { effective_abi, .. } => effective_abi as i32,
    };
    let threads = fs::read_dir("/proc/self/task")?.count();
    // Truncation came with version 3: before it, a file outside can be emptied by whoever may write to it.
    let writes = AccessFs::from_write(ABI::V3);
    let mut ruleset = Ruleset::default()
        .handle_access(writes)?
        .create()?
        .add_rule(PathBeneath::new(dir, writes))?;
    // Where a helper's unwanted output goes.
    if let Ok(null) = PathFd::new("/dev/null") {
        let writes = writes & AccessFs::from_file(ABI::V3);
        ruleset = ruleset.add_rule(PathBeneath::new(null, writes))?;
    }
    let status = ruleset.all_threads(true)?.restrict_self()?;
    let before = threads.saturating_sub(1);
    Ok(Confined {
        version,
        threads_before: if status.all_threads { 0 } else { before },
    })
}
