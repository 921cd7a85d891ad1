//! How right adapted and pruned networks are, beside what else one could do with them.
//!
//! A [`Suite`] is tasks: a teacher and images it was not made for. Every [`Method`] turns a task into a network by one or
//! more runs of `adapt`; a [`Trial`] is one method on one task with one seed. Labels of the target serve the accuracy in
//! the [`Outcome`] alone.

mod method;
mod outcome;
mod suite;
mod table;
mod trial;

pub use method::{Method, Steps};
pub use outcome::{Outcome, Results};
pub use suite::{Suite, Task};
pub use table::{markdown, page};
pub use trial::{Stage, Start, Trial, trials};
