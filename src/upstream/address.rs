//! Which addresses may be dialled for somebody whom an upstream merely named.
//!
//! A redirect or a token realm is a foreign party's word. It may lead to the public Internet, or to where the upstream
//! itself is; never from a public registry into a private network, and never to link-local addresses, where machines keep
//! their secrets.

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
    /// This link (RFC 3927, RFC 4291 §2.5.6), where cloud machines find their metadata service.
    LinkLocal,
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
            Self::LinkLocal | Self::Never => false,
            Self::Loopback | Self::Private | Self::CarrierNat => own == Some(self),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [a, b, ..] = address.octets();
        if address.is_loopback() {
            Self::Loopback
        } else if address.is_private() {
            Self::Private
        } else if a == 100 && (64..128).contains(&b) {
            Self::CarrierNat
        } else if address.is_link_local() {
            Self::LinkLocal
        } else if a == 0 || a >= 224 {
            Self::Never
        } else {
            Self::Public
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let segments = address.segments();
        // ::ffff:a.b.c.d (RFC 4291 §2.5.5.2), 64:ff9b::a.b.c.d (RFC 6052 §2.1), 2002:a.b.c.d:: (RFC 3056 §2).
        let embedded = match segments {
            [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                Some((high, low))
            }
            [0x2002, high, low, ..] => Some((high, low)),
            _ => None,
        };
        if let Some((high, low)) = embedded {
            let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
            return Self::of_v4(Ipv4Addr::new(a, b, c, d));
        }
        // 64:ff9b:1::/48 translates to wherever a network likes (RFC 8215), fec0::/10 was private once (RFC 3879).
        let is_local = matches!(segments, [0x64, 0xff9b, 1, ..]) || segments[0] & 0xffc0 == 0xfec0;
        if address.is_loopback() {
            Self::Loopback
        } else if address.is_unique_local() || is_local {
            Self::Private
        } else if address.is_unicast_link_local() {
            Self::LinkLocal
        } else if address.is_unspecified() || address.is_multicast() || segments[..6] == [0; 6] {
            Self::Never
        } else {
            Self::Public
        }
    }
}

/// The class of a name that means the same wherever it is looked up: `localhost` (RFC 6761 §6.3), and a number, which much
/// software takes for an IPv4 address in an old spelling (`2130706433`, `0x7f.1`).
pub(super) fn class_of_name(name: &str) -> Option<AddressClass> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or(name).to_ascii_lowercase();
    if last == "localhost" {
        return Some(AddressClass::Loopback);
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
        use AddressClass::{CarrierNat, LinkLocal, Loopback, Never, Private, Public};
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
            ("169.254.169.254", LinkLocal),
            ("0.0.0.0", Never),
            ("0.1.2.3", Never),
            ("224.0.0.1", Never),
            ("255.255.255.255", Never),
            ("::1", Loopback),
            ("::", Never),
            ("::127.0.0.1", Never),
            ("::ffff:127.0.0.1", Loopback),
            ("::ffff:169.254.169.254", LinkLocal),
            ("64:ff9b::a9fe:a9fe", LinkLocal),
            ("2002:7f00:1::", Loopback),
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
        use AddressClass::{LinkLocal, Loopback, Never, Private, Public};
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
        use AddressClass::{Loopback, Never};
        for (name, expected) in [
            ("localhost", Some(Loopback)),
            ("LOCALHOST.", Some(Loopback)),
            ("a.localhost", Some(Loopback)),
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
