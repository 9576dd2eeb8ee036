//! What the user writes.

use std::io::{BufRead, IsTerminal};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tokio::sync::mpsc;

/// Longest line that is taken; a prompt of more is no message.
const LINE_BYTES: u64 = 4 << 20;

/// One thing the user did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// Wrote a line.
    Text(String),
    /// Pressed Ctrl-C.
    Interrupt,
    /// Pressed Ctrl-D, or the input is at its end.
    End,
}

/// Lines of stdin: edited on a terminal, as they are otherwise. Read on a thread, since nothing can interrupt reading.
#[derive(Debug)]
pub(super) struct Lines {
    wanted: SyncSender<()>,
    lines: mpsc::Receiver<Line>,
    asked: bool,
}

impl Lines {
    /// Opens stdin; `plain`: without editing, even on a terminal.
    pub(super) fn open(plain: bool) -> Self {
        let (wanted, asks) = sync_channel(1);
        let (sender, lines) = mpsc::channel(1);
        let edited = !plain && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        std::thread::spawn(move || if edited { edit(&asks, &sender) } else { read(&asks, &sender) });
        Self { wanted, lines, asked: false }
    }

    /// The next line. The prompt is shown only when this is called. Can be dropped and called again.
    pub(super) async fn next(&mut self) -> Line {
        if !self.asked {
            let _ = self.wanted.try_send(());
            self.asked = true;
        }
        let line = self.lines.recv().await.unwrap_or(Line::End);
        self.asked = false;
        line
    }
}

fn edit(asks: &Receiver<()>, sender: &mpsc::Sender<Line>) {
    let Ok(mut editor) = DefaultEditor::new() else { return read(asks, sender) };
    while asks.recv().is_ok() {
        let line = match editor.readline("> ") {
            Ok(text) => {
                let _ = editor.add_history_entry(&text);
                Line::Text(text)
            }
            Err(ReadlineError::Interrupted) => Line::Interrupt,
            Err(_) => Line::End,
        };
        if sender.blocking_send(line).is_err() {
            return;
        }
    }
}

fn read(asks: &Receiver<()>, sender: &mpsc::Sender<Line>) {
    let mut stdin = std::io::stdin().lock();
    while asks.recv().is_ok() {
        let mut bytes = Vec::new();
        let limited = &mut std::io::Read::take(&mut stdin, LINE_BYTES);
        let line = match limited.read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => Line::End,
            Ok(_) => Line::Text(String::from_utf8_lossy(&bytes).into_owned()),
        };
        let end = line == Line::End;
        if sender.blocking_send(line).is_err() || end {
            return;
        }
    }
}
