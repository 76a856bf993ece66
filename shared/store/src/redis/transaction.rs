//! Read, decide, and write if nobody wrote meanwhile: in one script, all of it or nothing.

use std::{collections::HashMap, sync::LazyLock};

use ::redis::Script;

use super::{fault::Fault, link::Wire};

static TRANSACT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("transact.lua")));

/// What is written together. All its keys lie in one shard.
#[derive(Default)]
pub(super) struct Transaction {
    keys: Vec<String>,
    numbers: HashMap<String, usize>,
    checks: Vec<(usize, String, Vec<u8>)>,
    words: Vec<Vec<u8>>,
}

impl Transaction {
    fn key(&mut self, key: &str) -> usize {
        if let Some(number) = self.numbers.get(key) {
            return *number;
        }
        self.keys.push(key.to_owned());
        self.numbers.insert(key.to_owned(), self.keys.len());
        self.keys.len()
    }

    /// Only if this field of a hash still has this value; empty for none.
    pub(super) fn check(&mut self, key: &str, field: &str, value: &[u8]) {
        let key = self.key(key);
        self.checks.push((key, field.to_owned(), value.to_vec()));
    }

    /// A command whose first argument is a key.
    pub(super) fn add(&mut self, name: &str, key: &str, words: &[&[u8]]) {
        let key = self.key(key);
        let count = words.len();
        self.words.extend([name.as_bytes().to_vec(), key.to_string().into_bytes(), count.to_string().into_bytes()]);
        self.words.extend(words.iter().map(|word| word.to_vec()));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// # Errors
    /// `Raced`: something that was checked is other than it was, and nothing was written.
    pub(super) async fn run(self, wire: &mut Wire) -> Result<(), Fault> {
        let mut script = TRANSACT.prepare_invoke();
        for key in &self.keys {
            script.key(key);
        }
        script.arg(self.checks.len());
        for (key, field, value) in &self.checks {
            script.arg(*key).arg(field).arg(&value[..]);
        }
        for word in &self.words {
            script.arg(&word[..]);
        }
        match script.invoke_async::<i64>(wire).await? {
            1 => Ok(()),
            _ => Err(Fault::Raced),
        }
    }
}

/// What tells one write of a key from every other.
pub(super) fn stamp() -> [u8; 16] {
    rand::random()
}
