//! How files and folders of the store are opened and made: for this user alone, and never by way of a link.
//!
//! Nobody else may read what is kept: content of private repositories lies beside that of public ones. The modes are asked
//! for with each file, so no umask makes them wider. A name that is a symbolic link is nothing that we made, and is not
//! followed; one that is a pipe or a device keeps nobody waiting.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// To read a file; more can be asked for. A file that it makes is for us alone.
pub(super) fn opening() -> OpenOptions {
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let mut options = OpenOptions::new();
    options
        .read(true)
        .mode(FILE_MODE)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or(0));
    options
}

/// Makes a folder that is not there, for us alone.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(DIR_MODE).create(path)
}

/// Makes a folder and those above it that are not there, all for us alone. One that is there is no error.
pub(super) fn make_dirs(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(DIR_MODE).create(path)
}

/// What a folder of ours lets whom do.
pub(super) const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
