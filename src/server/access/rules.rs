//! What the operator's rules say. The first that is about a request decides it.

use std::fmt;
use std::net::IpAddr;

use crate::net::{Identity, Networks};
use crate::oci::{Namespace, RepositoryName, RepositoryPattern};

/// One rule. It is about a request when each of its conditions holds; a condition with nothing in it always does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What is to be done then.
    pub action: Action,
    /// By whom the request is.
    pub identities: Vec<Who>,
    /// From where it comes.
    pub networks: Networks,
    /// Which registries it means.
    pub upstreams: Vec<Namespace>,
    /// Which repositories, by the names that they have there.
    pub repositories: Vec<RepositoryPattern>,
}

/// What a rule says to a request that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is served.
    Allow,
    /// It is not.
    Deny,
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Who has shown nothing.
    Anonymous,
    /// Who has shown anything that is right.
    Authenticated,
    /// Who has this name, however that was shown.
    Named(String),
}

/// What rules are asked about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) identity: &'a Identity,
    pub(super) client: IpAddr,
    pub(super) upstream: &'a Namespace,
    pub(super) repository: &'a RepositoryName,
}

/// What they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allowed,
    /// By the rule of this number, counted from one; by none of them where there is no number.
    Denied(Option<usize>),
}

/// What the rules say of a request; where there are none, whoever is somebody may, and everybody where nobody can be.
pub(super) fn judge(rules: &[Rule], authenticates: bool, asked: Asked<'_>) -> Verdict {
    if rules.is_empty() {
        return match asked.identity {
            Identity::Anonymous if authenticates => Verdict::Denied(None),
            Identity::Anonymous | Identity::Named { .. } => Verdict::Allowed,
        };
    }
    let first = rules.iter().zip(1..).find(|(rule, _)| rule.is_about(asked));
    match first.map(|(rule, number)| (rule.action, number)) {
        Some((Action::Allow, _)) => Verdict::Allowed,
        Some((Action::Deny, number)) => Verdict::Denied(Some(number)),
        None => Verdict::Denied(None),
    }
}

impl Rule {
    fn is_about(&self, asked: Asked<'_>) -> bool {
        let Self {
            action: _,
            identities,
            networks,
            upstreams,
            repositories,
        } = self;
        let name = asked.repository;
        (identities.is_empty() || identities.iter().any(|who| who.is(asked.identity)))
            && (networks.is_empty() || networks.contains(asked.client))
            && (upstreams.is_empty() || upstreams.contains(asked.upstream))
            && (repositories.is_empty() || repositories.iter().any(|it| it.matches(name)))
    }
}

impl Who {
    /// Whether this identity is meant.
    pub(super) fn is(&self, identity: &Identity) -> bool {
        match (self, identity) {
            (Self::Anonymous, Identity::Anonymous)
            | (Self::Authenticated, Identity::Named { .. }) => true,
            (Self::Named(meant), Identity::Named { name, .. }) => **meant == **name,
            (Self::Anonymous, Identity::Named { .. })
            | (Self::Authenticated | Self::Named(_), Identity::Anonymous) => false,
        }
    }

    /// Who is meant by a word of the configuration; a name that is one of its two words is nobody's.
    pub fn parse(text: &str) -> Self {
        match text {
            ANONYMOUS => Self::Anonymous,
            AUTHENTICATED => Self::Authenticated,
            name => Self::Named(name.to_owned()),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => ANONYMOUS,
            Self::Authenticated => AUTHENTICATED,
            Self::Named(name) => name,
        })
    }
}

/// Whether a name means more than itself in a rule, so that nobody may have it.
pub(super) fn is_reserved(name: &str) -> bool {
    matches!(name, ANONYMOUS | AUTHENTICATED)
}

const ANONYMOUS: &str = "anonymous";
const AUTHENTICATED: &str = "authenticated";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Means, Network};

    fn rule(action: Action, who: &[&str], from: &[&str], at: &[&str], names: &[&str]) -> Rule {
        Rule {
            action,
            identities: who.iter().map(|it| Who::parse(it)).collect(),
            networks: from.iter().map(|it| Network::parse(it).unwrap()).collect(),
            upstreams: at.iter().map(|it| Namespace::parse(it).unwrap()).collect(),
            repositories: names
                .iter()
                .map(|it| RepositoryPattern::parse(it).unwrap())
                .collect(),
        }
    }

    /// What rules say of a request by somebody, or by nobody.
    fn verdict(rules: &[Rule], who: Option<&str>, from: &str, what: &str) -> Verdict {
        let identity = who.map(|it| Identity::named(it, Means::Certificate).unwrap());
        let (upstream, repository) = what.split_once('/').unwrap();
        let asked = Asked {
            identity: &identity.unwrap_or_default(),
            client: from.parse().unwrap(),
            upstream: &Namespace::parse(upstream).unwrap(),
            repository: &RepositoryName::parse(repository).unwrap(),
        };
        judge(rules, true, asked)
    }

    #[test]
    fn the_first_rule_that_is_about_a_request_decides() {
        use Action::{Allow, Deny};
        use Verdict::{Allowed, Denied};
        let rules = [
            rule(Deny, &["mallory"], &[], &[], &[]),
            rule(Deny, &[], &["10.9.0.0/16"], &["a.example"], &[]),
            rule(Allow, &["ann", "bob"], &[], &["a.example"], &["team/**"]),
            rule(Deny, &[], &[], &["a.example"], &["team/**"]),
            rule(Allow, &["authenticated"], &[], &["a.example"], &[]),
            rule(
                Allow,
                &["anonymous"],
                &["10.0.0.0/8"],
                &["b.example"],
                &["library/*"],
            ),
        ];
        for (who, from, what, expected) in [
            (Some("mallory"), "10.0.0.1", "a.example/x", Denied(Some(1))),
            (Some("ann"), "10.9.0.1", "a.example/x", Denied(Some(2))),
            (Some("ann"), "10.0.0.1", "a.example/team/x", Allowed),
            (Some("eve"), "10.0.0.1", "a.example/team/x", Denied(Some(4))),
            (None, "10.0.0.1", "a.example/team/x", Denied(Some(4))),
            (Some("eve"), "10.0.0.1", "a.example/x", Allowed),
            (None, "10.0.0.1", "a.example/x", Denied(None)),
            (None, "10.0.0.1", "b.example/library/x", Allowed),
            (None, "::ffff:10.0.0.1", "b.example/library/x", Allowed),
            (None, "192.0.2.1", "b.example/library/x", Denied(None)),
            (None, "10.0.0.1", "b.example/library/x/y", Denied(None)),
            // Anonymous is who has shown nothing, and not everybody.
            (Some("ann"), "10.0.0.1", "b.example/library/x", Denied(None)),
            (Some("ann"), "10.0.0.1", "c.example/team/x", Denied(None)),
        ] {
            let found = verdict(&rules, who, from, what);
            assert_eq!(found, expected, "{who:?} from {from}: {what}");
        }
    }

    #[test]
    fn without_rules_who_is_somebody_may() {
        assert_eq!(
            verdict(&[], Some("ann"), "10.0.0.1", "a.example/x"),
            Verdict::Allowed
        );
        assert_eq!(
            verdict(&[], None, "10.0.0.1", "a.example/x"),
            Verdict::Denied(None)
        );
        let asked = Asked {
            identity: &Identity::Anonymous,
            client: "10.0.0.1".parse().unwrap(),
            upstream: &Namespace::parse("a.example").unwrap(),
            repository: &RepositoryName::parse("x").unwrap(),
        };
        assert_eq!(judge(&[], false, asked), Verdict::Allowed);
    }

    #[test]
    fn a_certificate_may_name_whom_no_rule_can() {
        let rules = [rule(Action::Allow, &["anonymous"], &[], &[], &[])];
        let found = verdict(&rules, Some("anonymous"), "10.0.0.1", "a.example/x");
        assert_eq!(found, Verdict::Denied(None));
        assert!(is_reserved("anonymous") && is_reserved("authenticated") && !is_reserved("ann"));
        for who in ["anonymous", "authenticated", "ann"] {
            assert_eq!(Who::parse(who).to_string(), who);
        }
    }
}
