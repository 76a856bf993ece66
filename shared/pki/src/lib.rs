//! Who is who, made by itself: a CA, certificates and keys in one directory, renewed before they expire.
//!
//! ```text
//!  <certs_dir>/ca/{ca.pem, ca-key.pem}              the CA; elsewhere than at home without its key
//!              flux/{flux.pem, flux-key.pem}        gateways
//!              queue/{queue.pem, queue-key.pem}     nats-server
//!              ssh/{flux-agent.pem, flux-agent.pub} what the autoscaler reaches machines with
//!              agents/<id>/{agent.pem, agent-key.pem, grant.json}
//!              producers/<name>/{producer.pem, producer-key.pem, grant.json}
//!              changed                              touched whenever a grant is given or taken
//! ```
//!
//! Keys are 0600 and every file is there wholly or not at all. What is there is used; what is damaged is an error with its
//! path: a new CA in the place of an old one would shut everybody out.
//!
//! **Architecture Invariant:** nothing here knows who asks, or what a broker is. An identity is the URI in a certificate
//! that the CA signed ([`flux_protocol::identity::Identity`]); nothing else about a certificate says who its holder is.

mod authority;
mod certificate;
mod directory;
mod error;
mod files;
mod grants;
mod joining;
mod signed;
mod ssh;
mod tls;
mod token;

pub use authority::Authority;
pub use certificate::{Certificate, Trust, request};
pub use directory::{Certs, Listed};
pub use error::PkiError;
pub use grants::Grants;
pub use tls::{Credential, Peer, peer_of};
pub use token::{JoinToken, OpenTokens};
