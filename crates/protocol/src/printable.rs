//! Words of strangers, as far as a terminal may show them.

/// Longest name that a server may have for people, in characters.
pub const MAX_PUBLIC_NAME: usize = 64;
/// Longest version and dtype of a record that are looked at, in characters.
pub(crate) const MAX_WORD: usize = 32;

/// A text without what moves a cursor, changes colours, turns the direction of what follows or cannot be seen, and no longer than `most` characters.
pub fn printable(text: &str, most: usize) -> String {
    text.chars().filter(|c| is_printable(*c)).take(most).collect()
}

/// Whether a terminal may show a character.
pub fn is_printable(c: char) -> bool {
    // Joiners, marks of direction, separators of lines, byte order marks and tags: none has a place in one line.
    let unseen = matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !unseen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_left_out() {
        assert_eq!(printable("a\u{1b}[31mred\u{7}\r\n\u{9b}2J b", 64), "a[31mred2J b");
        assert_eq!(printable("x\u{202e}y\u{2066}\u{200b}z\u{feff}", 64), "xyz");
        assert_eq!(printable("Grüße, 東京 🦀", 64), "Grüße, 東京 🦀");
        assert_eq!(printable(&"é".repeat(100), 3), "ééé");
    }
}
