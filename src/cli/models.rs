//! `secateur models`: the versions in a store.

mod list;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use self::list::{rows, table};
use super::output::print;
use crate::store::{ModelName, Store, Version};
use crate::{Error, Result};

/// Arguments of `models`.
#[derive(Debug, Args)]
#[command(after_help = "A store is a folder: STORE/NAME/VERSION/model.safetensors beside a manifest with its digest, \
                        and STORE/NAME/active, which names the version that serves. Versions never change once they \
                        are published. Any number of processes may use one store at once.")]
pub(super) struct ModelsArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show models and their versions
    List(ListArgs),
    /// Copy a model into the store as a new version; it serves once it is activated
    Publish(PublishArgs),
    /// Let a version serve, after its digest was checked
    Activate(ActivateArgs),
    /// Let the version serve again that served before
    Rollback(RollbackArgs),
    /// Remove versions that are not active
    Remove(RemoveArgs),
    /// Check versions against the digests they were published with; exit code 1 if one is damaged
    Verify(VerifyArgs),
}

/// Where the store is and how to answer.
#[derive(Debug, Args)]
struct StoreArgs {
    /// The folder of the store
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only these models
    models: Vec<ModelName>,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
struct PublishArgs {
    /// A model that carries all about itself: what `adapt`, `quantize` and `export --safetensors` write
    file: PathBuf,
    /// What to call the model [default: the file's name without .safetensors]
    #[arg(long)]
    name: Option<ModelName>,
    /// Let it serve at once
    #[arg(long)]
    activate: bool,
    /// Afterwards remove the oldest versions, so that N are left; never the active one and the one before it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
struct ActivateArgs {
    /// The model
    model: ModelName,
    /// The version's number
    version: Version,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
struct RollbackArgs {
    /// The model
    model: ModelName,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
struct RemoveArgs {
    /// The model
    model: ModelName,
    /// The versions' numbers
    #[arg(required = true)]
    versions: Vec<Version>,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Only this model
    model: Option<ModelName>,
    /// Only this version of it
    version: Option<Version>,
    #[command(flatten)]
    store: StoreArgs,
}

impl ModelsArgs {
    pub fn run(self) -> Result<()> {
        match self.verb {
            Verb::List(args) => args.run(),
            Verb::Publish(args) => args.run(),
            Verb::Activate(args) => args.run(),
            Verb::Rollback(args) => args.run(),
            Verb::Remove(args) => args.run(),
            Verb::Verify(args) => args.run(),
        }
    }
}

impl StoreArgs {
    /// Opens a store that exists: a mistyped folder is not made into one.
    fn open(&self) -> Result<Store> {
        if !self.store.is_dir() {
            let reason = "no such folder; `secateur models publish` makes a store";
            return Err(Error::Usage(format!("--store {}: {reason}", self.store.display())));
        }
        Store::open(&self.store)
    }

    fn answer(&self, text: &str, json: &Value) -> Result<()> {
        print(&if self.json { json.to_string() } else { text.to_string() })
    }
}

impl ListArgs {
    fn run(self) -> Result<()> {
        let store = self.store.open()?;
        let rows = rows(&store, &asked(&store, self.models)?)?;
        if self.store.json {
            return rows.iter().try_for_each(|row| print(&row.json().to_string()));
        }
        match rows.as_slice() {
            [] => print(&format!("{}: no models", self.store.store.display())),
            rows => print(&table(rows)),
        }
    }
}

impl PublishArgs {
    fn run(self) -> Result<()> {
        let name = self.name.map_or_else(|| name_of(&self.file), Ok)?;
        let store = Store::open(&self.store.store)?;
        let version = store.publish(&name, &self.file)?;
        if self.activate {
            store.activate(&name, version)?;
        }
        let removed = self.keep.map_or(Ok(Vec::new()), |keep| store.retain(&name, keep as usize))?;
        let state = if self.activate { "published and active" } else { "published" };
        let mut text = format!("{name} version {version}: {state}");
        if !removed.is_empty() {
            text += &format!("; removed: {}", listed(&removed));
        }
        self.store.answer(
            &text,
            &json!({
                "model": name, "version": version, "active": self.activate, "removed": removed,
                "path": store.path(&name, version).display().to_string(),
                "sha256": store.manifest(&name, version)?.model_sha256,
            }),
        )
    }
}

impl ActivateArgs {
    fn run(self) -> Result<()> {
        let Self { model, version, store } = self;
        store.open()?.activate(&model, version)?;
        store.answer(&format!("{model} version {version}: active"), &json!({ "model": model, "version": version }))
    }
}

impl RollbackArgs {
    fn run(self) -> Result<()> {
        let Self { model, store } = self;
        let version = store.open()?.rollback(&model)?;
        store.answer(&format!("{model} version {version}: active"), &json!({ "model": model, "version": version }))
    }
}

impl RemoveArgs {
    fn run(self) -> Result<()> {
        let Self { model, versions, store } = self;
        let opened = store.open()?;
        versions.iter().try_for_each(|version| opened.remove(&model, *version))?;
        store.answer(
            &format!("{model}: removed: {}", listed(&versions)),
            &json!({ "model": model, "removed": versions }),
        )
    }
}

impl VerifyArgs {
    fn run(self) -> Result<()> {
        let store = self.store.open()?;
        let mut damaged = 0;
        for model in &asked(&store, self.model.iter().cloned().collect())? {
            for version in self.version.map_or_else(|| store.numbers(model), |version| Ok(vec![version]))? {
                match store.verify(model, version) {
                    // Removed since it was listed.
                    Err(Error::Usage(_)) if self.version.is_none() => {}
                    Err(mistake @ Error::Usage(_)) => return Err(mistake),
                    result => damaged += self.tell(model, Some(version), result)?,
                }
            }
            if self.version.is_none() {
                damaged += self.tell(model, None, store.verify_active(model))?;
            }
        }
        match damaged {
            0 => Ok(()),
            n => Err(Error::Rejected(format!("{}: {n} damaged, see above", self.store.store.display()))),
        }
    }

    /// Says what was found of a version, or without one of the pointer, and counts 1 if it is damaged.
    fn tell(&self, model: &ModelName, version: Option<Version>, result: Result<()>) -> Result<usize> {
        let damage = result.err().map(|error| error.to_string());
        let what = version.map_or_else(|| "active".to_string(), |version| format!("version {version}"));
        let verdict = damage.as_ref().map_or_else(|| "ok".to_string(), |damage| format!("DAMAGED: {damage}"));
        let json = json!({ "model": model, "version": version, "ok": damage.is_none(), "reason": damage });
        self.store.answer(&format!("{model} {what}: {verdict}"), &json)?;
        Ok(usize::from(damage.is_some()))
    }
}

/// The models asked for, which must exist; all, if none are.
fn asked(store: &Store, names: Vec<ModelName>) -> Result<Vec<ModelName>> {
    let known = store.models()?;
    if names.is_empty() {
        return Ok(known);
    }
    match names.iter().find(|name| !known.contains(name)) {
        None => Ok(names),
        Some(name) => Err(store.unknown_model(name)),
    }
}

/// A name from `NAME.safetensors`.
fn name_of(file: &Path) -> Result<ModelName> {
    let fail = |reason: &str| Error::Usage(format!("{}: {reason}; say --name NAME", file.display()));
    // So `student.safetensors.refused` is not published by accident.
    if file.extension().is_none_or(|e| e != "safetensors") {
        return Err(fail("no name follows from a file that is not called NAME.safetensors"));
    }
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.parse().map_err(|e: Error| fail(&e.to_string()))
}

fn listed(versions: &[Version]) -> String {
    versions.iter().map(Version::to_string).collect::<Vec<_>>().join(", ")
}
