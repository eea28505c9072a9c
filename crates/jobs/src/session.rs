//! The end of sessions whose jobs fail.
//!
//! Invariant: a job that fails or is cancelled before it publishes or deletes takes its session object back, as far as the
//! store lets it, wherever it stood: also while the object was being created, and on shards of its own, since those of a
//! cancelled job send nothing any more. One that may have published or deleted leaves it, because it cannot know.

use std::time::{Duration, Instant};

use mover_io::Shard;
use mover_repo::{Repository, sessions};

use crate::settings::Engine;

/// How long that may take: who cancels a job because the store does not answer is not to wait for it again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes back, when dropped, what a job left open on its repository. To be made before the job's session is begun.
pub(crate) struct SessionGuard<'a> {
    engine: &'a Engine,
    repository: &'a Repository,
}

impl<'a> SessionGuard<'a> {
    /// Guards the sessions of a job on `repository`.
    pub fn new(engine: &'a Engine, repository: &'a Repository) -> Self {
        SessionGuard { engine, repository }
    }
}

impl Drop for SessionGuard<'_> {
    fn drop(&mut self) {
        if !sessions::is_any_open(self.repository) {
            return;
        }
        let take_back = async |shard: Shard| sessions::take_back(&shard, self.repository).await;
        let begun = Instant::now();
        let taken = mover_io::run(&self.engine.single(), take_back, |stop| {
            if begun.elapsed() > PATIENCE {
                stop.raise();
            }
        });
        if let Err(error) = taken {
            tracing::debug!(%error, "the session object stays; the next expire takes it away");
        }
    }
}
