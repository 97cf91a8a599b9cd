//! The files that a configuration names, looked at before anything is started.

use super::config::{Config, CredentialSource};
use super::credentials;
use super::tls::{FileError, Tls};

/// Whether the files that an upstream's configuration names are there and what they should be: each is read
/// as it would be. Blocks.
///
/// # Errors
///
/// With the first that is not.
pub fn check_files(config: &Config) -> Result<(), FileError> {
    let mirrors = config.mirrors.iter().map(|it| &it.site);
    for site in std::iter::once(&config.own).chain(mirrors) {
        Tls::load(&site.tls)?;
        let of_folders = site.folder_credentials.iter().map(|it| &it.source);
        for source in of_folders.chain(&site.credential) {
            if let CredentialSource::File { password_file, .. } = source {
                credentials::read(password_file)?;
            }
        }
    }
    Ok(())
}
