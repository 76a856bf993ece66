//! From one gateway to one agent, over a queue that others read: HPKE in base mode, to a key that the agent's process made.
//!
//! What is sealed says what it is for, so that an answer to one attempt cannot be passed off as that to another.

use std::fmt;

use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE,
    hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey},
};

/// What these keys are used for, and for nothing else.
const INFO: &[u8] = b"flux secrets 1";
/// Of X25519.
const PUBLIC_KEY_BYTES: usize = 32;

/// It cannot be sealed.
#[derive(Debug, thiserror::Error)]
#[error("it cannot be sealed to that key")]
pub struct SealError;

/// What came is not for this key, or not for this purpose, or was changed.
#[derive(Debug, thiserror::Error)]
#[error("it does not open: it was sealed to another key or for another attempt, or was changed on its way")]
pub struct NotOpened;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub encapsulated: Vec<u8>,
    pub ciphertext: Vec<u8>,
}

/// Who can open what was sealed to it: a key pair that never leaves this process.
pub struct Recipient {
    public: Vec<u8>,
    private: HpkePrivateKey,
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recipient(…)")
    }
}

impl Recipient {
    /// # Errors
    /// The machine gives no random numbers.
    pub fn generate() -> Result<Self, SealError> {
        let (public, private) = SUITE.generate_key_pair().map_err(|_| SealError)?;
        Ok(Self { public: public.0, private })
    }

    pub fn public_key(&self) -> &[u8] {
        &self.public
    }

    /// `purpose` must be what it was sealed with.
    ///
    /// # Errors
    /// It is not for this key and this purpose, or was changed.
    pub fn open(&self, sealed: &Sealed, purpose: &[u8]) -> Result<Vec<u8>, NotOpened> {
        let encapsulated = EncapsulatedSecret(sealed.encapsulated.clone());
        SUITE.open(&encapsulated, INFO, purpose, &sealed.ciphertext, &self.private).map_err(|_| NotOpened)
    }
}

/// Seals to a recipient's public key.
///
/// # Errors
/// It is no public key of X25519.
pub fn seal(public_key: &[u8], purpose: &[u8], value: &[u8]) -> Result<Sealed, SealError> {
    if public_key.len() != PUBLIC_KEY_BYTES {
        return Err(SealError);
    }
    let (encapsulated, ciphertext) =
        SUITE.seal(INFO, purpose, value, &HpkePublicKey(public_key.to_vec())).map_err(|_| SealError)?;
    Ok(Sealed { encapsulated: encapsulated.0, ciphertext })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_recipient_opens_it_and_only_for_its_purpose() {
        let (ours, theirs) = (Recipient::generate().expect("a key"), Recipient::generate().expect("a key"));
        let sealed = seal(ours.public_key(), b"exc-1 attempt 1", b"hunter2").expect("sealed");
        assert_eq!(ours.open(&sealed, b"exc-1 attempt 1").expect("opened"), b"hunter2");
        assert!(theirs.open(&sealed, b"exc-1 attempt 1").is_err(), "another agent");
        assert!(ours.open(&sealed, b"exc-1 attempt 2").is_err(), "another attempt");
        for at in 0..sealed.ciphertext.len() {
            let mut changed = sealed.clone();
            changed.ciphertext[at] ^= 1;
            assert!(ours.open(&changed, b"exc-1 attempt 1").is_err(), "byte {at}");
        }
        let mut changed = sealed.clone();
        changed.encapsulated[3] ^= 1;
        assert!(ours.open(&changed, b"exc-1 attempt 1").is_err());
        let cut = Sealed { ciphertext: Vec::new(), ..sealed.clone() };
        assert!(ours.open(&cut, b"exc-1 attempt 1").is_err());
        assert_ne!(seal(ours.public_key(), b"exc-1 attempt 1", b"hunter2").expect("sealed"), sealed);
        assert!(!sealed.ciphertext.windows(7).any(|window| window == b"hunter2"));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for wrong in [&[][..], &[1; 31], &[1; 33], &[0; 32]] {
            assert!(seal(wrong, b"", b"x").is_err(), "{wrong:?}");
        }
    }
}
