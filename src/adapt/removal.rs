//! What is left of the teacher on its way to the student: a network, and which of the whole one's channels it has.

use candle_core::Tensor;

use super::checkpoint::Sections;
use super::pass::Answers;
use super::ranking;
use super::run::Context;
use super::target::pass_config;
use crate::data::{OrderedPass, Transform};
use crate::graph::{ChannelGroups, Graph, Keep};
use crate::model::Params;
use crate::prune::{Measure, surgery};
use crate::{Error, Result};

/// Of a checkpoint.
const SECTION: &str = "remains";
/// Images that a cut is checked on.
const CHECKED_ON: usize = 4;

/// A network that may have lost channels.
#[derive(Debug, Clone)]
pub(super) struct Remains {
    pub graph: Graph,
    /// Of `graph`.
    pub groups: ChannelGroups,
    pub params: Params,
    /// Which entries of the whole network's mask are left.
    pub keep: Vec<bool>,
    /// Largest relative difference of logits that a cut made.
    pub surgery_difference: f32,
}

impl Remains {
    /// The whole network with `params`.
    pub fn whole(context: &Context, params: Params) -> Self {
        let (graph, groups) = (context.teacher.graph.clone(), context.groups.clone());
        let keep = vec![true; groups.len()];
        Self { graph, groups, params, keep, surgery_difference: 0.0 }
    }

    /// Adds which channels are left to a checkpoint; the parameters are the caller's.
    ///
    /// # Errors
    /// As [`Sections::put_list`].
    pub fn save(&self, into: &mut Sections) -> Result<()> {
        let keep: Vec<f32> = self.keep.iter().map(|kept| f32::from(u8::from(*kept))).collect();
        into.put_list(SECTION, "keep", &keep)?;
        into.put_list(SECTION, "surgery_difference", &[self.surgery_difference])
    }

    /// What a checkpoint says is left, with `params`.
    ///
    /// # Errors
    /// [`Error::Shape`] if that does not fit the teacher.
    pub fn load(context: &Context, from: &Sections, params: Params) -> Result<Self> {
        let keep: Vec<bool> = from.get_list(SECTION, "keep")?.into_iter().map(|kept| kept > 0.5).collect();
        let surgery_difference = from.get_list(SECTION, "surgery_difference")?.first().copied().unwrap_or(0.0);
        let graph = context.teacher.graph.compact(context.groups, &keep)?.graph;
        let groups = ChannelGroups::new(&graph, context.config.scope);
        Ok(Self { graph, groups, params, keep, surgery_difference })
    }

    /// Without the channels that `keep`, a value for each entry of this network, does not name; checked on a few images.
    ///
    /// # Errors
    /// [`Error::Numeric`] if that changes answers; those of reading images and computing.
    pub fn cut(&self, context: &Context, keep: &Keep) -> Result<Self> {
        let (graph, params) = surgery::compact(&self.graph, &self.groups, keep, &self.params)?;
        let masked = (&self.graph, &self.params, &self.groups, keep);
        let difference = surgery::verify(masked, (&graph, &params), &sample(context)?)?;
        let mut here = keep.iter();
        let keep = self.keep.iter().map(|left| *left && here.next().is_some_and(|kept| *kept)).collect();
        let groups = ChannelGroups::new(&graph, context.config.scope);
        Ok(Self { graph, groups, params, keep, surgery_difference: self.surgery_difference.max(difference) })
    }

    /// Logs what `round` left.
    ///
    /// # Errors
    /// As [`Measure::of`].
    pub fn tell(&self, context: &Context, round: usize) -> Result<()> {
        let Context { teacher, groups, config, .. } = context;
        let left = Measure::Channels.of(&teacher.graph, groups, &self.keep)?;
        let of = Measure::Channels.of(&teacher.graph, groups, &vec![true; self.keep.len()])?;
        let rounds = config.mask.all_rounds();
        log::info!("round of removal round={round} rounds={rounds} channels_left={left} of={of}");
        Ok(())
    }

    /// Each of this network's mask entries' importance percentile in [0, 1]; rounds see other images each.
    ///
    /// # Errors
    /// As [`ranking::rank`].
    pub fn rank(&self, context: &Context, teacher: &Answers, round: usize) -> Result<Vec<f32>> {
        ranking::rank(context, (&self.graph, &self.groups), &self.params, teacher, round)
    }
}

/// A few real images to compare masked and compacted logits on.
fn sample(context: &Context) -> Result<Tensor> {
    let few: Vec<usize> = context.train.iter().copied().take(CHECKED_ON).collect();
    let transform = Transform::Eval(context.teacher.info.preprocess.clone());
    let mut pass = OrderedPass::new(context.images.subset(few)?, transform, pass_config(CHECKED_ON))?;
    let batch = pass.next().ok_or_else(|| Error::data("target", "expected a readable image, got none"))??;
    batch.to_tensor(context.device)
}
