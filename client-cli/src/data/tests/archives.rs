//! Data compressed by gzip.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

fn packed(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_format_may_be_compressed_whatever_its_name() {
    let fixture = Fixture::new();
    let files = [
        ("d.jsonl", "\u{feff}{\"text\": \"a b\"}\n{\"text\": \"c\"}\n"),
        ("d.json", "[{\"text\": \"a b\"}, {\"text\": \"c\"}]"),
        ("d.csv", "text\n\"a b\"\nc\n"),
        ("d.tsv", "text\tother\na b\t1\nc\t2\n"),
        ("t.txt", "a b c"),
    ];
    for (name, content) in files {
        let plain = fixture.load(name, content, &given(Task::CausalLm)).unwrap();
        let archive = packed(content.as_bytes());
        for name in [name.to_owned(), format!("{name}.gz"), format!("{name}.GZ")] {
            assert_eq!(fixture.load(&name, &archive, &given(Task::CausalLm)).unwrap(), plain, "{name}");
        }
    }
}

#[test]
fn archives_that_were_put_together_are_one() {
    let fixture = Fixture::new();
    let parts = ["{\"text\": \"a b\"}\n", "", "\u{feff}{\"text\": \"c\"}\n"];
    let together: Vec<u8> = parts.iter().flat_map(|part| packed(part.as_bytes())).collect();
    let dataset = fixture.load("d.jsonl.gz", together, &given(Task::CausalLm)).unwrap();
    assert_eq!((dataset.counts.rows, dataset.examples[0].clone()), (2, next(&[0, 3, 4], 1)));
}

#[test]
fn a_damaged_archive_is_named_and_its_beginning_is_not_learnt() {
    let fixture = Fixture::new();
    let many = |row: &dyn Fn(usize) -> String| (0..20_000).map(row).collect::<String>();
    let lines = many(&|at| format!("{{\"text\": \"a {at}\"}}\n"));
    let list = format!("[{}{{}}]", many(&|at| format!("{{\"text\": \"a {at}\"}},")));
    let table = format!("text\n{}", many(&|at| format!("a {at}\n")));
    for (name, content) in
        [("d.jsonl.gz", lines.clone()), ("d.json.gz", list), ("d.csv.gz", table), ("t.txt.gz", lines)]
    {
        let archive = packed(content.as_bytes());
        let cut = &archive[..archive.len() - 5];
        let mut flipped = archive.clone();
        flipped[archive.len() / 2] ^= 0xff;
        for damaged in [cut, &flipped] {
            let message = fixture.refused(name, damaged, &given(Task::CausalLm));
            assert!(message.starts_with(&format!("{name} is compressed by gzip, and damaged")), "{message}");
        }
    }
}

#[test]
fn what_is_in_an_archive_is_looked_at_as_a_file_is() {
    let fixture = Fixture::new();
    let refused = |content: &[u8]| fixture.refused("d.jsonl.gz", packed(content), &given(Task::CausalLm));
    assert!(refused(b"PAR1\x15\x04").contains("Parquet"));
    assert!(refused(&packed(b"{}")).contains("gzip twice"));
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(refused(&tar).contains("tar -x"));
    assert!(refused(b"{\"text\": 1}").starts_with("d.jsonl.gz:1: `text` is not a text"));
    assert!(refused(b"").contains("no usable examples"));
}
