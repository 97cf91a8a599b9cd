//! Lists of networks.

use crate::net::{Network, Networks};

use super::error::Error;
use super::given::Given;

/// Networks and addresses, none of them twice.
pub(super) fn read_networks(given: Given) -> Result<Networks, Error> {
    let mut networks: Vec<Network> = Vec::new();
    for given in given.list(NETWORKS)? {
        let network = Network::parse(given.str(NETWORK)?).map_err(|_| given.wrong(NETWORK))?;
        if networks.contains(&network) {
            return Err(given.taken("listed twice"));
        }
        networks.push(network);
    }
    Ok(networks.into_iter().collect())
}

const NETWORKS: &str = "a list of networks and addresses such as `[\"10.0.0.0/8\", \"fd00::1\"]`";
const NETWORK: &str = "an address such as `192.0.2.7`, or a network such as `10.0.0.0/8`, whose address has no bits after the prefix";
