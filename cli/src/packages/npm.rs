//! Node's packages, with npm: what `package-lock.json` says where there is one, and no install scripts.
//!
//! npm writes into the folder that it is called in, so it is called in another one, which has links to all that the folder has.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tokio::process::Command;

use super::{Wanted, tool};
use crate::{error::CliError, output::Output};

const MODULES: &str = "node_modules";
const LOCK: &str = "package-lock.json";
/// npm changes these.
const COPIED: [&str; 2] = ["package.json", LOCK];

pub(super) async fn version_here() -> Result<String, CliError> {
    tool::output_of("node", &["-p", "process.versions.node.split('.')[0]"]).await
}

pub(super) async fn install(wanted: &Wanted<'_>, scratch: &Path, into: &Path, out: Output) -> Result<(), CliError> {
    let cannot = |source| CliError::local("the packages cannot be installed", source);
    let project = stand_in(wanted.folder, scratch).map_err(cannot)?;
    let mut command = Command::new("npm");
    command.current_dir(&project).arg(if project.join(LOCK).is_file() { "ci" } else { "install" });
    command.args(["--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--no-bin-links", "--install-links"]);
    let remedy = format!("nothing was deployed. To install by hand: {}", wanted.runtime.install_by_hand());
    tool::run(command, &format!("installing the packages of {}", wanted.list), remedy, out).await?;
    let modules = into.join(MODULES);
    let moved = fs::create_dir_all(into).and_then(|()| fs::rename(project.join(MODULES), &modules));
    moved.map_err(cannot)?;
    let lock = modules.join(".package-lock.json");
    let with_scripts = names_with_scripts(&fs::read(&lock).unwrap_or_default());
    if !with_scripts.is_empty() {
        out.note(format!("install scripts were not run, of: {}", with_scripts.join(", ")));
    }
    // npm's own notes for the next time: they say where each package came from, and differ from machine to machine.
    fs::remove_file(lock)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
        .map_err(cannot)
}

fn stand_in(folder: &Path, scratch: &Path) -> io::Result<PathBuf> {
    let project = scratch.join("project");
    fs::create_dir(&project)?;
    let folder = folder.canonicalize()?;
    for entry in fs::read_dir(&folder)? {
        let name = entry?.file_name();
        if name == MODULES {
            continue;
        }
        let (from, to) = (folder.join(&name), project.join(&name));
        if COPIED.iter().any(|copied| name == *copied) {
            fs::copy(from, to)?;
        } else {
            symlink(from, to)?;
        }
    }
    Ok(project)
}

/// Packages that would have run something.
fn names_with_scripts(lock: &[u8]) -> Vec<String> {
    let lock: Value = serde_json::from_slice(lock).unwrap_or_default();
    let packages = lock.get("packages").and_then(Value::as_object);
    let has_script = |package: &Value| package.get("hasInstallScript") == Some(&Value::Bool(true));
    let name = |path: &str| path.rsplit("node_modules/").next().unwrap_or(path).to_owned();
    packages.into_iter().flatten().filter(|(_, package)| has_script(package)).map(|(path, _)| name(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_whose_scripts_did_not_run_are_named() {
        let lock = br#"{"packages": {"node_modules/a": {"hasInstallScript": true}, "node_modules/b": {},
            "node_modules/b/node_modules/@c/d": {"hasInstallScript": true}}}"#;
        assert_eq!(names_with_scripts(lock), ["a", "@c/d"]);
        assert!(names_with_scripts(b"").is_empty());
    }
}
