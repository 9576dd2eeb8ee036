//! What `--version` says.

/// The version of a program, with what else tells two builds apart: the commit it was built from (the value of the variable
/// `PETALS_COMMIT` at build time, see `build/commit.rs`), what it speaks, and the features that it was built with.
pub fn version(number: &str, commit: Option<&str>, wire: &str, features: &[(&str, bool)]) -> String {
    let features: Vec<&str> = features.iter().filter_map(|(name, built)| built.then_some(*name)).collect();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(" ") };
    let commit = commit.filter(|commit| !commit.is_empty()).unwrap_or("unknown");
    format!("{number} (commit {commit}, {wire}, features {features})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_told_from_another_one() {
        let gpu = version("0.1.0", Some("bc20468f1e2a"), "wire 4", &[("cuda", true), ("vulkan", true)]);
        assert_eq!(gpu, "0.1.0 (commit bc20468f1e2a, wire 4, features cuda vulkan)");
        let plain = version("0.1.0", None, "wire 4", &[("cuda", false)]);
        assert_eq!(plain, "0.1.0 (commit unknown, wire 4, features none)");
    }
}
