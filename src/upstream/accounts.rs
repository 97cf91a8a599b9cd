//! Who we are at a site: perhaps somebody else in some of its repositories.

use super::config::SiteConfig;
use super::credentials::Credentials;
use crate::oci::RepositoryName;

/// Our credentials for one site, by repository. Each has its own memory of what was refused.
#[derive(Debug)]
pub(super) struct Accounts {
    /// For some repositories, by the folder that they are in; a folder stands before those that it is in.
    folders: Vec<(RepositoryName, Credentials)>,
    /// For the others.
    rest: Credentials,
}

impl Accounts {
    /// As the configuration says; `upstream` is the site's name in logs.
    pub(super) fn new(upstream: &str, site: &SiteConfig) -> Self {
        let here = |folder: &RepositoryName| match &site.prefix {
            None => Some(folder.clone()),
            // One that is too long for a name has no repositories.
            Some(prefix) => RepositoryName::parse(&format!("{prefix}/{folder}")).ok(),
        };
        let folders = site.folder_credentials.iter().filter_map(|it| {
            let source = Some(it.source.clone());
            let credentials = Credentials::new(upstream, site, Some(&it.folder), source);
            Some((here(&it.folder)?, credentials))
        });
        let mut folders: Vec<_> = folders.collect();
        folders.sort_by_key(|(folder, _)| std::cmp::Reverse(folder.as_str().len()));
        Self {
            folders,
            rest: Credentials::new(upstream, site, None, site.credential.clone()),
        }
    }

    /// Who we are in this repository, by its name at the site; without one, to the site as such.
    pub(super) fn of(&self, name: Option<&RepositoryName>) -> &Credentials {
        let holds = |folder: &RepositoryName| name.is_some_and(|it| it.is_within(folder));
        let found = self.folders.iter().find(|(folder, _)| holds(folder));
        found.map_or(&self.rest, |(_, credentials)| credentials)
    }
}
