//! Removing the archives that nobody names, while others deploy: no lock, no lease, and nothing that is named is lost, whoever
//! dies where.
//!
//! ```text
//!   who deploys:   1 put   2 name it in a record              3 look whether it is there; if not, put it again
//!   who collects:  a list  b read the names  c set aside what is old and not named  d read the names again
//!                  e put back what is named now; drop the rest
//! ```
//!
//! Had an archive that is named to go, `d` must not see the name, and `3` must see the archive: then `d` is before `2`, and `3` is
//! before `c`; but `c` is before `d`, and `2` before `3`: a circle. Whoever is second puts right what the first could not know.
//! What a dead collector left aside is put back or dropped by the next, and is found there meanwhile ([`Origin::set_aside`](crate::Origin::set_aside)).
//! Copies where agents fetch them are deleted at `c` and put again at `e`. The grace is for deployments that die between
//! 1 and 2 and are made again, and saves the work.
//!
//! A store that is new, mistyped or another installation's names none of the archives, or few. So what would empty the place is
//! refused unless it is forced ([`ArtifactError::NeedsForce`]), before anything is touched.
//!
//! **Architecture Invariant:** the order of these steps is the proof. What is dropped was aside before names were read.

use std::collections::HashSet;

use async_trait::async_trait;
use flux_protocol::{Digest, Timestamp, limits};

use crate::{ArtifactError, ArtifactStore as _, Aside, Stored, Tiered};

/// What to remove.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    pub now: Timestamp,
    /// What was put more lately than this before `now` stays.
    pub grace: std::time::Duration,
    /// Say what would go, and touch nothing.
    pub dry_run: bool,
    /// Also where nothing is named, or most would go.
    pub force: bool,
}

impl Rule {
    fn is_old(&self, stored: &Stored) -> bool {
        stored.put_at.plus(self.grace) <= self.now
    }
}

/// What a collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// What went, in the order of the digests.
    pub removed: Vec<Stored>,
    /// Archives that some version names, or that are too new to go.
    pub kept: usize,
    /// What was named and not in both its places any more, and is again.
    pub mended: usize,
    /// What is named and in no place.
    pub lost: Vec<Digest>,
}

/// Who knows which archives are named: asked several times, and telling the truth of the moment.
#[async_trait]
pub trait Names: Send + Sync {
    type Error: From<ArtifactError> + Send;

    async fn named(&self) -> Result<HashSet<Digest>, Self::Error>;
}

/// Removes what nobody names.
///
/// # Errors
/// A store is out of reach, or the names cannot be read: what was set aside until then is looked after by the next. Or so much
/// would go that it has to be forced.
pub async fn collect<N: Names + ?Sized>(archives: &Tiered, who: &N, rule: Rule) -> Result<Collected, N::Error> {
    let (origin, distribution) = (&archives.origin, &archives.distribution);
    let left = origin.asides().await?;
    let kept_there = origin.list().await?.unwrap_or_default();
    let handed_out = distribution.list().await?;
    let names = who.named().await?;
    let mut collected = Collected::default();

    let goes = |stored: &Stored| rule.is_old(stored) && !names.contains(&stored.digest);
    let mut going: Vec<Stored> = kept_there.iter().copied().filter(&goes).collect();
    collected.kept = kept_there.len() - going.len();
    let here: HashSet<Digest> = kept_there.iter().map(|stored| stored.digest).collect();
    // A copy whose origin is gone.
    let copies = handed_out.as_deref().unwrap_or_default();
    going.extend(copies.iter().copied().filter(|copy| !here.contains(&copy.digest) && goes(copy)));
    if !rule.dry_run && !rule.force {
        require_few(&[&kept_there, copies], &going, &left, &names)?;
    }
    if rule.dry_run {
        going.extend(left.iter().map(|aside| aside.stored).filter(|stored| !names.contains(&stored.digest)));
        collected.removed = in_order(going);
        return Ok(collected);
    }

    settle(archives, left, &names, &mut collected).await?;
    for batch in going.chunks(limits::ARCHIVES_COLLECTED_AT_ONCE) {
        let mut asides = Vec::new();
        let mut copies = Vec::new();
        for stored in batch {
            match origin.set_aside(stored.digest).await? {
                // Put again since it was listed.
                Some(aside) if !rule.is_old(&aside.stored) => {
                    origin.put_back(&aside).await?;
                    collected.kept += 1;
                    continue;
                }
                Some(aside) => asides.push(aside),
                None if here.contains(&stored.digest) => continue,
                None => copies.push(*stored),
            }
            distribution.delete(stored.digest).await?;
        }
        let names = who.named().await?;
        settle(archives, asides, &names, &mut collected).await?;
        for copy in copies {
            if names.contains(&copy.digest) {
                collected.kept += 1;
            } else {
                collected.removed.push(copy);
            }
        }
    }
    collected.removed = in_order(std::mem::take(&mut collected.removed));
    mend(archives, &who.named().await?, &mut collected).await?;
    Ok(collected)
}

/// Refuses what looks like the names of another store.
fn require_few(
    places: &[&[Stored]],
    going: &[Stored],
    left: &[Aside],
    names: &HashSet<Digest>,
) -> Result<(), ArtifactError> {
    let aside = || left.iter().map(|aside| aside.stored.digest);
    let all: HashSet<Digest> = places.iter().copied().flatten().map(|stored| stored.digest).chain(aside()).collect();
    let goes: HashSet<Digest> =
        going.iter().map(|stored| stored.digest).chain(aside().filter(|digest| !names.contains(digest))).collect();
    let (going, of, named) = (goes.len(), all.len(), names.len());
    let too_many = going > limits::ARCHIVES_COLLECTED_UNASKED && going > of / 2;
    if going > 0 && (named == 0 || too_many) {
        return Err(ArtifactError::NeedsForce { going, of, named });
    }
    Ok(())
}

/// Puts back what is named, in both places, and drops the rest: all of it was aside before the names were read.
async fn settle(
    archives: &Tiered,
    asides: Vec<Aside>,
    names: &HashSet<Digest>,
    collected: &mut Collected,
) -> Result<(), ArtifactError> {
    for aside in asides {
        let digest = aside.stored.digest;
        if names.contains(&digest) {
            archives.origin.put_back(&aside).await?;
            archives.redistribute(&[digest]).await?;
            collected.kept += 1;
        } else {
            archives.origin.drop_aside(&aside).await?;
            collected.removed.push(aside.stored);
        }
    }
    Ok(())
}

/// Brings what is named to both its places: copies that the queue lost, and all of them where the origin is another since.
async fn mend(archives: &Tiered, names: &HashSet<Digest>, collected: &mut Collected) -> Result<(), ArtifactError> {
    for digest in names {
        if archives.has(*digest).await? {
            continue;
        }
        match archives.get(*digest, limits::ARCHIVE).await {
            Ok(Some(content)) => {
                archives.put(content).await?;
                collected.mended += 1;
            }
            Ok(None) | Err(ArtifactError::Damaged { .. } | ArtifactError::TooLarge { .. }) => {
                collected.lost.push(*digest);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn in_order(mut all: Vec<Stored>) -> Vec<Stored> {
    all.sort_unstable_by_key(|stored| stored.digest);
    all.dedup_by_key(|stored| stored.digest);
    all
}
