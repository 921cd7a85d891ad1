//! What several tests of this module need.

use std::path::{Path, PathBuf};

use crate::graph::{Activation, Conv2d, Graph, GraphBuilder};

/// A safetensors file from a header's JSON and its data, whatever they hold.
pub fn raw_file(json: &str, data: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), data].concat()
}

/// The folder of trained teachers beside the checkout, or under `SECATEUR_SHARED`; `None`, with a printed line, where
/// this machine has none.
pub fn teachers() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let named = std::env::var_os("SECATEUR_SHARED").map(PathBuf::from);
    let found = std::iter::once(beside).chain(named).map(|folder| folder.join("teachers")).find(|f| f.is_dir());
    if found.is_none() {
        println!("skipped: no folder of teachers; set SECATEUR_SHARED to the folder that holds it");
    }
    found
}

/// A convolution, a batch normalisation and a linear classifier of `classes` classes.
pub fn tiny_graph(classes: usize) -> Graph {
    let mut builder = GraphBuilder::new("tiny", [1, 8, 8]);
    let conv = builder.conv("conv1", Conv2d::new(4, 3), builder.input());
    let norm = builder.batch_norm("bn1", 1e-5, conv);
    let relu = builder.activation("relu1", Activation::Relu, norm);
    builder.classifier("fc", classes, relu);
    builder.finish().unwrap()
}

/// Whether this process may write where permission bits forbid it, so that tests of permissions mean nothing.
pub fn ignores_permissions() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
