//! `mover-bench-s3`: the pieces of the S3 measurements that need a process of their own.
//!
//! Invariants: prints one line, the address or the figures as JSON; keys come from the environment, as for other clients.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use mover_base::{Error, Kind, Result};
use mover_benches::s3::bare::{self, BareWay};
use mover_benches::s3::figures::Moved;
use mover_benches::s3::servers::Access;
use mover_benches::s3::transfer::{self, Way};
use mover_benches::s3::{packs, sink};

#[global_allocator]
static ALLOCATOR: mover_io::HugeAlloc = mover_io::HugeAlloc;

#[derive(Debug, Parser)]
#[command(name = "mover-bench-s3", version)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The cheap server.
    Serve {
        #[arg(long, default_value = "127.0.0.1:0")]
        bind: String,
        /// Memory for objects.
        #[arg(long, value_name = "MIB")]
        memory_mib: u64,
        /// Speak TLS, and write the certificate to trust there.
        #[arg(long, value_name = "FILE")]
        tls_ca: Option<PathBuf>,
    },
    /// Makes files like packs.
    Packs {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        bytes: u64,
    },
    /// Files through the mover's driver.
    Transfer {
        #[arg(value_enum)]
        way: TransferWay,
        #[arg(long)]
        url: String,
        #[arg(long)]
        dir: PathBuf,
    },
    /// Files over bare HTTP.
    Bare {
        #[arg(value_enum)]
        way: TransferWay,
        #[arg(long)]
        endpoint: String,
        /// The certificate to trust; makes it TLS.
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        #[arg(long)]
        region: String,
        #[arg(long)]
        bucket: String,
        #[arg(long)]
        prefix: String,
        /// The files, also for their names and lengths on the way back.
        #[arg(long)]
        source: PathBuf,
        /// Where they go on the way back.
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TransferWay {
    Put,
    Get,
    GetWhole,
    FirstByte,
}

fn usage(text: &str) -> Error {
    Error::new(Kind::Usage, text)
}

fn print(moved: &Moved) -> Result<()> {
    let text = serde_json::to_string(moved)
        .map_err(|e| Error::new(Kind::Internal, "figures cannot be written").cause(e))?;
    writeln!(std::io::stdout(), "{text}")
        .map_err(|e| Error::new(Kind::Target, "standard output cannot be written").cause(e))
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| usage("a variable with a key is not set").object(name))
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Serve {
            bind,
            memory_mib,
            tls_ca,
        } => {
            let failed = |e| Error::new(Kind::Storage, "the cheap server ended").cause(e);
            let listener = TcpListener::bind(&bind).map_err(failed)?;
            sink::serve(&listener, memory_mib << 20, tls_ca.as_deref()).map_err(failed)
        }
        Verb::Packs { dir, bytes } => packs::make(&dir, bytes)
            .map_err(|e| Error::new(Kind::Target, "packs cannot be written").cause(e)),
        Verb::Transfer { way, url, dir } => {
            let way = match way {
                TransferWay::Put => Way::Put,
                TransferWay::Get => Way::Get,
                TransferWay::GetWhole => Way::GetWhole,
                TransferWay::FirstByte => Way::FirstByte,
            };
            print(&transfer::transfer(way, &url, &dir)?)
        }
        Verb::Bare {
            way,
            endpoint,
            ca,
            region,
            bucket,
            prefix,
            source,
            dir,
        } => {
            let way = match way {
                TransferWay::Put => BareWay::Put,
                TransferWay::Get | TransferWay::GetWhole => BareWay::Get,
                TransferWay::FirstByte => BareWay::FirstByte,
            };
            let access = Access {
                endpoint,
                ca_file: ca,
                region,
                bucket,
                id: variable("AWS_ACCESS_KEY_ID")?,
                secret: variable("AWS_SECRET_ACCESS_KEY")?,
            };
            print(&bare::transfer(way, &access, &prefix, &source, &dir)?)
        }
    }
}

fn main() -> ExitCode {
    match run(Args::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mover-bench-s3: {error}");
            ExitCode::from(error.kind().exit_code())
        }
    }
}
