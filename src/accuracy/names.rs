//! Things that are chosen by their names.

use std::fmt::Display;

use crate::{Error, Result};

/// The one of `all` that is called `text`.
///
/// # Errors
/// [`Error::Usage`] with all names if none is.
pub(super) fn by_name<T: Display>(all: impl IntoIterator<Item = T> + Clone, text: &str) -> Result<T> {
    all.clone().into_iter().find(|one| one.to_string() == text).ok_or_else(|| {
        let names: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
        Error::Usage(format!("expected one of {}, got {text:?}", names.join(", ")))
    })
}
