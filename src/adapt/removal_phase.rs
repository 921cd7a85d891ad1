//! Phase 2 without ADMP: channels go in rounds. Each ranks what is left anew and takes the same part of it, and the network
//! learns from the teacher before the next, so it is never far from answering.
//!
//! # Source
//! Molchanov et al. 2017, arXiv:1611.06440 (rank, remove, train, in turns); the rounds' equal parts are ours.

use super::checkpoint::Sections;
use super::drive::Steps;
use super::finetune_phase::imitate;
use super::observer::Metrics;
use super::pass::Answers;
use super::ranking;
use super::removal::Remains;
use super::run::Context;
use super::train::Trainee;
use crate::Result;
use crate::data::Batch;
use crate::model::Student;
use crate::prune::Selector;
use crate::rng::Rng;

pub(super) struct RemovalPhase<'a> {
    context: &'a Context<'a>,
    /// Of the whole network.
    selector: &'a Selector<'a>,
    teacher: &'a Answers,
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
        let trainee = Trainee::new(Student::new(&remains.graph, &remains.params)?, context.config)?;
        Ok(Self { context, selector, teacher, remains, trainee })
    }

    /// The network after the last update.
    pub fn finish(self) -> Result<Remains> {
        self.trained()
    }

    /// What is left, with the weights of now and statistics for them.
    fn trained(&self) -> Result<Remains> {
        let mut rng = Rng::stream(self.context.config.seed, 0x5254_4E44);
        let images = ranking::sample(self.context, 1, &mut rng);
        let params = self.trainee.student.snapshot()?;
        Remains { params, ..self.remains.clone() }.with_statistics(self.context, &images)
    }

    /// Takes away what `round` of all takes.
    fn remove(&mut self, round: usize) -> Result<()> {
        let left = if round == 1 { self.remains.clone() } else { self.trained()? };
        let rank = left.rank(self.context, self.teacher, round)?;
        let progress = self.context.config.mask.progress(round, self.selector.part_left());
        let keep = self.selector.within(&left.graph, &left.groups)?.select(&rank, progress)?;
        let remains = left.cut(self.context, &keep)?;
        self.trainee = Trainee::new(Student::new(&remains.graph, &remains.params)?, self.context.config)?;
        self.remains = Remains { params: Default::default(), ..remains };
        Ok(())
    }
}

impl Steps for RemovalPhase<'_> {
    fn step(&mut self, step: usize, batch: &Batch, source: Option<&Batch>) -> Result<Metrics> {
        let mask = &self.context.config.mask;
        if let Some(round) = mask.round_before(step) {
            self.remove(round)?;
        }
        let mut metrics = imitate(self.context.setting(), &mut self.trainee, self.teacher, (batch, source), mask.lr)?;
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
        self.trainee = Trainee::new(Student::new(&self.remains.graph, &self.remains.params)?, self.context.config)?;
        self.trainee.load(from, device)
    }
}
