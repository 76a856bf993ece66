//! The agent's id: configured, or made once and kept in the work directory, so that a restart is the same agent.

use std::{fs, io, path::Path};

use flux_protocol::AgentId;
use flux_runtime::settings::AgentSettings;

use crate::agent::StartError;

const FILE: &str = "agent-id";

pub(crate) fn agent_id(settings: &AgentSettings, work_dir: &Path) -> Result<AgentId, StartError> {
    let parse = |text: &str| AgentId::parse(text).map_err(|source| StartError::Setting { field: "id", source });
    if let Some(id) = &settings.id {
        return parse(id);
    }
    let path = work_dir.join(FILE);
    let kept = keep_or_make(work_dir, &path).map_err(|source| StartError::Identity { path, source })?;
    parse(kept.trim())
}

fn keep_or_make(work_dir: &Path, path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(work_dir)?;
    let id = AgentId::random().to_string();
    // Whole or not at all: a half-written id would be another agent.
    let mut file = tempfile::NamedTempFile::new_in(work_dir)?;
    io::Write::write_all(&mut file, id.as_bytes())?;
    file.persist(path)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_made_once_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let settings = AgentSettings::default();
        let first = agent_id(&settings, dir.path()).expect("an id");
        assert_eq!(agent_id(&settings, dir.path()).expect("an id"), first);
        let named = AgentSettings { id: Some("node-7".to_owned()), ..AgentSettings::default() };
        assert_eq!(agent_id(&named, dir.path()).expect("an id").as_str(), "node-7");
        let wrong = AgentSettings { id: Some("node 7".to_owned()), ..AgentSettings::default() };
        assert!(agent_id(&wrong, dir.path()).is_err());
    }
}
