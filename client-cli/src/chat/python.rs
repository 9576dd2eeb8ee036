//! What transformers adds to Jinja for chat templates, and what templates expect of Python.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value};
use minijinja_contrib::{filters, globals};

use super::dates::strftime;
use super::{json, methods};

/// An exception of the template's own, as the cause of an [`Error`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// Adds functions, filters, tests and the methods of Python's types.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(methods::call);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        strftime(&format, now)
    });
    environment.add_function("cycler", |items: minijinja::value::Rest<Value>| globals::cycler(items.0));
    environment.add_function("joiner", globals::joiner);
    environment.add_filter("tojson", json::to_json);
    environment.add_filter("trim", |value: &Value, chars: Option<String>| {
        methods::strip(&value.to_string(), chars.as_deref()).to_owned()
    });
    environment.add_filter("striptags", filters::striptags);
    environment.add_filter("filesizeformat", filters::filesizeformat);
    super::filters::install(environment);
    environment
        .add_test("iterable", |value: &Value| value.is_undefined() || !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: &Value| {
        let kinds = [ValueKind::Undefined, ValueKind::String, ValueKind::Bytes, ValueKind::Seq, ValueKind::Map];
        kinds.contains(&value.kind()) || value.is_tuple()
    });
    // A truth value is a number in Python, though no integer to Jinja.
    environment.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    environment.add_test("callable", |value: &Value| {
        value.as_object().is_some_and(|object| object.repr() == minijinja::value::ObjectRepr::Plain)
    });
}

/// What the template said with `raise_exception`, if that is why it ended.
pub(super) fn raised(error: &Error) -> Option<String> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(raised) = error.downcast_ref::<Raised>() {
            return Some(raised.0.clone());
        }
        cause = error.source();
    }
    None
}
