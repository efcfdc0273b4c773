//! The `edge` command: reads its words, does what they say, prints what came of it, and returns the exit status.

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use edge::config::load;
use edge::config::problem::Problems;
use edge::config::surroundings::Surroundings;
use edge::daemon::ask::AskError;
use edge::daemon::cli::{self, Call, CertsAction, Command};
use edge::daemon::command::CommandError;
use edge::daemon::{check_names, command, hello, import, run};
use edge::report::Report;

/// Buffers of a few kilobytes come and go with each request: this allocator keeps them at hand for each thread.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Gives memory back within seconds after a flood. Without threads of its own the allocator looks after a data plane's memory
/// only while that has work: one that a flood has left would keep it. What a thread has at hand it looks through after a megabyte
/// instead of 64 KiB, which ten requests ask for.
const MEMORY: &[u8] =
    b"background_thread:true,dirty_decay_ms:5000,muzzy_decay_ms:0,tcache_gc_incr_bytes:1048576\0";

/// Where the allocator looks for its options.
#[expect(
    unsafe_code,
    reason = "the name is the allocator's own, and stands for a pointer to text that ends with NUL"
)]
#[unsafe(export_name = "_rjem_malloc_conf")]
static OPTIONS: Option<&u8> = MEMORY.first();

/// What ends a call early.
enum Failure {
    /// The configuration is at fault: every problem, a line each.
    Config(Problems),
    /// The running edge was not found, and the configuration is at fault, perhaps for that, too.
    Lost(Problems, String),
    /// Anything else.
    Failed(Box<dyn Error>),
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

fn main() -> ExitCode {
    let call = match cli::parse(std::env::args_os()) {
        Ok(call) => call,
        Err(words) => {
            // Where even this cannot be printed, the exit status has to do.
            let _ = words.print();
            return ExitCode::from(cli::exit_status(&words));
        }
    };
    perform(&call).unwrap_or_else(|failure| {
        let (text, status) = match failure {
            Failure::Config(problems) => (problems.to_string(), ExitCode::from(cli::CONFIG)),
            Failure::Lost(problems, whose) => (format!("{problems}\n{whose}"), ExitCode::from(cli::CONFIG)),
            Failure::Failed(error) => {
                let status = error.downcast_ref().map_or(1, CommandError::status);
                let status = ExitCode::from(status);
                (format!("edge: {}", Report(&*error)), status)
            }
        };
        let _ = writeln!(io::stderr(), "{text}");
        status
    })
}

/// Whoever does not find the running edge is told first what is wrong with the file: a mistyped `runtime_dir` leads nowhere.
fn found<T>(asked: Result<T, CommandError>, file: &Path, around: &Surroundings) -> Result<T, Failure> {
    let whose = match &asked {
        Err(CommandError::Ask(AskError::NotRunning { admin, .. })) => {
            format!("edge: no edge answers at {}", admin.display())
        }
        Err(CommandError::Ask(AskError::Elsewhere { admin, elsewhere, pid, .. })) => format!(
            "edge: no edge answers at {}, but one that was started with this file does at {} (process {pid})",
            admin.display(),
            elsewhere.display()
        ),
        Ok(_) | Err(_) => return Ok(asked?),
    };
    match load::load(file, around) {
        Ok(_) => Ok(asked?),
        Err(problems) => Err(Failure::Lost(problems, whose)),
    }
}

fn perform(call: &Call) -> Result<ExitCode, Failure> {
    if call.command == Command::Hello {
        return Ok(hello::run()?);
    }
    if call.command == Command::Schema {
        command::print(&command::schema())?;
        return Ok(ExitCode::SUCCESS);
    }
    let around = Surroundings::of_this_process();
    let file = load::find(call.config.as_deref()).map_err(Failure::Config)?;
    let config = || load::load(&file, &around).map_err(Failure::Config);
    let place = || load::whereabouts(&file, &around).map_err(Failure::Config);
    let text = match &call.command {
        Command::Hello | Command::Schema | Command::Run => return Ok(run::run(config()?)),
        Command::Operate(call) => {
            let asked = command::operate(&place()?, command::operation(call)?);
            let status = found(asked, &file, &around)?;
            return Ok(ExitCode::from(status));
        }
        Command::Check { dns: false } => command::check(&Arc::new(config()?))?,
        Command::Check { dns: true } => {
            let config = Arc::new(config()?);
            command::print(&command::check(&config)?)?;
            let (text, sound) = check_names::check(&config);
            command::print(&text)?;
            return Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Explain { app } => command::explain(&config()?, app)?,
        Command::Status { json, all } => found(command::status(&place()?, *json, *all), &file, &around)?,
        Command::Certs { action: Some(CertsAction::Renew { name }), .. } => {
            let asked = command::operate(&place()?, command::renewal(name)?);
            let status = found(asked, &file, &around)?;
            return Ok(ExitCode::from(status));
        }
        Command::Certs { action: Some(CertsAction::Import { dir }), .. } => {
            return Ok(ExitCode::from(import::import(&config()?, dir)?));
        }
        Command::Certs { json, check, action: None } => {
            let (text, healthy) = found(command::certs(&place()?, *json), &file, &around)?;
            command::print(&text)?;
            return Ok(if healthy || !check { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Trust => command::trust(&config()?)?,
    };
    command::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
