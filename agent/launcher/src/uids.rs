//! The numbers that functions run as: one for each slot, out of a range that the system's administrator set aside.
//!
//! `/etc/subuid` is where a system keeps such claims, so nothing else on the machine has these numbers. With one number for
//! all, functions could not see each other either, but what the kernel counts by user they would use up for each other.

use std::fs;
use std::ops::Range;

use serde::{Deserialize, Serialize};

const SUBORDINATE_UIDS: &str = "/etc/subuid";

/// `count` numbers from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UidRange {
    pub first: u32,
    pub count: u32,
}

impl UidRange {
    /// What is set aside for this user on this machine; the largest of several ranges.
    pub fn set_aside_for(user: &str) -> Option<UidRange> {
        UidRange::largest(&fs::read_to_string(SUBORDINATE_UIDS).ok()?, user)
    }

    fn largest(subuid: &str, user: &str) -> Option<UidRange> {
        let of_user = subuid.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let (name, first, count) = (fields.next()?, fields.next()?, fields.next()?);
            let range = UidRange { first: first.parse().ok()?, count: count.parse().ok()? };
            (name == user && range.first > 0 && range.numbers().is_some()).then_some(range)
        });
        of_user.max_by_key(|range| range.count)
    }

    pub(crate) fn numbers(self) -> Option<Range<u32>> {
        // The last number means "nobody", or "do not change".
        let end = self.first.checked_add(self.count).filter(|end| *end < u32::MAX)?;
        Some(self.first..end)
    }

    /// Whether the kernel knows all of these numbers here: in a container's user namespace it may not.
    pub(crate) fn is_mapped(self) -> bool {
        self.is_mapped_by(&fs::read_to_string("/proc/self/uid_map").unwrap_or_default())
    }

    fn is_mapped_by(self, uid_map: &str) -> bool {
        let Some(wanted) = self.numbers() else {
            return false;
        };
        uid_map.lines().any(|line| {
            let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().ok());
            let (Some(Some(first)), Some(_), Some(Some(count))) = (fields.next(), fields.next(), fields.next()) else {
                return false;
            };
            first <= u64::from(wanted.start) && u64::from(wanted.end) <= first + count
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_of_the_user_itself_is_taken() {
        let file = "flux:100000:65536\n# a comment\nflux-runner:300000:10\nflux-runner:400000:100\nbroken:x\nflux-runner:0:9\n";
        assert_eq!(UidRange::largest(file, "flux-runner"), Some(UidRange { first: 400_000, count: 100 }));
        assert_eq!(UidRange::largest(file, "nobody"), None);
        assert_eq!(UidRange::largest("r:4294967000:400\n", "r"), None);
    }

    #[test]
    fn a_range_must_be_mapped_whole() {
        let range = UidRange { first: 1000, count: 100 };
        assert!(range.is_mapped_by("         0          0 4294967295\n"));
        assert!(range.is_mapped_by("0 100000 10\n1000 200000 100\n"));
        assert!(!range.is_mapped_by("0 100000 1099\n"));
        assert!(!range.is_mapped_by(""));
    }
}
