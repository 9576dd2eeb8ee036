use clap::CommandFactory;
use clap::error::ErrorKind;
use petals_client::{Injection, ModelConfig, Projections, Task, TextRules, TuningMode};

use super::method::MethodArgs;
use super::*;
use crate::data::BatchOrder;

const PEER: &str = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";

fn parse(command: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(command.split_whitespace())
}

fn projections() -> Projections {
    let config = r#"{"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2}"#;
    ModelConfig::from_json(config).unwrap().projections()
}

fn train(flags: &str) -> Result<Box<TrainArgs>, clap::Error> {
    let fixed = "--mode deep_ptune --prefix-len 4 --task seq-cls --data d.jsonl --out o";
    let cli = parse(&format!("petals-tune train --model m --peers {PEER} {fixed} {flags}"))?;
    let Command::Train(args) = cli.command else { panic!("another command") };
    Ok(args)
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_is_understood_as_documented() {
    let swarm = format!("--model m --peers {PEER} {PEER} --peers {PEER} --json");
    for command in [
        "eval --adapter a --data d.jsonl",
        "generate --prompt hello --max-new-tokens 8 --temperature 0.7 --top-k 40 --top-p 0.9 --seed 1",
        "generate --adapter a --prompt hello --max-new-tokens 8",
        "logits --adapter a --input-ids i.json --out l.safetensors",
        "route",
    ] {
        let cli = parse(&format!("petals-tune {command} {swarm}")).unwrap();
        assert!(cli.json);
        if let Command::Route(args) = cli.command {
            assert_eq!(args.swarm.network.peers, [PEER; 3]);
        }
    }
    let all = "--injection add --eval e.jsonl --epochs 2 --batch-size 8 --lr 0.1 --weight-decay 0.01 --schedule linear \
               --warmup 3 --clip 0 --max-length 64 --micro-batch-tokens 256 --seed 5 --init sample-vocab --init-from i \
               --no-shuffle --save-every 10 --resume --json";
    let args = train(all).unwrap();
    assert_eq!((args.method.injection(), args.optimiser.length()), (Injection::Add, TrainLength::Epochs(2)));
    let rules = args.text.rules(512, 4, None).unwrap();
    assert_eq!((args.optimiser.order(), rules.max_length), (BatchOrder::File, Some(64)));
}

#[test]
fn ptune_has_no_injection_and_deep_ptune_replaces_by_default() {
    assert_eq!(train("").unwrap().method.injection(), Injection::Replace);
    let plain = MethodArgs { mode: TuningMode::PTUNE, ..train("--injection add").unwrap().method };
    assert_eq!(plain.injection(), Injection::None);
}

#[test]
fn what_follows_from_held_out_data_needs_some() {
    for flags in ["--select best", "--patience 2", "--select best --eval e.jsonl", "--patience 2 --eval-every 5"] {
        let args = train(flags).unwrap();
        let refused = args.report.check(args.eval.is_some(), args.learning.task()).unwrap_err();
        assert!(refused.contains("--eval-every") && refused.contains("--eval FILE"), "{flags}: {refused}");
    }
    let args = train("--select best --patience 2 --eval e.jsonl --eval-every 5").unwrap();
    assert_eq!(args.report.check(args.eval.is_some(), args.learning.task()), Ok(()));
}

#[test]
fn texts_are_gone_on_with_where_there_are_some() {
    let check = |args: TrainArgs, task| args.report.check(args.eval.is_some(), task);
    let without = check(*train("--eval-generate 2").unwrap(), Task::CausalLm).unwrap_err();
    assert!(without.contains("--eval FILE"), "{without}");
    let args = *train("--eval-generate 2 --eval e.jsonl").unwrap();
    assert_eq!((args.report.eval_generate, args.report.eval_generate_tokens), (Some(2), 48));
    assert_eq!(check(args.clone(), Task::CausalLm), Ok(()));
    let refused = check(args, Task::SeqCls).unwrap_err();
    assert!(refused.contains("--eval-generate") && refused.contains("seq-cls"), "{refused}");
}

#[test]
fn starts_of_prompts_are_refused_where_there_are_none() {
    for (flag, mode) in [("--init sample-vocab", "lora"), ("--init data", "ia3"), ("--init-deep zeros", "prefix")] {
        let args = train(flag).unwrap();
        let refused = args.start.check(mode.parse().unwrap()).unwrap_err();
        assert!(refused.starts_with(flag.split(' ').next().unwrap()) && refused.contains(mode), "{refused}");
    }
    assert_eq!(train("--init sample-vocab").unwrap().start.check("prefix+lora".parse().unwrap()), Ok(()));
    let both: TuningMode = "deep_ptune+lora".parse().unwrap();
    assert_eq!(train("--init sample-vocab --init-deep zeros").unwrap().start.check(both), Ok(()));
}

#[test]
fn a_run_is_one_epoch_unless_told_otherwise() {
    assert_eq!(train("").unwrap().optimiser.length(), TrainLength::Epochs(1));
    assert_eq!(train("--steps 7").unwrap().optimiser.length(), TrainLength::Steps(7));
    assert_eq!(train("--steps 7 --epochs 1").unwrap_err().kind(), ErrorKind::ArgumentConflict);
}

#[test]
fn bad_values_are_refused_with_status_2_and_named() {
    for (flags, named) in [
        ("--lr -1", "--lr"),
        ("--clip nan", "--clip"),
        ("--batch-size 0", "--batch-size"),
        ("--schedule step", "--schedule"),
        ("--injection prepend", "--injection"),
        ("--give-up-after soon", "--give-up-after"),
        ("--wire-dtype int4", "--wire-dtype"),
        ("--init text", "--init-text"),
        ("--max-length 1", "--max-length"),
        ("--peers localhost", "--peers"),
        ("--allow me", "--allow"),
        ("--pin 0..4", "--pin"),
        ("--pin 4..0=12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj", "--pin"),
        ("--verify 1.5", "--verify"),
        ("--verify -1", "--verify"),
        ("--routes 0", "--routes"),
    ] {
        let error = train(flags).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn the_longest_example_fits_with_its_prefix() {
    let rules = |flags: &str, positions, prefix| train(flags).unwrap().text.rules(positions, prefix, None);
    let longest = |flags: &str, positions, prefix| rules(flags, positions, prefix).map(|rules| rules.max_length);
    assert_eq!(longest("", 4096, 16), Ok(Some(512)));
    assert_eq!(longest("", 512, 16), Ok(Some(496)), "the default is cut to what fits");
    assert_eq!(longest("--max-length 496", 512, 16), Ok(Some(496)));
    let refused = rules("--max-length 497", 512, 16).unwrap_err();
    assert!(refused.contains("--max-length 497") && refused.contains("at most 496"), "{refused}");
    assert!(rules("", 17, 16).unwrap_err().contains("--prefix-len"));
    let trained = |max_length| Some(TextRules { max_length, append_eos: true });
    let text = train("").unwrap().text;
    assert_eq!(text.rules(512, 16, trained(Some(64))), Ok(trained(Some(64)).unwrap()));
    assert_eq!(text.rules(512, 16, trained(None)).unwrap().max_length, Some(496), "adapters of PEFT do not say");
    assert_eq!(text.rules(512, 16, trained(Some(600))).unwrap().max_length, Some(496));
}

#[test]
fn columns_belong_to_their_task() {
    let columns = |flags: &str, task| train(flags).unwrap().text.columns(task);
    assert!(columns("--label-column stars", Task::CausalLm).unwrap_err().contains("--label-column"));
    assert!(columns("--prompt-column q --completion-column a", Task::SeqCls).unwrap_err().contains("--prompt-column"));
    assert_eq!(
        columns("--text-column review --label-column stars", Task::SeqCls).unwrap().label.as_deref(),
        Some("stars")
    );
    assert!(train("--prompt-column q").unwrap_err().to_string().contains("--completion-column"));
}

#[test]
fn a_swarm_can_be_found_without_addresses() {
    let command = "petals-tune train --model m --mode ptune --prefix-len 4 --task seq-cls --data d.jsonl --out o";
    assert!(parse(&format!("{command} --validate")).is_ok());
    let Command::Train(args) = parse(command).unwrap().command else { panic!("another command") };
    assert!(
        args.swarm.network.network().peers.is_empty(),
        "the local network is searched, and members met before are tried"
    );
}

#[test]
fn settings_change_with_the_flags_that_shape_the_curve_only() {
    let settings = |flags: &str| {
        let args = train(flags).unwrap();
        args.settings(&args.method.method(&projections(), None).unwrap(), "digest", 64, None)
    };
    assert_eq!(settings(""), settings("--micro-batch-tokens 1 --save-every 1 --steps 9 --resume"));
    for flags in ["--lr 0.5", "--seed 1", "--clip 2", "--no-shuffle", "--injection add", "--batch-size 3"] {
        let flag = flags.split(' ').next().unwrap();
        let (was, now) = (settings(""), settings(flags));
        let changed: Vec<&String> = was.keys().filter(|key| was.get(*key) != now.get(*key)).collect();
        assert_eq!(changed, [flag]);
    }
}

#[test]
fn servers_are_named_by_their_ids() {
    let peer = PEER.rsplit('/').next().unwrap();
    let rules = train(&format!("--allow {peer} {peer} --block {peer} --pin 0..2={peer} 3={peer} --trusted {peer}"));
    let rules = rules.unwrap().swarm.route.rules();
    let peer = peer.parse().unwrap();
    assert_eq!((rules.allow.len(), rules.block.contains(&peer), rules.trusted.contains(&peer)), (1, true, true));
    assert_eq!(rules.pins, [("0..2".parse().unwrap(), peer), ("3..4".parse().unwrap(), peer)]);
}

#[test]
fn benchmarks_have_sizes_that_fit_their_kind() {
    let bench = |flags: &str| {
        let cli = parse(&format!("petals-tune bench {flags} --model m --peers {PEER}")).unwrap();
        let Command::Bench(args) = cli.command else { panic!("another command") };
        args
    };
    let args = bench("forward decode");
    assert_eq!(args.what, [BenchKind::Forward, BenchKind::Decode]);
    let batch = |args: &BenchArgs, kind| args.workload(kind, &projections()).unwrap().batch;
    assert_eq!((batch(&args, BenchKind::Forward), batch(&args, BenchKind::Decode)), (4, 1));
    assert!(args.repeat(BenchKind::Hop) > args.repeat(BenchKind::Train));
    let args = bench("train --mode ptune --injection add --batch 8 --repeat 3");
    assert_eq!((batch(&args, BenchKind::Decode), args.repeat(BenchKind::Hop)), (8, 3));
    assert_eq!(args.workload(BenchKind::Train, &projections()).unwrap().method.injection, Injection::None);
    assert!(parse(&format!("petals-tune bench --model m --peers {PEER}")).is_err(), "nothing to time");
}
