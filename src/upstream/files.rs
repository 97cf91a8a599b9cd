//! The files that a configuration names, looked at before anything is started.

use std::fs::File;
use std::io;
use std::path::Path;

use super::config::{Config, CredentialSource};
use super::tls::{FileError, Tls};

/// Whether the files that an upstream's configuration names are there and what they should be: certificates and keys are
/// read as they would be, and a password's file only has to be readable. Blocks.
///
/// # Errors
///
/// With the first that is not.
pub fn check_files(config: &Config) -> Result<(), FileError> {
    let mirrors = config.mirrors.iter().map(|it| &it.site);
    for site in std::iter::once(&config.own).chain(mirrors) {
        Tls::load(&site.tls)?;
        if let Some(CredentialSource::File { password_file, .. }) = &site.credential {
            open(password_file)?;
        }
    }
    Ok(())
}

/// Opens a file without reading it: what is in it may be there once only.
fn open(file: &Path) -> Result<(), FileError> {
    let opened = File::open(file).and_then(|it| it.metadata());
    let readable = opened.and_then(|it| {
        let is_folder = it.is_dir().then_some(io::ErrorKind::IsADirectory.into());
        is_folder.map_or(Ok(()), Err)
    });
    readable.map_err(|source| FileError::Unreadable {
        file: file.to_owned(),
        source,
    })
}
