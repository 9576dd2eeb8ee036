//! The names under which the model and its adapters are served.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use petals_client::PromptTables;
use serde_json::{Value, json};

use super::error::ApiError;
use crate::chat::strftime;

/// The model, alone or behind an adapter's prompts.
#[derive(Debug)]
pub(crate) struct ServedModel {
    /// `MODEL` or `MODEL:ADAPTER`.
    pub(super) name: String,
    /// The adapter's prompts.
    pub(super) tables: Option<Arc<PromptTables>>,
    /// Most tokens of a text, prompt included.
    pub(super) room: usize,
}

/// Everything that is served.
#[derive(Debug)]
pub(crate) struct Models {
    served: Vec<Arc<ServedModel>>,
    created: u64,
}

impl Models {
    /// The model `base`, of texts up to `positions` tokens, alone and with each adapter.
    pub(crate) fn new(base: &str, positions: usize, adapters: Vec<(String, Arc<PromptTables>)>) -> Self {
        let alone = ServedModel { name: base.to_owned(), tables: None, room: positions };
        let adapted = adapters.into_iter().map(|(adapter, tables)| {
            let room = positions.saturating_sub(tables.shape().prefix_len);
            ServedModel { name: format!("{base}:{adapter}"), tables: Some(tables), room }
        });
        let served = std::iter::once(alone).chain(adapted).map(Arc::new).collect();
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self { served, created }
    }

    /// The names, the model alone first.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.served.iter().map(|model| model.name.as_str()).collect()
    }

    /// What is served under a name; the model without adapters if the name is empty, as for requests that name none.
    ///
    /// # Errors
    /// 404 if nothing is.
    pub(super) fn find(&self, name: &str) -> Result<Arc<ServedModel>, ApiError> {
        let found = self.served.iter().find(|model| name.is_empty() || model.name == name);
        found.cloned().ok_or_else(|| ApiError::unknown_model(name, &self.names()))
    }

    /// `/v1/models`.
    pub(super) fn list(&self) -> Value {
        let data: Vec<Value> = self.served.iter().map(|model| self.describe(model)).collect();
        json!({ "object": "list", "data": data })
    }

    /// `/v1/models` as Anthropic's clients read it.
    pub(super) fn list_for_anthropic(&self) -> Value {
        let data: Vec<Value> = self.served.iter().map(|model| self.describe_for_anthropic(model)).collect();
        let id = |model: Option<&Arc<ServedModel>>| model.map(|model| model.name.clone());
        let (first, last) = (id(self.served.first()), id(self.served.last()));
        json!({ "data": data, "has_more": false, "first_id": first, "last_id": last })
    }

    /// `/v1/models/NAME` as Anthropic's clients read it.
    pub(super) fn describe_for_anthropic(&self, model: &ServedModel) -> Value {
        json!({
            "type": "model", "id": model.name, "display_name": model.name, "lifecycle": "active",
            "created_at": strftime("%Y-%m-%dT%H:%M:%SZ", self.created), "max_input_tokens": model.room,
        })
    }

    /// `/v1/models/NAME`.
    pub(super) fn describe(&self, model: &ServedModel) -> Value {
        let parent = model.tables.as_ref().and_then(|_| self.served.first()).map(|base| &base.name);
        json!({
            "id": model.name, "object": "model", "created": self.created, "owned_by": "petals",
            "root": parent.unwrap_or(&model.name), "parent": parent, "max_model_len": model.room,
        })
    }
}
