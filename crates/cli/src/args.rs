//! The command line as it is typed: verbs, options and help texts, and nothing resolved yet.
//!
//! Invariants: no option is required here, because each may come from the environment or the configuration
//! file instead; what is missing is said by [`crate::config`] or by the verb. No option takes a secret, only
//! the path of a file that holds one. An option of the root is `global`, all others belong to one verb.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::values::{
    Annotation, Rate, Span, parse_annotation, parse_arena, parse_host, parse_index, parse_names,
    parse_rate, parse_request_rate, parse_span,
};

const REPOSITORY: &str = "Repository";
const OUTPUT: &str = "Output";
const ENGINE: &str = "Engine";

/// Everything on the command line.
#[derive(Debug, Parser)]
#[command(
    name = "helios-mover",
    version,
    about = "Backup, restore and verification for HeliosDB at the speed of the hardware",
    long_about = "Backs up, restores and verifies HeliosDB databases on bare metal: one thread per core, \
                  io_uring, O_DIRECT, encrypted and deduplicated repositories whose objects are never overwritten.\n\n\
                  Each option can also stand in the environment (HELIOS_MOVER_REPO, HELIOS_MOVER_BACKUP_LEVEL) and in a \
                  TOML file (repo = \"...\", [backup] level = 3). Flags win over the environment, the environment \
                  over the file.",
    after_help = "Examples:\n  \
        helios-mover demo          a backup and a restore of a small database, end to end\n\n  \
        export HELIOS_MOVER_REPO=file:///backup/helios\n  \
        export HELIOS_MOVER_PASSPHRASE_FILE=/etc/helios-mover/passphrase\n  \
        helios-mover init\n  \
        helios-mover backup --source dir:///srv/heliosdb\n  \
        helios-mover list\n  \
        helios-mover restore --set latest --to /srv/restored\n\n\
        0 means that everything asked for was done; docs/exit-codes.md lists the other exit codes.",
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub struct RawArgs {
    /// Options that every verb takes.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options that every verb takes.
#[derive(Debug, Clone, Args)]
pub struct GlobalArgs {
    /// Repository, such as file:///backup/helios or s3://bucket/prefix?region=eu-central-1
    #[arg(long, global = true, value_name = "URL", help_heading = REPOSITORY)]
    pub repo: Option<String>,
    /// File with the passphrase of the repository (one trailing newline is dropped)
    #[arg(long, global = true, value_name = "FILE", help_heading = REPOSITORY)]
    pub passphrase_file: Option<PathBuf>,
    /// File with an age identity (AGE-SECRET-KEY-1...) that opens the repository
    #[arg(long, global = true, value_name = "FILE", help_heading = REPOSITORY)]
    pub identity_file: Option<PathBuf>,
    /// TOML file with options [default: ~/.config/helios-mover/config.toml, else /etc/helios-mover/helios-mover.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = REPOSITORY)]
    pub config: Option<PathBuf>,

    /// Print JSON: one document for queries, JSON lines for jobs
    #[arg(long, global = true, help_heading = OUTPUT)]
    pub json: bool,
    /// Print nothing but errors
    #[arg(short, long, global = true, help_heading = OUTPUT)]
    pub quiet: bool,
    /// Print more; twice for debugging
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = OUTPUT)]
    pub verbose: u8,
    /// When to colour the output [default: auto]
    #[arg(long, global = true, value_name = "WHEN", value_enum, help_heading = OUTPUT)]
    pub color: Option<ColorWhen>,

    /// Number of shards, 0 for one per core, or one per 64 MiB/s of a gentle job's limit [default: 0]
    #[arg(long, global = true, value_name = "N", help_heading = ENGINE,
          value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub shards: Option<u16>,
    /// Pin each shard to its core, where there is one for every core [default: true]
    #[arg(long, global = true, value_name = "true|false", help_heading = ENGINE,
          action = ArgAction::Set, hide_possible_values = true)]
    pub pin: Option<bool>,
    /// Highest rung of the I/O ladder to try [default: defer-taskrun]
    #[arg(long, global = true, value_name = "RUNG", value_enum, help_heading = ENGINE)]
    pub rung: Option<RungArg>,
    /// Read and write through the page cache instead of O_DIRECT
    #[arg(long, global = true, help_heading = ENGINE)]
    pub no_direct: bool,
    /// Give way to other programs: short disk requests, processors only where nobody wants them [default: true with
    /// --limit-read or --limit-write]
    #[arg(long, global = true, value_name = "true|false", help_heading = ENGINE,
          action = ArgAction::Set, hide_possible_values = true)]
    pub gentle: Option<bool>,
    /// Memory for I/O buffers of all shards together [default: 64MiB]
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_arena, help_heading = ENGINE)]
    pub arena: Option<u64>,
    /// Memory for the deduplication index [default: 48MiB]
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_index, help_heading = ENGINE)]
    pub index: Option<u64>,
    /// Memory for the list of a source's files, 128 MiB at most [default: 56MiB]
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_names, help_heading = ENGINE)]
    pub names: Option<u64>,
    /// Highest rate of reading, such as 200MiB/s; `none` for no limit [default: none]
    #[arg(long, global = true, value_name = "RATE", value_parser = parse_rate, help_heading = ENGINE)]
    pub limit_read: Option<Rate>,
    /// Highest rate of writing, such as 200MiB/s; `none` for no limit [default: none]
    #[arg(long, global = true, value_name = "RATE", value_parser = parse_rate, help_heading = ENGINE)]
    pub limit_write: Option<Rate>,
    /// Highest rate of sending to a repository behind a link, such as 40MiB/s; `none` for no limit [default: none]
    #[arg(long, global = true, value_name = "RATE", value_parser = parse_rate, help_heading = ENGINE)]
    pub limit_upload: Option<Rate>,
    /// Highest rate of receiving from a repository behind a link, such as 40MiB/s; `none` for no limit [default: none]
    #[arg(long, global = true, value_name = "RATE", value_parser = parse_rate, help_heading = ENGINE)]
    pub limit_download: Option<Rate>,
    /// Most requests per second to a repository behind a link; `none` for no limit [default: none]
    #[arg(long, global = true, value_name = "N", value_parser = parse_request_rate, help_heading = ENGINE)]
    pub limit_requests: Option<Rate>,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// A rung of the I/O ladder, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RungArg {
    /// io_uring with deferred task work (Linux 6.1)
    DeferTaskrun,
    /// io_uring with cooperative task work (Linux 5.19)
    CoopTaskrun,
    /// io_uring without flags
    PlainRing,
    /// A pool of threads with pread and pwrite
    Threads,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a repository
    Init(InitArgs),
    /// Back up a source into the repository
    Backup(BackupArgs),
    /// List the backups of the repository
    List(ListArgs),
    /// Show one backup in full
    Show(ShowArgs),
    /// Restore a backup into a directory
    Restore(RestoreArgs),
    /// Read the repository and prove that every backup can be restored
    Verify(VerifyArgs),
    /// Delete the backups that a policy does not keep, and what nothing needs
    Expire(ExpireArgs),
    /// Protect backups from being deleted
    Hold(HoldArgs),
    /// Change the notes of a backup
    Annotate(AnnotateArgs),
    /// Manage the keys of the repository
    Key(KeyArgs),
    /// Check that this machine, the repository and the source are fit for a job
    Check(CheckArgs),
    /// Compare this machine with the tuning profiles
    Tune(TuneArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Back up, destroy and restore a small database made on the spot
    Demo(DemoArgs),
}

/// `init`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover init --repo file:///backup/helios --passphrase-file /etc/helios-mover/passphrase\n  \
    helios-mover init --repo file:///backup/helios --recipient age1... --label escrow\n  \
    helios-mover init --repo file:///backup/scratch --no-encryption\n\n\
    Give a passphrase, recipients, or both: each becomes a key slot, and each alone opens the repository.")]
pub struct InitArgs {
    /// Public age key (age1...) that may open the repository; can be given several times
    #[arg(long, value_name = "AGE1", action = ArgAction::Append)]
    pub recipient: Vec<String>,
    /// Store everything readable by whoever can read the storage
    #[arg(long)]
    pub no_encryption: bool,
    /// Name of the key slots made now
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
}

/// How a backup relates to earlier ones, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TypeArg {
    /// Everything is read; what the backup before holds is not stored again
    Full,
    /// What changed since the latest backup, by the log
    Incr,
    /// What changed since the latest full backup, by the log
    Diff,
}

/// `backup`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover backup --repo file:///backup/helios --source dir:///srv/heliosdb\n  \
    helios-mover backup --source /srv/heliosdb --annotation ticket=4711 --exclude 'tmp/*'\n  \
    helios-mover backup --source /srv/heliosdb --dry-run\n  \
    helios-mover backup --source /srv/heliosdb --limit-read 200MiB/s --json\n  \
    helios-mover backup --source pages:///srv/heliosdb --type incr\n  \
    helios-mover backup --source /srv/heliosdb --no-parent\n\n\
    A source is a page store, pages:///absolute/path, which may be written to meanwhile, or a directory that is not, \
    dir:///absolute/path or a path. A directory has no log, so only --type full is possible; blocks that its backup before \
    holds are not stored again. Where an incremental or differential backup is not possible, a full one is made, and the \
    reason is told.")]
pub struct BackupArgs {
    /// What to back up: pages:///srv/heliosdb, dir:///srv/heliosdb or a path
    #[arg(long, value_name = "SOURCE")]
    pub source: Option<String>,
    /// Type of the backup [default: full]
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    pub backup_type: Option<TypeArg>,
    /// Backup to stand on, for incr and diff: an id or its beginning [default: the latest that serves]
    #[arg(long, value_name = "ID")]
    pub base: Option<String>,
    /// Use nothing that the repository holds: every block is stored anew, as after damage to it
    #[arg(long)]
    pub no_parent: bool,
    /// Host to name in the backup, where the machine's own name changes, as in a container [default: the machine's name]
    #[arg(long, value_name = "NAME", value_parser = parse_host)]
    pub host: Option<String>,
    /// zstd level, 1 (fast) to 19 (small) [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=19))]
    pub level: Option<i32>,
    /// Note kept with the backup; can be given several times
    #[arg(long, value_name = "KEY=VALUE", action = ArgAction::Append, value_parser = parse_annotation)]
    pub annotation: Vec<Annotation>,
    /// Leave out paths that match this pattern. It is relative to the source, from its top on: `*` stops at `/`, and
    /// `**/*.log` matches at any depth. Can be given several times
    #[arg(long, value_name = "PATTERN", action = ArgAction::Append)]
    pub exclude: Vec<String>,
    /// Do not enter other file systems
    #[arg(long)]
    pub one_file_system: bool,
    /// Print the plan and its estimates, store nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `list`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover list --repo file:///backup/helios --passphrase-file /etc/helios-mover/passphrase\n  \
    helios-mover list --source pages:///srv/heliosdb --host db7\n  \
    helios-mover list --json | jq -r '.backups[].backup_id'")]
pub struct ListArgs {
    /// Only backups of this source: its URL, or the path of a directory
    #[arg(long, value_name = "SOURCE")]
    pub source: Option<String>,
    /// Only backups made on this host
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
}

/// `show`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover show latest\n  \
    helios-mover show 20261122-181409-7f3a9c2e --json")]
pub struct ShowArgs {
    /// Backup: an id, its beginning, or `latest` [default: latest]
    #[arg(value_name = "BACKUP")]
    pub backup: Option<String>,
    /// The same as an option, which the other layers can set.
    #[arg(long, value_name = "ID", hide = true, conflicts_with = "backup")]
    pub set: Option<String>,
}

impl ShowArgs {
    /// The backup that is meant. What is typed bare wins over what a lower layer says.
    pub fn set(&self) -> &str {
        let named = self.backup.as_deref().or(self.set.as_deref());
        named.unwrap_or("latest")
    }
}

/// `restore`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover restore --to /srv/restored\n  \
    helios-mover restore --set 20261122-181409-7f3a9c2e --to /srv/restored --dry-run\n  \
    helios-mover restore --source pages:///srv/heliosdb --host db7 --to /srv/heliosdb --delta\n\n\
    Without --delta the target must be empty or absent. With --delta, what is there is compared block by \
    block, only differences are written, and files that the backup does not hold are removed. A target that has \
    none of the backup's names at its top, or has backups of its own and this one is of another source, is only restored \
    over with --confirm.")]
pub struct RestoreArgs {
    /// Backup: an id, its beginning, or `latest` [default: latest]
    #[arg(long, value_name = "ID")]
    pub set: Option<String>,
    /// Of this source: its URL, or the path of a directory [default: any]
    #[arg(long, value_name = "SOURCE")]
    pub source: Option<String>,
    /// Made on this host [default: any]
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// Directory to restore into
    #[arg(long, visible_alias = "target", value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Make an existing directory equal to the backup, writing only what differs
    #[arg(long)]
    pub delta: bool,
    /// With --delta: say that a directory which holds nothing of the backup, or has backups of its own, shall really be
    /// replaced by it
    #[arg(long, requires = "delta")]
    pub confirm: bool,
    /// Print the plan and its estimates, write nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// How deep a verification goes, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LevelArg {
    /// Read, unseal, decompress and hash every block that a backup needs
    Checksum,
}

/// `verify`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover verify                                  all backups\n  \
    helios-mover verify --set latest --json\n\n\
    Exits with 51 when anything is damaged, after printing what, and which backups it hits.")]
pub struct VerifyArgs {
    /// How deep to look [default: checksum]
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub level: Option<LevelArg>,
    /// Verify this backup only: an id, its beginning, or `latest` [default: all backups]
    #[arg(long, value_name = "ID")]
    pub set: Option<String>,
}

/// The rules of `expire` and whose backups they apply to: beside what is none of it, they would be passed over in silence.
const RULES: [&str; 7] = [
    "keep_last",
    "keep_daily",
    "keep_weekly",
    "keep_monthly",
    "keep_within",
    "source",
    "host",
];

/// `expire`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover expire --keep-last 3 --keep-daily 7 --keep-weekly 4 --keep-monthly 12   what would go, and why\n  \
    helios-mover expire --keep-daily 7 --confirm                                         deletes it\n  \
    helios-mover expire --keep-within 14d --json\n  \
    helios-mover expire --keep-last 30 --source pages:///srv/heliosdb   one source alone\n  \
    helios-mover expire --set 20261122-181409 --confirm    this backup, whatever rules say\n  \
    helios-mover expire --forget-session 5f0c --confirm    of a host that will never finish it\n\n\
    Rules add up, for the backups of each source and host on their own; days, weeks (from Monday) and months are those of UTC.\n\
    A rule keeps at least the newest backup. Holds and running backups keep what they need. Needs a key that reads.")]
pub struct ExpireArgs {
    /// Keep the newest N backups
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub keep_last: Option<u32>,
    /// Keep the newest backup of each of the last N days that have one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub keep_daily: Option<u32>,
    /// Keep the newest backup of each of the last N weeks that have one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub keep_weekly: Option<u32>,
    /// Keep the newest backup of each of the last N months that have one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub keep_monthly: Option<u32>,
    /// Keep what began at most so long (36h, 14d, 6w) before the newest backup, and the one before it
    #[arg(long, value_name = "DURATION", value_parser = parse_span)]
    pub keep_within: Option<Span>,
    /// Apply the rules to the backups of this source alone: its URL, or the path of a directory; all others stay
    #[arg(long, value_name = "SOURCE")]
    pub source: Option<String>,
    /// Apply the rules to the backups made on this host alone
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// Instead of what rules do not keep, delete this backup: an id or its beginning; can be given several times
    #[arg(long, value_name = "ID", action = ArgAction::Append, conflicts_with_all = RULES)]
    pub set: Vec<String>,
    /// Delete no backup, only what no backup needs: what was left by some that did not end
    #[arg(long, conflicts_with_all = RULES, conflicts_with = "set")]
    pub leftovers: bool,
    /// Delete what is not kept; without this, only say what would be deleted
    #[arg(long)]
    pub confirm: bool,
    /// Instead of expiring, give up the session with this id (or its beginning), whose process is dead
    #[arg(long, value_name = "ID", conflicts_with_all = RULES, conflicts_with_all = ["set", "leftovers"])]
    pub forget_session: Option<String>,
}

/// `hold`
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct HoldArgs {
    /// What to do with the holds.
    #[command(subcommand)]
    pub verb: HoldVerb,
}

/// What to do with the holds.
#[derive(Debug, Subcommand)]
pub enum HoldVerb {
    /// Put a hold on a backup, so that nothing deletes it
    Add(HoldAddArgs),
    /// List the holds
    List(HoldListArgs),
    /// Take a hold away
    Remove(HoldRemoveArgs),
}

/// `hold add`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover hold add 20261122-181409-7f3a9c2e --reason 'audit 2026'\n  \
    helios-mover hold add latest --reason 'before the upgrade'")]
pub struct HoldAddArgs {
    /// Backup: an id, its beginning, or `latest`
    #[arg(value_name = "BACKUP")]
    pub backup: String,
    /// Why it must stay
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// `hold list`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover hold list --json | jq -r '.holds[].backup_id'")]
pub struct HoldListArgs {}

/// `hold remove`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover hold list\n  \
    helios-mover hold remove 3f9a\n\n\
    The backup may be deleted by the next expire. A backup goes on being held while another hold is on it.")]
pub struct HoldRemoveArgs {
    /// Hold id, or the first digits of it
    #[arg(value_name = "HOLD")]
    pub hold: String,
}

/// `annotate`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover annotate latest ticket=4711 approved=yes\n  \
    helios-mover annotate 20261122-181409-7f3a9c2e --remove ticket\n\n\
    The manifest stays as it is: each change is an object of its own, and list and show apply them.")]
pub struct AnnotateArgs {
    /// Backup: an id, its beginning, or `latest`
    #[arg(value_name = "BACKUP")]
    pub backup: String,
    /// Notes to put in
    #[arg(value_name = "KEY=VALUE", value_parser = parse_annotation)]
    pub put: Vec<Annotation>,
    /// Note to take away; can be given several times
    #[arg(long, value_name = "KEY", action = ArgAction::Append)]
    pub remove: Vec<String>,
}

/// `key`
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct KeyArgs {
    /// What to do with the keys.
    #[command(subcommand)]
    pub verb: KeyVerb,
}

/// What to do with the keys.
#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// List the key slots
    List(KeyListArgs),
    /// Add a key slot
    Add(KeyAddArgs),
    /// Remove a key slot
    Remove(KeyRemoveArgs),
    /// Make a new age identity
    Generate(KeyGenerateArgs),
}

/// `key list`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover key list --repo file:///backup/helios")]
pub struct KeyListArgs {}

/// `key add`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover key add --passphrase-file old --new-passphrase-file new --label 'rotation 2026-11'\n  \
    helios-mover key add --passphrase-file old --recipient age1... --label escrow")]
pub struct KeyAddArgs {
    /// File with the passphrase of the new slot
    #[arg(long, value_name = "FILE", conflicts_with = "recipient")]
    pub new_passphrase_file: Option<PathBuf>,
    /// Public age key (age1...) of the new slot
    #[arg(long, value_name = "AGE1")]
    pub recipient: Option<String>,
    /// Name of the new slot
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
}

/// `key remove`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover key list\n  \
    helios-mover key remove 3f9a --confirm\n\n\
    Needs the key of a slot that stays. A damaged slot goes by the id in its name. Whoever copied a slot and \
    knows its key can still open the repository.")]
pub struct KeyRemoveArgs {
    /// Slot id, or the first digits of it
    #[arg(value_name = "SLOT")]
    pub slot: String,
    /// Say that the slot shall really go
    #[arg(long)]
    pub confirm: bool,
}

/// `key generate`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover key generate --output /root/helios-identity.txt\n  \
    helios-mover key generate > identity.txt\n\n\
    The file holds the secret identity and, as a comment, the public recipient for --recipient.")]
pub struct KeyGenerateArgs {
    /// New file for the identity, mode 0600; never overwritten [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `check`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover check\n  \
    helios-mover check --repo file:///backup/helios --source /srv/heliosdb\n\n\
    Exits with 52 when something would make a job fail. What is not said is taken from the options of backup in the \
    environment and the configuration file, so that what is checked is what a backup would do.")]
pub struct CheckArgs {
    /// Source to check too: pages:///srv/heliosdb, dir:///srv/heliosdb or a path [default: that of backup]
    #[arg(long, value_name = "SOURCE")]
    pub source: Option<String>,
    /// Paths that the backup leaves out: patterns relative to the source, from its top on, in which `*` stops at `/`, and
    /// `**/*.log` matches at any depth. Can be given several times [default: those of backup]
    #[arg(long, value_name = "PATTERN", action = ArgAction::Append)]
    pub exclude: Vec<String>,
    /// The backup does not enter other file systems [default: as of backup]
    #[arg(long)]
    pub one_file_system: bool,
}

/// `tune`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover tune                      what differs on this machine, and the commands that change it\n  \
    helios-mover tune --profile nvme -v    with the reason of each value\n  \
    helios-mover tune --profile sysctl --apply\n\n\
    Without --apply nothing is changed. --apply sets only sysctls that no security policy hangs on, prints \
    the command that undoes each, and does not survive a restart.")]
pub struct TuneArgs {
    /// Only this profile; can be given several times [default: all]
    #[arg(long, value_name = "NAME", action = ArgAction::Append)]
    pub profile: Vec<String>,
    /// Set the sysctls that differ, now and until the next restart
    #[arg(long)]
    pub apply: bool,
}

/// `completions`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover completions bash > /etc/bash_completion.d/helios-mover\n  \
    helios-mover completions zsh > ~/.zfunc/_helios-mover\n  \
    helios-mover completions fish > ~/.config/fish/completions/helios-mover.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `demo`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    helios-mover demo\n  \
    helios-mover demo --keep               look at the repository and the database afterwards\n  \
    TMPDIR=/mnt/nvme helios-mover demo     on another disk\n\n\
    Needs about 600 MiB in the temporary directory and removes everything at the end.")]
pub struct DemoArgs {
    /// Keep the files and print where they are
    #[arg(long)]
    pub keep: bool,
    /// Seed of the database's content [default: 1]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;

    /// The words of a command line as a shell splits them, as far as the program is given them: up to a pipe, a redirection or
    /// a comment. In a help text a comment is what stands behind a gap of blanks and is no option.
    fn words(line: &str) -> Vec<String> {
        let mut words = Vec::new();
        let mut rest = line.trim();
        while !rest.is_empty() {
            let mut word = String::new();
            let mut quote = None;
            let mut end = rest.len();
            for (at, letter) in rest.char_indices() {
                match quote {
                    Some(mark) if letter == mark => quote = None,
                    None if letter == '\'' || letter == '"' => quote = Some(letter),
                    None if letter == ' ' => {
                        end = at;
                        break;
                    }
                    _ => word.push(letter),
                }
            }
            assert_eq!(quote, None, "a quote does not end: {line}");
            if ["|", ">", ">>", "#", "&&", ";"].contains(&word.as_str()) {
                break;
            }
            words.push(word);
            let behind = &rest[end..];
            rest = behind.trim_start();
            if behind.len() - rest.len() > 1 && !rest.starts_with('-') {
                break;
            }
        }
        words
    }

    /// The command lines of the program in a text, without the variables that are set before them.
    fn commands(text: &str) -> Vec<Vec<String>> {
        let is_setting = |word: &String| {
            let name = word.split_once('=').map_or("", |(name, _)| name);
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
        };
        let lines = text.lines().filter(|line| line.contains("helios-mover "));
        let lines = lines.map(|line| {
            let words = words(line).into_iter();
            words.skip_while(is_setting).collect::<Vec<_>>()
        });
        let is_ours =
            |words: &Vec<String>| words.first().is_some_and(|word| word == "helios-mover");
        lines.filter(is_ours).collect()
    }

    fn parse(words: &[String]) {
        let parsed = RawArgs::try_parse_from(words);
        parsed.unwrap_or_else(|error| panic!("{}: {error}", words.join(" ")));
    }

    /// Calls `visit` with each verb that can be called, and with the words that call it.
    fn walk(command: &clap::Command, path: &[String], visit: &mut impl FnMut(&[String], &str)) {
        if !command.has_subcommands() || path.is_empty() {
            let help = command.get_after_help().map(ToString::to_string);
            visit(path, &help.unwrap_or_default());
        }
        for verb in command.get_subcommands() {
            let path = [path, &[verb.get_name().to_owned()]].concat();
            walk(verb, &path, visit);
        }
    }

    #[test]
    fn every_verb_has_examples_of_itself_and_all_of_them_parse() {
        let mut verbs = 0;
        walk(&RawArgs::command(), &[], &mut |path, help| {
            let name = path.join(" ");
            let begin = help.find("Examples:\n");
            let begin = begin.unwrap_or_else(|| panic!("no examples in the help of {name:?}"));
            let text = help[begin..].lines().skip(1);
            // Examples are indented, and what else is said is not.
            let text = text.take_while(|line| line.is_empty() || line.starts_with("  "));
            let text: String = text.map(|line| format!("{}\n", line.trim())).collect();
            let examples = commands(&text);
            examples.iter().for_each(|example| parse(example));
            let own = examples.iter().any(|words| words[1..].starts_with(path));
            assert!(own, "no example of {name:?} in its help:\n{help}");
            verbs += 1;
        });
        assert!(verbs > 15, "{verbs} verbs");
    }

    #[test]
    fn commands_that_the_documentation_shows_parse() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut pages = vec![root.join("README.md"), root.join("tuning/README.md")];
        let mut open = vec![root.join("docs")];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|extension| extension == "md") {
                    pages.push(path);
                }
            }
        }
        let mut shown = 0;
        for page in pages {
            let text = fs::read_to_string(&page).unwrap();
            // Blocks stand between the fences: every second part.
            for block in text.split("\n```").skip(1).step_by(2) {
                let is_shell = ["sh\n", "text\n", "\n"]
                    .iter()
                    .any(|kind| block.starts_with(kind));
                for command in commands(block).iter().filter(|_| is_shell) {
                    parse(command);
                    shown += 1;
                }
            }
        }
        assert!(shown > 20, "{shown} commands in the documentation");
    }

    #[test]
    fn command_lines_are_split_as_a_shell_does() {
        for (line, expected) in [
            (
                "helios-mover demo          a backup and a restore",
                "helios-mover demo",
            ),
            (
                "helios-mover init   --repo 's3://a b'  # c",
                "helios-mover|init|--repo|s3://a b",
            ),
            (
                "helios-mover list --json | jq -r '.a[].b'",
                "helios-mover|list|--json",
            ),
            (
                "X_Y=1 helios-mover key generate > file",
                "helios-mover|key|generate",
            ),
        ] {
            let expected: Vec<&str> = expected.split(['|']).collect();
            let expected = match expected.as_slice() {
                [one] => one.split(' ').collect(),
                many => many.to_vec(),
            };
            assert_eq!(commands(line), [expected], "{line}");
        }
        assert!(commands("export HELIOS_MOVER_REPO=x\ncargo run helios-mover").is_empty());
        assert!(RawArgs::try_parse_from(words("helios-mover backup --sauce x")).is_err());
    }
}
