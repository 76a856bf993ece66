use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use flux_pki::{Certs, Credential, peer_of};
use flux_protocol::identity::Identity;
use rustls::{ClientConnection, ServerConfig, ServerConnection, Stream};

use crate::{agent, certs};

/// What the server saw of a client, or that the handshake failed.
fn handshake(client: &Arc<Credential>, server: ServerConfig) -> Result<Identity, String> {
    flux_runtime::install_tls_provider();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let accepting = thread::spawn(move || {
        let (mut socket, _) = listener.accept().map_err(|error| error.to_string())?;
        let mut connection = ServerConnection::new(Arc::new(server)).map_err(|error| error.to_string())?;
        let mut heard = [0; 2];
        Stream::new(&mut connection, &mut socket).read_exact(&mut heard).map_err(|error| error.to_string())?;
        peer_of(connection.peer_certificates()).ok_or_else(|| "nobody".to_owned())
    });
    let config = client.client(Arc::new(|peer| peer.agent().is_some())).expect("a client's");
    let mut socket = TcpStream::connect(address).expect("connected");
    let name = "192.0.2.1".try_into().expect("a name");
    let mut connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
    let said = Stream::new(&mut connection, &mut socket).write_all(b"hi").map_err(|error| error.to_string());
    drop(socket);
    let seen = accepting.join().expect("it ended");
    said.and(seen)
}

fn gateways_only(credential: &Arc<Credential>) -> ServerConfig {
    credential.server(Arc::new(|peer| *peer == Identity::Gateway)).expect("a server's")
}

#[test]
fn both_ends_know_each_other_by_name_and_nobody_else_gets_in() {
    let (_dir, home) = certs();
    let id = agent("a-1");
    home.mint_agent(&id, vec![]).expect("minted");
    home.mint_producer(&agent("shop"), vec![]).expect("minted");
    let (gateway, server) = (home.gateway().expect("a gateway"), home.agent(&id).expect("an agent"));
    assert_eq!(handshake(&gateway, gateways_only(&server)), Ok(Identity::Gateway));
    // An agent and a producer are not the gateway.
    handshake(&server, gateways_only(&server)).expect_err("an agent");
    handshake(&home.producer(&agent("shop")).expect("a producer"), gateways_only(&server)).expect_err("a producer");
    // A gateway is not the agent that was to be reached.
    handshake(&gateway, gateways_only(&gateway)).expect_err("not an agent");
    // The same names by another CA are nobody.
    let (_other_dir, other) = certs();
    other.mint_agent(&id, vec![]).expect("minted");
    handshake(&other.gateway().expect("a gateway"), gateways_only(&server)).expect_err("another CA");
    handshake(&gateway, gateways_only(&other.agent(&id).expect("an agent"))).expect_err("another CA");
}

#[test]
fn a_signature_is_its_certificate_s() {
    let (_dir, home) = certs();
    home.mint_agent(&agent("a-1"), vec![]).expect("minted");
    let credential = home.agent(&agent("a-1")).expect("an agent");
    let (pem, signature) = credential.sign(b"a key").expect("signed");
    let by = credential.trust().verify_signed(&pem, b"a key", &signature).expect("it is");
    assert_eq!(by, credential.identity());
    credential.trust().verify_signed(&pem, b"another key", &signature).expect_err("another message");
    let (gateway, by_gateway) = home.gateway().expect("a gateway").sign(b"a key").expect("signed");
    credential.trust().verify_signed(&gateway, b"a key", &signature).expect_err("another's certificate");
    let (_other_dir, other) = certs();
    let trust = Certs::at(other.dir()).trust().expect("a CA");
    trust.verify_signed(&pem, b"a key", &signature).expect_err("another CA's");

    home.verify_agent_signed(&agent("a-1"), &pem, b"a key", &signature).expect("it is let in");
    home.verify_agent_signed(&agent("a-2"), &pem, b"a key", &signature).expect_err("another agent's name");
    home.verify_agent_signed(&agent("a-1"), &gateway, b"a key", &by_gateway).expect_err("a gateway");
    home.revoke_agent(&agent("a-1")).expect("revoked");
    home.verify_agent_signed(&agent("a-1"), &pem, b"a key", &signature).expect_err("shut out");
    home.mint_agent(&agent("a-1"), vec![]).expect("let in again");
    home.verify_agent_signed(&agent("a-1"), &pem, b"a key", &signature).expect_err("who was shut out stays out");
}
