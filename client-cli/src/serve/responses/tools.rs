//! The tools of a request, in their flat form, as those of a chat.

use serde_json::{Map, Value, json};

use super::super::error::ApiError;

/// The tools as chats have them.
///
/// # Errors
/// 400, naming the tool, if it is none that the client itself runs.
pub(super) fn tools(tools: Option<Value>) -> Result<Vec<Value>, ApiError> {
    let list = match tools {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(ApiError::field("tools", "must be a list of tools")),
    };
    let tool = |(number, mut tool): (usize, Value)| {
        match tool.get("type").and_then(Value::as_str) {
            Some("function") => {}
            Some(kind) => {
                let message = format!(
                    "is {kind}, which this server cannot run; it knows tools of type function alone: leave it out, or turn it off in \
                     your client"
                );
                return Err(ApiError::field(format!("tools[{number}].type"), message));
            }
            None => {
                return Err(ApiError::field(format!("tools[{number}]"), "must be an object with the type function"));
            }
        }
        // In the order in which models see them.
        let parts = ["name", "description", "parameters", "strict"].into_iter().filter_map(|name| {
            let value = tool.get_mut(name)?.take();
            let says_nothing = value.is_null() || (name == "strict" && value == json!(false));
            (!says_nothing).then(|| (name.to_owned(), value))
        });
        let function: Map<String, Value> = parts.collect();
        Ok(json!({ "type": "function", "function": function }))
    };
    list.into_iter().enumerate().map(tool).collect()
}

/// Which tool must be called, as chats have it; of `tools` those stay that may be.
///
/// # Errors
/// 400, naming the field.
pub(super) fn tool_choice(choice: Option<Value>, tools: &mut Vec<Value>) -> Result<Option<Value>, ApiError> {
    let Some(choice) = choice else { return Ok(None) };
    if choice.is_string() {
        return Ok(Some(choice));
    }
    match choice.get("type").and_then(Value::as_str) {
        Some("function") => Ok(Some(json!({ "type": "function", "function": { "name": choice.get("name") } }))),
        Some("allowed_tools") => {
            let Some(mode @ ("auto" | "required")) = choice.get("mode").and_then(Value::as_str) else {
                return Err(ApiError::field("tool_choice.mode", "must be auto or required"));
            };
            let allowed = choice.get("tools").and_then(Value::as_array);
            let Some(allowed) = allowed else { return Err(ApiError::field("tool_choice.tools", "must be a list")) };
            let names: Vec<&Value> = allowed.iter().filter_map(|tool| tool.get("name")).collect();
            let name = |tool: &Value| tool.pointer("/function/name").cloned().unwrap_or_default();
            if names.len() < allowed.len() || !names.iter().all(|&named| tools.iter().any(|tool| name(tool) == *named))
            {
                return Err(ApiError::field("tool_choice.tools", "may only name functions that are among the `tools`"));
            }
            tools.retain(|tool| names.contains(&&name(tool)));
            Ok(Some(mode.into()))
        }
        Some(kind) => {
            let message = format!("is {kind}, this server knows function and allowed_tools");
            Err(ApiError::field("tool_choice.type", message))
        }
        None => Err(ApiError::field("tool_choice", "must be none, auto, required, or an object with a type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn param(error: ApiError) -> String {
        error.json()["error"]["param"].as_str().unwrap_or_default().to_owned()
    }

    fn flat(name: &str) -> Value {
        json!({"type": "function", "name": name, "parameters": {"z": 1, "a": 2}, "description": "d", "strict": false})
    }

    #[test]
    fn flat_tools_become_those_of_chats() {
        let list = json!([flat("look"), {"type": "function", "strict": true, "name": "go", "parameters": null}]);
        let expected = r#"[{"type":"function","function":{"name":"look","description":"d","parameters":{"z":1,"a":2}}},{"type":"function","function":{"name":"go","strict":true}}]"#;
        assert_eq!(Value::from(tools(Some(list)).unwrap()).to_string(), expected, "keys in their order");
        for (list, name) in [
            (json!({}), "tools"),
            (json!([flat("a"), {"type": "web_search"}]), "tools[1].type"),
            (json!([{"name": "a"}]), "tools[0]"),
        ] {
            assert_eq!(tools(Some(list.clone())).map_err(param), Err(name.to_owned()), "{list}");
        }
        let error = tools(Some(json!([{"type": "web_search"}]))).unwrap_err().json().to_string();
        assert!(error.contains("web_search"), "{error}");
    }

    #[test]
    fn the_choice_of_a_tool_becomes_that_of_chats() {
        let chosen = |choice: Value| {
            let mut list = tools(Some(json!([flat("look"), flat("go")]))).map_err(param)?;
            let choice = tool_choice(Some(choice), &mut list).map_err(param)?;
            Ok::<_, String>((choice.unwrap_or_default(), list.len()))
        };
        assert_eq!(chosen(json!("required")), Ok((json!("required"), 2)));
        let named = json!({"type": "function", "function": {"name": "go"}});
        assert_eq!(chosen(json!({"type": "function", "name": "go"})), Ok((named, 2)));
        let allowed = |mode: &str, name: &str| json!({"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": name}]});
        assert_eq!(chosen(allowed("required", "go")), Ok((json!("required"), 1)));
        assert_eq!(chosen(allowed("auto", "go")), Ok((json!("auto"), 1)));
        assert_eq!(chosen(allowed("auto", "fly")), Err("tool_choice.tools".to_owned()));
        assert_eq!(chosen(allowed("none", "go")), Err("tool_choice.mode".to_owned()));
        assert_eq!(chosen(json!({"type": "web_search"})), Err("tool_choice.type".to_owned()));
        assert_eq!(chosen(json!(3)), Err("tool_choice".to_owned()));
        assert_eq!(tool_choice(None, &mut Vec::new()), Ok(None));
    }
}
