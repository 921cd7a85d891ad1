//! Builders that turn torchvision and timm names into a [`Graph`].
//!
//! Nodes are named so that the parameters are exactly those of the original `state_dict`: a teacher's file is
//! read without a renaming table. One file per family; a network that is not here can be given as JSON instead
//! (see [`Graph::from_json`]).

mod cifar_resnet;
mod densenet;
mod efficientnet;
mod inverted_residual;
mod lenet;
#[cfg(test)]
mod parity;
mod resnet;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod vgg;

use crate::graph::Graph;
use crate::{Error, Result};

/// What a builder needs besides the architecture's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchOptions {
    /// Length of the logits.
    pub num_classes: usize,
    /// Channels, height, width of the image.
    pub input: [usize; 3],
}

/// PyTorch's default epsilon of a batch normalisation.
const EPS: f64 = 1e-5;

struct Entry {
    name: &'static str,
    input: [usize; 3],
    build: fn(&'static str, &ArchOptions) -> Result<Graph>,
}

const fn entry(name: &'static str, size: usize, build: fn(&'static str, &ArchOptions) -> Result<Graph>) -> Entry {
    Entry { name, input: [3, size, size], build }
}

static ENTRIES: [Entry; 18] = [
    entry("resnet18", 224, |n, o| resnet::basic(n, o, [2, 2, 2, 2])),
    entry("resnet34", 224, |n, o| resnet::basic(n, o, [3, 4, 6, 3])),
    entry("resnet50", 224, |n, o| resnet::bottleneck(n, o, [3, 4, 6, 3])),
    entry("resnet101", 224, |n, o| resnet::bottleneck(n, o, [3, 4, 23, 3])),
    entry("cifar_resnet20", 32, |n, o| cifar_resnet::build(n, o, 3)),
    entry("cifar_resnet32", 32, |n, o| cifar_resnet::build(n, o, 5)),
    entry("cifar_resnet44", 32, |n, o| cifar_resnet::build(n, o, 7)),
    entry("cifar_resnet56", 32, |n, o| cifar_resnet::build(n, o, 9)),
    entry("vgg11_bn", 224, |n, o| vgg::build(n, o, [1, 1, 2, 2, 2])),
    entry("vgg16_bn", 224, |n, o| vgg::build(n, o, [2, 2, 3, 3, 3])),
    entry("densenet121", 224, |n, o| densenet::build(n, o, [6, 12, 24, 16])),
    entry("mobilenetv1_100", 224, |n, o| efficientnet::build(n, o, &efficientnet::MOBILENET_V1)),
    entry("mobilenetv2_100", 224, |n, o| efficientnet::build(n, o, &efficientnet::MOBILENET_V2)),
    entry("mobilenetv3_large_100", 224, |n, o| efficientnet::build(n, o, &efficientnet::MOBILENET_V3_LARGE)),
    entry("tf_mobilenetv3_large_100", 224, |n, o| {
        efficientnet::build(n, o, &efficientnet::MOBILENET_V3_LARGE.tensorflow())
    }),
    entry("efficientnet_lite0", 224, |n, o| efficientnet::build(n, o, &efficientnet::LITE0)),
    entry("tf_efficientnet_lite0", 224, |n, o| efficientnet::build(n, o, &efficientnet::LITE0.tensorflow())),
    Entry { name: "lenet_bn", input: [1, 28, 28], build: lenet::build },
];

static NAMES: [&str; ENTRIES.len()] = {
    let mut names = [""; ENTRIES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = ENTRIES[i].name;
        i += 1;
    }
    names
};

/// The known architectures.
pub fn names() -> &'static [&'static str] {
    &NAMES
}

/// The network called `name` for `options`.
///
/// timm's tag of a set of weights, as in `mobilenetv2_100.ra_in1k`, says nothing about the architecture and is
/// ignored.
///
/// # Errors
/// [`Error::Config`] for an unknown name, listing the known ones, for zero classes, and for an input size that the
/// architecture excludes; [`Error::Shape`] for an input too small for its layers.
pub fn build(name: &str, options: &ArchOptions) -> Result<Graph> {
    let entry = find(name)?;
    if options.num_classes == 0 {
        return Err(Error::Config(format!("{name}: num_classes must be at least 1, got 0")));
    }
    (entry.build)(entry.name, options)
}

/// Channels, height and width the network called `name` was designed for.
///
/// # Errors
/// [`Error::Config`] for an unknown name.
pub fn default_input(name: &str) -> Result<[usize; 3]> {
    find(name).map(|entry| entry.input)
}

fn find(name: &str) -> Result<&'static Entry> {
    let bare = name.split('.').next().unwrap_or(name);
    ENTRIES.iter().find(|e| e.name == bare).ok_or_else(|| {
        let nearest = NAMES.iter().min_by_key(|known| edit_distance(known, bare)).copied().unwrap_or_default();
        Error::Config(format!("unknown architecture {name:?}: did you mean {nearest}? known: {}", NAMES.join(", ")))
    })
}

/// Levenshtein distance in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
