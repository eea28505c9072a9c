//! The end of a backup's session object when the job fails.
//!
//! Invariant: a job that fails before it publishes takes its session object back, as far as the store lets it; one that may
//! have published leaves it, because it cannot know.

use std::sync::Arc;

use mover_io::Shard;
use mover_repo::BackupRun;
use mover_repo::sessions::Registration;

use crate::settings::Engine;

/// Takes the session object of a failed job back when dropped.
pub(crate) struct SessionGuard<'a> {
    engine: &'a Engine,
    registration: Arc<Registration>,
}

impl<'a> SessionGuard<'a> {
    /// Guards the session of `run`.
    pub fn new(engine: &'a Engine, run: &BackupRun) -> Self {
        SessionGuard {
            engine,
            registration: run.registration().clone(),
        }
    }
}

impl Drop for SessionGuard<'_> {
    fn drop(&mut self) {
        if !self.registration.is_open() {
            return;
        }
        let end = async |shard: Shard| {
            self.registration.end(&shard).await;
            Ok(())
        };
        if let Err(error) = mover_io::run(&self.engine.single(), end, |_| {}) {
            tracing::debug!(%error, "the session object stays; the next expire takes it away");
        }
    }
}
