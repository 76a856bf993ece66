//! Host keys, as a machine that boots writes them to its console.
//!
//! cloud-init prints a block of fingerprints and a block of keys once it has made them; each line may have a prefix of
//! the system logger's. What stands outside of those blocks is not looked at: a console also shows the fingerprints of
//! the keys that may log in. Where a machine booted more than once, the last complete block counts.

use std::{collections::BTreeSet, fmt};

use base64::{Engine as _, prelude::BASE64_STANDARD, prelude::BASE64_STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// SHA-256 of a public key, as OpenSSH writes it: `SHA256:` and 43 characters of base64.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Of a public key in the wire form of SSH.
    pub fn of_key(wire: &[u8]) -> Self {
        Self(format!("SHA256:{}", BASE64_STANDARD_NO_PAD.encode(Sha256::digest(wire))))
    }

    /// `None` for what is not a SHA-256 fingerprint.
    pub fn parse(text: &str) -> Option<Self> {
        let digest = BASE64_STANDARD_NO_PAD.decode(text.strip_prefix("SHA256:")?).ok()?;
        (digest.len() == 32).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A console, as far as it was given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConsoleOutput {
    pub text: String,
    /// Empty until the machine has written them.
    pub host_keys: BTreeSet<Fingerprint>,
}

impl ConsoleOutput {
    pub fn parse(text: String) -> Self {
        let mut host_keys = last_block(&text, "FINGERPRINTS", fingerprint_in);
        host_keys.extend(last_block(&text, "KEYS", key_in));
        Self { text, host_keys }
    }
}

/// What `read` finds in the lines of the last block that was begun and ended.
fn last_block(text: &str, what: &str, read: fn(&str) -> Option<Fingerprint>) -> BTreeSet<Fingerprint> {
    let (begin, end) = (format!("-----BEGIN SSH HOST KEY {what}-----"), format!("-----END SSH HOST KEY {what}-----"));
    let (mut last, mut open) = (BTreeSet::new(), None::<BTreeSet<Fingerprint>>);
    for line in text.lines() {
        if line.contains(&begin) {
            open = Some(BTreeSet::new());
        } else if line.contains(&end) {
            last = open.take().unwrap_or(last);
        } else if let Some(block) = &mut open {
            block.extend(read(line));
        }
    }
    last
}

/// `256 SHA256:… root@ip-10-0-0-1 (ED25519)`, after whatever the logger put before it.
fn fingerprint_in(line: &str) -> Option<Fingerprint> {
    line.split_whitespace().find_map(Fingerprint::parse)
}

/// `ssh-ed25519 AAAA… root@ip-10-0-0-1`.
fn key_in(line: &str) -> Option<Fingerprint> {
    let mut words = line.split_whitespace().skip_while(|w| !(w.starts_with("ssh-") || w.starts_with("ecdsa-sha2-")));
    let algorithm = words.next()?;
    let wire = BASE64_STANDARD.decode(words.next()?).ok()?;
    // The key says its algorithm itself; a line that does not agree is no key.
    let length = u32::try_from(algorithm.len()).ok()?.to_be_bytes();
    wire.strip_prefix(&length)?.starts_with(algorithm.as_bytes()).then(|| Fingerprint::of_key(&wire))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of a key made for this test with ssh-keygen; what it says about itself is ssh-keygen's.
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFGxujp/MJzK242H0L4Pvstie19aN2TISp/scaCA7tYL";
    const PRINT: &str = "SHA256:gmcu4eWyQaAWQ9mTk42gxmiuohbCZEjXZWzL98l1X/M";
    const OTHER: &str = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";

    #[test]
    fn host_keys_are_read_from_both_blocks_and_from_nowhere_else() {
        let console = format!(
            "[    2.1] Linux version 6.1\n\
             ci-info: | ssh-rsa | {OTHER} | - | admin |\n\
             <14>Nov 30 15:00:01 cloud-init: -----BEGIN SSH HOST KEY FINGERPRINTS-----\r\n\
             <14>Nov 30 15:00:01 cloud-init: 256 {PRINT} root@ip-10-0-0-1 (ED25519)\r\n\
             <14>Nov 30 15:00:01 cloud-init: -----END SSH HOST KEY FINGERPRINTS-----\r\n\
             -----BEGIN SSH HOST KEY KEYS-----\n{KEY} root@ip-10-0-0-1\n-----END SSH HOST KEY KEYS-----\n"
        );
        let keys = ConsoleOutput::parse(console).host_keys;
        assert_eq!(keys.iter().map(Fingerprint::as_str).collect::<Vec<_>>(), [PRINT], "both blocks name one key");
    }

    #[test]
    fn a_block_that_is_not_ended_is_not_read_and_the_last_one_counts() {
        let block =
            |print: &str, end: &str| format!("-----BEGIN SSH HOST KEY FINGERPRINTS-----\n256 {print} h (RSA)\n{end}\n");
        let end = "-----END SSH HOST KEY FINGERPRINTS-----";
        let host_keys = |text: String| ConsoleOutput::parse(text).host_keys.into_iter().collect::<Vec<_>>();
        assert!(host_keys(block(PRINT, "")).is_empty());
        let print = Fingerprint::parse(PRINT).expect("a fingerprint");
        assert_eq!(host_keys(block(OTHER, end) + &block(PRINT, end)), std::slice::from_ref(&print));
        assert_eq!(host_keys(block(PRINT, end) + &block(OTHER, "")), [print]);
    }

    #[test]
    fn what_is_no_sha256_is_no_fingerprint() {
        for bad in ["", "SHA256:", "MD5:aa:bb", "SHA256:abc", &PRINT[..49], &format!("{PRINT}A")] {
            assert_eq!(Fingerprint::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_console_can_be_read(text in "(-----(BEGIN|END) SSH HOST KEY (KEYS|FINGERPRINTS)-----|ssh-|[A-Za-z0-9+/= \n]{0,20}){0,20}") {
            ConsoleOutput::parse(text);
        }
    }
}
