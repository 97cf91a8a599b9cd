//! What the numbers of a hit are held against.

#![allow(dead_code, reason = "each bench has its peers")]

pub(crate) mod ceiling;
pub(crate) mod nginx;
