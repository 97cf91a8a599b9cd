//! Requests for tokens and their answers (distribution's token specification).

use std::time::Duration;

use crate::net::Secret;

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::server) struct TokenRequest {
    /// What our challenge said: a namespace, or a host of ours.
    pub(in crate::server) service: Option<String>,
    /// What it wants to do, such as `repository:library/debian:pull`, in its own words.
    pub(in crate::server) scopes: Vec<String>,
}

/// A token to be handed out.
#[derive(Debug)]
pub(in crate::server) struct Issued {
    token: Secret,
    expires_in: Duration,
}

impl TokenRequest {
    /// Reads a query. What else clients send there (`account`, `client_id`, `offline_token`) is for other token servers.
    ///
    /// # Errors
    ///
    /// With what is wrong, in a sentence.
    pub(in crate::server) fn parse(query: Option<&str>) -> Result<Self, &'static str> {
        let query = query.unwrap_or_default();
        if query.len() > QUERY_BYTES_MAX {
            return Err("the query is too long");
        }
        let mut request = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "service" if request.service.is_some() => return Err("service is given twice"),
                "service" => request.service = Some(value.into_owned()),
                "scope" => {
                    let scopes = value.split(' ').filter(|it| !it.is_empty());
                    request.scopes.extend(scopes.map(str::to_owned));
                }
                _ => {}
            }
        }
        if request.scopes.len() > SCOPES_MAX {
            return Err("more than 16 scopes are asked for");
        }
        Ok(request)
    }
}

impl Issued {
    pub(in crate::server) fn new(token: String, expires_in: Duration) -> Self {
        Self {
            token: Secret::new(token),
            expires_in,
        }
    }

    /// The body of the answer. `issued_at` is left out, so that a client counts from when it has the token: by its own clock,
    /// which may go differently than ours.
    pub(in crate::server) fn body(&self) -> Vec<u8> {
        let token = self.token.reveal();
        let body = serde_json::json!({
            "token": token,
            "access_token": token,
            "expires_in": self.expires_in.as_secs(),
        });
        // Texts and numbers always serialize.
        serde_json::to_vec(&body).unwrap_or_default()
    }
}

/// Some dozen names.
const QUERY_BYTES_MAX: usize = 8 << 10;
/// More than a client asks for at once: one, or two to mount a blob.
const SCOPES_MAX: usize = 16;

/// Reads any query without panicking, within bounds. Whether it asks for a token.
pub fn fuzz_token_request(input: &[u8]) -> bool {
    let request = str::from_utf8(input).map(|query| TokenRequest::parse(Some(query)));
    let Ok(Ok(request)) = request else {
        return false;
    };
    assert!(request.scopes.len() <= SCOPES_MAX, "bounded");
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(request.service.iter().map(|it| ("service", it)));
    query.extend_pairs(request.scopes.iter().map(|it| ("scope", it)));
    let query = query.finish();
    if query.len() <= QUERY_BYTES_MAX {
        assert_eq!(TokenRequest::parse(Some(&query)), Ok(request), "{query}");
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_asks_for_is_read() {
        let of = |service: Option<&str>, scopes: &[&str]| TokenRequest {
            service: service.map(str::to_owned),
            scopes: scopes.iter().map(|it| (*it).to_owned()).collect(),
        };
        let many = "scope=a&".repeat(17);
        for (query, expected) in [
            ("", Ok(of(None, &[]))),
            (
                "account=ann&client_id=docker&offline_token=true&service=c.example%3A5000",
                Ok(of(Some("c.example:5000"), &[])),
            ),
            (
                "service=ghcr.io&scope=repository%3Aa%2Fb%3Apull&scope=repository:c:pull",
                Ok(of(
                    Some("ghcr.io"),
                    &["repository:a/b:pull", "repository:c:pull"],
                )),
            ),
            ("scope=a+b%20c", Ok(of(None, &["a", "b", "c"]))),
            ("service=a&service=b", Err("service is given twice")),
            (&many, Err("more than 16 scopes are asked for")),
            (&many[8..], Ok(of(None, &["a"; 16]))),
            (&"a".repeat(8193), Err("the query is too long")),
        ] {
            assert_eq!(TokenRequest::parse(Some(query)), expected, "{query}");
            fuzz_token_request(query.as_bytes());
        }
    }

    #[test]
    fn a_token_is_told_once_it_is_handed_out() {
        let issued = Issued::new("hush".to_owned(), Duration::from_secs(300));
        assert!(!format!("{issued:?}").contains("hush"));
        let body: serde_json::Value = serde_json::from_slice(&issued.body()).unwrap();
        assert_eq!(body["token"], "hush");
        assert_eq!(body["access_token"], "hush");
        assert_eq!(body["expires_in"], 300);
    }
}
