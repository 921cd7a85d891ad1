//! Models that answer: one thread with one engine and one queue each, and their replacement while they do.

mod queue;
mod registry;
mod repository;
mod served;
#[cfg(test)]
pub(super) mod testing;
mod worker;

pub use queue::Reply;
pub use registry::Registry;
pub use repository::{Repository, Source, Versions};
pub use served::{ModelSettings, Served, Unanswered};
