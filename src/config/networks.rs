//! Networks of addresses, as CIDRs are written, and whether an address is in one.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

/// Some networks; none unless the operator says so. Clones are handles to the same.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Networks(Arc<[IpNet]>);

impl Networks {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `address` is in one of them. An IPv4 address is itself however a socket writes it.
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        Self(networks.into_iter().collect())
    }
}

/// Why a text is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// It is something else.
    #[error("is not a network or address such as `10.0.0.0/8`, `2001:db8::/32` or `192.0.2.7`")]
    Form,
    /// The prefix is shorter than what is written before it.
    #[error("names an address inside its network: write `{0}` for the network, or leave out the `/`")]
    Inside(IpNet),
}

/// A CIDR, or an address that stands for itself.
pub fn network(text: &str) -> Result<IpNet, NetworkError> {
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| NetworkError::Form)?,
    };
    if network != network.trunc() {
        return Err(NetworkError::Inside(network.trunc()));
    }
    Ok(canonical(network))
}

/// IPv4 addresses in IPv6 clothes (RFC 4291 §2.5.5.2) are compared as IPv4.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(inner) = network else { return network };
    let mapped = inner.addr().to_ipv4_mapped().zip(inner.prefix_len().checked_sub(96));
    mapped.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(network, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_are_written_whole() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ] {
            assert_eq!(network(text).map(|network| network.to_string()).as_deref(), Ok(shown), "{text}");
        }
        for text in
            ["", "10", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "a.test", "10.0.0/8", "[::1]", "1.2.3.4:5"]
        {
            assert_eq!(network(text), Err(NetworkError::Form), "{text}");
        }
        assert_eq!(
            network("10.0.0.7/8").expect_err("not whole").to_string(),
            "names an address inside its network: write `10.0.0.0/8` for the network, or leave out the `/`"
        );
    }

    proptest! {
        #[test]
        fn an_address_is_in_the_networks_that_begin_like_it(ip: IpAddr, length in 0u8..=128) {
            let ip = ip.to_canonical();
            let longest = if ip.is_ipv4() { 32 } else { 128 };
            let around = IpNet::new(ip, length.min(longest)).expect("in range").trunc();
            let networks: Networks = [network(&around.to_string()).expect("as printed")].into_iter().collect();
            prop_assert!(networks.contain(ip));
            if let IpAddr::V4(v4) = ip {
                prop_assert!(networks.contain(v4.to_ipv6_mapped().into()));
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}|[0-9a-f:./]{0,40}") {
            let _ = network(&text);
        }
    }
}
