use serde_json::{Value, json};

use super::*;
use crate::commands::train::metrics;

fn lines(events: &[Value]) -> String {
    events.iter().map(|event| format!("{event}\n")).collect()
}

fn run_in(root: &Path, name: &str, content: &str) -> PathBuf {
    let directory = root.join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(metrics::FILE), content).unwrap();
    directory
}

fn history(content: &str) -> Value {
    let root = tempfile::tempdir().unwrap();
    serde_json::to_value(History::read(&run_in(root.path(), "run", content)).unwrap()).unwrap()
}

fn refused(directory: &Path) -> String {
    let error = History::read(directory).unwrap_err();
    assert_eq!(error.status(), 2);
    error.to_string()
}

fn step(step: u64, loss: f64) -> Value {
    json!({"event": "step", "step": step, "loss": loss, "lr": 0.01, "tokens_per_s": 100.0, "grad_norm": 2.0, "sent": 10, "received": 4,
           "time": 100.0 + step as f64})
}

#[test]
fn a_history_has_all_that_a_run_wrote() {
    let failed =
        |step: u64| json!({"event": "hop_failed", "step": step, "peer": "p", "blocks": "0..4", "reason": "lost"});
    let matrix = json!({"labels": ["a", "b"], "matrix": [[1, 2], [3, 4]]});
    let hops = json!([{"peer": "p", "blocks": "0..4", "share": 1.0}]);
    let content = lines(&[
        json!({"event": "run", "step": 0, "settings": {"--lr": "0.01"}, "time": 99.5}),
        json!({"event": "route", "step": 1, "hops": hops}),
        step(1, 0.5),
        failed(2),
        failed(2),
        step(2, 0.25),
        json!({"event": "eval", "step": 2, "loss": 0.75, "accuracy": 0.5, "confusion": matrix}),
        json!({"event": "samples", "step": 2, "samples": [{"prompt": "p", "generated": "g"}]}),
        json!({"event": "resumed", "step": 2, "settings": {"--lr": "0.02"}}),
        step(3, 0.125),
        failed(3),
    ]);
    let history = history(&(content + "{\"event\": \"step\", \"ste"));
    let got = |path: &str| history.pointer(path).cloned().unwrap_or_default();
    assert_eq!(got("/began/settings/--lr"), "0.02");
    assert_eq!((got("/resumed"), got("/last_step"), got("/unknown")), (json!([2]), json!(3), json!(1)));
    assert_eq!(got("/figures/loss"), json!([[1.0, 0.5], [2.0, 0.25], [3.0, 0.125]]));
    assert_eq!((got("/bytes"), got("/time")), (json!([30.0, 12.0]), json!([99.5, 103.0])));
    assert_eq!(
        (got("/evals/0/accuracy"), got("/evals/0/confusion"), got("/confusion")),
        (json!(0.5), Value::Null, matrix)
    );
    assert_eq!(got("/failures/hop_failed"), json!([[2, 2], [3, 3]]));
    assert_eq!((got("/failed/2/step"), got("/samples/samples/0/generated")), (json!(3), json!("g")));
    assert_eq!(got("/lanes/0/parts"), json!([[1, 3, 1.0]]));
}

#[test]
fn files_of_earlier_versions_are_read() {
    let history = history(concat!(
        r#"{"event":"step","step":1,"loss":0.5,"lr":0.01,"tokens_per_s":9.0,"grad_norm":2.0,"sent":5,"received":4,"requests":2,"#,
        "\"block_forwards\":8,\"block_backwards\":8,\"left_s\":7.5}\n",
        r#"{"event":"eval","step":1,"loss":0.5,"accuracy":0.75}"#,
    ));
    assert_eq!((&history["began"], &history["unknown"], &history["last_step"]), (&Value::Null, &json!(0), &json!(1)));
}

#[test]
fn a_directory_without_a_run_is_refused_with_what_it_is() {
    let root = tempfile::tempdir().unwrap();
    assert!(refused(&root.path().join("nothing")).ends_with("nothing: there is no such directory"));
    assert!(refused(root.path()).contains("has no metrics.jsonl: is it a directory that `train` had as --out?"));
    let empty = run_in(root.path(), "empty", "\n{}\n[]\n{\"event\": 5}\n");
    assert!(refused(&empty).contains("no step yet"));
    assert!(refused(&empty.join(metrics::FILE)).contains("is a file"));
}

#[test]
fn a_page_is_whole_and_hostile_texts_stay_texts() {
    let root = tempfile::tempdir().unwrap();
    let hostile = "</script><script>alert(1)</script><!-- /*DATA*/ & \u{2028}";
    let content = lines(&[
        step(1, 0.5),
        json!({"event": "run", "step": 0, "settings": {hostile: hostile}, "labels": [hostile]}),
        json!({"event": "samples", "step": 1, "samples": [{"prompt": hostile}]}),
    ]);
    let history = History::read(&run_in(root.path(), "run", &content)).unwrap();
    let page = page(&[Run { name: hostile.into(), history }]).unwrap();
    assert_eq!(page.matches("<script").count(), 2, "the data and the script of the page");
    assert_eq!(page.matches("</script").count(), 2);
    assert_eq!(page.matches("<!--").count(), 1, "the comment of the page");
    let data = page.split("id=\"data\">").nth(1).and_then(|rest| rest.split("</script>").next()).unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!((&data[0]["name"], &data[0]["began"]["labels"][0]), (&json!(hostile), &json!(hostile)));
    for part in ["src=", "href=\"http", "url(http", "@import", "fetch("] {
        assert!(!page.contains(part), "{part} would load something");
    }
}

#[test]
fn numbers_beyond_all_measure_are_no_steps() {
    let step = |step: u64| json!({"event": "step", "step": step, "loss": 1.0});
    let route = json!({"event": "route", "step": u64::MAX, "hops": [{"peer": "p", "blocks": "0..18446744073709551615", "share": -1}]});
    let history = history(&lines(&[step(1), step(u64::MAX), route]));
    assert_eq!((&history["last_step"], &history["unknown"]), (&json!(1), &json!(2)));
}

#[test]
fn runs_are_called_by_what_tells_them_apart() {
    let names = |paths: &[&str]| names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
    assert_eq!(names(&["/nowhere/a/run", "/nowhere/b/other"]), ["run", "other"]);
    assert_eq!(names(&["/nowhere/a/run", "/nowhere/b/run"]), ["a/run", "b/run"]);
    assert_eq!(names(&["/nowhere/a/run", "/nowhere/a/run"]), ["//nowhere/a/run", "//nowhere/a/run"]);
}
