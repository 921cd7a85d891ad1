//! Settings from several places, the later going before the earlier.

use std::ffi::OsString;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::keys::nearest;
use crate::{Error, Result};

/// What the names of overriding environment variables begin with; `__` stands between section and key.
const PREFIX: &str = "SECATEUR_";

/// The settings so far: sections of keys, all of which are known from the start, and what they mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Layers<T> {
    table: Table,
    meaning: T,
}

impl<T: DeserializeOwned> Layers<T> {
    /// Begins with the documented defaults.
    ///
    /// # Errors
    /// [`Error::Config`] if `text` is not TOML, or not all of a `T`.
    pub fn new(text: &str) -> Result<Self> {
        let table = parse("defaults", text)?;
        let meaning = understood(&table).map_err(|what| Error::Config(format!("defaults: {what}")))?;
        Ok(Self { table, meaning })
    }

    /// Overrides by what stands in a file.
    ///
    /// # Errors
    /// [`Error::Config`] naming `origin` and line or key.
    pub fn add_file(&mut self, origin: &str, text: &str) -> Result<()> {
        for (section, value) in parse(origin, text)? {
            let Value::Table(keys) = value else {
                return Err(Error::Config(format!("{origin}: {section}: expected a section, [{section}]")));
            };
            if keys.is_empty() {
                self.section(origin, &section)?;
            }
            for (key, value) in keys {
                self.replace(origin, &section, &key, |_| Ok(value))?;
            }
        }
        Ok(())
    }

    /// Overrides by environment variables such as `SECATEUR_SERVE__LISTEN`; others are not looked at.
    ///
    /// # Errors
    /// [`Error::Config`] naming the variable.
    pub fn add_environment(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<()> {
        for (name, value) in variables {
            let Some(path) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
            let Some((section, key)) = path.split_once("__") else { continue };
            let name = name.to_string_lossy();
            let text = value.to_str().ok_or_else(|| Error::Config(format!("{name}: expected UTF-8")))?;
            self.set(&name, &format!("{}.{}", section.to_lowercase(), key.to_lowercase()), text)?;
        }
        Ok(())
    }

    /// Overrides the key `section.key` by a text, read as the type that the key has.
    ///
    /// # Errors
    /// [`Error::Config`] naming `origin` and key.
    pub fn set(&mut self, origin: &str, path: &str, text: &str) -> Result<()> {
        let (section, key) = path.split_once('.').unwrap_or((path, ""));
        self.replace(origin, section, key, |default| {
            let parsed = match default {
                Value::String(_) => Some(Value::String(text.to_string())),
                Value::Integer(_) => text.parse().ok().map(Value::Integer),
                Value::Float(_) => text.parse().ok().map(Value::Float),
                Value::Boolean(_) => text.parse().ok().map(Value::Boolean),
                _ => None,
            };
            parsed.ok_or_else(|| format!("expected {}, got {text:?}", kind(default)))
        })
    }

    /// What the settings mean.
    pub fn finish(self) -> T {
        self.meaning
    }

    fn section(&mut self, origin: &str, name: &str) -> Result<&mut Table> {
        let unknown =
            unknown(origin, &format!("section [{name}]"), nearest(name, self.table.keys().map(String::as_str)));
        self.table.get_mut(name).and_then(Value::as_table_mut).ok_or(unknown)
    }

    fn replace(
        &mut self,
        origin: &str,
        section: &str,
        key: &str,
        value: impl FnOnce(&Value) -> Result<Value, String>,
    ) -> Result<()> {
        let keys = self.section(origin, section)?;
        let unknown = unknown(origin, &format!("key {section}.{key}"), nearest(key, keys.keys().map(String::as_str)));
        let old = keys.get_mut(key).ok_or(unknown)?;
        let new = value(old).map_err(|what| Error::Config(format!("{origin}: {section}.{key}: {what}")))?;
        let new = match (new, &*old) {
            // A whole number is a number, too.
            (Value::Integer(whole), Value::Float(_)) => Value::Float(whole as f64),
            (new, _) => new,
        };
        if kind(&new) != kind(old) {
            let (want, got) = (kind(old), kind(&new));
            return Err(Error::Config(format!("{origin}: {section}.{key}: expected {want}, got {got}")));
        }
        *old = new;
        // At once, so that the error can name where the value comes from.
        let what = |what| Error::Config(format!("{origin}: {section}.{key}: {what}"));
        self.meaning = understood(&self.table).map_err(what)?;
        Ok(())
    }
}

fn understood<T: DeserializeOwned>(table: &Table) -> Result<T, String> {
    table.clone().try_into().map_err(|e: toml::de::Error| on_one_line(&e))
}

fn unknown(origin: &str, what: &str, nearest: Option<&str>) -> Error {
    let hint = nearest.map_or_else(
        || "`secateur config print-default` lists all".to_string(),
        |name| format!("did you mean {name}?"),
    );
    Error::Config(format!("{origin}: unknown {what}; {hint}"))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a time",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}

fn parse(origin: &str, text: &str) -> Result<Table> {
    text.parse().map_err(|e: toml::de::Error| Error::Config(format!("{origin}: {}", located(&e, text))))
}

/// The error with its line; the library's own form draws over several.
fn located(error: &toml::de::Error, text: &str) -> String {
    let line = error.span().map(|span| text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1);
    line.map_or_else(|| on_one_line(error), |line| format!("line {line}: {}", on_one_line(error)))
}

fn on_one_line(error: &toml::de::Error) -> String {
    error.message().lines().collect::<Vec<_>>().join("; ")
}
