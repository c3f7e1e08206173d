//! `run` and `report` are what `benches/compare/run` calls, `distance` what `benches/compare/distance` does; `serve` and
//! `load` are their processes.

use std::{env, process::ExitCode};

use compare::{Failure, cli::Options, distance, load, plan, report, serve};
use tokio::runtime::Builder;

fn main() -> ExitCode {
    match command() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Result<(), Failure> {
    let mut arguments = env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let options = Options::parse(arguments, &["quick"])?;
    match command.as_str() {
        "run" => Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(plan::run(&options)),
        "report" => report::run(&options),
        "distance" => Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(distance::run(&options)),
        "serve" => Builder::new_multi_thread()
            .enable_all()
            .build()?
            .block_on(serve::run(&options)),
        "load" => load::run(&options),
        _ => Err("commands: run, report, distance, serve, load".into()),
    }
}
