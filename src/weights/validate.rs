//! Whether a weights file holds exactly the parameters of a graph, with everything that is wrong said at once.

use std::collections::BTreeSet;

use super::TensorFile;
use crate::graph::{Graph, ParamKind, ParamSpec};
use crate::{Error, Result};

/// How many tensors of one kind an error spells out.
const NAMED: usize = 5;
/// Prefixes that training wrappers put in front of every name (`DataParallel`, Lightning).
const WRAPPER_PREFIXES: [&str; 2] = ["module.", "model."];

/// A parameter of the graph and the tensor of the file that holds it.
#[derive(Debug)]
pub(super) struct Match {
    /// What the graph asks for.
    pub spec: ParamSpec,
    /// The tensor's name in the file, with its prefix.
    pub source: String,
}

/// Matches every parameter of `graph` with a tensor of `file`.
///
/// A prefix `module.` or `model.` that every tensor carries is ignored, and so are `*.num_batches_tracked`.
///
/// # Errors
/// [`Error::Weights`] that lists missing, unexpected and misshapen tensors together, with a hint where one is likely.
pub(super) fn match_params(file: &TensorFile, graph: &Graph) -> Result<Vec<Match>> {
    let specs: Vec<ParamSpec> = graph.params().collect();
    let prefix = wrapper_prefix(file, &specs);
    let mut extra: BTreeSet<&str> =
        file.names().filter_map(|name| name.strip_prefix(&prefix)).filter(|name| !is_ignored(name)).collect();
    let (mut missing, mut misshapen, mut hints) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut matches = Vec::with_capacity(specs.len());
    for spec in specs {
        let source = format!("{prefix}{}", spec.name);
        if !extra.remove(spec.name.as_str()) {
            missing.push(spec.name);
            continue;
        }
        let (_, shape) = file.info(&source)?;
        if shape == spec.shape {
            matches.push(Match { spec, source });
        } else {
            misshapen.push(format!("{}: expected {:?}, got {shape:?}", spec.name, spec.shape));
            hints.extend(hint(graph, &spec, shape));
        }
    }
    let wanted = matches.len() + missing.len() + misshapen.len();
    let mut faults = Vec::new();
    if !missing.is_empty() {
        faults.push(format!("{} of {wanted} tensors are missing: {}", missing.len(), first_of(&missing)));
    }
    if !misshapen.is_empty() {
        faults.push(format!("{} of {wanted} tensors have another shape: {}", misshapen.len(), first_of(&misshapen)));
    }
    if !extra.is_empty() {
        let extra: Vec<&str> = extra.into_iter().collect();
        faults.push(format!("{} tensors are not in {}: {}", extra.len(), graph.name(), first_of(&extra)));
    }
    if faults.is_empty() {
        return Ok(matches);
    }
    if matches.len() * 2 < wanted {
        hints.insert(format!("is this a {}? give its architecture with --arch", graph.name()));
    }
    faults.extend(hints);
    Err(Error::weights(file.path(), faults.join("; ")))
}

/// Buffers that PyTorch saves and no forward pass reads.
fn is_ignored(name: &str) -> bool {
    name.ends_with(".num_batches_tracked")
}

/// The longest chain of wrapper prefixes that all names share, but none that the graph's own names carry.
fn wrapper_prefix(file: &TensorFile, specs: &[ParamSpec]) -> String {
    let mut prefix = String::new();
    let carried_by_all = |start: &str| file.names().next().is_some() && file.names().all(|n| n.starts_with(start));
    while let Some(next) = WRAPPER_PREFIXES.into_iter().find(|next| {
        carried_by_all(&format!("{prefix}{next}")) && !specs.iter().any(|spec| spec.name.starts_with(next))
    }) {
        prefix.push_str(next);
    }
    prefix
}

/// A guess at why one tensor has another shape.
fn hint(graph: &Graph, spec: &ParamSpec, got: &[usize]) -> Option<String> {
    let (wanted, rest) = spec.shape.split_first()?;
    let (found, found_rest) = got.split_first()?;
    if spec.node == graph.output() && rest == found_rest {
        return Some(format!(
            "the classifier in the file has {found} classes, expected {wanted}: is --num-classes right?"
        ));
    }
    let reads_image = graph.nodes().get(spec.node).is_some_and(|node| node.inputs == [0]);
    match (spec.shape.as_slice(), got) {
        ([a, channels, b @ ..], [x, found, y @ ..])
            if reads_image && spec.kind == ParamKind::Weight && a == x && b == y =>
        {
            Some(format!("the first layer in the file reads {found} image channels, expected {channels}"))
        }
        _ => None,
    }
}

fn first_of<T: AsRef<str>>(names: &[T]) -> String {
    let shown: Vec<&str> = names.iter().take(NAMED).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
