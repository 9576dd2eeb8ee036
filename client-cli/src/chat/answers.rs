//! Conversations as text of which it is known what the assistant said, for training.
//!
//! Some templates say it themselves, by `{% generation %}` blocks, which transformers reads for its `return_assistant_tokens_mask`.
//! For the others an answer is what its message adds: the conversation up to it is a text that goes on where the text of
//! what was before it, with the begin of an answer behind it, ends.

use std::iter;
use std::ops::Range;

use super::error::TemplateError;
use super::marks;
use super::template::{ChatTemplate, Told};

/// A conversation's text, and where the answers to be learnt are in it, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answered {
    /// The text.
    pub(crate) text: String,
    /// Ascending, disjoint parts of it.
    pub(crate) answers: Vec<Range<usize>>,
}

/// Why the answers of a conversation are not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AnswerError {
    /// It has no text.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The text up to an answer does not go on where the text before it ends.
    #[error(
        "the chat template writes the conversation before message {message} in another way once that message is there, so it \
         cannot be told what of the text is the answer: give a template with {{% generation %}} blocks by --chat-template"
    )]
    NotContinued {
        /// The message, counted from 1.
        message: usize,
    },
    /// The text has characters that answers are marked by.
    #[error("a message has the character U+{:04X}, which is no character of a text", u32::from(*.0))]
    Mark(char),
}

impl ChatTemplate {
    /// The text of a conversation with the answers that are to be learnt, `learnt` saying so of each message. Templates that
    /// show earlier answers in another way than the last one (without its thoughts) give a text for each answer.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub(crate) fn with_answers(&self, told: Told<'_>, learnt: &[bool]) -> Result<Vec<Answered>, AnswerError> {
        let wanted: Vec<usize> = (0..told.messages.len()).filter(|&at| learnt.get(at) == Some(&true)).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        if self.marks_answers(told)
            && let Some(answered) = self.marked(told, &wanted)?
        {
            return Ok(vec![answered]);
        }
        let texts = wanted.iter().map(|&at| self.up_to(told, at)).collect::<Result<Vec<_>, _>>()?;
        let whole = self.render_told(told, false, false)?;
        if texts.iter().all(|(text, _)| whole.starts_with(text)) {
            let answers = texts.into_iter().map(|(text, start)| start..text.len()).collect();
            return Ok(vec![Answered { text: whole, answers }]);
        }
        let alone = texts.into_iter().map(|(text, start)| {
            let answers = iter::once(start..text.len()).collect();
            Answered { text, answers }
        });
        Ok(alone.collect())
    }

    /// By the template's own marks; `None` if there are not as many as there are answers, and not all of them are wanted.
    fn marked(&self, told: Told<'_>, wanted: &[usize]) -> Result<Option<Answered>, AnswerError> {
        let messages = told.messages;
        // What is beside the messages may be shown as well.
        let beside = told.tools.into_iter().chain(told.variables.values());
        let foreign = messages.iter().chain(beside).find_map(|value| marks::first(&value.to_string()));
        if let Some(mark) = foreign {
            return Err(AnswerError::Mark(mark));
        }
        let (text, answers) = marks::take(&self.render_told(told, false, true)?);
        let of_assistant = (0..messages.len()).filter(|&at| messages[at]["role"] == "assistant");
        let of_assistant: Vec<usize> = of_assistant.collect();
        if of_assistant == wanted {
            return Ok(Some(Answered { text, answers }));
        }
        if of_assistant.len() != answers.len() {
            return Ok(None);
        }
        let answers = of_assistant.iter().zip(answers).filter(|(at, _)| wanted.contains(at)).map(|(_, part)| part);
        Ok(Some(Answered { answers: answers.collect(), text }))
    }

    /// The text of a conversation up to a message, and where that message begins behind what introduces it.
    fn up_to(&self, told: Told<'_>, at: usize) -> Result<(String, usize), AnswerError> {
        let first = |count: usize| Told { messages: told.messages.get(..count).unwrap_or(told.messages), ..told };
        let text = self.render_told(first(at + 1), false, false)?;
        let asked = self.render_told(first(at), true, false)?;
        if text.starts_with(&asked) {
            return Ok((text, asked.len()));
        }
        // Some templates begin an answer in a way that is not kept, with an open thought for instance.
        let before = self.render_told(first(at), false, false)?;
        if !text.starts_with(&before) {
            return Err(AnswerError::NotContinued { message: at + 1 });
        }
        let shared = text.char_indices().zip(asked.chars()).find(|((_, ours), theirs)| ours != theirs);
        Ok((text, shared.map_or(before.len(), |((at, _), _)| at.max(before.len()))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::compile(source.to_owned(), Map::new()).unwrap()
    }

    fn talk(turns: &[(&str, &str)]) -> Vec<Value> {
        turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
    }

    /// What is learnt of each text that a conversation becomes.
    fn learnt(source: &str, turns: &[(&str, &str)], learnt: &[bool]) -> Result<Vec<Vec<String>>, AnswerError> {
        let (messages, variables) = (talk(turns), Map::new());
        let told = Told { messages: &messages, tools: None, variables: &variables };
        let answered = template(source).with_answers(told, learnt)?;
        let parts = |one: Answered| one.answers.iter().map(|part| one.text[part.clone()].to_owned()).collect();
        Ok(answered.into_iter().map(parts).collect())
    }

    const TURNS: [(&str, &str); 4] = [("user", "1"), ("assistant", "é2"), ("user", "3"), ("assistant", "4")];
    const ANSWERS: [bool; 4] = [false, true, false, true];
    const LAST: [bool; 4] = [false, false, false, true];
    const MARKED: &str = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{%- generation -%} {{ m.content }}$ \
                          {%- endgeneration -%}{% else %}{{ m.content }}{% endif %}{% endfor %}";

    #[test]
    fn marks_of_the_template_say_what_the_answers_are() {
        assert_eq!(learnt(MARKED, &TURNS, &ANSWERS).unwrap(), [["é2$", "4$"]]);
        assert_eq!(learnt(MARKED, &TURNS, &LAST).unwrap(), [["4$"]]);
        let (messages, variables) = (talk(&TURNS), Map::new());
        let told = Told { messages: &messages, tools: None, variables: &variables };
        let rendered = template(MARKED).render_told(told, false, false).unwrap();
        assert_eq!(rendered, "[user]1[assistant]é2$[user]3[assistant]4$", "nothing of the marks is seen");
        assert!(matches!(learnt(MARKED, &[("assistant", "\u{fdd1}")], &[true]), Err(AnswerError::Mark('\u{fdd1}'))));
    }

    #[test]
    fn without_marks_an_answer_is_what_its_message_adds() {
        let source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}${% endfor %}\
                      {% if add_generation_prompt %}[assistant]{% endif %}";
        assert_eq!(learnt(source, &TURNS, &ANSWERS).unwrap(), [["é2$", "4$"]]);
        assert_eq!(learnt(source, &TURNS, &LAST).unwrap(), [["4$"]]);
        assert!(learnt(source, &TURNS, &[false; 4]).unwrap().is_empty());
    }

    #[test]
    fn a_template_that_shortens_earlier_answers_gives_a_text_for_each() {
        // As Qwen 3: only the last answer keeps its thought.
        let source = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}\
                      {{ m.content }}${% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
        let thought = |text: &str| [format!("<think></think>{text}$")];
        assert_eq!(learnt(source, &TURNS, &ANSWERS).unwrap(), [thought("é2"), thought("4")]);
    }

    #[test]
    fn a_begin_of_answers_that_is_not_kept_is_no_part_of_what_is_before_them() {
        // As DeepSeek R1: an answer is begun with a thought, which is not there once it is given.
        let source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}${% endfor %}\
                      {% if add_generation_prompt %}[assistant]<think>{% endif %}";
        assert_eq!(learnt(source, &TURNS, &ANSWERS).unwrap(), [["é2$", "4$"]]);
    }

    #[test]
    fn a_template_that_rewrites_what_is_before_an_answer_is_refused_by_message() {
        let source = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}";
        let error = learnt(source, &TURNS, &ANSWERS).unwrap_err().to_string();
        assert!(error.contains("before message 2") && error.contains("{% generation %}"), "{error}");
    }
}
