//! Which rights the process gives away.

use toml::Value;

use super::effective::Sandbox;
use super::error::Error;
use super::given::Sources;
use super::names::SANDBOX;

pub(super) fn read(
    sources: &Sources<'_>,
    flag: Option<Value>,
    key: Option<Value>,
) -> Result<Sandbox, Error> {
    let wanted = "`none` or `landlock`";
    let place = sources.find(&SANDBOX, flag, key)?;
    let sandbox = place.given().map(|given| match given.str(wanted)? {
        "none" => Ok(Sandbox::None),
        "landlock" => Ok(Sandbox::Landlock),
        _ => Err(given.wrong(wanted)),
    });
    Ok(sandbox.transpose()?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::load::tests::{load, load_in, refusal};
    use super::*;

    #[test]
    fn rights_are_given_away_where_that_is_asked_for() {
        assert_eq!(load("").unwrap().sandbox, Sandbox::None);
        let asked = load("sandbox = \"landlock\"").unwrap();
        assert_eq!(asked.sandbox, Sandbox::Landlock);
        assert_eq!(
            asked.fixed_differences(&load("").unwrap()),
            ["sandbox"],
            "what was given away is gone until a restart"
        );
        let variable = [("LAYERHOLD_SANDBOX", "none")];
        let config = load_in(&variable, "sandbox = \"landlock\"").unwrap();
        assert_eq!(config.sandbox, Sandbox::None);
        assert_eq!(
            refusal("sandbox = \"seccomp\""),
            "layerhold.toml: sandbox: \"seccomp\": not `none` or `landlock`"
        );
    }
}
