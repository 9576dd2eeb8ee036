//! Values of a label column as classes.

use petals_client::Label;
use serde_json::Value;

use super::problem::Problem;

/// Whole numbers up to here are exact as floating-point numbers.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The class that a value names, and whether space was taken off. True and false are 1 and 0, and numbers such as `1.0`,
/// which programs write that know one kind of number only, are integers.
pub(super) fn parse(column: &str, value: &Value) -> Result<(Label, bool), Problem> {
    let name = || column.to_owned();
    match value {
        Value::Null => Err(Problem::NoLabel(name())),
        Value::Bool(yes) => Ok((Label::Number(i64::from(*yes)), false)),
        Value::String(text) => match text.trim() {
            "" => Err(Problem::NoLabel(name())),
            trimmed => Ok((Label::Text(trimmed.to_owned()), trimmed.len() != text.len())),
        },
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Ok((Label::Number(integer), false)),
            (None, Some(float)) => {
                let whole =
                    whole(float).ok_or_else(|| Problem::Fraction { column: name(), got: number.to_string() })?;
                Ok((Label::Number(whole), false))
            }
            (None, None) => Err(Problem::BadLabel { column: name(), got: number.to_string() }),
        },
        Value::Array(_) => Err(Problem::BadLabel { column: name(), got: "a list".to_owned() }),
        Value::Object(_) => Err(Problem::BadLabel { column: name(), got: "an object".to_owned() }),
    }
}

/// Labels of a table, which has texts alone, as numbers if all of them are: as programs that read tables take a column.
/// `numbers` says what they must be, if the classes are known.
pub(super) fn of_table(labels: &[Label], numbers: Option<bool>) -> Option<Vec<Label>> {
    if numbers == Some(false) {
        return None;
    }
    labels.iter().map(number).collect()
}

fn number(label: &Label) -> Option<Label> {
    match label {
        Label::Number(_) => Some(label.clone()),
        Label::Text(text) => {
            text.parse::<i64>().ok().or_else(|| text.parse::<f64>().ok().and_then(whole)).map(Label::Number)
        }
    }
}

fn whole(float: f64) -> Option<i64> {
    (float.fract() == 0.0 && float.abs() <= EXACT).then_some(float as i64)
}
