//! The claims of a verified token: the forms in which identity providers write them, and the
//! reason why a claim is refused. A reason names the claim and repeats no value.

use nova_model::event::{ID_MAX, parse_id};
use serde_json::{Map, Value};

/// Largest subject of an admin token. It becomes the actor of audit entries.
const SUBJECT_BYTES_MAX: usize = 256;

/// All claims of a token whose signature, times, issuer and audience were verified.
pub type Claims = Map<String, Value>;

/// Returns the viewer that `sub` names: a decimal string or an integer from 1 to 2^53 − 1.
///
/// # Errors
/// The reason why `sub` is no viewer.
pub fn viewer(claims: &Claims) -> Result<u64, String> {
    let id = match claims.get("sub") {
        Some(Value::String(text)) => parse_id(text),
        Some(value) => value.as_u64(),
        None => return Err(missing("sub")),
    };
    id.filter(|id| (1..=ID_MAX).contains(id)).ok_or_else(|| {
        format!("the token's claim `sub` is not a viewer id, an integer from 1 to {ID_MAX}")
    })
}

/// Returns the name of an admin: a string, or an integer, which stands for its decimal digits.
///
/// # Errors
/// The reason why `sub` cannot be written into the audit log.
pub fn actor(claims: &Claims) -> Result<String, String> {
    let name = match claims.get("sub") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) if number.is_u64() || number.is_i64() => number.to_string(),
        Some(_) => return Err("the token's claim `sub` is neither a string nor an integer".into()),
        None => return Err(missing("sub")),
    };
    if name.is_empty() || name.len() > SUBJECT_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(format!(
            "the token's claim `sub` is not a name of 1 to {SUBJECT_BYTES_MAX} bytes without control characters"
        ));
    }
    Ok(name)
}

/// Returns the names of the roles. A string is one role; null and a missing claim are none. An
/// entry of a list that is no string is ignored, like a role of a newer version.
///
/// # Errors
/// `roles` has another type.
pub fn roles(claims: &Claims) -> Result<Vec<String>, String> {
    match claims.get("roles") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(role)) => Ok(vec![role.clone()]),
        Some(Value::Array(roles)) => {
            let names = roles.iter().filter_map(Value::as_str);
            Ok(names.map(str::to_owned).collect())
        }
        Some(_) => Err("the token's claim `roles` is neither a string nor a list".into()),
    }
}

/// Returns when the token expires, in seconds since the Unix epoch. RFC 7519 allows fractions.
pub fn expires_s(claims: &Claims) -> f64 {
    claims.get("exp").and_then(Value::as_f64).unwrap_or(0.0)
}

pub fn missing(claim: &str) -> String {
    format!("the token's claim `{claim}` is missing or has the wrong type")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use serde_json::json;

    fn claims(name: &str, value: Value) -> Claims {
        [(name.to_owned(), value)].into_iter().collect()
    }

    #[test]
    fn a_viewer_is_a_string_or_an_integer_within_the_range_of_ids() {
        for (sub, expected) in [
            (json!("7"), 7),
            (json!(7), 7),
            (json!("9007199254740991"), ID_MAX),
            (json!(9_007_199_254_740_991_u64), ID_MAX),
        ] {
            assert_eq!(viewer(&claims("sub", sub)), Ok(expected));
        }
        let refused = [
            json!(0),
            json!(-7),
            json!(7.5),
            json!(9_007_199_254_740_992_u64),
            json!(u64::MAX),
            json!("9007199254740992"),
            json!("99999999999999999999999"),
            json!(""),
            json!("alice"),
            json!("+7"),
            json!("-7"),
            json!(" 7"),
            json!("７"),
            json!(null),
            json!(true),
            json!([7]),
            json!({"id": 7}),
        ];
        for sub in refused {
            let reason = viewer(&claims("sub", sub.clone())).unwrap_err();
            assert!(reason.contains("`sub`"), "{sub}: {reason}");
        }
        assert!(viewer(&Claims::new()).unwrap_err().contains("`sub`"));
    }

    #[test]
    fn an_actor_is_a_printable_name_or_an_integer() {
        for (sub, expected) in [
            (json!("ada@example.org"), "ada@example.org"),
            (json!(7), "7"),
            (json!(u64::MAX), "18446744073709551615"),
            (json!("Zoë 🙂"), "Zoë 🙂"),
        ] {
            assert_eq!(actor(&claims("sub", sub)), Ok(expected.to_owned()));
        }
        let refused = [
            json!(""),
            json!("a\u{0}b"),
            json!("two\nlines"),
            json!("x".repeat(257)),
            json!(7.5),
            json!(null),
            json!(["ada"]),
        ];
        for sub in refused {
            let reason = actor(&claims("sub", sub.clone())).unwrap_err();
            assert!(reason.contains("`sub`"), "{sub}: {reason}");
        }
    }

    #[test]
    fn roles_are_a_list_one_string_or_nothing() {
        for (value, expected) in [
            (json!(["operator", "wizard", 5]), vec!["operator", "wizard"]),
            (json!("operator"), vec!["operator"]),
            (json!(null), vec![]),
            (json!([]), vec![]),
        ] {
            let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(roles(&claims("roles", value)), Ok(expected));
        }
        assert_eq!(roles(&Claims::new()), Ok(Vec::new()));
        for value in [json!(5), json!(true), json!({"operator": true})] {
            let reason = roles(&claims("roles", value)).unwrap_err();
            assert!(reason.contains("`roles`"), "{reason}");
        }
    }
}
