//! `init`: creates a repository.

use mover_base::{Error, Kind, Result};
use mover_jobs::init::{self, InitOptions};

use super::Context;
use crate::args::InitArgs;
use crate::config::{KeyFile, secrets};
use crate::output::GREEN;
use crate::table::Table;

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: InitArgs) -> Result<()> {
    let url = context.settings.repo_url()?;
    let passphrase = match &context.settings.key_file {
        // A key file of the configuration is no contradiction to one unencrypted repository.
        _ if args.no_encryption => None,
        KeyFile::Passphrase(path) => {
            let out = &mut *context.out;
            Some(secrets::read_passphrase(path, &mut |warning| {
                out.warning(&warning)
            })?)
        }
        KeyFile::Identity(_) => {
            return Err(Error::new(
                Kind::Usage,
                "a repository is not initialised with an identity file",
            )
            .hint("give its public key instead: --recipient age1..."));
        }
        KeyFile::None => None,
    };
    if args.no_encryption && !args.recipient.is_empty() {
        return Err(Error::new(
            Kind::Usage,
            "--no-encryption and --recipient contradict each other",
        ));
    }
    if !args.no_encryption && passphrase.is_none() && args.recipient.is_empty() {
        return Err(
            Error::new(Kind::Usage, "no key is given for the new repository")
                .hint("use --passphrase-file, --recipient, or --no-encryption"),
        );
    }
    let summary = init::run(
        &context.settings.engine,
        &InitOptions {
            url,
            encryption: !args.no_encryption,
            passphrase,
            recipients: args.recipient,
            label: args.label.unwrap_or_default(),
            link: context.settings.link.clone(),
        },
    )?;

    let done = context.out.paint("created", GREEN);
    context.out.line(format!("{done} {}", summary.repository));
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
    if !args.no_encryption {
        context
            .out
            .line("Keep the key in a second place: without it nobody can read the backups.");
    }
    context.out.summary(&summary);
    Ok(())
}
