//! What the numbers of a hit are held against.

pub(crate) mod ceiling;
pub(crate) mod nginx;
