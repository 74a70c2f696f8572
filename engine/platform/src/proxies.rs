//! Client addresses behind reverse proxies.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::http::HeaderMap;
use ipnet::IpNet;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// Trusted reverse proxies: their `X-Forwarded-For` headers are used. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Proxies(Arc<[IpNet]>);

impl Proxies {
    /// Parses addresses and networks, separated by commas: `10.1.2.3, 10.4.0.0/16, fd00::/8`. An empty text means no
    /// trusted proxy.
    ///
    /// # Errors
    /// Names the first part that is neither an address nor a network.
    pub fn parse(text: &str) -> Result<Self, String> {
        let network = |part: &str| {
            let address = part.parse::<IpAddr>().map(IpNet::from);
            address
                .or_else(|_| part.parse())
                .map_err(|_| format!("`{part}` must be an address or a network, e.g. 10.1.2.3 or 10.4.0.0/16"))
        };
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(network).collect::<Result<_, _>>().map(Self)
    }

    /// Returns the client's address. It begins with `peer` and follows `X-Forwarded-For` from the last entry to the
    /// first while the current address belongs to a trusted proxy. Entries before an untrusted address may be forged by
    /// the client, so they are ignored.
    pub fn client(&self, headers: &HeaderMap, peer: SocketAddr) -> SocketAddr {
        if !self.knows(peer) {
            return peer;
        }
        let named = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        let mut named = named.flat_map(|value| value.split(',')).map(str::trim).collect::<Vec<_>>().into_iter().rev();
        let mut client = peer;
        while self.knows(client)
            && let Some(before) = named.next()
        {
            let address = before.parse().or_else(|_| before.parse().map(|ip| SocketAddr::new(ip, 0)));
            let Ok(address) = address else { break };
            client = address;
        }
        client
    }

    fn knows(&self, address: SocketAddr) -> bool {
        let address = address.ip().to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(proxies: &str, peer: &str, headers: &[&str]) -> String {
        let headers = headers.iter().map(|value| (FORWARDED_FOR.parse().unwrap(), value.parse().unwrap())).collect();
        let peer = SocketAddr::new(peer.parse().unwrap(), 9);
        Proxies::parse(proxies).unwrap().client(&headers, peer).ip().to_string()
    }

    #[test]
    fn only_known_proxies_are_trusted() {
        assert_eq!(client("", "10.0.0.1", &["1.1.1.1"]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", "10.0.0.2", &["1.1.1.1"]), "10.0.0.2");
        assert_eq!(client("10.0.0.1", "10.0.0.1", &["1.1.1.1"]), "1.1.1.1");
        assert_eq!(client("10.0.0.0/24", "::ffff:10.0.0.7", &["2001:db8::1"]), "2001:db8::1");
    }

    #[test]
    fn a_client_cannot_forge_its_address() {
        assert_eq!(client("10.0.0.0/8", "10.0.0.1", &["9.9.9.9, 1.1.1.1, 10.0.0.2"]), "1.1.1.1");
        assert_eq!(client("10.0.0.0/8", "10.0.0.1", &["9.9.9.9", "1.1.1.1"]), "1.1.1.1");
        assert_eq!(client("10.0.0.0/8", "10.0.0.1", &["1.1.1.1, unknown"]), "10.0.0.1");
        assert_eq!(client("10.0.0.0/8", "10.0.0.1", &["1.1.1.1:4711"]), "1.1.1.1");
        assert_eq!(client("10.0.0.0/8", "10.0.0.1", &["", "10.0.0.3"]), "10.0.0.3");
    }

    #[test]
    fn an_invalid_network_is_refused() {
        for text in ["nginx", "10.0.0.0/40", "10.0.0.1:80"] {
            assert!(Proxies::parse(text).unwrap_err().contains(text), "{text}");
        }
    }
}
