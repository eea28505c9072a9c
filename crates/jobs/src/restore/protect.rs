//! What keeps a backup from being deleted while it is restored over what is there, and what a deletion meanwhile is told as.
//!
//! Invariants: before the first change to a target the backup bears a hold of this restore's own, or an `expire` is about to delete it
//! and nothing is changed, or a warning says why there is none. Another restore takes that hold away only while it has the target, and
//! who gets the target looks at its own once more: so a hold that was seen then stays until this restore takes it away. That is when
//! the target is whole again, or was left as it was found: until then nothing but this backup makes it so, and who restores once more
//! takes over what earlier ones left. A restore into an empty place needs none, since it leaves nothing behind when it fails. What is to be known of the hold is
//! told at once to who calls.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mover_base::{Error, HoldId, Kind, Result};
use mover_io::{Shard, Stop};
use mover_repo::{BackupView, catalogue, holds, host_name};

use crate::backup::only;
use crate::overlap;
use crate::progress::Progress;
use crate::settings::{Engine, Tick};

/// Bytes of the target's path in a reason, from its end: a path may be longer than a reason.
const PATH_BYTES_MAX: usize = 1024;

/// How long taking a hold back, or looking for it, may take when the job has failed: who ends a job because the store does not answer
/// is not to wait for it again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes a warning that is to be told at once.
pub(super) type Tell<'a> = &'a dyn Fn(&str);

/// A backup that is being restored over a target.
pub(super) struct Protected<'a> {
    engine: &'a Engine,
    view: &'a BackupView,
    /// What the hold says, the same each time for the same target.
    reason: String,
    /// Holds of this restore that stand, or may stand; the last one is that which counts.
    own: Vec<HoldId>,
    /// Whether the last one of them was put on.
    is_held: bool,
    /// Whether that stands for those of restores that were killed, which this one took away.
    stands_for_earlier: AtomicBool,
    /// What was told before the first change.
    warnings: Vec<String>,
    /// What became of the holds that earlier restores left, if they stay.
    earlier: Option<String>,
    /// Takes what is to be told at once.
    tell: Tell<'a>,
}

impl<'a> Protected<'a> {
    /// Puts a hold on, whoever else has put one on for the same target: that one may go at any time.
    ///
    /// # Errors
    /// `Conflict` if the backup is about to be deleted or was.
    pub fn begin(
        engine: &'a Engine,
        view: &'a BackupView,
        target: &Path,
        tell: Tell<'a>,
        progress: &Progress,
        tick: Tick<'_>,
    ) -> Result<Self> {
        let mut protected = Protected {
            engine,
            view,
            reason: reason(target),
            own: Vec::new(),
            is_held: false,
            stands_for_earlier: AtomicBool::new(false),
            warnings: Vec::new(),
            earlier: None,
            tell,
        };
        match foreign_directory(view) {
            Some(why) => protected.go_without(&why),
            None => protected.put_on(progress, tick)?,
        }
        Ok(protected)
    }

    /// To be called when nobody else can have the target any more, before it is changed. Sees to it that the hold stands, and takes
    /// away those of restores that were killed; one that is about to be refused the target loses its hold too, and needs it no more.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn take_over(&mut self, progress: &Progress, tick: Tick<'_>) -> Result<()> {
        if self.is_held && !self.stands(&mut |stop| tick(progress, stop))? {
            self.put_on(progress, &mut *tick)?;
        }
        let (view, reason, own, is_held) = (self.view, &self.reason, &self.own, self.is_held);
        let stands_for_earlier = &self.stands_for_earlier;
        let clear = async |shard: Shard| {
            let mut left = left(&shard, view, reason).await?;
            left.retain(|hold| !own.contains(hold));
            // They are all that holds the backup where this restore could not.
            if !is_held {
                return Ok(left.len());
            }
            for hold in left {
                // Before: a removal that was not answered may have been one.
                stands_for_earlier.store(true, Ordering::Relaxed);
                holds::take_away(&shard, view.repository(), view.id, hold).await?;
            }
            Ok(0)
        };
        let cleared = mover_io::run(&self.engine.single(), clear, |stop| tick(progress, stop));
        self.earlier = match cleared.and_then(only) {
            Ok(0) => None,
            Ok(_) => Some(earlier_stays("stays", "")),
            Err(error) if error.kind() == Kind::Cancelled => return Err(error),
            Err(error) => is_held.then(|| earlier_stays("may stay", &format!(": {error}"))),
        };
        Ok(())
    }

    /// Puts on a hold of an id of its own. Where that cannot be, it is taken back as far as it was, and the restore goes on without
    /// one, unless the backup is about to be deleted.
    fn put_on(&mut self, progress: &Progress, tick: Tick<'_>) -> Result<()> {
        let hold = holds::draw_id()?;
        // Before: one whose creation was not answered may stand.
        self.own.push(hold);
        self.is_held = false;
        let (engine, view, reason) = (self.engine, self.view, &self.reason);
        let put = async |shard: Shard| {
            let put = holds::add_as(&shard, view.repository(), view.id, hold, reason);
            put.await.map(drop)
        };
        let put = mover_io::run(&engine.single(), put, |stop| tick(progress, stop));
        let Err(error) = put else {
            self.is_held = true;
            return Ok(());
        };
        match self.remove(&[hold], &mut patient()) {
            Ok(()) => self.own.retain(|own| *own != hold),
            Err(stays) => self.warn(format!(
                "a hold may stay on the backup (`helios-mover hold remove {hold}`): {stays}"
            )),
        }
        match error.kind() {
            Kind::Cancelled => Err(error),
            Kind::Conflict => Err(going(view, error)),
            Kind::NotFound => match stands(engine, view, progress, tick) {
                Ok(false) => Err(deleted(view)),
                Ok(true) | Err(_) => Err(error),
            },
            _ => {
                self.go_without(&error.to_string());
                Ok(())
            }
        }
    }

    /// Goes on without a hold.
    fn go_without(&mut self, why: &str) {
        self.warn(format!(
            "no hold could be put on the backup, so run no expire until it is restored: {why}"
        ));
    }

    /// Tells at once, and keeps for the summary.
    fn warn(&mut self, warning: String) {
        (self.tell)(&warning);
        self.warnings.push(warning);
    }

    /// What was told before the first change, for the summary.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Takes back what this restore put on, as it changed nothing.
    pub fn cancel(self) {
        // Also where the job was asked to end, on a shard of its own: those of a job that ends send nothing any more.
        if let Err(error) = self.remove(&self.own, &mut patient()) {
            let ids: Vec<String> = self.own.iter().map(HoldId::to_string).collect();
            let ids = ids.join(", ");
            (self.tell)(&format!(
                "the hold on the backup may stay (`helios-mover hold remove`): {ids}: {error}"
            ));
        }
    }

    /// What becomes of the hold where the target was left as it was found: as in [`cancel`](Self::cancel), but where this restore took
    /// away the holds of killed ones, the target is not whole, and its own hold stays in their place.
    pub fn leave(self, error: Error) -> Error {
        if self.stands_for_earlier.load(Ordering::Relaxed) {
            return self.keep(error);
        }
        self.cancel();
        error
    }

    /// Says that the hold stays, as the target is not whole, if it does, and in the error of a job that was ended what to do about both.
    pub fn keep(self, error: Error) -> Error {
        let stands = match self.own.is_empty() {
            true => Ok(false),
            false => self.stands(&mut patient()),
        };
        let (id, reason) = (self.view.id, &self.reason);
        match &stands {
            Ok(true) => (self.tell)(&format!(
                "backup {id} stays held, since {reason} (`helios-mover hold list`)"
            )),
            // That it never was is told already.
            Ok(false) if !self.is_held => {}
            Ok(false) => (self.tell)(&format!(
                "backup {id} is no longer held, though {reason}: somebody took the hold away, so run no expire until it is restored"
            )),
            Err(unknown) => (self.tell)(&format!(
                "whether backup {id} stays held, since {reason}, could not be looked up (`helios-mover hold list`): {unknown}"
            )),
        }
        let held = match stands {
            Ok(true) => ", and the backup stays held",
            Ok(false) | Err(_) => "",
        };
        match error.kind() {
            Kind::Cancelled => error.hint(format!("the target is incomplete{held}: {}", go_on())),
            _ => error,
        }
    }

    /// Takes the hold away, as the target is whole, and nobody else's: another restore may have the target by now. Gives what stays.
    /// What is done is done: whoever ends the job now leaves the hold.
    pub fn end(self, progress: &Progress, tick: Tick<'_>) -> Vec<String> {
        let removed = self.remove(&self.own, &mut |stop| tick(progress, stop));
        let stays = removed.err().map(|error| {
            let what = "the hold that was put on the backup for the time of the restore stays";
            format!("{what} (`helios-mover hold list`): {error}")
        });
        self.earlier.into_iter().chain(stays).collect()
    }

    /// Takes these holds away, those that stand.
    fn remove(&self, holds: &[HoldId], tick: &mut dyn FnMut(&Stop)) -> Result<()> {
        if holds.is_empty() {
            return Ok(());
        }
        let view = self.view;
        let remove = async |shard: Shard| {
            for hold in holds {
                holds::take_away(&shard, view.repository(), view.id, *hold).await?;
            }
            Ok(())
        };
        mover_io::run(&self.engine.single(), remove, tick).map(drop)
    }

    /// Whether the hold that counts stands.
    fn stands(&self, tick: &mut dyn FnMut(&Stop)) -> Result<bool> {
        let (view, own) = (self.view, self.own.last().copied());
        let look = async |shard: Shard| match own {
            Some(hold) => holds::stands(&shard, view.repository(), view.id, hold).await,
            None => Ok(false),
        };
        mover_io::run(&self.engine.single(), look, tick).and_then(only)
    }
}

/// How a target that is incomplete becomes whole. What root left of it is root's: nobody else could go on.
fn go_on() -> &'static str {
    match rustix::process::geteuid().is_root() {
        true => "run it again with --delta, as root",
        false => "run it again with --delta",
    }
}

/// Ends what it is the tick of when that has taken longer than [`PATIENCE`], and heeds nothing else.
fn patient() -> impl FnMut(&Stop) {
    let begun = Instant::now();
    move |stop: &Stop| {
        if begun.elapsed() > PATIENCE {
            stop.raise();
        }
    }
}

fn earlier_stays(stays: &str, why: &str) -> String {
    format!(
        "a hold that an earlier restore to the target put on the backup {stays} (`helios-mover hold list`){why}"
    )
}

/// The holds that restores of the backup to this target have put on it.
async fn left(shard: &Shard, view: &BackupView, reason: &str) -> Result<Vec<HoldId>> {
    let host = host_name();
    let found = holds::of(shard, view.repository(), view.id).await?;
    let own = found.into_iter().filter(|hold| {
        hold.reason.as_deref() == Some(reason) && hold.host.as_deref() == Some(host.as_str())
    });
    Ok(own.map(|hold| hold.hold_id).collect())
}

fn reason(target: &Path) -> String {
    let path = target.to_string_lossy();
    let cut = path.len().saturating_sub(PATH_BYTES_MAX);
    let begin = (cut..path.len()).find(|at| path.is_char_boundary(*at));
    let dots = if cut > 0 { "..." } else { "" };
    format!(
        "a restore over {dots}{} is not finished",
        &path[begin.unwrap_or(path.len())..]
    )
}

fn deleted(view: &BackupView) -> Error {
    Error::new(
        Kind::Conflict,
        "the backup was deleted while it was restored",
    )
    .object(view.id.to_string())
    .hint("restore another one: `helios-mover list` shows them; a hold keeps an expire away: `helios-mover hold add`")
}

/// Why the backup cannot be held, and what needs no hold.
fn going(view: &BackupView, error: Error) -> Error {
    let what = "the backup may be deleted at any time, so nothing is restored over what is there";
    let hint = match error.hint_text() {
        Some(hint) => format!("restore into an empty directory; or {hint}"),
        None => "restore into an empty directory".to_owned(),
    };
    Error::new(Kind::Conflict, what)
        .object(view.id.to_string())
        .hint(hint)
        .cause(error)
}

/// Whether the backup is still one.
fn stands(engine: &Engine, view: &BackupView, progress: &Progress, tick: Tick<'_>) -> Result<bool> {
    let look = async |shard: Shard| catalogue::stands(&shard, view.repository(), view.id).await;
    mover_io::run(&engine.single(), look, |stop| tick(progress, stop)).and_then(only)
}

/// Why nothing is to be written into the repository's directory, if it has one and another user's jobs work in that: they could not
/// enter what this one makes there.
fn foreign_directory(view: &BackupView) -> Option<String> {
    let owner = overlap::owner(view.repository())?;
    let own = rustix::process::geteuid().as_raw();
    (owner != own).then(|| format!("the repository's directory is that of user {owner}"))
}

/// The error of a restore, seen anew where the backup that was found damaged is no longer one.
pub(super) fn told(
    engine: &Engine,
    view: &BackupView,
    error: Error,
    progress: &Progress,
    tick: Tick<'_>,
) -> Error {
    if error.kind() != Kind::Corrupt {
        return error;
    }
    match stands(engine, view, progress, tick) {
        Ok(false) => deleted(view).cause(error),
        Ok(true) | Err(_) => error,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    use std::sync::Arc;

    use mover_repo::{BackupType, Credentials, LinkLimits};
    use mover_source::{DirTarget, RESTORE_MARKER, TargetMode};

    use super::*;
    use crate::backup::{self, BackupOptions};
    use crate::init::{self, InitOptions};
    use crate::restore::{self, RestoreOptions};
    use crate::settings::RepoAccess;
    use crate::{Choice, hold};

    const TELL_NOBODY: Tell<'static> = &|_| {};

    /// A repository with one backup, and a target to restore it over.
    struct Place {
        dir: tempfile::TempDir,
        engine: Engine,
        access: RepoAccess,
        view: Arc<BackupView>,
    }

    impl Place {
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            fs::create_dir(path("source")).unwrap();
            fs::create_dir(path("target")).unwrap();
            fs::write(path("source/file"), b"content").unwrap();
            let engine = Engine {
                shards: 1,
                pin: false,
                ..Engine::default()
            };
            let access = RepoAccess {
                url: format!("file://{}", path("repo").display()),
                credentials: Credentials::None,
                link: LinkLimits::default(),
            };
            let options = InitOptions {
                url: access.url.clone(),
                encryption: false,
                passphrase: None,
                recipients: Vec::new(),
                label: None,
                link: LinkLimits::default(),
            };
            init::run(&engine, &options).unwrap();
            let options = BackupOptions {
                repo: access.clone(),
                source: format!("dir://{}", path("source").display()),
                host: None,
                backup_type: BackupType::Full,
                base: None,
                level: 1,
                annotations: BTreeMap::new(),
                exclude: Vec::new(),
                one_file_system: false,
                estimate: false,
            };
            let plan = backup::plan(&engine, &options, &mut |_, _| {}).unwrap();
            backup::execute(&engine, plan, &mut |_, _| {}).unwrap();
            let options = RestoreOptions {
                repo: access.clone(),
                choice: Choice::from("latest"),
                to: path("target"),
                delta: true,
                estimate: false,
            };
            let plan = restore::plan(&engine, &options, &mut |_, _| {}).unwrap();
            let view = plan.prepared.view;
            Place {
                dir,
                engine,
                access,
                view,
            }
        }

        /// Takes the target and restores over it, which must fail; after the plan `meanwhile` comes.
        fn fails(&self, protected: Protected<'_>, meanwhile: impl FnOnce()) -> Error {
            let path = self.dir.path().join("target");
            let target = DirTarget::plan(&path, TargetMode::Delta).unwrap();
            meanwhile();
            let (protected, progress) = (Some(protected), Progress::default());
            let (engine, view) = (&self.engine, &self.view);
            let tick: Tick<'_> = &mut |_, _| {};
            let done = restore::restore_protected(engine, view, target, protected, &progress, tick);
            done.map(drop).unwrap_err()
        }

        /// Whose the target is, its mode, and the names in it.
        fn target(&self) -> (u32, u32, Vec<std::ffi::OsString>) {
            let path = self.dir.path().join("target");
            let found = path.metadata().unwrap();
            let names = path.read_dir().unwrap();
            let mut names: Vec<_> = names.map(|name| name.unwrap().file_name()).collect();
            names.sort();
            (found.uid(), found.mode() & 0o7777, names)
        }

        fn remove_backup(&self) {
            let name = format!("repo/backups/{}", self.view.id);
            fs::remove_file(self.dir.path().join(name)).unwrap();
        }

        /// A restore over the target, before it takes that.
        fn begin<'a>(&'a self, tell: Tell<'a>) -> Protected<'a> {
            let (target, progress) = (self.dir.path().join("target"), Progress::default());
            let tick: Tick<'_> = &mut |_, _| {};
            let begun = Protected::begin(&self.engine, &self.view, &target, tell, &progress, tick);
            begun.unwrap()
        }

        fn holds(&self) -> Vec<HoldId> {
            let listed = hold::list(&self.engine, &self.access).unwrap().holds;
            listed.iter().map(|hold| hold.hold_id).collect()
        }
    }

    /// The restore has the target now.
    fn take_over(protected: &mut Protected<'_>) {
        let taken = protected.take_over(&Progress::default(), &mut |_, _| {});
        taken.unwrap();
    }

    fn end(protected: Protected<'_>) {
        let stays = protected.end(&Progress::default(), &mut |_, _| {});
        assert_eq!(stays, [""; 0]);
    }

    fn cancelled() -> Error {
        Error::new(Kind::Cancelled, "cancelled")
    }

    #[test]
    fn a_restore_that_is_refused_leaves_the_hold_of_the_one_that_has_the_target() {
        let place = Place::new();
        let told = RefCell::new(Vec::new());
        let tell = |what: &str| told.borrow_mut().push(what.to_owned());
        let refused = place.begin(&tell);
        let mut first = place.begin(&tell);
        assert_eq!(place.holds().len(), 2);
        refused.cancel();
        assert_eq!(place.holds(), first.own);
        take_over(&mut first);
        // Also one that comes when the target is taken, and whose hold nobody has seen.
        place.begin(&tell).cancel();
        assert_eq!(place.holds(), first.own);
        // Its hold may be gone when it takes that back.
        let refused = place.begin(&tell);
        take_over(&mut first);
        refused.cancel();
        assert_eq!(place.holds(), first.own);
        end(first);
        assert_eq!(place.holds(), []);
        assert_eq!(told.into_inner(), [""; 0]);
    }

    #[test]
    fn the_end_of_a_restore_leaves_the_hold_of_the_next_one() {
        let place = Place::new();
        let mut first = place.begin(TELL_NOBODY);
        take_over(&mut first);
        // The target is let go before the hold is.
        let mut next = place.begin(TELL_NOBODY);
        end(first);
        assert_eq!(place.holds(), next.own);
        take_over(&mut next);
        assert_eq!((place.holds(), next.own.len()), (next.own.clone(), 1));
        end(next);
        assert_eq!(place.holds(), []);
    }

    #[test]
    fn a_hold_that_another_restore_took_away_is_put_on_again_before_the_first_change() {
        let place = Place::new();
        let told = RefCell::new(Vec::new());
        let tell = |what: &str| told.borrow_mut().push(what.to_owned());
        let mut late = place.begin(&tell);
        let mut first = place.begin(&tell);
        take_over(&mut first);
        assert_eq!(place.holds(), first.own);
        end(first);
        assert_eq!(place.holds(), []);
        take_over(&mut late);
        assert_eq!(place.holds(), late.own[1..]);
        let error = late.keep(cancelled());
        assert!(error.hint_text().unwrap().contains("stays held"), "{error}");
        let told = told.into_inner();
        assert!(
            told.len() == 1 && told[0].contains("stays held"),
            "{told:?}"
        );
    }

    #[test]
    fn however_many_restores_were_killed_one_hold_is_left_and_the_next_takes_it_over() {
        let place = Place::new();
        for killed in 0..5 {
            let mut protected = place.begin(TELL_NOBODY);
            take_over(&mut protected);
            assert_eq!(place.holds(), protected.own, "{killed} were killed");
        }
        let mut last = place.begin(TELL_NOBODY);
        take_over(&mut last);
        end(last);
        assert_eq!(place.holds(), []);
    }

    #[test]
    fn a_hold_that_somebody_took_away_is_not_said_to_stay() {
        let place = Place::new();
        let told = RefCell::new(Vec::new());
        let tell = |what: &str| told.borrow_mut().push(what.to_owned());
        let mut protected = place.begin(&tell);
        take_over(&mut protected);
        let id = place.holds()[0].to_string();
        hold::remove(&place.engine, &place.access, &id).unwrap();
        let error = protected.keep(cancelled());
        assert_eq!(
            error.hint_text(),
            Some(&*format!("the target is incomplete: {}", go_on()))
        );
        let told = told.into_inner();
        assert!(
            told.len() == 1 && told[0].contains("is no longer held"),
            "{told:?}"
        );
    }

    /// As it finds the backup deleted when it has the target.
    #[test]
    fn a_restore_that_cannot_hold_its_backup_leaves_the_target_as_it_was() {
        let is_root = rustix::process::geteuid().is_root();
        assert!(is_root, "this test changes owners: run it as root");
        let place = Place::new();
        let path = place.dir.path().join("target");
        fs::write(path.join("theirs"), b"theirs").unwrap();
        chown(&path, Some(65534), None).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o575)).unwrap();
        let before = place.target();
        let protected = place.begin(TELL_NOBODY);
        let error = place.fails(protected, || {
            let id = place.holds()[0].to_string();
            hold::remove(&place.engine, &place.access, &id).unwrap();
            place.remove_backup();
        });
        assert_eq!(error.kind(), Kind::Conflict, "{error}");
        assert!(error.to_string().contains("was deleted"), "{error}");
        assert_eq!(place.target(), before);
        assert_eq!(place.holds(), []);
        // Of a restore that was killed the marker is left.
        fs::write(path.join(RESTORE_MARKER), b"").unwrap();
        let before = place.target();
        let target = DirTarget::plan(&path, TargetMode::Delta).unwrap();
        let target = DirTarget::begin(target).unwrap();
        assert_ne!(place.target(), before);
        target.leave();
        assert_eq!(place.target(), before);
    }

    /// They are all that holds it for who goes on.
    #[test]
    fn a_restore_that_took_over_earlier_holds_leaves_its_own_with_the_target() {
        let place = Place::new();
        for is_first in [true, false] {
            let mut protected = place.begin(TELL_NOBODY);
            take_over(&mut protected);
            let own = protected.own.clone();
            let error = protected.leave(cancelled());
            let hint = error.hint_text().unwrap_or_default();
            assert_eq!(hint.contains("stays held"), !is_first, "{hint}");
            match is_first {
                true => {
                    assert_eq!(place.holds(), []);
                    // Killed.
                    take_over(&mut place.begin(TELL_NOBODY));
                    assert_eq!(place.holds().len(), 1);
                }
                false => assert_eq!(place.holds(), own),
            }
        }
    }

    #[test]
    fn a_reason_names_the_target_however_long_its_path_is() {
        assert_eq!(
            reason(Path::new("/srv/db")),
            "a restore over /srv/db is not finished"
        );
        for (name, bytes) in [("x", 1), ("\u{fc}", 2), ("\u{20ac}", 3)] {
            let long = format!("/begin/{}/end", name.repeat(4000));
            let reason = reason(Path::new(&long));
            assert!(reason.ends_with("/end is not finished"), "{reason}");
            assert!(reason.contains(&format!("...{name}{name}")), "{reason}");
            assert!(reason.len() <= PATH_BYTES_MAX + 40, "{bytes}: {reason}");
        }
    }
}
