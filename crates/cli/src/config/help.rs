//! Checks that the help of every flag states the actual default.

use clap::{CommandFactory, Parser};

use super::*;

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Returns `X` of a help that ends with `[default: X]`.
pub(crate) fn stated_default(arg: &clap::Arg) -> Option<String> {
    let help = arg.get_help()?.to_string();
    let (_, stated) = help.rsplit_once("[default: ")?;
    Some(stated.strip_suffix(']').expect("a stated default ends the help").to_owned())
}

/// Returns the default of the setting that has the name of a flag, as the file writes it.
fn default_in_file(long: &str) -> Option<toml::Value> {
    let table: toml::Table = toml::from_str(&Config::default().to_toml()).unwrap();
    table.values().find_map(|section| section.get(long.replace('-', "_")).cloned())
}

#[test]
fn what_the_help_of_a_flag_calls_its_default_is_the_default() {
    let mut unstated = Vec::new();
    for arg in CommandLine::command().get_arguments() {
        let long = arg.get_long().unwrap();
        let Some(stated) = stated_default(arg) else {
            unstated.push(long.to_owned());
            continue;
        };
        // The value comes first; words after a comma explain it.
        let value = stated.split(',').next().unwrap();
        match default_in_file(long) {
            // The daemon decides at start, and words describe the choice.
            Some(toml::Value::String(auto)) if auto == "auto" && stated.contains(' ') => {}
            Some(toml::Value::Array(all)) if value == "none" => assert!(all.is_empty(), "--{long} has values by default"),
            _ => {
                let line = CommandLine::try_parse_from(["kvshare", &format!("--{long}={value}")]).unwrap();
                assert_eq!(Config::resolve(line.config).unwrap(), Config::default(), "--{long} is not {value} by default");
            }
        }
    }
    // A file, secrets, and settings that are off unless given.
    assert_eq!(unstated, ["config", "hub-offline", "hub-token", "load-format", "tokenizer", "embedder-model"]);
}

#[test]
fn the_limits_of_a_step_are_stated_for_both_kinds_of_device() {
    let engine = EngineConfig::default();
    let (cpu, gpu) = (engine.batch_limits(Device::Cpu), engine.batch_limits(Device::Cuda(0)));
    for (long, cpu, gpu) in [("max-num-batched-tokens", cpu.0, gpu.0), ("max-num-seqs", cpu.1, gpu.1)] {
        let command = CommandLine::command();
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(long)).unwrap();
        assert_eq!(stated_default(arg).unwrap(), format!("{cpu}, on a GPU {gpu}"));
        let file = include_str!("../../../../configs/default.toml");
        assert!(file.contains(&format!("\"auto\": {cpu}, on a GPU {gpu}.")), "{long}");
    }
}
