//! The terminal on stderr: progress bars, and everything else that must not be written across them.

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;

use indicatif::MultiProgress;
use petals_client::is_printable;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// The bars on stderr; hidden if stderr is not a terminal.
pub(crate) fn bars() -> &'static MultiProgress {
    &BARS
}

/// Does something that writes to the terminal while the bars are out of the way.
pub(crate) fn around_bars<T>(write: impl FnOnce() -> T) -> T {
    BARS.suspend(write)
}

/// A text of several lines without what a terminal would obey: parts of an error may be the words of strangers.
pub(crate) fn plain(text: &str) -> String {
    text.chars().filter(|c| *c == '\n' || is_printable(*c)).collect()
}

/// Makes room for a new picture, if stdout is a terminal.
pub(crate) fn clear() {
    if io::stdout().is_terminal() {
        // To the upper left corner, and nothing below.
        print!("\x1b[H\x1b[J");
    } else {
        println!();
    }
}

/// Sends logs to stderr. RUST_LOG decides what is logged; else warnings, and with more `verbose` more of ours.
pub(crate) fn init_logging(verbose: u8) {
    let default = match verbose {
        0 => "warn,libp2p_kad=error",
        1 => "warn,petals_client=info,petals_swarm=info,petals_tune=info",
        _ => "info,petals_client=debug,petals_swarm=debug,petals_tune=debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(AroundBars)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// Makes writers to stderr that keep clear of the bars.
struct AroundBars;

/// One log line on its way to stderr.
struct LogLine;

impl MakeWriter<'_> for AroundBars {
    type Writer = LogLine;

    fn make_writer(&self) -> LogLine {
        LogLine
    }
}

impl Write for LogLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        around_bars(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn words_of_strangers_do_not_move_the_cursor() {
        assert_eq!(plain("server says \u{1b}[2J\rno\nnext"), "server says [2Jno\nnext");
    }
}
