//! Who we are at a site: perhaps somebody else in some of its repositories.

use std::time::Duration;

use super::config::{CredentialSource, SiteConfig};
use super::credential::Credential;
use super::credentials::Credentials;
use super::token::Tokens;
use crate::oci::RepositoryName;

/// Who we are at one site, by repository.
#[derive(Debug)]
pub(super) struct Accounts {
    /// In some repositories, by the folder that they are in; a folder stands before those that it is in.
    folders: Vec<(RepositoryName, Account)>,
    /// In the others.
    rest: Account,
}

/// Somebody who we are: what was refused and which tokens were given is nobody else's.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) credentials: Credentials,
    pub(super) tokens: Tokens,
}

impl Accounts {
    /// As the configuration says; `upstream` is the site's name in logs.
    pub(super) fn new(upstream: &str, site: &SiteConfig) -> Self {
        let account = |folder: Option<&RepositoryName>, source: Option<CredentialSource>| Account {
            credentials: Credentials::new(upstream, site, folder, source),
            tokens: Tokens::new(),
        };
        let here = |folder: &RepositoryName| match &site.prefix {
            None => Some(folder.clone()),
            // One that is too long for a name has no repositories.
            Some(prefix) => RepositoryName::parse(&format!("{prefix}/{folder}")).ok(),
        };
        let folders = site.folder_credentials.iter().filter_map(|it| {
            let source = Some(it.source.clone());
            Some((here(&it.folder)?, account(Some(&it.folder), source)))
        });
        let mut folders: Vec<_> = folders.collect();
        folders.sort_by_key(|(folder, _)| std::cmp::Reverse(folder.as_str().len()));
        Self {
            folders,
            rest: account(None, site.credential.clone()),
        }
    }

    /// Those of a caller, who is the same in all repositories; `pause` is as of ours.
    pub(super) fn of_caller(upstream: &str, caller: Option<Credential>, pause: Duration) -> Self {
        Self {
            folders: Vec::new(),
            rest: Account {
                credentials: Credentials::of_caller(upstream, caller, pause),
                tokens: Tokens::of_caller(),
            },
        }
    }

    /// Whether they are a caller's.
    pub(super) fn are_callers(&self) -> bool {
        self.rest.credentials.are_callers()
    }

    /// Who we are in this repository, by its name at the site; without one, to the site as such.
    pub(super) fn of(&self, name: Option<&RepositoryName>) -> &Account {
        let holds = |folder: &RepositoryName| name.is_some_and(|it| it.is_within(folder));
        let found = self.folders.iter().find(|(folder, _)| holds(folder));
        found.map_or(&self.rest, |(_, account)| account)
    }
}
