//! HTTP pieces that know no registry, and the small texts of configuration and logs.
//!
//! **What is absent:** no registry words, no I/O, no clock.

mod metered;
mod conditional;
mod host;
mod framing;
mod forwarded;
mod proxy_protocol;
mod networks;
mod rate;
mod source;
mod range;
mod retry_after;
mod units;
mod json;
mod secret;
mod identity;
mod pause;
mod total;
mod chain;
mod shown;

pub use chain::Chain;
pub use conditional::{if_range_allows, none_match};
pub use forwarded::{client_address, fuzz_forwarded, is_forwarded_https};
pub use framing::{InvalidFraming, LineEnds, check_framing};
pub use host::{InvalidHost, requested_host};
pub use identity::{IDENTITY_BYTES_MAX, Identity, Means, is_identity};
pub use json::from_json_object;
pub use metered::{Carried, End, Metered, Sent};
pub use networks::{InvalidNetwork, Network, Networks, fuzz_network, unmapped_address};
pub use pause::next_pause;
pub use proxy_protocol::{InvalidProxyHeader, ProxyHeader, ProxySource, fuzz_proxy_header};
pub use range::{ContentRange, RangeSet, Resolved, fuzz_range, unsatisfied};
pub use rate::{Buckets, InvalidRate, Rate, Share};
pub use retry_after::{fuzz_retry_after, http_date, retry_after};
pub use secret::Secret;
pub use shown::shown_path;
pub use source::Source;
pub use total::total;
pub use units::{
    DurationText, InvalidDuration, InvalidSize, SizeText, fuzz_units, parse_duration, parse_size,
};
