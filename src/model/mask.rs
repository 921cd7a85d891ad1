//! A channel mask laid over a network: one value per prunable entry, gathered for each layer it acts on.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use crate::graph::{ChannelGroups, NodeId};
use crate::{Error, Result};

/// Where each layer finds its mask values. Built once per graph and device; holds no values itself.
#[derive(Debug, Clone)]
pub struct ChannelMask {
    entries: usize,
    points: HashMap<NodeId, Tensor>,
}

impl ChannelMask {
    /// The mask layout of `groups` on `device`.
    pub fn new(groups: &ChannelGroups, device: &Device) -> Result<Self> {
        let points = groups
            .mask_points()
            .iter()
            .map(|p| Ok((p.node, Tensor::from_slice(&p.entries, p.entries.len(), device)?)))
            .collect::<Result<_>>()?;
        Ok(Self { entries: groups.len(), points })
    }

    /// Number of values a mask has.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether there is nothing to mask.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// The per-layer mask vectors of the flat `values`; gradients flow back into `values`.
    ///
    /// # Shapes
    /// `values` f32 `[len]`; each result f32 `[channels of the node]`, 1 where a channel always stays.
    pub fn gather(&self, values: &Tensor) -> Result<HashMap<NodeId, Tensor>> {
        if values.dims() != [self.entries] {
            return Err(Error::Shape(format!("mask: expected {} values, got shape {:?}", self.entries, values.dims())));
        }
        let one = Tensor::ones(1, values.dtype(), values.device())?;
        let with_one = Tensor::cat(&[values, &one], 0)?;
        self.points.iter().map(|(node, index)| Ok((*node, with_one.index_select(index, 0)?))).collect()
    }
}
