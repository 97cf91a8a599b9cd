//! Values as they were given: found by precedence, then read as what their place takes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Value;

use crate::cache::Share;
use crate::net::{DurationText, SizeText, parse_duration, parse_size};

use super::error::{At, Error};
use super::names::Name;

/// The environment and the file's name: what it takes to say where a value was given.
pub(super) struct Sources<'a> {
    pub(super) environment: &'a BTreeMap<String, String>,
    pub(super) file: Arc<PathBuf>,
    /// Whether upstreams will be asked: else what only that needs may be missing.
    pub(super) pulls: bool,
}

/// A value that somebody gave, not yet read.
#[derive(Clone)]
pub(super) struct Given {
    pub(super) at: At,
    pub(super) value: Value,
}

/// A value that was read, and where it came from.
#[derive(Clone)]
pub(super) struct Setting<T> {
    pub(super) at: At,
    pub(super) text: String,
    pub(super) value: T,
}

impl Sources<'_> {
    /// A key that only the file has.
    pub(super) fn key(&self, key: &str, value: Option<Value>) -> Place {
        let at = match value {
            Some(_) => self.at(key),
            None => At::Default(key.to_owned()),
        };
        Place { at, value }
    }

    /// The flag, else the variable, else the key.
    pub(super) fn find(
        &self,
        name: &Name,
        flag: Option<Value>,
        key: Option<Value>,
    ) -> Result<Place, Error> {
        let (at, value) = match (flag, self.variable(name.variable)?) {
            (Some(value), _) => (At::Flag(name.flag), value),
            (None, Some(text)) => (At::Variable(name.variable.to_owned()), Value::String(text)),
            (None, None) => return Ok(self.key(name.key, key)),
        };
        let value = Some(value);
        Ok(Place { at, value })
    }

    /// A variable; empty ones count as unset, since that is how compose files and units pass on nothing.
    pub(super) fn variable(&self, name: &str) -> Result<Option<String>, Error> {
        let value = self.environment.get(name).filter(|text| !text.is_empty());
        match value {
            Some(text) if text.contains(char::REPLACEMENT_CHARACTER) => {
                let name = name.to_owned();
                Err(Error::NotText { name })
            }
            Some(text) => Ok(Some(text.clone())),
            None => Ok(None),
        }
    }

    pub(super) fn at(&self, key: &str) -> At {
        At::Key {
            file: Arc::clone(&self.file),
            key: key.to_owned(),
        }
    }
}

/// Where a value may stand, and the value if it does.
pub(super) struct Place {
    at: At,
    value: Option<Value>,
}

impl Place {
    /// The value, not yet read.
    pub(super) fn given(self) -> Option<Given> {
        let Self { at, value } = self;
        value.map(|value| Given { at, value })
    }

    /// The value, for a key that has no default.
    pub(super) fn required(self, at: At, wanted: &'static str) -> Result<Given, Error> {
        self.given().ok_or(Error::Missing { at, wanted })
    }

    /// The value read by `read`, else the default.
    pub(super) fn or<T>(
        self,
        default: T,
        render: impl Fn(&T) -> String,
        read: impl Fn(&Given) -> Result<T, Error>,
    ) -> Result<Setting<T>, Error> {
        let at = self.at.clone();
        match self.given() {
            Some(given) => Ok(Setting {
                value: read(&given)?,
                text: given.text(),
                at,
            }),
            None => Ok(Setting {
                text: render(&default),
                value: default,
                at,
            }),
        }
    }

    /// A duration within `allowed`.
    pub(super) fn duration(
        self,
        default: Duration,
        allowed: RangeInclusive<Duration>,
    ) -> Result<Setting<Duration>, Error> {
        self.or(
            default,
            |it| DurationText(*it).to_string(),
            |given| {
                let value = given.duration()?;
                given.within(value, &allowed, |it| DurationText(*it).to_string())
            },
        )
    }

    /// How long something is fresh or usable, else the duration that holds for all upstreams.
    pub(super) fn duration_or(
        self,
        common: &Setting<Duration>,
    ) -> Result<Setting<Duration>, Error> {
        match self.value {
            Some(_) => self.duration(common.value, Duration::ZERO..=FRESHNESS_MOST),
            None => Ok(common.clone()),
        }
    }

    /// A number of bytes within `allowed`.
    pub(super) fn size(
        self,
        default: u64,
        allowed: RangeInclusive<u64>,
    ) -> Result<Setting<u64>, Error> {
        self.or(
            default,
            |it| SizeText(*it).to_string(),
            |given| {
                let value = given.size()?;
                given.within(value, &allowed, |it| SizeText(*it).to_string())
            },
        )
    }

    /// A number of things, from 1 to [`COUNT_MAX`].
    pub(super) fn count(self, default: usize) -> Result<usize, Error> {
        let setting = self.or(default, usize::to_string, |given| given.count(COUNT_MAX))?;
        Ok(setting.value)
    }

    /// A percentage within `allowed`.
    pub(super) fn percent(
        self,
        default: f64,
        allowed: RangeInclusive<f64>,
    ) -> Result<Setting<f64>, Error> {
        let render = |it: &f64| format!("{it}%");
        self.or(default, render, |given| {
            let percent = given.value.as_str().and_then(parse_percent);
            let percent = percent.ok_or_else(|| given.wrong("a percentage such as `95%`"))?;
            given.within(percent, &allowed, render)
        })
    }
}

impl Given {
    /// The value on one line, short, and without a password that somebody wrote into it.
    pub(super) fn text(&self) -> String {
        clip(self.value.as_str().map_or_else(
            || strike_userinfo(&self.value.to_string()).replace(char::is_control, " "),
            |text| format!("{:?}", strike_userinfo(text)),
        ))
    }

    /// The refusal of a value that is not what the place takes.
    pub(super) fn wrong(&self, wanted: &'static str) -> Error {
        Error::Kind {
            at: self.at.clone(),
            value: self.text(),
            wanted,
        }
    }

    /// The refusal of a value that somebody else has.
    pub(super) fn taken(&self, taken: impl fmt::Display) -> Error {
        Error::Taken {
            at: self.at.clone(),
            value: self.text(),
            taken: taken.to_string(),
        }
    }

    pub(super) fn str(&self, wanted: &'static str) -> Result<&str, Error> {
        let text = self.value.as_str().filter(|text| !text.is_empty());
        text.ok_or_else(|| self.wrong(wanted))
    }

    /// A whole number from one to `most`.
    pub(super) fn count(&self, most: i64) -> Result<usize, Error> {
        let wanted = "a whole number such as `64`";
        let value = self.value.as_integer();
        let value = value.ok_or_else(|| self.wrong(wanted))?;
        let value = self.within(value, &(1..=most), i64::to_string)?;
        usize::try_from(value).map_err(|_| self.wrong(wanted))
    }

    pub(super) fn bool(&self) -> Result<bool, Error> {
        self.value
            .as_bool()
            .ok_or_else(|| self.wrong("true or false"))
    }

    pub(super) fn address(&self) -> Result<SocketAddr, Error> {
        let wanted = "an IP address and a port such as `127.0.0.1:5000` or `[::]:5000`";
        let address = self.str(wanted)?.parse();
        address.map_err(|_| self.wrong(wanted))
    }

    pub(super) fn duration(&self) -> Result<Duration, Error> {
        let wanted = "a duration such as `20s` or `5m`";
        let duration = parse_duration(self.str(wanted)?);
        duration.map_err(|_| self.wrong(wanted))
    }

    /// A duration that is no longer than ten years.
    pub(super) fn freshness(&self) -> Result<Duration, Error> {
        let allowed = Duration::ZERO..=FRESHNESS_MOST;
        self.within(self.duration()?, &allowed, |it| {
            DurationText(*it).to_string()
        })
    }

    pub(super) fn size(&self) -> Result<u64, Error> {
        let wanted = "a size such as `512MiB` or `200GiB`";
        let size = parse_size(self.str(wanted)?);
        size.map_err(|_| self.wrong(wanted))
    }

    /// A percentage below 100, or a number of bytes.
    pub(super) fn share(&self) -> Result<Share, Error> {
        let wanted = "a share such as `5%` or `10GiB`";
        let text = self.str(wanted)?;
        if let Some(percent) = parse_percent(text) {
            let allowed = 0.0..=SPARED_PERCENT_MAX;
            return Ok(Share::Percent(
                self.within(percent, &allowed, |it| format!("{it}%"))?,
            ));
        }
        let bytes = parse_size(text).map_err(|_| self.wrong(wanted))?;
        Ok(Share::Bytes(bytes))
    }

    /// The elements of a list; in a variable they are separated by commas.
    pub(super) fn list(self, wanted: &'static str) -> Result<Vec<Self>, Error> {
        let with = |value| Self {
            at: self.at.clone(),
            value,
        };
        match (&self.at, &self.value) {
            (At::Variable(_), Value::String(text)) => Ok(text
                .split(',')
                .map(|part| with(Value::String(part.trim().to_owned())))
                .collect()),
            (_, Value::Array(values)) => Ok(values.iter().cloned().map(with).collect()),
            _ => Err(self.wrong(wanted)),
        }
    }

    /// As [`list`](Self::list), where a key may also be one string, and nothing is not enough.
    pub(super) fn list_or_one(self, wanted: &'static str) -> Result<Vec<Self>, Error> {
        match (&self.at, &self.value) {
            (At::Key { .. }, Value::String(_)) => Ok(vec![self]),
            (_, Value::Array(values)) if values.is_empty() => Err(self.wrong(wanted)),
            _ => self.list(wanted),
        }
    }

    /// `value`, if it is within `allowed`.
    fn within<T: PartialOrd>(
        &self,
        value: T,
        allowed: &RangeInclusive<T>,
        render: impl Fn(&T) -> String,
    ) -> Result<T, Error> {
        if allowed.contains(&value) {
            return Ok(value);
        }
        let (least, most) = (render(allowed.start()), render(allowed.end()));
        Err(Error::Range {
            at: self.at.clone(),
            value: self.text(),
            allowed: format!("{least} to {most}"),
        })
    }
}

/// Refuses two values of which the first must come before the second, and blames one that was given.
pub(super) fn ordered<T: PartialOrd>(
    less: &Setting<T>,
    more: &Setting<T>,
    or_equal: bool,
) -> Result<(), Error> {
    if less.value < more.value || (or_equal && less.value == more.value) {
        return Ok(());
    }
    let (one, relation, other) = match (less.at.is_given(), or_equal) {
        (true, false) => (less, "less than", more),
        (true, true) => (less, "at most", more),
        (false, false) => (more, "more than", less),
        (false, true) => (more, "at least", less),
    };
    Err(Error::Order {
        at: one.at.clone(),
        value: one.text.clone(),
        relation,
        other: other.at.name().to_owned(),
        than: other.text.clone(),
    })
}

/// Digits, perhaps a point and more digits, and `%`: not the words and exponents that a float may also be.
fn parse_percent(text: &str) -> Option<f64> {
    let number = text.strip_suffix('%')?;
    let plain = number
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    number.parse().ok().filter(|_| plain)
}

/// `text` with `***` for what stands between `//` and `@`, or before the `@` where there is no `//`.
fn strike_userinfo(text: &str) -> String {
    let Some((userinfo, rest)) = text.rsplit_once('@') else {
        return text.to_owned();
    };
    let kept = userinfo.find("//").map_or("", |at| &userinfo[..at + 2]);
    format!("{kept}***@{rest}")
}

/// `text`, cut to what a line can bear.
fn clip(text: String) -> String {
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// More of anything than one process can have; what counts things takes no more than this.
const COUNT_MAX: i64 = 100_000_000;

/// Sparing more of the disk than this leaves no cache.
const SPARED_PERCENT_MAX: f64 = 99.0;

/// Ten years: longer is for ever, and sums of durations must not overflow.
pub(super) const FRESHNESS_MOST: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// A message quotes no more of a value than this.
const TEXT_CHARS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(text: &str) -> String {
        let given = Given {
            at: At::Flag("--x"),
            value: Value::String(text.to_owned()),
        };
        given.text()
    }

    #[test]
    fn a_quoted_value_is_one_short_line_without_secrets() {
        assert_eq!(text_of("a\nb"), r#""a\nb""#);
        assert_eq!(text_of("https://robot:hush@host"), r#""https://***@host""#);
        assert_eq!(
            text_of("x=https://robot:hu@sh@host"),
            r#""x=https://***@host""#
        );
        assert_eq!(text_of("robot:hush@host"), r#""***@host""#);
        assert_eq!(
            text_of(&"é".repeat(500)).chars().count(),
            TEXT_CHARS_MAX + 1
        );
    }

    #[test]
    fn percentages_are_plain_numbers() {
        assert_eq!(parse_percent("97.5%"), Some(97.5));
        for text in [
            "", "%", "95", "nan%", "inf%", "1e1%", "-5%", "+5%", "5 %", ".%",
        ] {
            assert_eq!(parse_percent(text), None, "{text}");
        }
    }
}
