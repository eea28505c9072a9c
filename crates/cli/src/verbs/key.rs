//! `key list|add|remove|generate`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use mover_base::{Error, Kind, Result};
use mover_jobs::key::{self, LOCKED_OUT, LOCKED_OUT_HINT, ListedSlot, SlotInfo};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{Context, missing};
use crate::args::{KeyAddArgs, KeyGenerateArgs, KeyRemoveArgs};
use crate::config::secrets;
use crate::figures::UNKNOWN;
use crate::output::{GREEN, YELLOW};
use crate::table::{Align, Cell, Table, clean};

/// Stands in the place of a damaged slot's kind.
const DAMAGED: &str = "damaged";
/// And of that of one that could not be read.
const UNREADABLE: &str = "unreadable";

/// Said behind a removal: the repository's own keys are as they were.
const NO_REVOCATION: &str = "a copy of it, put back, opens the repository again, and whoever has opened it once can read it for ever; after a leak begin a new repository";

#[derive(Serialize)]
struct OneSlot<T> {
    slot: T,
}

#[derive(Serialize)]
struct Generated<'a> {
    recipient: &'a str,
    file: String,
}

/// A slot in one line.
pub fn describe(slot: &SlotInfo) -> String {
    let mut out = format!("{} {}", slot.slot_id, slot.kind);
    if !slot.label.is_empty() {
        out += &format!(" ({})", slot.label);
    }
    out
}

/// What stands in the place of the kind of a slot that has none.
fn without_kind(slot: &ListedSlot) -> &'static str {
    match slot.unreadable {
        true => UNREADABLE,
        false => DAMAGED,
    }
}

/// A slot of a listing in one line.
fn describe_listed(slot: &ListedSlot) -> String {
    let kind = slot.kind.unwrap_or_else(|| without_kind(slot));
    let mut out = format!("{} {kind}", slot.slot_id);
    if let Some(label) = slot.label.as_deref().filter(|label| !label.is_empty()) {
        out += &format!(" ({label})");
    }
    out
}

/// `key list`
pub fn list(context: &mut Context<'_>) -> Result<()> {
    let url = context.settings.repo_url()?;
    let settings = context.settings;
    let listed = key::list(&settings.engine, &url, &settings.link)?;
    context.warn_of_strays(&listed.strays);
    for slot in listed.slots.iter().filter(|slot| slot.damaged) {
        context.out.warning(&format!(
            "a key slot is damaged and opens nothing; copy it back, or remove it: {}",
            slot.object
        ));
    }
    for slot in listed.slots.iter().filter(|slot| slot.unreadable) {
        context.out.warning(&format!(
            "a key slot could not be read, so that it may be a good one: {}",
            slot.object
        ));
    }
    for slot in listed.slots.iter().filter(|slot| slot.is_going()) {
        context.out.warning(&format!(
            "a key slot still opens the repository, and its removal is under way, was broken off or was taken back; if none is under way, and another key opens the repository, remove it: {}",
            slot.object
        ));
    }
    let mut table = Table::with_header(&[
        ("SLOT", Align::Left),
        ("KIND", Align::Left),
        ("CREATED", Align::Left),
        ("LABEL", Align::Left),
    ]);
    for slot in &listed.slots {
        let created = slot.created.map(|created| created.to_string());
        let note = slot.problem.as_ref().map_or_else(
            || Cell::from(slot.label.as_deref().unwrap_or_default()),
            |problem| Cell::styled(format!("{}: {problem}", slot.object), YELLOW),
        );
        table.row([
            Cell::from(slot.slot_id.to_string()),
            match slot.kind {
                Some(kind) => Cell::from(kind),
                None => Cell::styled(without_kind(slot), YELLOW),
            },
            Cell::from(created.as_deref().unwrap_or(UNKNOWN)),
            note,
        ]);
    }
    match (listed.slots.is_empty(), listed.encrypted) {
        (true, false) => context
            .out
            .line("no key slots: the repository is not encrypted"),
        (true, true) => context
            .out
            .line("no key slots: the repository is encrypted, and no slot is left"),
        (false, _) => context.out.table(&table),
    }
    if listed.is_locked_out() {
        context
            .out
            .warning(&format!("{LOCKED_OUT}; {LOCKED_OUT_HINT}"));
    }
    context.out.summary(&listed);
    Ok(())
}

/// `key add`
pub fn add(context: &mut Context<'_>, args: KeyAddArgs) -> Result<()> {
    let repo = context.repo_access()?;
    let label = args.label;
    let engine = &context.settings.engine;
    let slot = match (args.new_passphrase_file, args.recipient) {
        (Some(_), Some(_)) => {
            return Err(Error::new(
                Kind::Usage,
                "both a passphrase file and a recipient are given for the new slot",
            )
            .hint("add two slots, one after the other"));
        }
        (Some(path), None) => {
            let out = &mut *context.out;
            let file = context
                .settings
                .secret_file("key.add.new-passphrase-file", &path);
            let passphrase = secrets::read_passphrase(&file, &mut |warning| out.warning(&warning))?;
            key::add_passphrase(engine, &repo, &passphrase, &label.unwrap_or_default())?
        }
        (None, Some(recipient)) => key::add_recipient(engine, &repo, &recipient, label.as_deref())?,
        (None, None) => {
            return Err(missing(
                "new key",
                "--new-passphrase-file FILE or --recipient age1...",
            ));
        }
    };
    tell_slot(context, "added", &describe(&slot));
    context.out.summary(OneSlot { slot });
    Ok(())
}

/// `key remove`
pub fn remove(context: &mut Context<'_>, args: KeyRemoveArgs) -> Result<()> {
    if !args.confirm {
        return Err(Error::new(Kind::Usage, "removing a key slot needs a confirmation")
            .object(args.slot)
            .hint("whoever has only this key loses the repository; if that is meant, add --confirm"));
    }
    let repo = context.repo_access()?;
    let slot = key::remove(&context.settings.engine, &repo, &args.slot)?;
    tell_slot(context, "removed", &describe_listed(&slot));
    if !slot.damaged {
        context.out.line(NO_REVOCATION);
    }
    context.out.summary(OneSlot { slot });
    Ok(())
}

fn tell_slot(context: &mut Context<'_>, done: &str, slot: &str) {
    context.out.done(format!("key slot {slot} was {done}"));
    let done = context.out.paint(done, GREEN);
    context.out.line(format!("{done} key slot {}", clean(slot)));
}

/// `key generate`
pub fn generate(context: &mut Context<'_>, args: KeyGenerateArgs) -> Result<()> {
    let (identity, recipient) = key::generate_identity();
    let text = Zeroizing::new(format!(
        "# public key: {recipient}\n{}\n",
        identity.expose()
    ));
    let Some(path) = args.output else {
        if context.out.is_json() {
            return Err(Error::new(
                Kind::Usage,
                "with --json the identity is not printed, so that no log keeps it",
            )
            .hint("add --output FILE"));
        }
        context.out.verbatim(&text);
        return Ok(());
    };
    write_new(&path, text.as_bytes()).map_err(|error| cannot_write(&path, error))?;
    let file = path.display().to_string();
    context.out.done(format!(
        "the identity was written to {file}; its recipient is {recipient}"
    ));
    context.out.line(format!("identity   {}", clean(&file)));
    context.out.line(format!("recipient  {recipient}"));
    context.out.summary(Generated {
        recipient: &recipient,
        file,
    });
    Ok(())
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    let (kind, hint) = match error.kind() {
        std::io::ErrorKind::AlreadyExists => (
            Kind::Conflict,
            "a key is never overwritten: name a new file",
        ),
        _ => (
            Kind::Target,
            "name a file in a directory that can be written and has room",
        ),
    };
    Error::new(kind, "the identity file cannot be created")
        .object(path.display().to_string())
        .hint(hint)
        .cause(error)
}

/// Creates `path` for its owner alone, never over something that exists, and makes it durable. Where that fails, what was
/// created goes again: half a key opens nothing, and would stand in the way of the next try.
fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let written = write_durably(file, path, bytes);
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written
}

fn write_durably(mut file: File, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    file.write_all(bytes)?;
    file.sync_all()?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_identity_file_is_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        write_new(&path, b"first").unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let error = cannot_write(&path, write_new(&path, b"second").unwrap_err());
        assert_eq!(error.kind(), Kind::Conflict);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
    }
}
