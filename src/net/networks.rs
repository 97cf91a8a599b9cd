//! Lists of networks, such as those that proxies in front of us have their addresses in.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

/// One network: `10.0.0.0/8`, `fd00::/8`, or an address for a network of one. An IPv4 network that is written as one of
/// IPv6 (`::ffff:10.0.0.0/104`, RFC 4291 §2.5.5.2) is the IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

/// A text that is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a network such as `10.0.0.0/8`, or an address")]
pub struct InvalidNetwork;

/// Some networks; by default none, and then no address is in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

impl Network {
    /// Parses a network, or an address for the network that it alone makes up.
    ///
    /// # Errors
    ///
    /// When it is neither, and when the address has bits beyond the prefix: of `10.1.2.3/8` nobody can say whether the
    /// network or the address was meant.
    pub fn parse(text: &str) -> Result<Self, InvalidNetwork> {
        // By the standard library, which takes no `010.0.0.0`: that is 8.0.0.0 to some.
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| InvalidNetwork)?;
        let net = match bits {
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                let bits = bits.parse().map_err(|_| InvalidNetwork)?;
                IpNet::new(address, bits).map_err(|_| InvalidNetwork)?
            }
            Some(_) => return Err(InvalidNetwork),
            None => IpNet::from(address),
        };
        if net.trunc() != net {
            return Err(InvalidNetwork);
        }
        Ok(Self(unmapped(net)))
    }

    /// Whether `address` is of this network; an IPv4 address that is written as one of IPv6 is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl Networks {
    /// Whether `address` is of any of the networks.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|it| it.contains(address))
    }

    /// Whether one of the networks is `address` and nothing else.
    pub fn names(&self, address: IpAddr) -> bool {
        let address = IpNet::from(address.to_canonical());
        self.0.iter().any(|it| it.0 == address)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The networks, in the order they were given in.
    pub fn iter(&self) -> impl Iterator<Item = &Network> {
        self.0.iter()
    }
}

/// The address of a peer as IPv4 has it where IPv6 only carries it: what a socket that listens on `[::]` sees of IPv4.
pub fn unmapped_address(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        // As it was: it may have a scope.
        IpAddr::V6(_) => address,
    }
}

impl FromIterator<Network> for Networks {
    fn from_iter<T: IntoIterator<Item = Network>>(networks: T) -> Self {
        Self(networks.into_iter().collect())
    }
}

impl fmt::Display for Network {
    /// A network of one address is shown as the address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            self.0.addr().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

/// Bits before the IPv4 address in an IPv6 address that carries one.
const MAPPED_PREFIX_BITS: u8 = 96;

fn unmapped(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let v4 = v6.addr().to_ipv4_mapped();
    let bits = v6.prefix_len().checked_sub(MAPPED_PREFIX_BITS);
    let unmapped = v4
        .zip(bits)
        .and_then(|(v4, bits)| Ipv4Net::new(v4, bits).ok());
    unmapped.map_or(net, IpNet::V4)
}

/// Parses anything without panicking, and renders what it accepts so that it means the same.
pub fn fuzz_network(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    if let Ok(network) = Network::parse(text) {
        let again = Network::parse(&network.to_string());
        assert_eq!(again, Ok(network), "a network renders as it was parsed");
        assert!(
            network.contains(network.0.addr()),
            "a network has its own address"
        );
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn a_network_has_the_addresses_of_its_prefix() {
        for (network, address, expected) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "203.0.113.9", false),
            ("::/0", "2001:db8::1", true),
            ("fd00::/8", "fdff::1", true),
            ("fd00::/8", "fe80::1", false),
            ("2001:db8::1", "2001:db8::1", true),
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "11.1.2.3", false),
            ("::ffff:192.0.2.7", "192.0.2.7", true),
        ] {
            let parsed = Network::parse(network).unwrap();
            let found = parsed.contains(address.parse().unwrap());
            assert_eq!(found, expected, "{address} in {network}");
        }
    }

    #[test]
    fn an_address_is_named_by_a_network_of_itself_alone() {
        for (network, address, expected) in [
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7/32", "::ffff:192.0.2.7", true),
            ("::ffff:192.0.2.7", "192.0.2.7", true),
            ("192.0.2.6/31", "192.0.2.7", false),
            ("fd00::1/128", "fd00::1", true),
            ("fd00::/8", "fd00::1", false),
        ] {
            let networks: Networks = [Network::parse(network).unwrap()].into_iter().collect();
            let found = networks.names(address.parse().unwrap());
            assert_eq!(found, expected, "{address} by {network}");
        }
    }

    #[test]
    fn networks_render_as_they_were_meant() {
        for (text, rendered) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("FD00:0::/8", "fd00::/8"),
            ("::1/128", "::1"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0:0/90", ""),
        ] {
            let network = Network::parse(text).map(|it| it.to_string());
            assert_eq!(network.unwrap_or_default(), rendered, "{text}");
            fuzz_network(text.as_bytes());
        }
        for bad in [
            "",
            "/",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0/8",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "::/129",
            "[::1]",
            "::1%lo",
            "010.0.0.0/8",
            "10.0.0.0/8 ",
            "a.example",
            "*",
        ] {
            assert_eq!(Network::parse(bad), Err(InvalidNetwork), "{bad}");
        }
    }

    #[test]
    fn no_input_panics_a_parser() {
        let words = [
            "10",
            ".",
            "0",
            ":",
            "::",
            "/",
            "8",
            "32",
            "96",
            "128",
            "ffff",
            "192.0.2.1",
            "fd00",
            "255",
            "%",
            "ü",
            "-",
        ];
        let mut random = SmallRng::seed_from_u64(11);
        for _ in 0..50_000 {
            let count = random.random_range(0..9);
            let text: String = (0..count)
                .filter_map(|_| words.choose(&mut random))
                .copied()
                .collect();
            fuzz_network(text.as_bytes());
            fuzz_network(format!("10.0.0.0/{text}").as_bytes());
            fuzz_network(format!("::ffff:{text}").as_bytes());
        }
    }

    #[test]
    fn only_an_address_that_carries_ipv4_is_unmapped() {
        for (address, expected) in [
            ("[::ffff:192.0.2.1]:80", "192.0.2.1:80"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
            ("[fe80::1%3]:80", "[fe80::1%3]:80"),
        ] {
            let unmapped = unmapped_address(address.parse().unwrap());
            assert_eq!(unmapped.to_string(), expected);
        }
    }
}
