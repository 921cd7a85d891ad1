//! The adaptation run: phases, loop, checkpoints, gate.
//!
//! `run` is the only way in. Phase 1 adapts the teacher, phase 2 removes channels in rounds or finds them by ADMP, phase 3
//! fine-tunes; the gate judges the result without labels. Files are cut by stage; what every phase needs is
//! in `drive` (loop, checkpoints) and `train` (student, optimiser, shared losses).

mod checkpoint;
mod config;
mod drive;
mod finetune_phase;
mod forecast;
pub mod gate;
mod int8;
pub mod latency;
mod lesson;
mod mask_phase;
mod measure;
mod memory;
mod observer;
mod page;
mod pass;
mod ranking;
mod rare;
mod removal;
mod removal_phase;
mod report;
mod run;
mod stages;
mod survey;
mod target;
mod teacher_choice;
mod teacher_phase;
mod train;
mod trial;

pub use config::{AdaptConfig, FineTuneConfig, MaskConfig, SoftMask, TeacherConfig};
pub use drive::Safety;
pub use forecast::{Forecast, forecast};
pub use int8::{Int8Outcome, calibrate_int8, int8_gate};
pub use measure::{latencies_ms, peak_rss_bytes, peak_rss_mb};
pub use memory::{MemoryPlan, memory_plan, most_pixels};
pub use observer::{Metrics, Observer, Phase, Silent};
pub use page::{NO_LOSSES, page};
pub use pass::{Answers, Network, PassConfig, answer, answer_by};
pub use report::{AdaptedBy, CandidateFigures, GroupWidth, Inputs, LatencyFigures, ModelFigures, PhaseReport, Report};
pub use run::{Job, Outcome, run};
pub use survey::Survey;
pub use target::ImageSet;
pub use trial::{StepKind, trial};
