//! What `flux deploy` puts into an archive beside the folder's own files: the packages that its `requirements.txt` or
//! `package.json` names, installed once for each content of those. Why here: `docs/adr/0010-dependencies.md`.
//!
//! Nothing foreign is run: pip takes wheels alone, npm runs no install scripts.

mod kept;
mod npm;
mod pip;
mod tool;

use std::path::{Path, PathBuf};

use flux_artifacts::archive;
use flux_protocol::{Digest, FunctionName, FunctionSpec, function::Runtime, limits};
use serde_json::Value;

use crate::{commands::Context, error::CliError, model::rows, project};

/// The packages of one folder, as files; a folder that is not kept ends with this.
#[derive(Debug)]
pub(crate) struct Packages {
    pub(crate) path: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

/// What is installed, from what, and for which interpreter.
struct Wanted<'a> {
    folder: &'a Path,
    runtime: Runtime,
    list: &'static str,
    /// As in `3.11`, or `20`.
    version: String,
}

/// Installs what a folder's list names; `None` where it has no list, or the packages already.
///
/// # Errors
/// They cannot be installed: nothing was changed.
pub(crate) async fn install(
    path: &Path,
    name: Option<&FunctionName>,
    cx: &Context,
) -> Result<Option<Packages>, CliError> {
    if !path.is_dir() {
        return Ok(None);
    }
    let spec = project::specification(path, name)?;
    let Some(list) = spec.runtime.package_list() else { return Ok(None) };
    let Ok(text) = std::fs::read_to_string(path.join(list)) else { return Ok(None) };
    if !spec.runtime.asks_for_packages(&text) {
        return Ok(None);
    }
    if text.len() > limits::PACKAGE_LIST {
        let most = limits::PACKAGE_LIST / limits::MIB;
        return Err(CliError::problem(format!("{list} is larger than {most} MiB"), "name fewer packages"));
    }
    // What is left out of the archive is not there, whatever the folder has.
    let own = project::pack(path)?;
    let summary = archive::inspect(&own).map_err(|error| {
        CliError::problem(format!("{} cannot be packed: {error}", path.display()), project::PACK_REMEDY)
    })?;
    if summary.files().any(|file| spec.runtime.is_of_a_package(file)) {
        return Ok(None);
    }
    let version = version_of_agents(&spec, cx).await?;
    let wanted = Wanted { folder: path, runtime: spec.runtime, list, version };
    let key = key(&wanted, &text, Digest::of(&own));
    if let Some(path) = kept::find(&key) {
        cx.out.note(format!("the packages of {list} are kept from before"));
        return Ok(Some(Packages { path, _temporary: None }));
    }
    let fresh =
        kept::fresh().map_err(|source| CliError::local("the packages have no place to be installed to", source))?;
    let installed = fresh.path().join("packages");
    match wanted.runtime {
        Runtime::Node => npm::install(&wanted, fresh.path(), &installed, cx.out).await?,
        _ => pip::install(&wanted, &installed, cx.out).await?,
    }
    match kept::keep(&key, &installed) {
        Some(path) => Ok(Some(Packages { path, _temporary: None })),
        None => Ok(Some(Packages { path: installed, _temporary: Some(fresh) })),
    }
}

/// What is the same for all packages that are the same. A list that points into its folder is as old as that is.
fn key(wanted: &Wanted<'_>, list: &str, folder: Digest) -> Digest {
    let lock = std::fs::read(wanted.folder.join("package-lock.json")).unwrap_or_default();
    let folder = if points_into_folder(list) { folder.hex() } else { String::new() };
    let (system, machine) = (std::env::consts::OS, std::env::consts::ARCH);
    let what = format!("1\n{}\n{}\n{system}\n{machine}\n{folder}\n{list}\n", wanted.runtime, wanted.version);
    Digest::of(&[what.as_bytes(), &lock].concat())
}

fn points_into_folder(list: &str) -> bool {
    let options = ["-r", "-e", "-c", "-f", "--requirement", "--editable", "--constraint", "--find-links", ".", "/"];
    list.contains("file:")
        || list.contains("\"./")
        || list.contains("\"../")
        || list.lines().any(|line| options.iter().any(|option| line.trim_start().starts_with(option)))
}

/// The version of the interpreter that functions of this kind get, as far as packages depend on it.
async fn version_of_agents(spec: &FunctionSpec, cx: &Context) -> Result<String, CliError> {
    let answer = cx.client.get(&["agents"], &[]).await?;
    let mut versions: Vec<String> =
        rows(&answer, "agents").iter().filter(|agent| is_of_pool(agent, spec)).filter_map(|a| given(a, spec)).collect();
    versions.sort();
    versions.dedup();
    match versions.as_slice() {
        [version] => Ok(version.clone()),
        [] => {
            let version = match spec.runtime {
                Runtime::Node => npm::version_here().await?,
                _ => pip::version_here().await?,
            };
            cx.out.note(format!(
                "no agent with {} is online: packages are installed for version {version}",
                spec.runtime
            ));
            Ok(version)
        }
        versions => Err(CliError::problem(
            format!("the agents have different versions of {}: {}", spec.runtime, versions.join(", ")),
            format!("give them the same, or install by hand: {}", spec.runtime.install_by_hand()),
        )),
    }
}

fn is_of_pool(agent: &Value, spec: &FunctionSpec) -> bool {
    let text = |field: &str| agent.get(field).and_then(Value::as_str);
    text("pool").is_none_or(|pool| pool == spec.pool.as_str()) && text("status") != Some("offline")
}

/// What of a version packages are built for: of Python the minor one, of Node the major one.
fn given(agent: &Value, spec: &FunctionSpec) -> Option<String> {
    let runtimes = agent.pointer("/capabilities/runtimes")?.as_array()?;
    let of = runtimes.iter().find(|given| given.get("name").and_then(Value::as_str) == Some(spec.runtime.as_str()))?;
    Some(shortened(spec.runtime, of.get("version")?.as_str()?))
}

fn shortened(runtime: Runtime, version: &str) -> String {
    let parts = if runtime == Runtime::Node { 1 } else { 2 };
    version.split('.').take(parts).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_points_into_its_folder_is_as_old_as_that() {
        for list in ["--find-links wheels\na", "./a.whl", "-r more.txt", r#"{"dependencies": {"a": "file:a.tgz"}}"#] {
            assert!(points_into_folder(list), "{list}");
        }
        for list in ["requests==2.32.3\n", "a @ https://example.org/a.whl", r#"{"dependencies": {"a": "^1.2.3"}}"#] {
            assert!(!points_into_folder(list), "{list}");
        }
    }

    #[test]
    fn packages_depend_on_a_part_of_the_version() {
        assert_eq!(shortened(Runtime::Python, "3.11.2"), "3.11");
        assert_eq!(shortened(Runtime::Node, "20.20.2"), "20");
    }
}
