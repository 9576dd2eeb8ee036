//! Classes: the labels of a data set in their fixed order.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A class as the data names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Label {
    /// A number, ordered by value.
    Number(i64),
    /// A text, ordered by its code points.
    Text(String),
}

/// The classes of a classifier: row `i` of the score head belongs to the `i`-th label in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Label>", into = "Vec<Label>")]
pub struct LabelMap(Vec<Label>);

/// Why labels are not the classes of one classifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// Numbers and texts have no common order.
    #[error("the label {number} is a number and the label {text:?} is a text: use one kind")]
    Mixed {
        /// A number among the labels.
        number: i64,
        /// A text among the labels.
        text: String,
    },
    /// Nothing to tell apart.
    #[error("a classifier needs at least two different labels, found {0}")]
    TooFew(usize),
    /// A saved list is not ascending, so its rows cannot be trusted.
    #[error("the labels are not in ascending order")]
    Unordered,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

impl LabelMap {
    /// The distinct labels in ascending order: numbers by value, texts by alphabet.
    ///
    /// # Errors
    /// [`LabelError::Mixed`] for both kinds at once, [`LabelError::TooFew`] for less than two different labels.
    pub fn from_labels(labels: impl IntoIterator<Item = Label>) -> Result<Self, LabelError> {
        let distinct: BTreeSet<Label> = labels.into_iter().collect();
        Self::try_from(distinct.into_iter().collect::<Vec<_>>())
    }

    /// The classes `0..count`, for a head that was saved without labels.
    ///
    /// # Errors
    /// [`LabelError::TooFew`] for less than two.
    pub fn numbered(count: usize) -> Result<Self, LabelError> {
        Self::try_from((0..).take(count).map(Label::Number).collect::<Vec<_>>())
    }

    /// Number of classes, at least 2.
    #[allow(clippy::len_without_is_empty, reason = "a label map is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The class that a label names.
    pub fn class_of(&self, label: &Label) -> Option<usize> {
        self.0.binary_search(label).ok()
    }

    /// The label of a class.
    pub fn label(&self, class: usize) -> Option<&Label> {
        self.0.get(class)
    }

    /// Every label, in ascending order.
    pub fn labels(&self) -> &[Label] {
        &self.0
    }
}

impl TryFrom<Vec<Label>> for LabelMap {
    type Error = LabelError;

    fn try_from(labels: Vec<Label>) -> Result<Self, Self::Error> {
        if let (Some(Label::Number(number)), Some(Label::Text(text))) = (labels.first(), labels.last()) {
            return Err(LabelError::Mixed { number: *number, text: text.clone() });
        }
        if labels.len() < 2 {
            return Err(LabelError::TooFew(labels.len()));
        }
        if !labels.is_sorted_by(|a, b| a < b) {
            return Err(LabelError::Unordered);
        }
        Ok(Self(labels))
    }
}

impl From<LabelMap> for Vec<Label> {
    fn from(map: LabelMap) -> Self {
        map.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(labels: &[&str]) -> Vec<Label> {
        labels.iter().map(|&text| Label::Text(text.to_owned())).collect()
    }

    #[test]
    fn numbers_are_ordered_by_value_and_texts_by_alphabet() {
        let numbers = LabelMap::from_labels([10, -1, 2, 10].map(Label::Number)).unwrap();
        assert_eq!(numbers.labels(), [-1, 2, 10].map(Label::Number));
        assert_eq!(numbers.class_of(&Label::Number(10)), Some(2));
        let words = LabelMap::from_labels(texts(&["b", "a10", "a2"])).unwrap();
        assert_eq!(words.labels(), texts(&["a10", "a2", "b"]));
        assert_eq!(words.class_of(&Label::Text("c".into())), None);
    }

    #[test]
    fn what_is_not_a_set_of_classes_is_refused() {
        let mixed = LabelMap::from_labels([Label::Number(1), Label::Text("1".into())]);
        assert_eq!(mixed, Err(LabelError::Mixed { number: 1, text: "1".into() }));
        assert_eq!(LabelMap::from_labels(texts(&["a", "a"])), Err(LabelError::TooFew(1)));
        assert!(serde_json::from_str::<LabelMap>(r#"["b", "a"]"#).is_err());
        assert!(serde_json::from_str::<LabelMap>(r#"["a", "a"]"#).is_err());
    }

    #[test]
    fn labels_survive_json() {
        let map = LabelMap::from_labels(texts(&["no", "yes"])).unwrap();
        let json = serde_json::to_string(&map).unwrap();
        assert_eq!(json, r#"["no","yes"]"#);
        assert_eq!(serde_json::from_str::<LabelMap>(&json).unwrap(), map);
    }
}
