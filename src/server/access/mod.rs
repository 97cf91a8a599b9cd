//! Who may pull what: who a client is, what the operator's rules say of that, and the tokens that clients want instead of
//! showing a password with each request.
//!
//! ```text
//!   GET /v2/                     401, WWW-Authenticate: Bearer realm="…/token",service="…"
//!   GET /token, with a password  a token of ours: sealed, good for minutes, bound to that password's entry
//!   GET /v2/…,  with the token   who it was given to, if that entry still stands; then the rules
//! ```
//!
//! Nothing is kept for a token: it holds, encrypted, what it is good for. So nobody's can be pushed out by another's, and after
//! a restart, whose key is another one, all of them are void and clients ask again.
//!
//! **What is absent:** no upstream is asked here, and nothing that a client shows leaves.

mod orders;
mod front;
mod exchange;
mod passwords;
mod book;
mod sealed;
mod entries;
mod shown;
mod refusal;
mod challenge;
mod config;
mod rules;

pub use config::AccessConfig;
pub use entries::{FileError, fuzz_access_file};
pub use exchange::fuzz_token_request;
pub use front::{Access, Terms, check_access_files};
pub use rules::{Action, Rule, Who};
pub use shown::fuzz_authorization;

pub(super) use challenge::Challenge;
pub(super) use exchange::{Issued, TokenRequest};
pub(super) use front::{Authenticated, Visit, Wish};
pub(super) use orders::{NotTaken, is_forwarded};
pub(super) use refusal::Refusal;
pub(super) use sealed::Sealer;
pub(super) use shown::Shown;
