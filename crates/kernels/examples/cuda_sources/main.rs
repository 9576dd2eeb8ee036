//! Writes the CUDA C++ of every kernel, as it is launched for models of usual sizes, and needs no GPU.
//!
//! usage: cuda_sources FOLDER
//!
//! FOLDER gets a `.cu` file for each kernel, and `kernels.json` with an array of objects: the file's name without its ending, the kernel's function, what is
//! alike in several of it, the units of a cube, bytes of shared memory, and whether it is launched when tokens are generated. `scripts/check-cuda` compiles them.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use petals_kernels::Gpu;

mod attention;
mod others;
mod products;
mod runtime;

use runtime::{Paper, Printer, take_launched};

/// Writes what is launched.
struct Sources {
    gpu: Gpu<Printer>,
    folder: PathBuf,
    /// JSON objects.
    kernels: Vec<String>,
}

/// When a kernel is launched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// When tokens are generated.
    Decoding,
    /// When many rows pass, as in training.
    Training,
}

impl Sources {
    /// Launches, and writes what had not been launched before. A group is what figures are told of together.
    fn of(
        &mut self,
        when: When,
        group: &str,
        name: &str,
        launch: impl FnOnce(&Gpu<Printer>),
    ) -> Result<(), Box<dyn Error>> {
        launch(&self.gpu);
        // An answer comes when all that was asked for before has been done.
        self.gpu.memory()?;
        for (number, kernel) in take_launched().into_iter().enumerate() {
            // One launch may be of several kernels, and of one function compiled for several things.
            let function = kernel.entry.trim_end_matches("_kernel");
            let file = format!("{name}.{number}_{function}");
            std::fs::write(self.folder.join(&file).with_added_extension("cu"), &kernel.source)?;
            let group = if group.is_empty() { String::new() } else { format!(", {group}") };
            let mut object = String::new();
            write!(
                object,
                r#"{{"name": "{file}", "function": "{}", "group": "`{function}`{group}", "units": {}, "shared": {}, "decoding": {}}}"#,
                kernel.entry,
                kernel.units,
                kernel.shared,
                when == When::Decoding
            )?;
            self.kernels.push(object);
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: cuda_sources FOLDER")?;
    let folder = Path::new(&folder).to_owned();
    std::fs::create_dir_all(&folder)?;
    let mut sources = Sources { gpu: Gpu::new(&Paper), folder, kernels: Vec::new() };
    products::write(&mut sources)?;
    attention::write(&mut sources)?;
    others::write(&mut sources)?;
    std::fs::write(sources.folder.join("kernels.json"), format!("[\n{}\n]\n", sources.kernels.join(",\n")))?;
    println!("{} kernels in {}", sources.kernels.len(), sources.folder.display());
    Ok(())
}
