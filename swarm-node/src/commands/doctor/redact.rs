//! A text without addresses, keys and paths. What was equal stays recognisable: each gets a name with a number, everywhere the same.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// What an address of libp2p begins with.
const PROTOCOLS: [&str; 8] = ["ip4", "ip6", "dns", "dns4", "dns6", "dnsaddr", "p2p", "p2p-circuit"];
/// Directories of the system, which are the same everywhere.
const OF_THE_SYSTEM: [&str; 4] = ["/proc/", "/sys/", "/dev/", "/usr/lib/"];
/// Characters that no token has.
const BETWEEN: &str = " \t\r\n\"'`()<>{}[],;=|";
/// Characters behind a token that are the sentence's.
const AT_THE_END: &str = ".:!?…";
/// Fewer digits than those of a key: the fingerprint of a model has 16, a commit 12.
const LEAST_KEY: usize = 32;
/// Characters of a short form of a peer's id, as logs have it behind an ellipsis.
const SHORT_PEER: usize = 6;

/// Takes private things out of texts.
#[derive(Debug)]
pub(super) struct Redacted {
    /// Words that are private because whoever asks says so, with what they are; the longest first.
    words: Vec<(&'static str, String)>,
    /// Of each kind what was met, and its number.
    met: HashMap<(&'static str, String), usize>,
}

impl Redacted {
    /// Takes these words out, beside what looks like an address, a key or a path.
    pub(super) fn without(words: &[(&'static str, String)]) -> Self {
        // What is shorter, or what everybody has, would make holes in other words.
        let telling = |word: &str| word.len() > 2 && !["root", "user", "petals", "localhost"].contains(&word);
        let mut words: Vec<_> = words.iter().filter(|(_, word)| telling(word)).cloned().collect();
        words.sort_by_key(|(_, word)| std::cmp::Reverse(word.len()));
        Self { words, met: HashMap::new() }
    }

    /// The text without them.
    pub(super) fn text(&mut self, text: &str) -> String {
        let mut rest = text.to_owned();
        for (kind, word) in self.words.clone() {
            if rest.contains(&word) {
                let name = self.name(kind, &word);
                rest = replace_words(&rest, &word, &name);
            }
        }
        let (mut out, mut token) = (String::with_capacity(rest.len()), String::new());
        for c in rest.chars() {
            if BETWEEN.contains(c) {
                out.push_str(&self.token(&std::mem::take(&mut token)));
                out.push(c);
            } else {
                token.push(c);
            }
        }
        out.push_str(&self.token(&token));
        out
    }

    /// A name for something private. Without a space, or it would be two tokens.
    fn name(&mut self, kind: &'static str, what: &str) -> String {
        let next = self.met.keys().filter(|(other, _)| *other == kind).count() + 1;
        let number = *self.met.entry((kind, what.to_owned())).or_insert(next);
        format!("‹{kind}-{number}›")
    }

    fn token(&mut self, token: &str) -> String {
        let core = token.trim_end_matches(|c| AT_THE_END.contains(c));
        let end = token.strip_prefix(core).unwrap_or_default();
        match self.replaced(core) {
            Some(replaced) => format!("{replaced}{end}"),
            None => token.to_owned(),
        }
    }

    /// What stands for a token, if it is private.
    fn replaced(&mut self, token: &str) -> Option<String> {
        if let Some((scheme, rest)) = token.split_once("://") {
            let (place, path) = rest.split_once('/').map_or((rest, ""), |(place, _)| (place, "/…"));
            let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
            return Some(format!("{scheme}://{}{path}", self.place(place)));
        }
        if token.contains('‹') && !token.starts_with('/') {
            // A path that goes on behind a known one tells no more than that it does.
            return token.contains("›/").then(|| self.below_known(token));
        }
        if let Some(short) = token.strip_prefix('…') {
            return (short.len() == SHORT_PEER).then(|| self.name("peer", short));
        }
        if token.starts_with("petals1:") {
            return Some(self.name("invitation", token));
        }
        if let Some(address) = self.multiaddr(token) {
            return Some(address);
        }
        let is_path =
            ["/", "~/", "./", "../"].iter().any(|start| token.starts_with(start) && token.len() > start.len());
        if is_path && !OF_THE_SYSTEM.iter().any(|known| token.starts_with(known)) {
            return Some(self.name("path", token));
        }
        if is_peer(token) {
            return Some(self.peer(token));
        }
        let socket =
            token.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map(|(ip, port)| (ip, Some(port)));
        let (ip, port) = socket.filter(|(ip, _)| ip.parse::<Ipv4Addr>().is_ok()).unwrap_or((token, None));
        if ip.parse::<Ipv4Addr>().is_ok() || ip.parse::<Ipv6Addr>().is_ok() {
            let port = port.map_or(String::new(), |port| format!(":{port}"));
            return Some(format!("{}{port}", self.ip(ip)));
        }
        is_key(token).then(|| self.name("key", token))
    }

    /// `/ip4/192.0.2.1/tcp/1/p2p/12D3…`: how others connect is worth knowing, where to is not.
    fn multiaddr(&mut self, token: &str) -> Option<String> {
        let mut parts = token.strip_prefix('/')?.split('/');
        let mut part = parts.next().filter(|first| PROTOCOLS.contains(first));
        part?;
        let mut out = String::new();
        while let Some(protocol) = part {
            out.push('/');
            out.push_str(protocol);
            let hidden = match protocol {
                "ip4" | "ip6" => parts.next().map(|ip| self.ip(ip)),
                "p2p" => parts.next().map(|peer| self.peer(peer)),
                "dns" | "dns4" | "dns6" | "dnsaddr" => parts.next().map(|host| self.name("host", host)),
                _ => None,
            };
            if let Some(hidden) = hidden {
                out.push('/');
                out.push_str(&hidden);
            }
            part = parts.next();
        }
        Some(out)
    }

    /// The host of a URL, with its port.
    fn place(&mut self, place: &str) -> String {
        let (host, port) =
            place.rsplit_once(':').map_or((place, String::new()), |(host, port)| (host, format!(":{port}")));
        let known = ["localhost", "huggingface.co", "github.com"].contains(&host);
        let hidden = match host.parse::<Ipv4Addr>() {
            Ok(_) => self.ip(host),
            Err(_) if known => host.to_owned(),
            Err(_) => self.name("host", host),
        };
        format!("{hidden}{port}")
    }

    /// This machine and "everywhere" tell nothing; of others, whether they are near.
    fn ip(&mut self, text: &str) -> String {
        let (own, near) = match (text.parse::<Ipv4Addr>(), text.parse::<Ipv6Addr>()) {
            (Ok(ip), _) => (ip.is_loopback() || ip.is_unspecified(), ip.is_private() || ip.is_link_local()),
            (_, Ok(ip)) => {
                let own = ip.is_loopback() || ip.is_unspecified();
                (own, ip.is_unique_local() || ip.is_unicast_link_local())
            }
            _ => (false, false),
        };
        match (own, near) {
            (true, _) => text.to_owned(),
            (_, true) => self.name("private-address", text),
            _ => self.name("address", text),
        }
    }

    /// The same peer has the same name where its id is short.
    fn peer(&mut self, id: &str) -> String {
        let at = id.char_indices().rev().nth(SHORT_PEER - 1).map_or(0, |(at, _)| at);
        self.name("peer", id.get(at..).unwrap_or(id))
    }

    fn below_known(&mut self, token: &str) -> String {
        match token.split_once("›/") {
            Some((known, rest)) => format!("{known}›/{}", self.name("path", rest)),
            None => token.to_owned(),
        }
    }
}

/// Replaces a word where it is one: no letter or digit on either side.
fn replace_words(text: &str, word: &str, name: &str) -> String {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, behind)) = rest.split_once(word) {
        let alone = !is_part(before.chars().next_back()) && !is_part(behind.chars().next());
        out.push_str(before);
        out.push_str(if alone { name } else { word });
        rest = behind;
    }
    out.push_str(rest);
    out
}

fn is_peer(token: &str) -> bool {
    let base58 = token.chars().all(|c| c.is_ascii_alphanumeric());
    base58 && ((token.starts_with("12D3Koo") && token.len() > 40) || (token.starts_with("Qm") && token.len() == 46))
}

/// A token of the hub, or as many digits and letters in a row as no word has.
fn is_key(token: &str) -> bool {
    let hexadecimal = token.len() >= LEAST_KEY && token.chars().all(|c| c.is_ascii_hexdigit());
    let encoded = token.chars().all(|c| c.is_ascii_alphanumeric() || "+/_-".contains(c));
    let mixed = token.chars().any(|c| c.is_ascii_digit()) && token.chars().any(|c| c.is_ascii_uppercase());
    token.starts_with("hf_") || hexadecimal || (token.len() >= LEAST_KEY && encoded && mixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";

    fn redact(text: &str) -> String {
        let words = [("path", "models/secret project"), ("path", "/home/ada"), ("user", "ada"), ("host", "attic")];
        Redacted::without(&words.map(|(kind, word)| (kind, word.to_owned()))).text(text)
    }

    #[test]
    fn addresses_say_how_but_not_where() {
        let text = redact(&format!(
            "dialled /ip4/203.0.113.5/tcp/31330/p2p/{PEER}: refused; peer=…UvzBHj, again /dns4/a.example.org/udp/1/quic-v1"
        ));
        assert_eq!(
            text,
            "dialled /ip4/‹address-1›/tcp/31330/p2p/‹peer-1›: refused; peer=‹peer-1›, again /dns4/‹host-1›/udp/1/quic-v1"
        );
        assert_eq!(
            redact("listening on /ip4/127.0.0.1/tcp/1 and /ip6/::/tcp/2"),
            "listening on /ip4/127.0.0.1/tcp/1 and /ip6/::/tcp/2"
        );
        let text = redact("192.168.1.10:80 198.51.100.7 fd00::1 2001:db8::1, 198.51.100.7.");
        assert_eq!(text, "‹private-address-1›:80 ‹address-1› ‹private-address-2› ‹address-2›, ‹address-1›.");
        assert_eq!(
            redact("http://ada:pw@proxy.example.org:3128/x?y (https://huggingface.co/org/name)"),
            "http://‹host-1›:3128/… (https://huggingface.co/…)"
        );
    }

    #[test]
    fn paths_and_names_of_people_and_machines_are_taken_out() {
        let text = redact("models/secret project/config.json: /home/ada/x and \"/srv/data\" of ada@attic, ../up, adam");
        for private in ["secret", "ada/", "srv", "attic", "../up", "ada@"] {
            assert!(!text.contains(private), "{private}: {text}");
        }
        assert!(text.contains("adam") && text.contains("‹user-1›@‹host-1›"), "{text}");
        assert_eq!(redact("/proc/self/limits and/or 4/5"), "/proc/self/limits and/or 4/5");
        assert_eq!(redact("\"/srv/a\" /srv/b '/srv/a'"), "\"‹path-1›\" ‹path-2› '‹path-1›'");
    }

    #[test]
    fn keys_are_taken_out_and_fingerprints_stay() {
        let key = "a".repeat(64);
        let line = format!(
            "key {key} hf_abcDEF token=Zm9vYmFyYmF6Zm9vYmFyYmF6Zm9vYmFyYmF6 petals1:AgAAAA, demo@0123456789abcdef bc20468f1e2a"
        );
        assert_eq!(
            redact(&line),
            "key ‹key-1› ‹key-2› token=‹key-3› ‹invitation-1›, demo@0123456789abcdef bc20468f1e2a"
        );
        assert_eq!(redact(&format!("{PEER} {PEER}")), "‹peer-1› ‹peer-1›");
        assert_eq!(redact("ok    open files   at most 65536\n"), "ok    open files   at most 65536\n");
    }
}
