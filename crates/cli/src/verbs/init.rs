//! `init`: creates a repository.
//!
//! Invariants: a key that is given is either used, or told to be unused, or refused.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use mover_base::{Error, Kind, Result};
use mover_jobs::Secret;
use mover_jobs::init::{self, InitOptions, InitSummary};

use super::Context;
use crate::args::InitArgs;
use crate::config::layers::{Layer, Layers};
use crate::config::{KeyFile, secrets};
use crate::output::GREEN;
use crate::table::{Table, clean};

/// The options that name a key of the new repository.
const KEYS: [&str; 3] = ["passphrase-file", "identity-file", "init.recipient"];

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: InitArgs) -> Result<()> {
    let url = context.settings.repo_url()?;
    let keys = Keys::of(&context.settings.layers);
    let encryption = !args.no_encryption || keys.win_over_no_encryption()?;
    if let Some(unused) = keys.unused.filter(|_| !encryption) {
        context.out.warning(&format!(
            "the key from {unused} is not used: --no-encryption comes from a stronger layer, and the repository is not encrypted"
        ));
    }
    let layers = &context.settings.layers;
    // A name of slots that stands in a file for other repositories is no slip.
    if !encryption
        && args.label.is_some()
        && layers.of("init.label") >= layers.of("init.no-encryption")
    {
        return Err(Error::new(
            Kind::Usage,
            "a label is the name of a key slot, and without encryption there is none",
        )
        .hint("drop --label, or --no-encryption"));
    }
    let passphrase = match encryption {
        true => passphrase(context)?,
        false => None,
    };
    let recipients = match encryption {
        true => args.recipient,
        false => Vec::new(),
    };
    if encryption && passphrase.is_none() && recipients.is_empty() {
        return Err(
            Error::new(Kind::Usage, "no key is given for the new repository")
                .hint("use --passphrase-file, --recipient, or --no-encryption"),
        );
    }
    if let Some(twice) = given_twice(&recipients) {
        return Err(Error::new(Kind::Usage, "a recipient is given twice")
            .object(twice)
            .hint("one key slot opens the repository as well as two of the same"));
    }
    let summary = init::run(
        &context.settings.engine,
        &InitOptions {
            url,
            encryption,
            passphrase,
            recipients,
            label: args.label,
            link: context.settings.link.clone(),
        },
    )?;
    tell(context, &summary);
    Ok(())
}

fn tell(context: &mut Context<'_>, summary: &InitSummary) {
    context
        .out
        .done(format!("the repository {} was created", summary.repository));
    let done = context.out.paint("created", GREEN);
    let url = clean(&summary.repository);
    context.out.line(format!("{done} {url}"));
    let mut table = Table::pairs().indent(2);
    table.pair("repository id", summary.repository_id.to_string());
    table.pair("cipher", summary.cipher);
    if let Some(recipient) = &summary.recipient {
        table.pair("recipient", recipient);
    }
    for slot in &summary.slots {
        table.pair("key slot", super::key::describe(slot));
    }
    context.out.table(&table);
    if !summary.slots.is_empty() {
        context
            .out
            .line("Keep the key in a second place: without it nobody can read the backups.");
    }
    context.out.summary(summary);
}

fn given_twice(recipients: &[String]) -> Option<&str> {
    let mut seen = BTreeSet::new();
    let twice = recipients.iter().find(|one| !seen.insert(one.as_str()));
    twice.map(String::as_str)
}

fn passphrase(context: &mut Context<'_>) -> Result<Option<Secret>> {
    let out = &mut *context.out;
    match &context.settings.key_file {
        KeyFile::Passphrase(path) => {
            let file = context.settings.secret_file("passphrase-file", path);
            secrets::read_passphrase(&file, &mut |warning| out.warning(&warning)).map(Some)
        }
        KeyFile::Identity(_) => {
            let layers = &context.settings.layers;
            // A passphrase beside it would go unused, too, and nobody would be told.
            let unused = layers.place("identity-file").filter(|_| {
                layers.of("init.recipient") > layers.of("identity-file")
                    && layers.of("passphrase-file") == Layer::Default
            });
            let Some(unused) = unused else {
                return Err(Error::new(
                    Kind::Usage,
                    "a repository is not initialised with an identity file",
                )
                .hint("give its public key instead: --recipient age1..."));
            };
            out.warning(&format!(
                "the identity file from {unused} is not used: --recipient comes from a stronger layer, and its identity opens the repository"
            ));
            Ok(None)
        }
        KeyFile::None => Ok(None),
    }
}

/// How the keys that are given stand to `--no-encryption`.
struct Keys {
    strongest: Layer,
    no_encryption: Layer,
    /// Where the strongest of them was set, if it was not typed.
    unused: Option<String>,
}

impl Keys {
    fn of(layers: &Layers) -> Self {
        let strongest = KEYS.into_iter().max_by_key(|key| layers.of(key));
        Keys {
            strongest: strongest.map_or(Layer::Default, |key| layers.of(key)),
            no_encryption: layers.of("init.no-encryption"),
            unused: strongest.and_then(|key| layers.place(key)),
        }
    }

    /// The stronger layer wins, as for every option; what contradicts itself in one layer is nothing to guess at.
    fn win_over_no_encryption(&self) -> Result<bool> {
        match self.strongest.cmp(&self.no_encryption) {
            Ordering::Greater => Ok(true),
            Ordering::Less => Ok(false),
            Ordering::Equal => Err(Error::new(
                Kind::Usage,
                "a key and --no-encryption contradict each other",
            )
            .hint("drop --no-encryption for an encrypted repository, or --passphrase-file, --identity-file and --recipient for one that everybody can read")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_loses_to_no_encryption_of_a_stronger_layer_only() {
        let wins = |strongest, no_encryption| {
            let keys = Keys {
                strongest,
                no_encryption,
                unused: None,
            };
            keys.win_over_no_encryption()
        };
        let layers = [Layer::File, Layer::Environment, Layer::Flag];
        for (at, layer) in layers.into_iter().enumerate() {
            for weaker in &layers[..at] {
                assert!(wins(layer, *weaker).unwrap(), "{layer:?} over {weaker:?}");
                assert!(!wins(*weaker, layer).unwrap(), "{weaker:?} under {layer:?}");
            }
            let error = wins(layer, layer).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{layer:?}");
            assert!(!wins(Layer::Default, layer).unwrap(), "no key at all");
        }
    }

    #[test]
    fn a_recipient_given_twice_is_found() {
        let given = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|one| (*one).to_owned()).collect();
            given_twice(&list).map(str::to_owned)
        };
        assert_eq!(given(&["age1a", "age1b"]), None);
        assert_eq!(given(&["age1a", "age1b", "age1a"]), Some("age1a".into()));
    }
}
