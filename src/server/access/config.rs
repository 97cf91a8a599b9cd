//! What access runs on.

use std::path::PathBuf;

use super::rules::{Rule, Who};
use crate::net::Networks;

/// Who may pull what; by default everybody everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessConfig {
    /// Users and their passwords, as bcrypt hashes. Read again when it has changed.
    pub htpasswd_file: Option<PathBuf>,
    /// Identities and their tokens, as SHA-256 hashes. Read again when it has changed.
    pub tokens_file: Option<PathBuf>,
    /// Whether connections may show a certificate that is verified.
    pub certificates: bool,
    /// What clients call us: `https://cache.example`, without a slash at its end. `None` is what each of them says.
    pub external_url: Option<String>,
    /// In their order.
    pub rules: Vec<Rule>,
    /// From where the admin port takes orders of anybody.
    pub admin_networks: Networks,
    /// From whom it takes orders, wherever they come from.
    pub admin_identities: Vec<Who>,
}

impl AccessConfig {
    /// Whether anybody can show who they are.
    pub fn authenticates(&self) -> bool {
        self.htpasswd_file.is_some() || self.tokens_file.is_some() || self.certificates
    }
}
