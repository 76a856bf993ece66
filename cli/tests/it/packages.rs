//! `flux deploy` with a list of packages: real pip and npm, and packages that are made here, so that no index is asked.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use flux_testkit::{File, FluxUp};
use serde_json::json;

use crate::cluster::{COMMAND, Ran, command};

const PYTHON: &str = "name: py\nruntime: python\nhandler: main.handler\nresources: { cpu: 1000 }\n";
const NODE: &str = "name: js\nruntime: node\nhandler: main.js\nresources: { cpu: 1000 }\n";

/// A folder to deploy, and where packages are kept.
struct Place {
    up: FluxUp,
    folder: tempfile::TempDir,
    cache: tempfile::TempDir,
}

impl Place {
    async fn new(files: &[(&str, &str)]) -> Self {
        let (folder, cache) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let place = Self { up: FluxUp::start().await, folder, cache };
        for (name, content) in files {
            place.write(name, content);
        }
        place
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(path, content).expect("written");
    }

    async fn deploy(&self) -> Ran {
        let folder = self.folder.path().to_str().expect("UTF-8");
        let cache = self.cache.path().to_str().expect("UTF-8");
        let deploy = command(&self.up, &["deploy", folder]).env("XDG_CACHE_HOME", cache);
        Ran::of(&deploy.output(COMMAND).await)
    }

    /// Of the sets of packages that are kept.
    fn kept(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.cache.path().join("flux/packages")) else { return Vec::new() };
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }

    async fn result(&self, name: &str) -> serde_json::Value {
        self.up.api.execute(name, &json!({})).await.expect(200).json["result"].clone()
    }

    async fn version(&self, name: &str) -> serde_json::Value {
        self.up.api.get(&format!("/functions/{name}")).await.json["version"].clone()
    }
}

/// A wheel of one module, as pip takes it.
fn wheel(says: &str) -> Vec<u8> {
    let about = "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n";
    let kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    let record = "greeting/__init__.py,,\ngreeting-1.0.dist-info/METADATA,,\ngreeting-1.0.dist-info/WHEEL,,\ngreeting-1.0.dist-info/RECORD,,\n";
    flux_testkit::archive(&[
        File::plain("greeting/__init__.py", format!("WORD = '{says}'\n")),
        File::plain("greeting-1.0.dist-info/METADATA", about),
        File::plain("greeting-1.0.dist-info/WHEEL", kind),
        File::plain("greeting-1.0.dist-info/RECORD", record),
    ])
}

/// A package whose install script would leave a file behind.
fn npm_package(into: &Path, mark: &Path) {
    let dir = tempfile::tempdir().expect("a directory");
    let package = dir.path().join("package");
    std::fs::create_dir(&package).expect("made");
    let about =
        json!({"name": "greeting", "version": "1.0.0", "scripts": {"install": format!("touch {}", mark.display())}});
    std::fs::write(package.join("package.json"), about.to_string()).expect("written");
    std::fs::write(package.join("index.js"), "module.exports = 'from npm';").expect("written");
    let packed = Command::new("tar").arg("-czf").arg(into).arg("-C").arg(dir.path()).arg("package").status();
    assert!(packed.expect("tar").success());
}

#[tokio::test]
async fn pythons_packages_are_installed_once_and_packed() {
    let main = "import greeting\ndef handler(payload, context):\n    return greeting.WORD\n";
    let list = "--no-index\n--find-links wheels\ngreeting==1.0\n";
    let place = Place::new(&[
        ("flux.yaml", PYTHON),
        ("main.py", main),
        ("requirements.txt", list),
        (".fluxignore", "wheels/\n"),
    ])
    .await;
    place.write("wheels/greeting-1.0-py3-none-any.whl", wheel("from a wheel"));
    let first = place.deploy().await.ok();
    assert!(first.stderr.contains("installing the packages of requirements.txt"), "{first:?}");
    assert_eq!(place.result("py").await, json!("from a wheel"));
    assert_eq!(place.kept().len(), 1);
    assert!(!place.folder.path().join("greeting").exists(), "the folder is left as it was");

    let again = place.deploy().await.ok();
    assert!(again.stderr.contains("kept from before") && again.stdout.contains("unchanged"), "{again:?}");

    // What cannot be installed changes nothing, and pip says why.
    place.write("requirements.txt", format!("{list}nowhere-to-be-found==3\n"));
    place.write("flux.yaml", PYTHON.replace("cpu: 1000", "cpu: 900"));
    let failed = place.deploy().await.fails(1, "nowhere-to-be-found");
    assert!(failed.stderr.contains("nothing was deployed"), "{failed:?}");
    assert_eq!((place.version("py").await, place.result("py").await), (json!(1), json!("from a wheel")));
    assert_eq!(place.kept().len(), 1, "nothing half installed is kept");
}

#[tokio::test]
async fn nodes_packages_are_installed_and_their_scripts_are_not_run() {
    let list = r#"{"name": "js", "version": "1.0.0", "dependencies": {"greeting": "file:greeting.tgz"}}"#;
    let main = "const greeting = require('greeting');\nmodule.exports = async () => greeting;\n";
    let place =
        Place::new(&[("flux.yaml", NODE), ("main.js", main), ("package.json", list), (".fluxignore", "*.tgz\n")]).await;
    let mark = place.cache.path().join("a-script-ran");
    npm_package(&place.folder.path().join("greeting.tgz"), &mark);
    let deployed = place.deploy().await.ok();
    assert_eq!(place.result("js").await, json!("from npm"));
    assert!(deployed.stderr.contains("install scripts were not run, of: greeting"), "{deployed:?}");
    assert!(!mark.exists());
    assert!(!place.folder.path().join("node_modules").exists(), "the folder is left as it was");

    place.write("package.json", list.replace("greeting.tgz", "missing.tgz"));
    place.deploy().await.fails(1, "missing.tgz");
    assert_eq!(place.version("js").await, json!(1));
}

#[tokio::test]
async fn an_archive_that_names_packages_and_has_none_is_refused() {
    let up = FluxUp::start().await;
    up.api.put("/functions", "application/yaml", PYTHON).await.expect(201);
    let main = File::plain("main.py", "def handler(p, c):\n    return 1\n");
    let list = File::plain("requirements.txt", "requests\n");
    let zip = flux_testkit::archive(&[main.clone(), list.clone()]);
    let refused = up.api.put("/deploy/py", "application/zip", zip.clone()).await.expect(422);
    assert_eq!(refused.json["error"]["code"], "invalid_archive");
    assert!(refused.text().contains("flux deploy") && refused.text().contains("pip install"), "{}", refused.text());
    let with = flux_testkit::archive(&[main.clone(), list, File::plain("requests-2.dist-info/METADATA", "")]);
    up.api.put("/deploy/py", "application/zip", with).await.expect(201);
    let empty = flux_testkit::archive(&[main.clone(), File::plain("requirements.txt", "# none\n")]);
    up.api.put("/deploy/py", "application/zip", empty).await.expect(201);

    // The command says so before anything is sent.
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("f.zip");
    let yaml = PYTHON.replace("cpu: 1000", "cpu: 800");
    let files = [main, File::plain("requirements.txt", "requests\n"), File::plain("flux.yaml", yaml)];
    std::fs::write(&path, flux_testkit::archive(&files)).expect("written");
    crate::cluster::flux(&up, &["deploy", path.to_str().expect("UTF-8")]).await.fails(1, "the zip has none");
    assert_eq!(up.api.get("/functions/py").await.json["resources"]["cpu"], 1000);
}
