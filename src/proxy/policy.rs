//! Which repositories and tags of an upstream may be pulled, by the operator's word alone.
//!
//! A pull is judged by what it asks for, before anything is looked up or anybody is asked, so it makes no difference what is
//! here already. `deny` goes before `allow`, and an empty `allow` is everything. A rule is `repository` or `repository:tag`,
//! both patterns, and the repository is named as its registry has it (`library/debian`). A rule with a tag is about
//! pulls of a manifest by that tag: a digest has no tag, so in a repository that is allowed for some tags, and in one that
//! is denied for some, whatever has a digest can be pulled by it.

use std::fmt;

use crate::oci::{
    Endpoint, InvalidPattern, Namespace, Reference, RepositoryName, RepositoryPattern, Tag,
    TagPattern,
};

/// The rules of one upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What alone may be pulled; empty: everything.
    pub allow: Vec<PullRule>,
    /// What may not be pulled, even if it is allowed.
    pub deny: Vec<PullRule>,
    /// Repositories whose manifests are given by digest only.
    pub require_digest: Vec<RepositoryPattern>,
}

/// A repository, or some tags of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRule {
    repository: RepositoryPattern,
    tag: Option<TagPattern>,
}

/// Which rule refused a pull.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("upstream[{namespace}].{} {}", rule.as_str(), told(*rule, pattern.as_deref()))]
pub struct Refusal {
    namespace: Namespace,
    rule: RuleKind,
    /// The pattern that decided, where one did.
    pattern: Option<String>,
}

/// The kind of a rule, which is the name of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleKind {
    /// It is not on the list of what is allowed.
    Allow,
    /// It is on the list of what is not.
    Deny,
    /// It was asked for by tag.
    RequireDigest,
    /// The operator's program did not let it pass.
    Verifier,
}

impl PullRule {
    /// Parses `repository` or `repository:tag`, both patterns.
    ///
    /// # Errors
    ///
    /// When one of them is none.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let (repository, tag) = match text.split_once(':') {
            Some((repository, tag)) => (repository, Some(TagPattern::parse(tag)?)),
            None => (text, None),
        };
        let repository = RepositoryPattern::parse(repository)?;
        Ok(Self { repository, tag })
    }

    /// Whether the rule is about this repository, and about this tag or whatever else was asked for there.
    fn holds(&self, name: &RepositoryName, tag: Option<&Tag>, without_tag: bool) -> bool {
        let is_tag = match (&self.tag, tag) {
            (None, _) => true,
            (Some(pattern), Some(tag)) => pattern.matches(tag),
            (Some(_), None) => without_tag,
        };
        is_tag && self.repository.matches(name)
    }
}

impl fmt::Display for PullRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tag {
            Some(tag) => write!(f, "{}:{tag}", self.repository),
            None => self.repository.fmt(f),
        }
    }
}

impl RuleKind {
    /// The key of the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::RequireDigest => "require_digest",
            Self::Verifier => "verifier",
        }
    }
}

impl Refusal {
    /// A refusal by a rule that is no pattern.
    pub(super) fn by(namespace: Namespace, rule: RuleKind) -> Self {
        let pattern = None;
        Self {
            namespace,
            rule,
            pattern,
        }
    }

    /// The kind of the rule that refused.
    pub fn rule(&self) -> RuleKind {
        self.rule
    }
}

fn told(rule: RuleKind, pattern: Option<&str>) -> String {
    match (rule, pattern) {
        (RuleKind::Allow, _) => "does not list this".to_owned(),
        (_, Some(pattern)) => format!("refuses this: {pattern:?}"),
        (_, None) => "refuses this".to_owned(),
    }
}

impl Policy {
    /// Refuses what these rules do not let be pulled from the upstream of this name.
    pub(super) fn check(&self, namespace: &Namespace, endpoint: &Endpoint) -> Result<(), Refusal> {
        match judge(self, endpoint) {
            None => Ok(()),
            Some((rule, pattern)) => Err(Refusal {
                namespace: namespace.clone(),
                rule,
                pattern,
            }),
        }
    }
}

/// The rule that refuses a pull, if one does.
fn judge(policy: &Policy, endpoint: &Endpoint) -> Option<(RuleKind, Option<String>)> {
    let (name, tag) = match endpoint {
        Endpoint::Ping => return None,
        Endpoint::Manifest {
            name,
            reference: Reference::Tag(tag),
        } => (name, Some(tag)),
        Endpoint::Manifest {
            name,
            reference: Reference::Digest(_),
        }
        | Endpoint::Blob { name, .. }
        | Endpoint::Tags { name }
        | Endpoint::Referrers { name, .. } => (name, None),
    };
    if let Some(rule) = policy.deny.iter().find(|it| it.holds(name, tag, false)) {
        return Some((RuleKind::Deny, Some(rule.to_string())));
    }
    let mut allow = policy.allow.iter();
    if !policy.allow.is_empty() && !allow.any(|it| it.holds(name, tag, true)) {
        return Some((RuleKind::Allow, None));
    }
    let mut digests = policy.require_digest.iter();
    let pattern = digests.find(|it| tag.is_some() && it.matches(name))?;
    Some((RuleKind::RequireDigest, Some(pattern.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn policy(allow: &[&str], deny: &[&str], require_digest: &[&str]) -> Policy {
        let rules = |texts: &[&str]| {
            let rules = texts.iter().map(|it| PullRule::parse(it).unwrap());
            rules.collect()
        };
        let patterns = require_digest.iter().map(|it| RepositoryPattern::parse(it));
        Policy {
            allow: rules(allow),
            deny: rules(deny),
            require_digest: patterns.collect::<Result<_, _>>().unwrap(),
        }
    }

    fn by_tag(text: &str) -> Endpoint {
        let (name, tag) = text.split_once(':').unwrap();
        Endpoint::Manifest {
            name: RepositoryName::parse(name).unwrap(),
            reference: Reference::Tag(Tag::parse(tag).unwrap()),
        }
    }

    /// All that can be asked for in a repository but a tag.
    fn untagged(name: &str) -> [Endpoint; 4] {
        let name = || RepositoryName::parse(name).unwrap();
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"x");
        [
            Endpoint::Manifest {
                name: name(),
                reference: Reference::Digest(digest),
            },
            Endpoint::Blob {
                name: name(),
                digest,
            },
            Endpoint::Tags { name: name() },
            Endpoint::Referrers {
                name: name(),
                digest,
            },
        ]
    }

    #[test]
    fn tags_are_judged_by_deny_then_allow_then_digest() {
        let all = policy(
            &["library/*", "team/**:v*"],
            &["library/busybox", "library/*:latest", "**:*-rc*"],
            &["library/postgres"],
        );
        for (asked, expected) in [
            ("library/debian:12", ""),
            ("library/debian:latest", "deny library/*:latest"),
            ("library/debian:13-rc1", "deny **:*-rc*"),
            ("library/busybox:1", "deny library/busybox"),
            ("team/app:v1", ""),
            ("team/app/debug:v1", ""),
            ("team/app:main", "allow"),
            ("team:v1", "allow"),
            ("other/app:v1", "allow"),
            ("library/postgres:18", "require_digest library/postgres"),
            ("library/postgres:latest", "deny library/*:latest"),
        ] {
            let judged = judge(&all, &by_tag(asked)).map(|(rule, pattern)| {
                let pattern = pattern.unwrap_or_default();
                format!("{} {pattern}", rule.as_str()).trim().to_owned()
            });
            assert_eq!(judged.unwrap_or_default(), expected, "{asked}");
        }
    }

    #[test]
    fn what_has_no_tag_is_judged_by_its_repository() {
        let all = policy(
            &["library/*", "team/**:v*"],
            &["library/busybox", "library/*:latest"],
            &["**"],
        );
        for (name, expected) in [
            ("library/debian", None),
            ("library/busybox", Some(RuleKind::Deny)),
            ("team/app", None),
            ("other/app", Some(RuleKind::Allow)),
        ] {
            for endpoint in untagged(name) {
                let judged = judge(&all, &endpoint).map(|(rule, _)| rule);
                assert_eq!(judged, expected, "{endpoint:?}");
            }
        }
    }

    #[test]
    fn no_rules_refuse_nothing_and_the_ping_is_of_no_repository() {
        let none = Policy::default();
        assert_eq!(judge(&none, &by_tag("a/b:c")), None);
        assert!(untagged("a/b").iter().all(|it| judge(&none, it).is_none()));
        let nothing = policy(&[], &["**"], &[]);
        assert_eq!(judge(&nothing, &Endpoint::Ping), None);
        assert!(judge(&nothing, &by_tag("a:b")).is_some());
    }

    #[test]
    fn a_rule_is_a_repository_or_tags_of_it() {
        for text in ["library/*", "library/*:latest", "**", "**:*"] {
            assert_eq!(PullRule::parse(text).unwrap().to_string(), text);
        }
        for bad in ["", ":latest", "a:", "a:b:c", "a@sha256:0", "A", "a:b/c"] {
            assert_eq!(PullRule::parse(bad), Err(InvalidPattern), "{bad}");
        }
    }
}
