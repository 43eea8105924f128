//! What may reach a terminal: names and words of files may have any characters in them.

use clap::builder::styling::Style;

/// A line without what a terminal takes for a command, but for these styles, and without what makes
/// it show text in another order than it is written in.
pub(super) fn harmless(line: &str, styles: &[Style]) -> String {
    let ends = styles
        .iter()
        .flat_map(|style| [style.render().to_string(), style.render_reset().to_string()]);
    let ends: Vec<String> = ends.collect();
    let mut harmless = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(letter) = rest.chars().next() {
        let style = ends.iter().find(|style| rest.starts_with(style.as_str()));
        let taken = style.map_or(letter.len_utf8(), String::len);
        if style.is_none() && (is_command(letter) || reorders(letter)) {
            harmless.extend(letter.escape_unicode());
        } else {
            harmless.push_str(&rest[..taken]);
        }
        rest = &rest[taken..];
    }
    harmless
}

fn is_command(letter: char) -> bool {
    letter.is_control() && !matches!(letter, '\n' | '\t')
}

/// Marks, embeddings, overrides and isolates of Unicode's annex 9.
fn reorders(letter: char) -> bool {
    matches!(
        letter,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

#[cfg(test)]
mod tests {
    use super::harmless;
    use clap::builder::styling::{AnsiColor, Style};

    const GOOD: Style = AnsiColor::Green.on_default();

    #[test]
    fn styles_stay_and_what_words_bring_is_written_out() {
        let line = format!("{GOOD}closed{GOOD:#}: \u{1b}[2Jrule \u{202e}evil\r");
        let shown = harmless(&line, &[GOOD]);
        assert_eq!(
            shown,
            format!("{GOOD}closed{GOOD:#}: \\u{{1b}}[2Jrule \\u{{202e}}evil\\u{{d}}")
        );
        assert_eq!(harmless("ウェブ\tünïcode\n", &[GOOD]), "ウェブ\tünïcode\n");
    }
}
