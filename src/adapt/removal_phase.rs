//! Phase 2 without ADMP: channels go in rounds. Each ranks what is left anew and takes the same part of it, and the network
//! learns from the teacher before the next, so it is never far from answering.
//!
//! # Source
//! Molchanov et al. 2017, arXiv:1611.06440 (rank, remove, train, in turns); the rounds' equal parts are ours.

use super::checkpoint::Sections;
use super::drive::Steps;
use super::lesson::Lesson;
use super::observer::Metrics;
use super::pass::{Answers, Network};
use super::ranking;
use super::removal::Remains;
use super::run::Context;
use super::train::{Trainee, learn};
use crate::Result;
use crate::data::Batch;
use crate::model::Student;
use crate::prune::Selector;
use crate::rng::Rng;

/// The first of the rounds.
const FIRST: usize = 1;
/// The random stream that chooses images for statistics.
const STATISTICS: u64 = 0x5254_4E44;

pub(super) struct RemovalPhase<'a> {
    context: &'a Context<'a>,
    /// Of the whole network.
    selector: &'a Selector<'a>,
    teacher: &'a Answers,
    lesson: Lesson<'a>,
    remains: Remains,
    trainee: Trainee,
}

impl<'a> RemovalPhase<'a> {
    pub fn new(
        context: &'a Context<'a>,
        selector: &'a Selector<'a>,
        remains: Remains,
        teacher: &'a Answers,
    ) -> Result<Self> {
        let trainee = trainee(context, &remains)?;
        let lesson = Lesson::new(teacher, context.config)?;
        Ok(Self { context, selector, teacher, lesson, remains, trainee })
    }

    /// What is left, with the weights of now and statistics for them.
    pub fn trained(&self) -> Result<Remains> {
        let mut rng = Rng::stream(self.context.config.seed, STATISTICS);
        let images = ranking::sample(self.context, FIRST, &mut rng);
        let params = self.trainee.student.snapshot()?;
        let network = Network { graph: &self.remains.graph, params: &params };
        Ok(Remains { params: self.context.with_statistics(network, &images)?, ..self.remains.clone() })
    }

    /// Takes away what `round` of all takes.
    fn remove(&mut self, round: usize) -> Result<()> {
        // Nothing is trained yet before the first, and the adapted teacher has its statistics.
        let left = if round == FIRST { self.remains.clone() } else { self.trained()? };
        let rank = left.rank(self.context, self.teacher, round)?;
        let progress = self.context.config.mask.progress(round, self.selector.part_left());
        let keep = self.selector.within(&left.graph, &left.groups)?.select(&rank, progress)?;
        let next = left.cut(self.context, &keep)?;
        let kept = next.keep.iter().filter(|kept| **kept).count();
        if self.selector.covers(&next.groups, kept) {
            self.remains = next;
            self.remains.tell(self.context, round)?;
        } else {
            log::info!("round left to the last one, it would tie channels to others round={round}");
            self.remains = left;
        }
        self.trainee = trainee(self.context, &self.remains)?;
        Ok(())
    }
}

fn trainee(context: &Context, remains: &Remains) -> Result<Trainee> {
    Trainee::new(Student::new(&remains.graph, &remains.params)?, context.config)
}

impl Steps for RemovalPhase<'_> {
    fn step(&mut self, step: usize, batch: &Batch, source: Option<&Batch>) -> Result<Metrics> {
        let mask = &self.context.config.mask;
        if let Some(round) = mask.round_before(step) {
            self.remove(round)?;
        }
        let mut metrics = learn(self.context.setting(), &mut self.trainee, &self.lesson, (batch, source), mask.lr)?;
        metrics.push(("entries_kept", self.remains.groups.len() as f64));
        Ok(metrics)
    }

    fn save(&self, into: &mut Sections) -> Result<()> {
        self.remains.save(into)?;
        self.trainee.save(into)
    }

    fn load(&mut self, from: &Sections) -> Result<()> {
        let device = self.context.device;
        self.remains = Remains::load(self.context, from, from.get("student", device)?)?;
        self.trainee = trainee(self.context, &self.remains)?;
        self.trainee.load(from, device)
    }
}
