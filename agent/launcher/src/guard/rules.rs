//! Which addresses and ports are refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Names are asked for here also at the metadata service's address (GCP, Azure): without them nothing works.
pub(super) const DNS: u16 = 53;

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) address: Ipv4Addr,
    pub(super) bits: u32,
}

const fn network(address: [u8; 4], bits: u32) -> Network {
    let [a, b, c, d] = address;
    Network { address: Ipv4Addr::new(a, b, c, d), bits }
}

/// Link-local, where nearly every cloud has its metadata (AWS and its containers, GCP, Azure, OpenStack, Oracle, Hetzner,
/// DigitalOcean, Scaleway, Tencent); Azure's host; Alibaba.
const METADATA: [Network; 3] =
    [network([169, 254, 0, 0], 16), network([168, 63, 129, 16], 32), network([100, 100, 100, 200], 32)];
/// AWS and its containers, GCP, Oracle, Scaleway, OpenStack.
const METADATA_V6: [Ipv6Addr; 6] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
];

/// What each network namespace has of its own.
const LOOPBACK: [Network; 2] = [network([127, 0, 0, 0], 8), network([0, 0, 0, 0], 32)];
const LOOPBACK_V6: [Ipv6Addr; 2] = [Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED];

/// Everything that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(super) metadata: Vec<Network>,
    pub(super) metadata_v6: Vec<Ipv6Addr>,
    /// This machine.
    pub(super) local: Vec<Network>,
    pub(super) local_v6: Vec<Ipv6Addr>,
    /// Whatever has an address of a link only is taken for this machine.
    pub(super) link_is_local: bool,
    /// Refused at this machine.
    pub(super) local_ports: Vec<u16>,
    /// Refused to be listened on.
    pub(super) taken_ports: Vec<u16>,
    /// Elsewhere.
    pub(super) servers: Vec<SocketAddr>,
    /// The first of the users that have an address of [`WORKERS`] each, to which that user alone may connect.
    pub(super) first_uid: Option<u32>,
}

/// Where the servers of workers with the machine's network are.
pub(super) const WORKERS: Network = network([127, 128, 0, 0], 9);

/// Where the server of a worker is; `offset` is that of its user from the first one, or any number where it has none of its own.
pub(crate) fn worker_address(offset: u32) -> Ipv4Addr {
    let within = u32::MAX >> WORKERS.bits;
    Ipv4Addr::from_bits(WORKERS.address.to_bits() | (offset & within))
}

impl Rules {
    /// `servers` are not to be reached, and no more than `listeners` to be replaced.
    pub(crate) fn new(
        servers: &[SocketAddr],
        listeners: &[SocketAddr],
        own: &[IpAddr],
        first_uid: Option<u32>,
    ) -> Self {
        let mut rules = Rules {
            first_uid,
            metadata: METADATA.to_vec(),
            metadata_v6: METADATA_V6.to_vec(),
            local: LOOPBACK.to_vec(),
            local_v6: LOOPBACK_V6.to_vec(),
            link_is_local: false,
            local_ports: Vec::new(),
            taken_ports: Vec::new(),
            servers: Vec::new(),
        };
        for address in own {
            match address {
                IpAddr::V4(v4) if !v4.is_loopback() => rules.local.push(network(v4.octets(), 32)),
                IpAddr::V6(v6) if !v6.is_loopback() => rules.local_v6.push(*v6),
                _ => {}
            }
        }
        // 0 is no port: a listener that asks for any one.
        for server in servers.iter().filter(|server| server.port() != 0) {
            let (ip, port) = (server.ip().to_canonical(), server.port());
            if ip.is_loopback() || ip.is_unspecified() || own.contains(&ip) {
                if !rules.local_ports.contains(&port) {
                    rules.local_ports.push(port);
                }
            } else {
                rules.servers.push(SocketAddr::new(ip, port));
            }
        }
        rules.taken_ports.clone_from(&rules.local_ports);
        for port in listeners.iter().map(SocketAddr::port) {
            if port != 0 && !rules.taken_ports.contains(&port) {
                rules.taken_ports.push(port);
            }
        }
        rules
    }

    /// For who has a network namespace of its own: what it calls loopback is not this machine's, and it listens where it likes.
    pub(crate) fn from_apart(servers: &[SocketAddr], own: &[IpAddr]) -> Self {
        let mut rules = Self::new(servers, &[], own, None);
        rules.local.retain(|net| !LOOPBACK.contains(net));
        rules.local_v6.retain(|address| !LOOPBACK_V6.contains(address));
        // The address that a bridge has on its link comes a little after its first container.
        rules.link_is_local = true;
        rules.taken_ports.clear();
        rules
    }
}
