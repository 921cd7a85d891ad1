//! How right adapted and pruned networks are, beside what else one could do with them.
//!
//! A [`Suite`] is tasks: a teacher and images it was not made for. Every [`Method`] turns a task into a network by one or
//! more runs of `adapt`; a [`Trial`] is one method on one task with one seed. Labels of the target serve the accuracy in
//! the [`Outcome`] alone, and what that tells of the gate, a [`Validation`]. A [`Case`] is what a device may have collected
//! instead of a task's images, a [`WorstOutcome`] what adapting to it came to.

mod method;
mod names;
mod outcome;
mod settings;
mod suite;
mod table;
mod trial;
mod validation;
mod worst;

pub use method::{Method, Steps};
pub use outcome::{Outcome, Results};
pub use settings::Settings;
pub use suite::{Suite, Task};
pub use table::{markdown, page, worst_markdown, worst_page};
pub use trial::{Stage, Start, Trial, trials};
pub use validation::{Judged, TOLERANCE_POINTS, Validation};
pub use worst::{Case, WorstOutcome};
