//! Documents of which only an object is one of ours.

use serde::de::DeserializeOwned;

/// What an object says. Anything else is `None`, a list among it: serde would take its elements for fields, in their order.
pub fn from_json_object<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    serde_json::from_slice(bytes).ok()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    struct One {
        one: u8,
    }

    #[test]
    fn a_list_is_no_object() {
        for (text, expected) in [
            (r#" {"one": 1}"#, Some(One { one: 1 })),
            ("[1]", None),
            (r#"{"one": 1"#, None),
            ("1", None),
            ("", None),
        ] {
            assert_eq!(from_json_object(text.as_bytes()), expected, "{text}");
        }
    }
}
