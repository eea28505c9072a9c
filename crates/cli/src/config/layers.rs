//! Lower layers of every option: environment variables and the configuration file.
//!
//! A value from a lower layer becomes the default of the option it belongs to, and the command line is parsed
//! again: so a new option is in all three layers without a line written for it, and one parser judges every
//! value. Invariants: a flag wins over the environment, the environment over the file; a value of a lower
//! layer is validated before it becomes a default, and an error names the variable or the file's key; an
//! unknown key of the file is an error, an unknown variable a warning. An empty variable counts as unset.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::OsStr;
use clap::{Arg, ArgAction, ArgMatches, Command};
use mover_base::{Error, Kind, Result};

/// Prefix of every variable.
pub const PREFIX: &str = "HELIOS_MOVER_";
/// Where the file is looked for when nobody names one, after `~/.config`.
const SYSTEM_FILE: &str = "/etc/helios-mover/helios-mover.toml";
/// A configuration file is small; what is larger is the wrong file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Options that say something about one call and so must be said in it.
pub const FLAG_ONLY: [&str; 9] = [
    "backup.no-parent",
    "key.remove.confirm",
    "expire.confirm",
    "expire.forget-session",
    "expire.set",
    "expire.leftovers",
    "annotate.remove",
    "restore.delta",
    "restore.confirm",
];
/// Options of `check` that are, where nobody sets them, those of `backup`: what is checked is what a backup would do.
const INHERITED: [(&str, &str); 3] = [
    ("check.source", "backup.source"),
    ("check.exclude", "backup.exclude"),
    ("check.one-file-system", "backup.one-file-system"),
];
/// Options that a file cannot hold: it cannot name itself.
pub const NOT_IN_FILE: [&str; 1] = ["config"];
/// The filter of the log.
pub const LOG_VARIABLE: &str = "HELIOS_MOVER_LOG";
/// Has summaries hold whole histograms. Benchmarks keep them, and nobody else needs an option for that.
const HISTOGRAMS_VARIABLE: &str = "HELIOS_MOVER_HISTOGRAMS";
/// Variables that are read without being an option.
pub const OTHER_VARIABLES: [&str; 2] = [LOG_VARIABLE, HISTOGRAMS_VARIABLE];
/// Names no file, for a call that shall read none.
const NO_FILE: &str = "/dev/null";

/// The configuration file, and what to do where it cannot be read, which hangs on what named it.
struct ConfigFile {
    path: PathBuf,
    remedy: &'static str,
}

impl ConfigFile {
    fn of_flag(path: PathBuf) -> Self {
        let remedy = "correct --config, or give --config /dev/null for no file";
        ConfigFile { path, remedy }
    }

    fn of_variable(path: PathBuf) -> Self {
        let remedy = "correct HELIOS_MOVER_CONFIG, or set it to /dev/null for no file";
        ConfigFile { path, remedy }
    }

    /// Nobody named it.
    fn usual(path: PathBuf) -> Self {
        let remedy =
            "set HOME or --config to where one can be read, or give --config /dev/null for none";
        ConfigFile { path, remedy }
    }
}

/// Where a value came from; later is stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// Nobody set it.
    Default,
    /// The configuration file.
    File,
    /// An environment variable.
    Environment,
    /// The command line.
    Flag,
}

/// What the process was given besides its arguments.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Variables that begin with [`PREFIX`].
    pub variables: BTreeMap<String, OsString>,
    /// Files to try when none is named, in this order.
    pub files: Vec<PathBuf>,
}

impl Environment {
    /// Reads the environment of the process.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty())
            .collect();
        let home = std::env::var_os("XDG_CONFIG_HOME")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
        let user = home.map(|dir| dir.join("helios-mover/config.toml"));
        let files = user
            .into_iter()
            .chain([PathBuf::from(SYSTEM_FILE)])
            .collect();
        Environment { variables, files }
    }

    /// Whether the summaries of jobs are to hold the histograms that their quantiles come of.
    pub fn asks_for_histograms(&self) -> Result<bool> {
        let Some(value) = self.variables.get(HISTOGRAMS_VARIABLE) else {
            return Ok(false);
        };
        match value.to_str() {
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            _ => {
                let what = format!("`{}` is neither true nor false", value.to_string_lossy());
                Err(Error::new(Kind::Usage, what)
                    .object(HISTOGRAMS_VARIABLE)
                    .hint("possible values: true, false"))
            }
        }
    }
}

/// One option of the command line, with its names in the other layers.
#[derive(Debug, Clone)]
pub struct OptionName {
    /// Verbs that lead to it, none for a global option.
    verbs: Vec<String>,
    id: String,
    /// `backup.dry-run`: the key in the file.
    pub key: String,
    /// `HELIOS_MOVER_BACKUP_DRY_RUN`
    pub variable: String,
    takes_list: bool,
    arg: Arg,
}

impl OptionName {
    /// Whether any text will do, so that clap has nothing to refuse.
    fn is_text(&self) -> bool {
        let parsed = self.arg.get_value_parser().type_id();
        parsed == TypeId::of::<String>() || parsed == TypeId::of::<PathBuf>()
    }
}

/// Every long option of `command` and of its verbs.
pub fn options(command: &Command) -> Vec<OptionName> {
    fn collect(command: &Command, verbs: &[String], out: &mut Vec<OptionName>) {
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long() else { continue };
            let key = key_of(verbs, long);
            out.push(OptionName {
                verbs: verbs.to_vec(),
                id: arg.get_id().to_string(),
                takes_list: matches!(arg.get_action(), ArgAction::Append),
                arg: arg.clone(),
                variable: variable(&key),
                key,
            });
        }
        for verb in command.get_subcommands() {
            let mut path = verbs.to_vec();
            path.push(verb.get_name().to_owned());
            collect(verb, &path, out);
        }
    }
    let mut out = Vec::new();
    collect(command, &[], &mut out);
    out
}

/// The parsed command line with the lower layers filled in.
#[derive(Debug)]
pub struct Layered {
    /// What clap found, all layers together.
    pub matches: ArgMatches,
    /// Where each option came from.
    pub layers: Layers,
    /// What the user should know but need not stop for.
    pub warnings: Vec<String>,
}

/// The layer that ruled for each option.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    by_key: BTreeMap<String, Layer>,
    /// The file that was read.
    pub file: Option<PathBuf>,
}

impl Layers {
    /// Where the value of the option `key` came from.
    pub fn of(&self, key: &str) -> Layer {
        self.by_key.get(key).copied().unwrap_or(Layer::Default)
    }

    /// The variable or the file that set the option; none where it was typed, or nobody set it.
    pub fn place(&self, key: &str) -> Option<String> {
        match self.of(key) {
            Layer::Environment => Some(variable(key)),
            Layer::File => Some(format!("`{key}` in {}", self.file.as_ref()?.display())),
            Layer::Flag | Layer::Default => None,
        }
    }
}

/// The key of an option or a table `name` below its verbs.
fn key_of(verbs: &[String], name: &str) -> String {
    let words = verbs.iter().map(String::as_str).chain([name]);
    words.collect::<Vec<_>>().join(".")
}

fn may_stand_in_file(key: &str) -> bool {
    !FLAG_ONLY.contains(&key) && !NOT_IN_FILE.contains(&key)
}

/// The variable of the option `key`.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace(['.', '-'], "_").to_uppercase())
}

/// Fills the lower layers in under `first`, which is what clap found on the command line alone.
pub fn layer(
    command: Command,
    argv: &[OsString],
    first: &ArgMatches,
    environment: &Environment,
) -> Result<Layered> {
    let names = options(&command);
    let mut warnings = unknown_variables(&names, environment);
    let from_environment = read_environment(&names, environment)?;
    let file = find_file(first, environment);
    let from_file = match &file {
        Some(file) => read_file(&command, &names, file)?,
        None => BTreeMap::new(),
    };

    let mut by_key = BTreeMap::new();
    let mut filled = command;
    let lower = |key: &str| {
        let variable = from_environment.get(key);
        variable
            .map(|values| (Layer::Environment, values))
            .or_else(|| Some((Layer::File, from_file.get(key)?)))
    };
    for name in &names {
        let inherited = INHERITED.iter().find(|(key, _)| *key == name.key);
        let set = lower(&name.key).or_else(|| lower(inherited?.1));
        if given(first, name) {
            by_key.insert(name.key.clone(), Layer::Flag);
        } else if let Some((layer, values)) = set {
            by_key.insert(name.key.clone(), layer);
            filled = with_default(filled, &name.verbs, &name.id, values);
        }
    }
    let matches = filled
        .try_get_matches_from(argv)
        .map_err(|error| Error::new(Kind::Usage, error.to_string().trim().to_owned()))?;
    warnings.sort();
    Ok(Layered {
        matches,
        layers: Layers {
            by_key,
            file: file.map(|file| file.path),
        },
        warnings,
    })
}

/// Whether the command line itself holds the option.
fn given(matches: &ArgMatches, name: &OptionName) -> bool {
    let mut at = matches;
    for verb in &name.verbs {
        match at.subcommand() {
            Some((taken, next)) if taken == verb => at = next,
            _ => return false,
        }
    }
    // A global option may stand behind any verb, and clap copies it down but not always up.
    loop {
        let here = at.try_contains_id(&name.id).unwrap_or(false)
            && at.value_source(&name.id) == Some(clap::parser::ValueSource::CommandLine);
        if here {
            return true;
        }
        match at.subcommand() {
            Some((_, next)) if name.verbs.is_empty() => at = next,
            _ => return false,
        }
    }
}

fn with_default(command: Command, verbs: &[String], id: &str, values: &[OsString]) -> Command {
    match verbs.split_first() {
        Some((verb, rest)) => {
            command.mut_subcommand(verb, |inner| with_default(inner, rest, id, values))
        }
        None => command.mut_arg(id, |arg| {
            arg.default_values(values.iter().map(OsStr::from).collect::<Vec<_>>())
        }),
    }
}

fn unknown_variables(names: &[OptionName], environment: &Environment) -> Vec<String> {
    let known = |variable: &str| {
        OTHER_VARIABLES.contains(&variable)
            || names
                .iter()
                .any(|name| name.variable == variable && !FLAG_ONLY.contains(&name.key.as_str()))
    };
    let tell = |variable: &String| {
        let is_flag = |name: &&OptionName| name.variable == *variable;
        if let Some(name) = names.iter().find(is_flag) {
            let long = name.arg.get_long().unwrap_or_default();
            format!(
                "{variable} is not read: --{long} is a flag only, which is given with each call"
            )
        } else if variable.ends_with("PASSPHRASE") || variable.ends_with("IDENTITY") {
            format!("{variable} is not read: secrets come from files only, use {variable}_FILE")
        } else {
            format!("{variable} is set but is not an option")
        }
    };
    environment
        .variables
        .keys()
        .filter(|variable| !known(variable))
        .map(tell)
        .collect()
}

type Values = BTreeMap<String, Vec<OsString>>;

fn read_environment(names: &[OptionName], environment: &Environment) -> Result<Values> {
    let mut out = Values::new();
    for name in names
        .iter()
        .filter(|name| !FLAG_ONLY.contains(&name.key.as_str()))
    {
        let Some(value) = environment.variables.get(&name.variable) else {
            continue;
        };
        let values = match value.to_str() {
            // Commas divide a list; a value that has one itself belongs into the file.
            Some(text) if name.takes_list => text
                .split(',')
                .map(|part| OsString::from(part.trim()))
                .collect(),
            _ => vec![value.clone()],
        };
        for value in &values {
            validate(name, value, || name.variable.clone())?;
        }
        out.insert(name.key.clone(), values);
    }
    Ok(out)
}

/// The verb that was typed, such as `key add`; empty where none was recognised.
pub fn verb(matches: &ArgMatches) -> String {
    let mut words = Vec::new();
    let mut at = matches;
    while let Some((word, next)) = at.subcommand() {
        words.push(word);
        at = next;
    }
    words.join(" ")
}

/// The value of a global option, which may stand behind any of the verbs.
pub fn deepest<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, id: &str) -> Option<T> {
    let of = |at: &ArgMatches| at.try_get_one::<T>(id).ok().flatten().cloned();
    let mut at = matches;
    let mut found = of(at);
    while let Some((_, next)) = at.subcommand() {
        found = of(next).or(found);
        at = next;
    }
    found
}

/// What the environment or the file says of a global option, if that much of them can be read.
pub fn readable(key: &str, matches: &ArgMatches, environment: &Environment) -> Option<String> {
    if let Some(value) = environment.variables.get(&variable(key)) {
        return value.to_str().map(str::to_owned);
    }
    let text = read_text(&find_file(matches, environment)?).ok()?;
    let table: toml::Table = toml::from_str(&text).ok()?;
    texts(table.get(key)?, false, false)?
        .pop()?
        .into_string()
        .ok()
}

fn find_file(first: &ArgMatches, environment: &Environment) -> Option<ConfigFile> {
    let flag = deepest::<PathBuf>(first, "config").map(ConfigFile::of_flag);
    let variable = environment.variables.get(&variable("config"));
    let variable = variable.map(|path| ConfigFile::of_variable(path.into()));
    match flag.or(variable) {
        Some(named) if named.path == Path::new(NO_FILE) => None,
        Some(named) => Some(named),
        None => {
            let mut usual = environment.files.iter();
            let found = usual.find(|path| is_there(path))?;
            Some(ConfigFile::usual(found.clone()))
        }
    }
}

/// Whether something is there, readable or not: a file that cannot be looked at must not be passed over in silence.
fn is_there(path: &Path) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    match std::fs::metadata(path) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), NotFound | NotADirectory),
    }
}

fn read_text(file: &ConfigFile) -> Result<String> {
    let path = &file.path;
    let wrong = |what: &str| {
        Error::new(Kind::Usage, what)
            .object(path.display().to_string())
            .hint(file.remedy)
    };
    let cannot = |error| wrong("the configuration file cannot be read").cause(error);
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(wrong(
            "the configuration file is not a regular file of at most 1 MiB",
        ));
    }
    std::fs::read_to_string(path).map_err(cannot)
}

fn read_file(command: &Command, names: &[OptionName], file: &ConfigFile) -> Result<Values> {
    let shown = file.path.display().to_string();
    let wrong = |what: &str| Error::new(Kind::Usage, what).object(&shown);
    let text = read_text(file)?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| {
            text.as_bytes()
                .iter()
                .take(span.start)
                .filter(|byte| **byte == b'\n')
                .count()
                + 1
        });
        let what = format!("the configuration file is not TOML at line {line}");
        wrong(&what).cause(error.message().to_owned())
    })?;
    let mut out = Values::new();
    read_table(command, names, &[], &table, &shown, &mut out)?;
    Ok(out)
}

fn read_table(
    command: &Command,
    names: &[OptionName],
    verbs: &[String],
    table: &toml::Table,
    file: &str,
    out: &mut Values,
) -> Result<()> {
    for (key, value) in table {
        let full = key_of(verbs, key);
        if let (toml::Value::Table(inner), Some(verb)) = (value, command.find_subcommand(key)) {
            let mut path = verbs.to_vec();
            path.push(key.clone());
            read_table(verb, names, &path, inner, file, out)?;
            continue;
        }
        let usable = |name: &&OptionName| name.key == full && may_stand_in_file(&full);
        let Some(name) = names.iter().find(usable) else {
            return Err(unknown_key(command, names, verbs, &full, file));
        };
        let place = || format!("`{full}` in {file}");
        let values = texts(value, name.takes_list, name.is_text()).ok_or_else(|| {
            let what = match (name.takes_list, name.is_text()) {
                (true, _) => "the value is not a list of texts",
                (false, true) => "the value is not a text",
                (false, false) => "the value is not a single value",
            };
            Error::new(Kind::Usage, what).object(place())
        })?;
        for value in &values {
            validate(name, value, place)?;
        }
        out.insert(full.clone(), values);
    }
    Ok(())
}

fn unknown_key(
    command: &Command,
    names: &[OptionName],
    verbs: &[String],
    full: &str,
    file: &str,
) -> Error {
    let wrong = Error::new(Kind::Usage, "unknown key in the configuration file")
        .object(format!("`{full}` in {file}"));
    if FLAG_ONLY.contains(&full) {
        return wrong.hint("it is a flag only, which is given with each call: remove the key");
    }
    let mut known: Vec<&str> = names
        .iter()
        .filter(|name| name.verbs == verbs && may_stand_in_file(&name.key))
        .filter_map(|name| name.arg.get_long())
        .collect();
    let has_options = |verb: &&Command| {
        verb.has_subcommands() || verb.get_arguments().any(|arg| arg.get_long().is_some())
    };
    known.extend(
        command
            .get_subcommands()
            .filter(has_options)
            .map(Command::get_name),
    );
    let hint = match known.is_empty() {
        true => "no option of this verb can stand in the file: remove the key".to_owned(),
        false => {
            let typed = full.rsplit('.').next().unwrap_or(full);
            let meant = known.iter().find(|known| is_near(typed, known));
            let meant = meant.map(|meant| format!("perhaps {meant} was meant; "));
            let known = known.join(", ");
            format!("{}known here: {known}", meant.unwrap_or_default())
        }
    };
    wrong.hint(hint)
}

/// Whether one is most likely the other with a slip in it: a letter too many, too few or another, or two that changed places.
fn is_near(typed: &str, known: &str) -> bool {
    strsim::osa_distance(&typed.replace('_', "-"), known) <= 1
}

/// The value as one text per element; `None` when its shape does not fit the option.
fn texts(value: &toml::Value, takes_list: bool, is_text: bool) -> Option<Vec<OsString>> {
    let scalar = |value: &toml::Value| match value {
        toml::Value::String(text) => Some(text.clone()),
        // A URL or a path is a text: a number there is a slip.
        _ if is_text => None,
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(switch) => Some(switch.to_string()),
        _ => None,
    };
    match value {
        toml::Value::Array(items) if takes_list => items
            .iter()
            .map(|item| scalar(item).map(OsString::from))
            .collect(),
        toml::Value::Table(items) if takes_list => items
            .iter()
            .map(|(key, item)| scalar(item).map(|item| OsString::from(format!("{key}={item}"))))
            .collect(),
        other => scalar(other).map(|text| vec![OsString::from(text)]),
    }
}

/// Parses `value` as the option would, so that the error can name the place instead of a flag nobody typed.
fn validate(name: &OptionName, value: &OsString, place: impl Fn() -> String) -> Result<()> {
    let long = name.arg.get_long().unwrap_or_default().to_owned();
    let arg = Arg::new("value")
        .long(long.clone())
        .action(ArgAction::Set)
        .value_parser(name.arg.get_value_parser().clone());
    let mut given = OsString::from(format!("--{long}="));
    given.push(value);
    let probe = Command::new("value")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .arg(arg);
    let Err(error) = probe.try_get_matches_from([OsString::from("value"), given]) else {
        return Ok(());
    };
    let mut wrong = Error::new(
        Kind::Usage,
        format!("`{}` is not a value for --{long}", value.to_string_lossy()),
    )
    .object(place());
    if let Some(clap::error::ContextValue::Strings(valid)) =
        error.get(clap::error::ContextKind::ValidValue)
        && !valid.is_empty()
    {
        wrong = wrong.hint(format!("possible values: {}", valid.join(", ")));
    }
    if let Some(source) = std::error::Error::source(&error) {
        wrong = wrong.cause(source.to_string());
    }
    Err(wrong)
}
