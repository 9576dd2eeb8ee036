//! What a bug tracker needs, in a file: this build, this machine, the answers and the log, without what is nobody's business.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::answers::Answers;
use super::redact::Redacted;
use crate::args::{DoctorArgs, version};
use crate::error::NodeError;

/// Variables of the environment that change what a node does. Of most of them only whether they are set is told.
const VARIABLES: [&str; 10] = [
    "PETALS_PEERS",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "HTTPS_PROXY",
    "LD_LIBRARY_PATH",
    "RAYON_NUM_THREADS",
    "XDG_CACHE_HOME",
];
/// Variables whose values tell nothing of anybody.
const SHOWN: [&str; 3] = ["RUST_LOG", "CUDA_VISIBLE_DEVICES", "VK_ICD_FILENAMES"];
/// Words of processors that decide which kernels run.
const INSTRUCTIONS: [&str; 8] = ["avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16"];

/// A file that is to become a report.
pub(super) struct Report {
    file: File,
    path: PathBuf,
}

impl Report {
    /// Makes the file, before anything is checked that takes its time. Nothing is overwritten.
    pub(super) fn create(path: &Path) -> Result<Self, NodeError> {
        let file = File::options().write(true).create_new(true).open(path);
        let what = || format!("cannot make the report {}: name a file that does not exist yet", path.display());
        let file = file.with_context(what).map_err(NodeError::input)?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Writes the report, and tells where it is.
    pub(super) fn write(
        mut self,
        args: &DoctorArgs,
        answers: &Answers,
        outcome: &Result<(), NodeError>,
        log: &[String],
    ) -> Result<String, NodeError> {
        let mut redacted = Redacted::without(&private(args));
        let text = redacted.text(&whole(answers, outcome, log));
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        written.with_context(|| format!("cannot write the report {}", self.path.display()))?;
        Ok(self.path.display().to_string())
    }
}

/// Words that are this user's: paths that were given, the home directory, the names of user and machine.
fn private(args: &DoctorArgs) -> Vec<(&'static str, String)> {
    let network = &args.network;
    let given = [&args.model, &network.identity, &network.swarm_key, &args.report].into_iter().flatten();
    let mut words: Vec<(&str, String)> = given.map(|path| ("path", path.display().to_string())).collect();
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    words.extend(std::env::current_dir().ok().map(|path| ("path", path.display().to_string())));
    words.extend(variable("HOME").map(|home| ("path", home)));
    words.extend(variable("USER").or_else(|| variable("LOGNAME")).map(|user| ("user", user)));
    words.extend(read("/proc/sys/kernel/hostname").map(|host| ("host", host)));
    words
}

fn whole(answers: &Answers, outcome: &Result<(), NodeError>, log: &[String]) -> String {
    let mut text = String::from(
        "What went wrong, and what did you expect? (Please write it here, and read the rest before you pass it on.)\n\n\n",
    );
    section(&mut text, "Program", &[format!("petals-node {}", version()), command_line()]);
    section(&mut text, "Machine", &machine());
    let mut said = answers.said().to_vec();
    if let Err(error) = outcome {
        said.push(format!("stopped: {error}"));
    }
    section(&mut text, "Answers", &said);
    section(&mut text, "Log", log);
    text
}

fn section(text: &mut String, title: &str, lines: &[String]) {
    let lines = if lines.is_empty() { "(nothing)".to_owned() } else { lines.join("\n") };
    // A `String` takes everything.
    let _ = writeln!(text, "## {title}\n\n```\n{lines}\n```\n");
}

fn command_line() -> String {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into()).collect();
    format!("petals-node {}", arguments.join(" "))
}

fn machine() -> Vec<String> {
    let release = read("/etc/os-release").unwrap_or_default();
    let system =
        release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown").trim_matches('"');
    let kernel = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned());
    let mut lines = vec![format!(
        "system     {} {}, {system}, kernel {kernel}{}",
        std::env::consts::OS,
        std::env::consts::ARCH,
        if Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists() {
            ", in a container"
        } else {
            ""
        }
    )];
    let cpu = read("/proc/cpuinfo").unwrap_or_default();
    let field = |names: [&str; 2]| {
        let line = cpu.lines().find(|line| names.iter().any(|name| line.starts_with(name)));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let flags = field(["flags", "Features"]);
    let flags: Vec<&str> = flags.split(' ').filter(|flag| INSTRUCTIONS.contains(flag)).collect();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    lines.push(format!("processor  {cores} threads of {}; {}", field(["model name", "CPU part"]), flags.join(" ")));
    let memory = read("/proc/meminfo").unwrap_or_default();
    let of = |name: &str| memory.lines().find(|line| line.starts_with(name)).map(|line| line.replace(' ', ""));
    lines.push(format!(
        "memory     {}",
        [of("MemTotal"), of("MemAvailable"), of("SwapTotal")].map(Option::unwrap_or_default).join(" ")
    ));
    if let Some(driver) = read("/proc/driver/nvidia/version") {
        lines.push(format!("nvidia     {}", driver.lines().next().unwrap_or_default()));
    }
    let set = VARIABLES.into_iter().filter(|name| std::env::var_os(name).is_some()).map(str::to_owned);
    let shown = SHOWN.into_iter().filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)));
    let variables: Vec<String> = set.chain(shown).collect();
    lines.push(format!(
        "variables  {}",
        if variables.is_empty() { "none of ours".to_owned() } else { variables.join(" ") }
    ));
    lines
}

fn read(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_build_and_machine_this_is_and_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.txt");
        drop(Report::create(&path).unwrap());
        let refused = Report::create(&path).err().unwrap();
        assert!(refused.to_string().contains("does not exist yet") && refused.exit_code() == 2, "{refused}");
        let failed = Err(NodeError::from(anyhow::anyhow!("no room")));
        let text = whole(&Answers::new(true), &failed, &["a line of the log".to_owned()]);
        for part in [&version(), std::env::consts::ARCH, "processor", "stopped: no room", "a line of the log"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
