//! Which addresses may be dialled for somebody whom an upstream merely named.
//!
//! A redirect or a token realm is a foreign party's word. It may lead to the public Internet, or to where the upstream
//! itself is; never from a public registry into a private network, and never to link-local addresses and the others where
//! the machines of a cloud are told their secrets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of place an address is in (RFC 6890 and the registries that it made).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AddressClass {
    /// Anywhere on the Internet.
    Public,
    /// This machine (RFC 1122 §3.2.1.3, RFC 4291 §2.5.3).
    Loopback,
    /// A private network (RFC 1918, RFC 4193).
    Private,
    /// Behind a carrier's translation (RFC 6598).
    CarrierNat,
    /// This link (RFC 3927, RFC 4291 §2.5.6).
    LinkLocal,
    /// Where a cloud tells its machines who they are, and gives them the credentials that come with that.
    Metadata,
    /// No host at all: unspecified, multicast, broadcast, reserved.
    Never,
}

impl AddressClass {
    /// The class of an address; an IPv4 address within an IPv6 one is what it is.
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    /// Whether somebody whom an upstream at an address of class `own` named may be dialled here.
    pub(super) fn is_allowed_from(self, own: Option<Self>) -> bool {
        match self {
            Self::Public => true,
            Self::LinkLocal | Self::Metadata | Self::Never => false,
            Self::Loopback | Self::Private | Self::CarrierNat => own == Some(self),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        // Of 192.0.0.0/24, which is for protocols (RFC 6890 §2.1), two are anycast of the Internet (RFC 7723, RFC 8155).
        let is_protocols = [a, b, c] == [192, 0, 0] && !matches!(d, 9 | 10);
        if METADATA_V4.contains(&address) {
            Self::Metadata
        } else if address.is_loopback() {
            Self::Loopback
        } else if address.is_private() || (a == 198 && b & 0xfe == 18) {
            // The networks of benchmarks (RFC 2544) are some proxies' for names that they look up later.
            Self::Private
        } else if a == 100 && (64..128).contains(&b) {
            Self::CarrierNat
        } else if address.is_link_local() {
            Self::LinkLocal
        } else if a == 0 || a >= 224 || is_protocols {
            Self::Never
        } else {
            Self::Public
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let segments = address.segments();
        // ::ffff:a.b.c.d (RFC 4291 §2.5.5.2), ::ffff:0:a.b.c.d (RFC 2765 §2.1), 64:ff9b::a.b.c.d (RFC 6052 §2.1),
        // 2002:a.b.c.d:: (RFC 3056 §2).
        let embedded = match segments {
            [0, 0, 0, 0, 0, 0xffff, high, low]
            | [0, 0, 0, 0, 0xffff, 0, high, low]
            | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some((high, low)),
            [0x2002, high, low, ..] => Some((high, low)),
            _ => None,
        };
        if let Some((high, low)) = embedded {
            let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
            return Self::of_v4(Ipv4Addr::new(a, b, c, d));
        }
        // 64:ff9b:1::/48 translates to wherever a network likes (RFC 8215), fec0::/10 was private once (RFC 3879).
        let is_local = matches!(segments, [0x64, 0xff9b, 1, ..]) || segments[0] & 0xffc0 == 0xfec0;
        // 100::/64 swallows what it is sent (RFC 6666), and 2001::/32 leads into some host's own network (RFC 4380).
        let is_nobody = matches!(segments, [0x100, 0, 0, 0, ..] | [0x2001, 0, ..]);
        if METADATA_V6.contains(&address) {
            Self::Metadata
        } else if address.is_loopback() {
            Self::Loopback
        } else if address.is_unique_local() || is_local {
            Self::Private
        } else if address.is_unicast_link_local() {
            Self::LinkLocal
        } else if address.is_multicast() || segments[..6] == [0; 6] || is_nobody {
            Self::Never
        } else {
            Self::Public
        }
    }
}

/// The metadata services of AWS, Google, Azure, Oracle and others; of AWS for containers and pods; of Tencent; of Azure (its
/// host), Alibaba, and Oracle's older cloud.
const METADATA_V4: [Ipv4Addr; 7] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(169, 254, 0, 23),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// Those of AWS, of AWS for pods, of Google and of OpenStack.
const METADATA_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
];
/// The names by which a cloud's name servers know them.
const METADATA_NAMES: [&str; 6] = [
    "metadata.google.internal",
    "metadata.goog",
    "metadata.azure.internal",
    "instance-data.ec2.internal",
    "instance-data",
    "metadata",
];

/// The class of a name that means the same wherever it is looked up: `localhost` (RFC 6761 §6.3), those of metadata services,
/// and a number, which much software takes for an IPv4 address in an old spelling (`2130706433`, `0x7f.1`).
pub(super) fn class_of_name(name: &str) -> Option<AddressClass> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let last = name.rsplit('.').next().unwrap_or(&name);
    if last == "localhost" {
        return Some(AddressClass::Loopback);
    }
    if METADATA_NAMES.contains(&name.as_str()) {
        return Some(AddressClass::Metadata);
    }
    let is_number = match last.strip_prefix("0x") {
        Some(digits) => digits.bytes().all(|it| it.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|it| it.is_ascii_digit()),
    };
    is_number.then_some(AddressClass::Never)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_has_its_class() {
        use AddressClass::{CarrierNat, LinkLocal, Loopback, Metadata, Never, Private, Public};
        for (text, expected) in [
            ("93.184.216.34", Public),
            ("127.0.0.1", Loopback),
            ("127.9.9.9", Loopback),
            ("10.1.2.3", Private),
            ("172.31.0.1", Private),
            ("172.32.0.1", Public),
            ("192.168.0.1", Private),
            ("100.64.0.1", CarrierNat),
            ("100.128.0.1", Public),
            ("169.254.169.254", Metadata),
            ("169.254.1.1", LinkLocal),
            ("169.254.170.23", Metadata),
            ("100.100.100.200", Metadata),
            ("168.63.129.16", Metadata),
            ("168.63.129.17", Public),
            ("192.0.0.192", Metadata),
            ("192.0.0.8", Never),
            ("192.0.0.9", Public),
            ("192.0.1.1", Public),
            ("198.18.0.1", Private),
            ("198.19.255.255", Private),
            ("198.20.0.1", Public),
            ("0.0.0.0", Never),
            ("0.1.2.3", Never),
            ("224.0.0.1", Never),
            ("255.255.255.255", Never),
            ("::1", Loopback),
            ("::", Never),
            ("::127.0.0.1", Never),
            ("::ffff:127.0.0.1", Loopback),
            ("::ffff:169.254.169.254", Metadata),
            ("::ffff:0.0.0.0", Never),
            ("::ffff:0:10.0.0.1", Private),
            ("64:ff9b::a9fe:a9fe", Metadata),
            ("64:ff9b::10.0.0.1", Private),
            ("64:ff9b::8.8.8.8", Public),
            ("2002:7f00:1::", Loopback),
            ("2002:a9fe:a9fe::1", Metadata),
            ("2001:0:1234::1", Never),
            ("2001:db8::1", Public),
            ("100::1", Never),
            ("fd00:ec2::254", Metadata),
            ("fd00:ec2::23", Metadata),
            ("fd20:ce::254", Metadata),
            ("fe80::a9fe:a9fe", Metadata),
            ("fe80::1", LinkLocal),
            ("fd00::1", Private),
            ("64:ff9b:1::a9fe:a9fe", Private),
            ("fec0::1", Private),
            ("feff::1", Private),
            ("ff02::1", Never),
            ("2606:2800:220:1::1", Public),
        ] {
            assert_eq!(AddressClass::of(text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn nobody_is_led_from_the_internet_into_a_private_network() {
        use AddressClass::{LinkLocal, Loopback, Metadata, Never, Private, Public};
        for (class, own, expected) in [
            (Public, Some(Public), true),
            (Public, Some(Loopback), true),
            (Public, None, true),
            (Loopback, Some(Public), false),
            (Loopback, Some(Loopback), true),
            (Loopback, None, false),
            (Private, Some(Loopback), false),
            (Private, Some(Private), true),
            (LinkLocal, Some(LinkLocal), false),
            (Metadata, Some(Metadata), false),
            (Metadata, Some(Public), false),
            (Never, Some(Never), false),
        ] {
            assert_eq!(
                class.is_allowed_from(own),
                expected,
                "{class:?} from {own:?}"
            );
        }
    }

    #[test]
    fn some_names_mean_the_same_everywhere() {
        use AddressClass::{Loopback, Metadata, Never};
        for (name, expected) in [
            ("localhost", Some(Loopback)),
            ("LOCALHOST.", Some(Loopback)),
            ("a.localhost", Some(Loopback)),
            ("Metadata.google.internal.", Some(Metadata)),
            ("metadata", Some(Metadata)),
            ("metadata.example.com", None),
            ("2130706433", Some(Never)),
            ("0x7f000001", Some(Never)),
            ("0X7F.1", Some(Never)),
            ("127.1", Some(Never)),
            ("10.0.0.1.", Some(Never)),
            ("0x", Some(Never)),
            ("localhost.example.com", None),
            ("1.example", None),
            ("0xg", None),
            ("face", None),
            ("", None),
        ] {
            assert_eq!(class_of_name(name), expected, "{name}");
        }
    }
}
