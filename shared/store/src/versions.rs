//! What registering and deploying make of a function: pure, so that an engine loads, decides, and saves.

use flux_protocol::{Digest, FunctionName, FunctionSpec, FunctionVersion, Timestamp};

/// What is to be done with a function.
pub(crate) enum Change {
    /// The same again.
    None(FunctionVersion),
    /// The current version gets its code, under the number that it has.
    Fill(FunctionVersion),
    /// A new version, with the next number, becomes current.
    Add { digest: Option<Digest>, spec: FunctionSpec },
    /// There is no function, and nothing to make it from.
    NotFound,
}

pub(crate) fn register(current: Option<FunctionVersion>, spec: &FunctionSpec) -> Change {
    match current {
        Some(version) if version.spec == *spec => Change::None(version),
        known => Change::Add { digest: known.and_then(|version| version.digest), spec: spec.clone() },
    }
}

pub(crate) fn deploy(
    current: Option<FunctionVersion>,
    name: &FunctionName,
    digest: Digest,
    spec: Option<&FunctionSpec>,
    now: Timestamp,
) -> Change {
    let Some(spec) = spec.or_else(|| current.as_ref().map(|version| &version.spec)) else { return Change::NotFound };
    // A configuration belongs to the function that it is deployed to.
    let spec = FunctionSpec { name: name.clone(), ..spec.clone() };
    match current {
        Some(version) if version.digest == Some(digest) && version.spec == spec => Change::None(version),
        Some(version) if version.digest.is_none() => {
            Change::Fill(FunctionVersion { version: version.version, digest: Some(digest), spec, created_at: now })
        }
        _ => Change::Add { digest: Some(digest), spec },
    }
}
