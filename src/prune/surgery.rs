//! The physical removal: tensors cut to the channels that stay.

use candle_core::Tensor;

use crate::graph::{ChannelGroups, Compaction, Graph, Keep, ParamKind};
use crate::model::{ChannelMask, Forward, Mode, Params};
use crate::{Error, Result};

/// Largest difference between masked and compacted logits, relative to the largest logit, that is still rounding.
pub const LOGIT_TOLERANCE: f32 = 1e-4;

/// Cuts `params` to the channels in `keep`. Pure: nothing but its arguments decides the result.
///
/// # Errors
/// [`Error::Shape`] if `keep` does not fit or would empty a layer.
pub fn compact(graph: &Graph, groups: &ChannelGroups, keep: &Keep, params: &Params) -> Result<(Graph, Params)> {
    let compaction = graph.compact(groups, keep)?;
    let mut smaller = Params::new();
    for spec in graph.params() {
        let tensor = params
            .get(&spec.name)
            .ok_or_else(|| Error::Shape(format!("surgery: parameter {} is missing", spec.name)))?;
        let rows = take(tensor, 0, &compaction.kept[spec.node])?;
        let cut = match spec.kind {
            ParamKind::Weight if graph.produces(spec.node) => {
                take(&rows, 1, &compaction.kept_inputs(graph, spec.node))?
            }
            _ => rows,
        };
        smaller.insert(spec.name, cut.contiguous()?);
    }
    check_shapes(&compaction, &smaller)?;
    Ok((compaction.graph, smaller))
}

fn take(tensor: &Tensor, dim: usize, kept: &[usize]) -> Result<Tensor> {
    if kept.len() == tensor.dim(dim)? {
        return Ok(tensor.clone());
    }
    let index: Vec<u32> = kept.iter().map(|&c| c as u32).collect();
    Ok(tensor.contiguous()?.index_select(&Tensor::from_vec(index, kept.len(), tensor.device())?, dim)?)
}

fn check_shapes(compaction: &Compaction, params: &Params) -> Result<()> {
    for spec in compaction.graph.params() {
        match params.get(&spec.name) {
            Some(t) if t.dims() == spec.shape => {}
            other => {
                let got = other.map(Tensor::dims);
                return Err(Error::Shape(format!("surgery: {}: expected {:?}, got {got:?}", spec.name, spec.shape)));
            }
        }
    }
    Ok(())
}

/// Compares the logits of the masked and the compacted network on `images` and returns the largest difference
/// relative to the largest logit.
///
/// # Errors
/// [`Error::Numeric`] if it exceeds [`LOGIT_TOLERANCE`]: the surgery would change answers; or if these are not finite before.
pub fn verify(
    masked: (&Graph, &Params, &ChannelGroups, &Keep),
    compacted: (&Graph, &Params),
    images: &Tensor,
) -> Result<f32> {
    let (graph, params, groups, keep) = masked;
    let mask: Vec<f32> = keep.iter().map(|k| f32::from(u8::from(*k))).collect();
    let values = Tensor::from_vec(mask, groups.len(), images.device())?;
    let masks = ChannelMask::new(groups, images.device())?.gather(&values)?;
    let before = Forward::new(graph, params, Mode::Eval).masked(masks).run(images)?.logits;
    let after = Forward::new(compacted.0, compacted.1, Mode::Eval).run(images)?.logits;
    if !before.sum_all()?.to_scalar::<f32>()?.is_finite() {
        return Err(Error::Numeric(
            "surgery: the network's answers are not finite before channels go; try a lower learning rate".into(),
        ));
    }
    let scale = before.abs()?.max_all()?.to_scalar::<f32>()?.max(1e-6);
    // The tensor library's maximum skips NaN; here a NaN stays, and the comparison is written so that it fails.
    let differences: Vec<f32> = (before - after)?.abs()?.flatten_all()?.to_vec1()?;
    let largest = differences.into_iter().fold(0.0, |max: f32, d| if d > max || d.is_nan() { d } else { max });
    let difference = largest / scale;
    if difference <= LOGIT_TOLERANCE {
        Ok(difference)
    } else {
        Err(Error::Numeric(format!(
            "surgery: compacted logits differ from masked ones by {difference:e} of the largest logit, expected at \
             most {LOGIT_TOLERANCE:e}"
        )))
    }
}

#[cfg(test)]
mod tests;
