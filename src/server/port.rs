//! The ports that TLS may be spoken on.

/// Which of our ports it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsPort {
    /// Where clients pull.
    Registry,
    /// Metrics, health and orders.
    Admin,
}

impl TlsPort {
    /// As a label of metrics, and in the log.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Admin => "admin",
        }
    }

    /// The table of the configuration.
    pub(super) const fn table(self) -> &'static str {
        match self {
            Self::Registry => "tls",
            Self::Admin => "admin_tls",
        }
    }
}
