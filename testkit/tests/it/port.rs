//! Ports are free, and given once.

use std::{collections::HashSet, net::TcpListener};

use flux_testkit::free_port;

#[test]
fn ports_are_different_and_can_be_listened_on() {
    let ports: HashSet<u16> = (0..20).map(|_| free_port()).collect();
    assert_eq!(ports.len(), 20);
    for port in ports {
        assert!(port < 32_768, "{port} is among those of outgoing connections");
        TcpListener::bind(("127.0.0.1", port)).expect("free");
    }
}
