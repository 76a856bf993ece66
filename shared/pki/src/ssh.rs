//! The key that the autoscaler reaches its machines with.

use aws_lc_rs::{
    encoding::AsBigEndian as _,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use ssh_key::{
    LineEnding, PrivateKey,
    private::{Ed25519Keypair, Ed25519PrivateKey, KeypairData},
    public::Ed25519PublicKey,
};

use crate::PkiError;

const COMMENT: &str = "flux-agent";

/// A new key pair in OpenSSH's own format: private, public.
pub(crate) fn make() -> Result<(String, String), PkiError> {
    let attempted = "making an SSH key";
    let failed = |error: ssh_key::Error| PkiError::crypto(attempted, error);
    let weak = |_| PkiError::crypto(attempted, "the cryptographic library has no randomness");
    let pair = Ed25519KeyPair::generate().map_err(weak)?;
    let seed: [u8; 32] = pair
        .seed()
        .and_then(|seed| seed.as_be_bytes())
        .ok()
        .and_then(|seed| seed.as_ref().try_into().ok())
        .ok_or_else(|| PkiError::crypto(attempted, "the key has no seed"))?;
    let public: [u8; 32] = pair.public_key().as_ref().try_into().map_err(|error| PkiError::crypto(attempted, error))?;
    let pair = Ed25519Keypair { public: Ed25519PublicKey(public), private: Ed25519PrivateKey::from_bytes(&seed) };
    let private = PrivateKey::new(KeypairData::Ed25519(pair), COMMENT).map_err(failed)?;
    let public = private.public_key().to_openssh().map_err(failed)?;
    Ok((private.to_openssh(LineEnding::LF).map_err(failed)?.to_string(), format!("{public}\n")))
}
