//! What an upstream's clients may pull.

use std::path::PathBuf;
use std::sync::Arc;

use toml::Value;

use crate::oci::RepositoryPattern;
use crate::proxy::{Policy, PullRule};

use super::error::Error;
use super::file;
use super::given::Place;
use super::sites::Keys;

/// The rules of one `[[upstream]]`.
pub(super) fn read(keys: &Keys<'_>, table: file::Rules) -> Result<Policy, Error> {
    let rules = |key, value| {
        let wanted = "a list of repositories and tags such as `library/*` or `team/app:v1.*`";
        let rule = "a repository or a tag, such as `library/*`, `team/**` or `team/app:v1.*`";
        list(keys, key, (value, wanted, rule), |text| {
            PullRule::parse(text).ok()
        })
    };
    let wanted = "a list of repositories such as `library/*`";
    let pattern = "a repository such as `library/debian`, `library/*` or `team/**`";
    let require_digest = (table.require_digest, wanted, pattern);
    Ok(Policy {
        allow: rules("allow", table.allow)?,
        deny: rules("deny", table.deny)?,
        require_digest: list(keys, "require_digest", require_digest, |text| {
            RepositoryPattern::parse(text).ok()
        })?,
    })
}

/// The program that says which manifests may be given out.
pub(super) fn verifier(place: Place) -> Result<Option<Arc<PathBuf>>, Error> {
    let wanted = "the path of a program, from the root, such as `/usr/local/bin/verify-cosign`";
    let program = place.given().map(|given| {
        let program = PathBuf::from(given.str(wanted)?);
        match program.is_absolute() {
            true => Ok(Arc::new(program)),
            false => Err(given.wrong(wanted)),
        }
    });
    program.transpose()
}

/// The elements of a list; what is wanted is said of the list and of an element.
fn list<T>(
    keys: &Keys<'_>,
    key: &str,
    (value, wanted, element): (Option<Value>, &'static str, &'static str),
    read: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let Some(given) = keys.place(key, value).given() else {
        return Ok(Vec::new());
    };
    let elements = given.list(wanted)?;
    let read = elements
        .iter()
        .map(|it| read(it.str(element)?).ok_or_else(|| it.wrong(element)));
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::super::load::tests::{load, refusal};

    #[test]
    fn rules_are_read_and_reported() {
        let text = "[[upstream]]\nnamespace = \"a.example\"\nurl = \"https://a.example\"\n\
            allow = [\"library/*\", \"team/**:v*\"]\ndeny = [\"**:*-rc*\"]\nrequire_digest = [\"library/postgres\"]\nverifier = \"/bin/verify\"\n";
        let config = load(text).unwrap();
        let policy = &config.proxy.upstreams[0].policy;
        let sizes = (policy.allow.len(), policy.deny.len());
        assert_eq!((sizes, policy.require_digest.len()), ((2, 1), 1));
        let report = config.report();
        for line in text.lines().skip(3) {
            assert!(report.contains(line), "{line}\n{report}");
        }
        assert_eq!(&load(&report).unwrap().proxy.upstreams[0].policy, policy);
    }

    #[test]
    fn a_rule_that_could_never_apply_is_refused() {
        let of = |key: &str| {
            let table = "[[upstream]]\nnamespace = \"a.example\"\nurl = \"https://a.example\"\n";
            refusal(&format!("{table}{key}"))
        };
        for (key, place) in [
            ("allow = \"a\"", "allow: \"a\": not"),
            ("allow = [\"Team/*\"]", "allow: \"Team/*\": not"),
            ("deny = [\"team/?\"]", "deny: \"team/?\": not"),
            ("deny = [\"team/app:\"]", "deny: \"team/app:\": not"),
            ("verifier = \"verify\"", "verifier: \"verify\": not"),
            ("deny = [3]", "deny: 3: not"),
            (
                "require_digest = [\"team/app:v1\"]",
                "require_digest: \"team/app:v1\": not",
            ),
        ] {
            let said = of(key);
            assert!(
                said.contains(&format!("upstream[a.example].{place}")),
                "{said}"
            );
        }
    }
}
