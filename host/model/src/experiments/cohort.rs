//! Cohorts: named rules over viewer ids and attributes. Pure; attributes and time are passed in.

use crate::event::ID_MAX;
use crate::text::KEY;
use crate::time::{DAY_MS, UnixMs};
use crate::user::ViewerAttributes;
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Deepest nesting of a rule. The limit bounds the cost of evaluating one.
const DEPTH_MAX: usize = 16;
/// Most conditions of one rule, at all levels together.
const CONDITIONS_MAX: usize = 1_000;
/// Most viewers that one rule may list, at all levels together.
const IDS_MAX: usize = 100_000;
/// Most values of one condition.
const VALUES_MAX: usize = 1_000;

/// A rule, in the JSON form of the PUT request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Rule {
    All(#[serde(deserialize_with = "object")] All),
    Ids(#[serde(deserialize_with = "object")] Ids),
    Attribute(#[serde(deserialize_with = "object")] Condition),
    #[schema(no_recursion)]
    And(#[serde(deserialize_with = "object")] And),
    #[schema(no_recursion)]
    Or(#[serde(deserialize_with = "object")] Or),
    #[schema(no_recursion)]
    Not(#[serde(deserialize_with = "object")] Not),
}

/// Deserialises a rule from a JSON object only. A derived struct would also accept a list by
/// position, and `{"not": [{..}]}` would then be a double negation.
fn object<'de, D: Deserializer<'de>, T: for<'a> Deserialize<'a>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let object = Map::<String, Value>::deserialize(deserializer)?;
    serde_json::from_value(Value::Object(object)).map_err(D::Error::custom)
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct All {
    all: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    /// A set, because a lookup must not take longer for a long list.
    #[schema(value_type = Vec<u64>)]
    ids: BTreeSet<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    attribute: Attribute,
    #[serde(rename = "in", default, skip_serializing_if = "Option::is_none")]
    within: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lt: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gte: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct And {
    and: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Or {
    or: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Not {
    not: Box<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attribute {
    Country,
    Language,
    AccountAgeDays,
}

impl Rule {
    pub fn everybody() -> Self {
        Self::All(All { all: true })
    }

    /// Checks that every condition is meaningful and that the rule is neither too deep nor too
    /// large.
    ///
    /// # Errors
    /// An explanation of the mistake, for the author of the rule.
    pub fn check(&self) -> Result<(), String> {
        self.check_at(0, &mut Size::default())
    }

    fn check_at(&self, depth: usize, size: &mut Size) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(format!(
                "rules are nested more than {DEPTH_MAX} levels deep"
            ));
        }
        size.add(self)?;
        match self {
            Rule::All(_) => Ok(()),
            Rule::Ids(Ids { ids }) => match ids.iter().find(|id| !(1..=ID_MAX).contains(*id)) {
                None => Ok(()),
                Some(id) => Err(format!("{id} is not a viewer id, 1 … {ID_MAX}")),
            },
            Rule::Attribute(condition) => condition.check(),
            Rule::And(And { and: rules }) | Rule::Or(Or { or: rules }) => rules
                .iter()
                .try_for_each(|rule| rule.check_at(depth + 1, size)),
            Rule::Not(Not { not }) => not.check_at(depth + 1, size),
        }
    }

    /// Returns true if the decision needs the viewer's row of the users table.
    pub fn needs_attributes(&self) -> bool {
        match self {
            Rule::All(_) | Rule::Ids(_) => false,
            Rule::Attribute(_) => true,
            Rule::And(And { and: rules }) | Rule::Or(Or { or: rules }) => {
                rules.iter().any(Rule::needs_attributes)
            }
            Rule::Not(Not { not }) => not.needs_attributes(),
        }
    }

    /// Returns true if the rule matches the viewer. A condition on an unknown attribute is
    /// false.
    pub fn holds(
        &self,
        viewer: u64,
        attributes: Option<&ViewerAttributes>,
        now_ms: UnixMs,
    ) -> bool {
        match self {
            Rule::All(All { all }) => *all,
            Rule::Ids(Ids { ids }) => ids.contains(&viewer),
            Rule::Attribute(condition) => {
                attributes.is_some_and(|known| condition.holds(known, now_ms))
            }
            Rule::And(And { and }) => and
                .iter()
                .all(|rule| rule.holds(viewer, attributes, now_ms)),
            Rule::Or(Or { or }) => or.iter().any(|rule| rule.holds(viewer, attributes, now_ms)),
            Rule::Not(Not { not }) => !not.holds(viewer, attributes, now_ms),
        }
    }
}

/// What a rule holds, at all levels together.
#[derive(Debug, Default)]
struct Size {
    conditions: usize,
    ids: usize,
}

impl Size {
    fn add(&mut self, rule: &Rule) -> Result<(), String> {
        self.conditions += 1;
        if let Rule::Ids(Ids { ids }) = rule {
            self.ids += ids.len();
        }
        if self.conditions > CONDITIONS_MAX {
            return Err(format!("has more than {CONDITIONS_MAX} conditions"));
        }
        if self.ids > IDS_MAX {
            return Err(format!("lists more than {IDS_MAX} viewers"));
        }
        Ok(())
    }
}

impl Condition {
    fn check(&self) -> Result<(), String> {
        let values = self.within.as_deref().unwrap_or_default();
        if values.len() > VALUES_MAX {
            return Err(format!("`in` has more than {VALUES_MAX} values"));
        }
        for value in values {
            KEY.check(value)
                .map_err(|message| format!("a value of `in` {message}"))?;
        }
        let numeric = self.attribute == Attribute::AccountAgeDays;
        match (&self.within, self.lt.or(self.gte)) {
            (Some(_), None) if !numeric => Ok(()),
            (None, Some(_)) if numeric => Ok(()),
            _ if numeric => Err("account_age_days takes `lt`, `gte` or both".to_owned()),
            _ => Err("country and language take `in`: a list of values".to_owned()),
        }
    }

    fn holds(&self, viewer: &ViewerAttributes, now_ms: UnixMs) -> bool {
        let listed = |value: &str| {
            !value.is_empty()
                && self
                    .within
                    .as_ref()
                    .is_some_and(|values| values.iter().any(|v| v == value))
        };
        match self.attribute {
            Attribute::Country => listed(&viewer.country),
            Attribute::Language => listed(&viewer.language),
            Attribute::AccountAgeDays => {
                let age_days = now_ms.saturating_sub(viewer.created_at_ms) as f64 / DAY_MS as f64;
                self.lt.is_none_or(|bound| age_days < bound)
                    && self.gte.is_none_or(|bound| age_days >= bound)
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn rule(json: &str) -> Rule {
        let rule: Rule = serde_json::from_str(json).unwrap();
        rule.check().unwrap();
        rule
    }

    const NOW_MS: u64 = 100 * DAY_MS;

    fn viewer(country: &str, created_at_ms: u64) -> ViewerAttributes {
        ViewerAttributes {
            country: country.into(),
            language: "en".into(),
            created_at_ms,
        }
    }

    #[test]
    fn every_kind_of_rule_matches_the_viewers_it_describes() {
        let old_german = viewer("DE", 0);
        let cases = [
            (r#"{"all": true}"#, true),
            (r#"{"ids": [7, 8]}"#, true),
            (r#"{"ids": [8]}"#, false),
            (r#"{"attribute": "country", "in": ["DE", "AT"]}"#, true),
            (r#"{"attribute": "account_age_days", "lt": 30}"#, false),
            (r#"{"attribute": "account_age_days", "gte": 100}"#, true),
            (
                r#"{"and": [{"ids": [7]}, {"not": {"attribute": "country", "in": ["FR"]}}]}"#,
                true,
            ),
            (
                r#"{"or": [{"ids": [1]}, {"attribute": "language", "in": ["fr"]}]}"#,
                false,
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(
                rule(json).holds(7, Some(&old_german), NOW_MS),
                expected,
                "{json}"
            );
        }
    }

    #[test]
    fn an_unknown_viewer_matches_no_attribute_condition() {
        assert!(!rule(r#"{"attribute": "country", "in": ["DE"]}"#).holds(7, None, NOW_MS));
        assert!(!rule(r#"{"attribute": "account_age_days", "lt": 30}"#).holds(7, None, NOW_MS));
    }

    #[test]
    fn a_meaningless_rule_is_refused() {
        for json in [
            r#"{"attribute": "country", "lt": 3}"#,
            r#"{"attribute": "account_age_days"}"#,
        ] {
            assert!(
                serde_json::from_str::<Rule>(json).unwrap().check().is_err(),
                "{json}"
            );
        }
        for json in [
            r#"{"ids": [0]}"#.to_owned(),
            r#"{"ids": [9007199254740992]}"#.to_owned(),
            format!(r#"{{"ids": {:?}}}"#, (1..=100_001).collect::<Vec<u64>>()),
            format!(
                r#"{{"attribute": "country", "in": ["{}"]}}"#,
                "x".repeat(101)
            ),
            format!(
                r#"{{"and": [{}]}}"#,
                vec![r#"{"all": true}"#; 1_000].join(",")
            ),
        ] {
            let refused = serde_json::from_str::<Rule>(&json).unwrap().check();
            assert!(refused.is_err(), "{}", &json[..40.min(json.len())]);
        }
        for json in [
            r#"{"al": true}"#,
            r#"{"attribute": "shoe_size", "lt": 3}"#,
            r#"{"ids": [1], "all": true}"#,
            r#"{"not": [{"ids": [1]}]}"#,
            "[true]",
        ] {
            assert!(serde_json::from_str::<Rule>(json).is_err(), "{json}");
        }
    }
}
