//! The store from the command line.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use secateur::model::Teacher;
use secateur::store::{ModelName, Store, Version};
use secateur::weights::ModelDescription;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::program::{self, Finished, keys};

/// A fresh folder with two small models, `a.safetensors` and `b.safetensors`; the store will be `store`.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (seed, file) in ["a", "b"].iter().enumerate() {
            let model = format!("--arch lenet_bn --classes 10 --channels 0.2 --seed {seed}");
            program::run(folder.path(), &format!("export {model} --safetensors {file}.safetensors")).ends_with(&[0]);
        }
        Self(folder)
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Runs `models ARGUMENTS --store store`.
    pub fn models(&self, arguments: &str) -> Finished {
        program::run(self.folder(), &format!("models {arguments} --store store"))
    }

    /// The files and folders of the store that only a change in progress has.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let list = |folder: &str| fs::read_dir(self.path(folder)).into_iter().flatten().flatten().map(|e| e.path());
        let unfinished = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with('.') && name != ".lock"
        };
        list("store").chain(list("store/a")).filter(unfinished).collect()
    }

    /// The active version of model `a`, which must verify and load; `None` if none was activated yet.
    #[track_caller]
    pub fn serving(&self) -> Option<Version> {
        let store = Store::open(&self.path("store")).unwrap();
        let name: ModelName = "a".parse().unwrap();
        let active = store.active(&name).unwrap();
        assert_eq!(store.last_good(&name).unwrap(), active);
        if let Some(version) = active {
            let path = store.path(&name, version);
            let model = Teacher::load(&path, ModelDescription::default(), &Device::Cpu).unwrap();
            assert_eq!(model.sha256, store.manifest(&name, version).unwrap().model_sha256);
        }
        active
    }

    fn active(&self) -> Value {
        self.models("list --json").ends_with(&[0]).rows().into_iter().filter(|row| row["active"] == true).collect()
    }
}

impl Finished {
    /// The JSON objects on the lines of stdout.
    #[track_caller]
    fn rows(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[test]
fn versions_are_published_activated_rolled_back_and_removed() {
    let place = Place::new();
    let first = place.models("publish a.safetensors --activate --json").ends_with(&[0]);
    first.logs(&["version published model=a version=1", "version activated model=a version=1"]);
    let json = first.json();
    assert_eq!(keys(&json), ["model", "version", "active", "removed", "path", "sha256"]);
    assert_eq!(
        (&json["version"], &json["active"], &json["path"]),
        (&json!(1), &json!(true), &json!("store/a/1/model.safetensors"))
    );
    let second = place.models("publish b.safetensors --name a").ends_with(&[0]);
    assert_eq!(second.stdout, "a version 2: published\n");
    assert_eq!(place.active()[0]["version"], 1);
    assert_eq!(place.models("activate a 2").ends_with(&[0]).stdout, "a version 2: active\n");
    assert_eq!(place.serving(), Some(Version(2)));
    assert_eq!(place.models("rollback a --json").ends_with(&[0]).json(), json!({"model": "a", "version": 1}));
    assert_eq!(place.models("remove a 2").ends_with(&[0]).stdout, "a: removed: 2\n");
    let third = place.models("publish b.safetensors --name a --activate --keep 1 --json").ends_with(&[0]).json();
    assert_eq!((&third["version"], &third["removed"]), (&json!(3), &json!([])), "the one before it is kept");
    let fourth = place.models("publish a.safetensors --activate --keep 1").ends_with(&[0]);
    assert_eq!(fourth.stdout, "a version 4: published and active; removed: 1\n");
    assert_eq!(place.models("verify").ends_with(&[0]).stdout, "a version 3: ok\na version 4: ok\na active: ok\n");
    assert_eq!(place.serving(), Some(Version(4)));
}

#[test]
fn a_published_model_answers_as_its_source_does() {
    let place = Place::new();
    place.models("publish a.safetensors").ends_with(&[0]);
    let inspect = |model: &str| program::run(place.folder(), &format!("inspect {model} --json")).ends_with(&[0]).json();
    assert_eq!(inspect("store/a/1"), inspect("a.safetensors"));
}

#[test]
fn the_list_is_a_table_for_people_and_objects_for_machines() {
    let place = Place::new();
    assert_eq!(place.models("publish a.safetensors").ends_with(&[0]).stdout, "a version 1: published\n");
    place.models("publish b.safetensors --activate").ends_with(&[0]);
    place.models("publish b.safetensors --activate").ends_with(&[0]);
    fs::remove_file(place.path("store/b/1/manifest.json")).unwrap();
    let table = place.models("list").ends_with(&[0]).stdout;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines[0].starts_with("model version") && lines[0].ends_with("state"), "{table}");
    assert!(lines[1].contains("21.1 kB") && lines[1].contains("1×28×28") && lines[1].ends_with("lenet_bn"), "{table}");
    assert!(lines[2].contains("DAMAGED: store/b/1/manifest.json: missing"), "{table}");
    assert!(lines[3].ends_with(" active"), "{table}");

    let rows = place.models("list b --json").ends_with(&[0]).rows();
    assert_eq!(rows.len(), 2);
    assert_eq!(keys(&rows[0]), ["model", "version", "active", "damaged"]);
    let all = ["model", "version", "active", "damaged", "published_unix_s", "bytes", "sha256", "summary"];
    assert_eq!(keys(&rows[1]), all);
    assert_eq!((&rows[1]["active"], &rows[1]["damaged"]), (&json!(true), &Value::Null));
    assert_eq!(rows[1]["summary"]["input"], json!([1, 28, 28]));
    fs::create_dir(place.path("empty")).unwrap();
    assert_eq!(program::run(place.folder(), "models list --store empty").ends_with(&[0]).stdout, "empty: no models\n");
}

#[test]
fn damage_is_found_told_and_ends_with_code_1() {
    let place = Place::new();
    for file in ["a", "b", "a", "b"] {
        place.models(&format!("publish {file}.safetensors --name a --activate")).ends_with(&[0]);
    }
    let model = place.path("store/a/2/model.safetensors");
    let mut bytes = fs::read(&model).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::remove_file(&model).unwrap();
    fs::write(&model, bytes).unwrap();
    fs::write(place.path("store/a/3/manifest.json"), "{").unwrap();
    let found = place.models("verify").ends_with(&[1]);
    found.logs(&["store: 2 damaged, see above"]);
    let lines: Vec<&str> = found.stdout.lines().collect();
    assert_eq!((lines[0], lines[3], lines[4]), ("a version 1: ok", "a version 4: ok", "a active: ok"));
    assert!(lines[1].starts_with("a version 2: DAMAGED: store/a/2/model.safetensors: expected SHA-256"), "{lines:?}");
    assert!(lines[2].starts_with("a version 3: DAMAGED: store/a/3/manifest.json: not a manifest"), "{lines:?}");
    let rows = place.models("verify a --json").ends_with(&[1]).rows();
    assert_eq!(rows[0], json!({"model": "a", "version": 1, "ok": true, "reason": null}));
    assert!(rows[1]["ok"] == false && rows[1]["reason"].as_str().unwrap().contains("SHA-256"));
    place.models("verify a 1").ends_with(&[0]);

    place.models("activate a 2").fails_naming(&["store/a/2/model.safetensors: expected SHA-256"]);
    assert_eq!(place.serving(), Some(Version(4)), "a damaged version does not replace one that serves");
    let back = place.models("rollback a").ends_with(&[0]);
    assert_eq!(back.stdout, "a version 1: active\n");
    back.logs(&["version cannot be used model=a version=3", "version cannot be used model=a version=2", "from=4"]);
    place.models("remove a 2 3").ends_with(&[0]);
    place.models("verify").ends_with(&[0]);

    fs::remove_dir_all(place.path("store/a/1")).unwrap();
    let gone = place.models("verify").ends_with(&[1]);
    assert!(gone.stdout.contains("store/a/active: the active version 1 is gone"), "{}", gone.stdout);
    place.models("list").ends_with(&[0]).logs(&["the active version is gone model=a version=1"]);
    fs::write(place.path("store/a/active"), "4").unwrap();
    let garbled = place.models("verify").ends_with(&[1]);
    assert!(garbled.stdout.contains("a active: DAMAGED: store/a/active: expected"), "{}", garbled.stdout);
    place.models("list").ends_with(&[0]).logs(&["what is active cannot be told: store/a/active"]);
    place.models("rollback a").fails_naming(&["store/a/active: expected the number of the active version"]);
    place.models("activate a 4").ends_with(&[0]).logs(&["pointer cannot be read and is replaced"]);
    place.models("verify").ends_with(&[0]);
}

#[test]
fn mistakes_are_named_and_change_nothing() {
    let place = Place::new();
    for verb in ["list", "verify", "activate a 1", "rollback a", "remove a 1"] {
        place.models(verb).fails_naming(&["--store store: no such folder"]);
    }
    assert!(!place.path("store").exists(), "a mistyped store is not made");
    place.models("publish a.safetensors --activate").ends_with(&[0]);
    place.models("rollback a").fails_naming(&["a: no whole version was active before version 1"]);
    place.models("activate a 7").fails_naming(&["a: no version 7, there are: 1"]);
    place.models("verify a 7").fails_naming(&["a: no version 7, there are: 1"]);
    place.models("remove a 1").fails_naming(&["a: version 1 is active; activate another one"]);
    for verb in ["list", "verify", "rollback"] {
        place.models(&format!("{verb} b")).ends_with(&[2]).logs(&["b"]);
    }
    place.models("list b").fails_naming(&["store: no model b, there are: a"]);
    for name in ["..", "../a", "a/b", "/a", ".lock", "x%2fy"] {
        place.models(&format!("publish a.safetensors --name {name}")).fails_naming(&["model name: expected 1 to 64"]);
        place.models(&format!("rollback {name}")).fails_naming(&["model name: expected 1 to 64"]);
    }
    for version in ["0", "01", "-1", "x"] {
        place.models(&format!("activate a {version}")).ends_with(&[2]);
    }
    assert_eq!(fs::read_dir(place.path("store")).unwrap().count(), 2);
    assert_eq!(place.serving(), Some(Version(1)));
}

#[test]
fn what_cannot_serve_is_not_published() {
    let place = Place::new();
    fs::copy(place.path("a.safetensors"), place.path("student.safetensors.refused")).unwrap();
    place
        .models("publish student.safetensors.refused")
        .fails_naming(&["student.safetensors.refused: no name follows", "say --name NAME"]);
    fs::copy(place.path("a.safetensors"), place.path("été.safetensors")).unwrap();
    place.models("publish été.safetensors").fails_naming(&["model name: expected", "say --name NAME"]);
    let whole = fs::read(place.path("a.safetensors")).unwrap();
    fs::write(place.path("cut.safetensors"), &whole[..whole.len() / 2]).unwrap();
    place.models("publish cut.safetensors").fails_naming(&["cut.safetensors: ", "truncated"]);
    place.models("publish none.safetensors").fails_naming(&["none.safetensors: cannot open"]);
    place.models("publish . --name here").fails_naming(&["got a folder"]);
    assert_eq!(fs::read_dir(place.path("store")).unwrap().count(), 1, "only the lock file");
}
