//! The help of every flag states the default that holds.

use clap::{CommandFactory, Parser};

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    config: ConfigArgs,
}

/// `X` of a help that ends with `[default: X]`.
pub(crate) fn stated_default(arg: &clap::Arg) -> Option<String> {
    let help = arg.get_help()?.to_string();
    let (_, stated) = help.rsplit_once("[default: ")?;
    Some(stated.strip_suffix(']').expect("a stated default ends the help").to_owned())
}

/// Keys of settings that are found out at start.
fn found_out_at_start() -> Vec<String> {
    let table: toml::Table = toml::from_str(&Config::default().to_toml()).unwrap();
    let settings = table.values().flat_map(|section| section.as_table().unwrap());
    settings.filter(|(_, value)| value.as_str() == Some("auto")).map(|(key, _)| key.clone()).collect()
}

#[test]
fn what_the_help_of_a_flag_calls_its_default_is_the_default() {
    let (words, mut unstated) = (found_out_at_start(), Vec::new());
    for arg in Line::command().get_arguments() {
        let long = arg.get_long().unwrap();
        match stated_default(arg) {
            None => unstated.push(long.to_owned()),
            // Words say how it is found out.
            Some(stated) if stated.contains(' ') => assert!(words.contains(&long.replace('-', "_")), "--{long}: {stated}"),
            Some(stated) => {
                let line = Line::try_parse_from(["kvshare", &format!("--{long}={stated}")]).unwrap();
                assert_eq!(
                    Config::resolve(line.config).unwrap(),
                    Config::default(),
                    "--{long} is said to be {stated} by default"
                );
            }
        }
    }
    // A file, secrets, and what is off unless it is given.
    assert_eq!(unstated, ["config", "load-format", "tokenizer", "hub-offline", "hub-token", "embedder-model"]);
}

#[test]
fn the_limits_of_a_step_are_stated_for_both_kinds_of_device() {
    let engine = EngineConfig::default();
    let (cpu, gpu) = (engine.batch_limits(Device::Cpu), engine.batch_limits(Device::Cuda(0)));
    for (long, cpu, gpu) in [("max-num-batched-tokens", cpu.0, gpu.0), ("max-num-seqs", cpu.1, gpu.1)] {
        let command = Line::command();
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(long)).unwrap();
        assert_eq!(stated_default(arg).unwrap(), format!("{cpu}, on a GPU {gpu}"));
        let file = include_str!("../../../../configs/default.toml");
        assert!(file.contains(&format!("\"auto\": {cpu}, on a GPU {gpu}.")), "{long}");
    }
}
