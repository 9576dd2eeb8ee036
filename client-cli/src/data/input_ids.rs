//! Files of token ids.

use std::path::Path;

use super::error::DataError;

/// Reads a JSON list of rows of token ids. Every row has the same length, at least 1, and only tokens of the vocabulary.
///
/// # Errors
/// [`DataError::InputIds`] and [`DataError::InputRow`], with the row that is wrong.
pub(crate) fn read_input_ids(path: &Path, vocab_size: u32) -> Result<Vec<Vec<u32>>, DataError> {
    let text = std::fs::read_to_string(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    let rows: Vec<Vec<u32>> =
        serde_json::from_str(&text).map_err(|source| DataError::InputIds { path: path.to_owned(), source })?;
    let wrong = |row, problem| Err(DataError::InputRow { path: path.to_owned(), row, problem });
    let Some(first) = rows.first() else { return wrong(0, "is missing: the list is empty".to_owned()) };
    for (row, ids) in rows.iter().enumerate() {
        if ids.is_empty() {
            return wrong(row, "is empty".to_owned());
        }
        if ids.len() != first.len() {
            return wrong(row, format!("has {} tokens, row 0 has {}", ids.len(), first.len()));
        }
        if let Some(id) = ids.iter().find(|&&id| id >= vocab_size) {
            return wrong(row, format!("has the token {id}, the vocabulary ends at {}", vocab_size.saturating_sub(1)));
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_and_wrong_ones_named() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("ids.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_input_ids(&path, 10).map_err(|error| error.to_string().replace(&path.display().to_string(), "F"))
        };
        assert_eq!(read("[[1, 2], [3, 9]]").unwrap(), [[1, 2], [3, 9]]);
        assert_eq!(read("[[1], []]").unwrap_err(), "F: row 1 of token ids is empty");
        assert_eq!(read("[[1], [2, 3]]").unwrap_err(), "F: row 1 of token ids has 2 tokens, row 0 has 1");
        assert_eq!(read("[[10]]").unwrap_err(), "F: row 0 of token ids has the token 10, the vocabulary ends at 9");
        assert!(read("[]").unwrap_err().contains("the list is empty"));
        assert!(read("[1, 2]").unwrap_err().contains("list of rows"));
        assert!(read("[[-1]]").unwrap_err().contains("list of rows"));
    }
}
