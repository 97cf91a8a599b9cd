//! layerhold: a pull-through caching proxy for OCI and Docker registries.
//!
//! It stands in front of upstream registries, serves immutable content from one deduplicated directory, and asks upstream
//! only about what can change. *Digests are truth, tags are hearsay.*
//!
//! # The shape of a pull
//!
//! ```text
//!   client                                                                           upstream
//!     │  GET /v2/library/debian/blobs/sha256:ab…                                         ▲
//!     ▼                                                                                  │
//!  server   accept, limits ─ parse path → Endpoint ───────┐   ┌─ Answer → response, count, log
//!     │                                                   ▼   │                          │
//!  proxy                 which upstream? granted? look up ┴───┴─ what does the answer mean?
//!     │                                │                                                 │
//!     ├─ hit ────────── cache: open ───┼──────► file ─────────────► socket               │
//!     ├─ join ───────── cache: follow ─┼──────► fill as it grows ─► socket               │
//!     ├─ miss ───────── cache: begin ──┘   ▲                                             │
//!     │                       └─ fill task: upstream body ─► staging file + hasher ──────┘
//!     │                                     │ digest right: release the tail → sync, rename, index → forget the fill
//!     │                                     └ it is not, or every source fails: tell followers why
//!     └─ bypass ─────── no room, disk broken: upstream body ────► socket
//! ```
//!
//! The client of a miss is just a follower of the fill that it caused. There is one way to read a blob, at an offset; hit,
//! join and miss differ only in how long the next byte takes. Nobody leads, and nobody waits for anybody's socket.
//!
//! # The floors
//!
//! A module uses only modules that are declared after it, here and within each floor; a test keeps it so.
//!
//! - [`app`] builds every floor, joins them, starts and stops them.
//! - [`sandbox`] gives away rights that this process does not need.
//! - [`saved`] tells in the log what pulls did not cost the upstreams.
//! - [`log`] writes the log: many lines at once, and nobody who logs waits for a reader that has stopped.
//! - [`operator`] asks a running proxy, at its admin port, for what a command wants of it.
//! - [`config`] is what to run on, checked whole; [`cli`] is what was typed.
//! - [`server`] is the HTTP front: connections, limits, the one seam of every request, the admin port. *It does not know
//!   how content comes about.*
//! - [`proxy`] is what pulling means: routes, grants, freshness, and what an answer is. *It opens no socket and joins no
//!   path.*
//! - [`cache`] is bytes on disk. *It cannot name a host.* [`upstream`] is one remote registry. *It names no file
//!   but those of its credentials and certificates.* The two never meet but in `proxy`, so that the cache is tested without
//!   a network and the client without a disk.
//! - [`files`] reads the files that a configuration names: certificates, and what changes while we run.
//! - [`net`] holds HTTP pieces that know no registry; [`oci`] holds the spec's words as types, *without I/O, clock or
//!   async*.
//!
//! # Invariants
//!
//! Each is enforced in one place, and a test has its number.
//!
//! 1. A path becomes an [`oci::Endpoint`] at the door; below [`server`], no name, tag or digest is a string.
//! 2. A published file is right: it was hashed here under its name, is made by rename only, and never written again.
//! 3. Absent, filling or present: one lock decides.
//! 4. A thousand clients of one digest cause one upstream transfer; besides it only bounded windows, for closed ranges far
//!    ahead of it.
//! 5. No socket stands in a fill's way, and a fill outlives the client that caused it.
//! 6. The last byte waits for the digest. A range that ends before the last byte is served unverified.
//! 7. Room before bytes: used and reserved never exceed the limit once the start-up scan has ended. What is being read is
//!    never evicted; a pull that finds no room goes around the cache.
//! 8. Content under a digest is never revalidated; a tag is an answer with an age.
//! 9. The cache may fail, pulls may not: readers of a fill that cannot be kept go on from upstream by themselves.
//! 10. Everything has a limit.
//! 11. Credentials do not cross hosts: what a redirect or a challenge names is another party until proven the same.
//! 12. Stopping is part of running: the directory is released first, with what is staged, then bodies drain.
//! 13. A repository vouches for its content: having the bytes is not a right to them. Where an upstream decides by its callers'
//!     rights, nobody gets a look at what is here before the registry itself has let them in.
//! 14. Bytes are never rewritten.
//!
#![doc = include_str!("threat_model.md")]

pub mod app;
pub mod sandbox;
pub mod saved;
pub mod log;
pub mod operator;
pub mod config;
pub mod cli;
pub mod server;
pub mod proxy;
pub mod cache;
pub mod upstream;
pub mod files;
pub mod net;
pub mod oci;
