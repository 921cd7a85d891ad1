//! Asking the model that serves, from threads that are not the server's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use crate::data::Image;
use crate::serve::{Registry, Served, Unanswered};
use crate::store::ModelName;
use crate::{Error, Result};

/// How long an answer may take: behind all that waits in a full queue.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks the version of one model that serves, as its clients do; there is no second engine.
#[derive(Debug)]
pub(super) struct Asker {
    registry: Arc<Registry>,
    model: ModelName,
    runtime: Runtime,
}

impl Asker {
    /// # Errors
    /// [`Error::Config`] if the system gives no timer.
    pub fn new(registry: Arc<Registry>, model: ModelName) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|e| Error::Config(format!("daemon: cannot start: {e}")))?;
        Ok(Self { registry, model, runtime })
    }

    /// The version that serves.
    pub fn served(&self) -> Option<Arc<Served>> {
        self.registry.get(self.model.as_str())
    }

    /// Logits of an image by one version.
    ///
    /// # Errors
    /// [`Error::Numeric`] if they are not finite; [`Error::Overloaded`] if there is no answer for now, because the
    /// version has been replaced or too many others wait.
    pub fn logits(&self, served: &Served, image: &Image) -> Result<Vec<f32>> {
        let input = served.signature.preprocess.eval(image);
        let answer = self.runtime.block_on(served.infer(input, 1, Instant::now() + PATIENCE));
        answer.map(|reply| reply.logits).map_err(|why| refused(served, &why))
    }

    /// Whether the engine works, asked ahead of everything that waits.
    ///
    /// # Errors
    /// As [`Asker::logits`].
    pub fn probe(&self, patience: Duration) -> Result<()> {
        let served = self.served().ok_or_else(|| Error::Overloaded(format!("{}: no version serves", self.model)))?;
        match self.runtime.block_on(served.probe(Instant::now() + patience)) {
            // Its successor has just answered.
            Ok(_) | Err(Unanswered::Retired) => Ok(()),
            Err(why) => Err(refused(&served, &why)),
        }
    }
}

fn refused(served: &Served, why: &Unanswered) -> Error {
    use crate::serve::Code;
    let (name, version) = (&served.name, served.version);
    match why {
        Unanswered::Retired => Error::Overloaded(format!("{name} version {version}: replaced")),
        Unanswered::Refused(refusal) if matches!(refusal.code, Code::NotFinite | Code::Internal) => {
            Error::Numeric(format!("{name} version {version}: {refusal}"))
        }
        Unanswered::Refused(refusal) => Error::Overloaded(format!("{name} version {version}: {refusal}")),
    }
}
