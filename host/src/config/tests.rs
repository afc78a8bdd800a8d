use super::*;
use serde_json::Value;

fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    let variables: Vec<(String, String)> = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Config::parse(text, |name| {
        variables
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.clone())
    })
    .map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_gives_the_documented_defaults() {
    assert_eq!(parse("", &[]).unwrap(), Config::default());
}

#[test]
fn unknown_keys_are_refused_at_every_level() {
    for text in [
        "listn = \"x\"",
        "[ttl]\nsnapshots = 3",
        "[limits]\nx = 1",
        "[flags]\nuse_ch = true",
        "[auth]\nkey = \"\"",
    ] {
        let error = parse(text, &[]).unwrap_err();
        assert!(error.contains("unknown"), "{text}: {error}");
    }
}

#[test]
fn a_partial_set_of_store_urls_is_refused_with_the_missing_names() {
    let error = parse(
        "",
        &[("REDIS_URL", "redis://x"), ("POSTGRES_URL", "postgres://x")],
    )
    .unwrap_err();
    assert!(
        error.contains("CLICKHOUSE_URL, KAFKA_BROKERS missing"),
        "{error}"
    );
}

#[test]
fn the_environment_takes_precedence_over_the_file() {
    let variables = [
        ("HTTP_PORT", "9"),
        ("NOVA_SNAPSHOT_TTL_S", "7"),
        ("NOVA_RATE_LIMIT", "off"),
        ("NOVA_RECORD_SAMPLE_RATIO", "1"),
        ("NOVA_RECORD_VIEWERS", "7, 42"),
        ("NOVA_ENABLE_CACHING", "false"),
        ("NOVA_CORS_ORIGINS", "https://a.example, https://b.example"),
    ];
    let config = parse("[ttl]\nsnapshot_s = 3\ncandidates_s = 4", &variables).unwrap();
    assert_eq!(
        (
            config.listen.port(),
            config.live.ttl.snapshot_s,
            config.live.ttl.candidates_s
        ),
        (9, 7, 4)
    );
    assert_eq!(
        (
            config.live.limits.rate_limit,
            config.live.flags.enable_caching
        ),
        (Switch::Off, false)
    );
    assert_eq!(config.live.records.sample_ratio, 1.0);
    assert!(config.live.records.viewers.iter().eq(&[7, 42]));
    assert_eq!(
        config.server.cors_origins,
        ["https://a.example", "https://b.example"]
    );
}

#[test]
fn a_value_of_the_wrong_kind_is_refused() {
    for variable in [
        ("HTTP_PORT", "http"),
        ("NOVA_SNAPSHOT_TTL_S", "soon"),
        ("NOVA_RATE_LIMIT", "maybe"),
        ("NOVA_RECORD_SAMPLE_RATIO", "1.5"),
        ("NOVA_SHADOW_CPU_PERCENT", "101"),
        ("NOVA_RECORD_VIEWERS", "7,ada"),
        ("LOG_LEVEL", "=="),
        ("NOVA_JWT_SECRET", "short"),
        ("NOVA_JWT_SECRET", ""),
        ("NOVA_JWT_SECRET", " \n"),
        ("NOVA_JWT_SECRET", "change-me-change-me-change-me-change-me"),
        ("NOVA_JWT_SECRET", "p4ssw0rdp4ssw0rdp4ssw0rdp4ssw0rd"),
        ("NOVA_POLICY_TRUSTED_KEYS", ""),
        ("NOVA_IDLE_TIMEOUT_MS", "0"),
        ("NOVA_HEADER_TIMEOUT_MS", "0"),
        ("NOVA_CORS_ORIGINS", "app.example"),
    ] {
        assert!(parse("", &[variable]).is_err(), "{variable:?}");
    }
}

/// Returns every key of the configuration with its default, as `section.key`.
fn defaults() -> Vec<(String, serde_json::Value)> {
    let Value::Object(top) = serde_json::to_value(Config::default()).unwrap() else {
        unreachable!("a configuration is an object")
    };
    let keys = top.into_iter().flat_map(|(name, value)| match value {
        Value::Object(section) => section
            .into_iter()
            .map(|(key, value)| (format!("{name}.{key}"), value))
            .collect(),
        value => vec![(name, value)],
    });
    keys.collect()
}

#[test]
fn every_number_has_bounds_and_is_accepted_only_within_them_in_the_file_and_the_environment() {
    let numbers: Vec<String> = defaults()
        .into_iter()
        .filter_map(|(key, value)| value.is_number().then_some(key))
        .collect();
    for bounds in bounds::BOUNDS {
        assert!(numbers.iter().any(|key| key == bounds.key), "{bounds:?}");
    }
    for key in numbers {
        let bounds = bounds::of(&key).unwrap_or_else(|| panic!("{key} has no bounds"));
        let (variable, _) = VARIABLES.iter().find(|(_, k)| *k == key).unwrap();
        let inside = [bounds.min, bounds.max];
        let outside = [0.0, bounds.max + 1.0, u64::MAX as f64, -1.0];
        for value in inside.into_iter().chain(outside) {
            let text = match key.split_once('.') {
                None => format!("{key} = {value}"),
                Some((section, key)) => format!("[{section}]\n{key} = {value}"),
            };
            for parsed in [
                parse(&text, &[]),
                parse("", &[(variable, &value.to_string())]),
            ] {
                assert_eq!(parsed.is_ok(), bounds.allow(value), "{text}: {parsed:?}");
                if let Err(error) = parsed {
                    let names = error.contains(&format!("{key}: ")) || error.contains("line ");
                    assert!(names, "{text}: {error}");
                }
            }
        }
        // What is not finite is no number that could be compared.
        for value in ["nan", "inf", "-inf"] {
            let (section, name) = key.split_once('.').unwrap_or(("", &key));
            let head = if section.is_empty() {
                String::new()
            } else {
                format!("[{section}]\n")
            };
            assert!(
                parse(&format!("{head}{name} = {value}"), &[]).is_err(),
                "{key} = {value}"
            );
            assert!(parse("", &[(variable, value)]).is_err(), "{key} = {value}");
        }
    }
}

#[test]
fn a_refused_number_is_named_with_its_unit_and_the_accepted_values() {
    let error = parse("", &[("NOVA_POLICY_BUDGET_MS", "0")]).unwrap_err();
    assert!(
        error.contains("feed.policy_budget_ms: 0 is not within 10 … 60000 ms"),
        "{error}"
    );
    let error = parse("[ttl]\nsnapshot_s = -1", &[]).unwrap_err();
    assert!(error.contains("ttl.snapshot_s"), "{error}");
    assert!(error.contains("1 … 86400 s, or 0"), "{error}");
}

#[test]
fn a_weak_key_is_refused_in_a_file_and_in_a_variable_without_repeating_it() {
    let weak = [
        ("", "empty"),
        ("hunter2", "7 bytes"),
        ("0123456789012345678901234567890123456789", "repeats"),
        ("change-me-change-me-change-me-change-me", "placeholder"),
    ];
    for (secret, reason) in weak {
        let text = format!("[auth]\njwt_secret = \"{secret}\"");
        let refusals = [parse(&text, &[]), parse("", &[("NOVA_JWT_SECRET", secret)])];
        for refusal in refusals.map(Result::unwrap_err) {
            assert!(refusal.contains(reason), "{refusal}");
            assert!(refusal.contains("NOVA_JWT_SECRET"), "{refusal}");
            assert!(secret.is_empty() || !refusal.contains(secret), "{refusal}");
        }
    }
}

#[test]
fn a_printed_configuration_does_not_contain_the_key() {
    let secret = "a secret that must not reach any log";
    let config = parse("", &[("NOVA_JWT_SECRET", secret)]).unwrap();
    assert!(!format!("{config:?}").contains(secret));
}

/// Every value that stands where a key belongs, in any file that a user copies from.
#[test]
fn no_example_file_contains_a_key_that_a_host_accepts() {
    let files = [
        include_str!("../../../.env.example"),
        include_str!("../../../compose.yaml"),
        include_str!("../../../README.md"),
        include_str!("../../../docs/operations.md"),
    ];
    let value = |line: &str| {
        let (_, value) = line.rsplit_once("NOVA_JWT_SECRET")?;
        let value = value.trim_start_matches(['=', ':', '-', ' ', '"']);
        let value = value.split([' ', '`', '}', '"']).next()?;
        (!value.is_empty()).then(|| value.to_owned())
    };
    for found in files.iter().flat_map(|text| text.lines()).filter_map(value) {
        assert!(
            parse("", &[("NOVA_JWT_SECRET", &found)]).is_err(),
            "{found} is a public key"
        );
    }
}

#[test]
fn failure_budgets_accept_integers_and_fractions_and_refuse_invalid_values() {
    let variables = [
        ("NOVA_FAILURE_BUDGET_RATIO", "0.1"),
        ("NOVA_FAILURE_BUDGET_P99_FACTOR", "2"),
    ];
    let budget = parse("", &variables).unwrap().live.failure_budget;
    assert_eq!((budget.ratio, budget.p99_factor), (0.1, 2.0));
    for text in [
        "ratio = 0",
        "window_s = 601",
        "min_failures = 0",
        "p99_factor = 0.5",
    ] {
        let error = parse(&format!("[failure_budget]\n{text}"), &[]).unwrap_err();
        let (key, _) = text.split_once(' ').unwrap();
        assert!(error.contains(&format!("failure_budget.{key}")), "{error}");
    }
}

#[test]
fn the_example_file_lists_every_variable() {
    let example = include_str!("../../../.env.example");
    for name in VARIABLES
        .iter()
        .map(|(name, _)| *name)
        .chain([PORT_VARIABLE])
    {
        assert!(
            example
                .lines()
                .any(|line| line.starts_with(&format!("# {name}="))),
            "{name} is not in .env.example"
        );
    }
    let listed = example
        .lines()
        .filter_map(|line| line.strip_prefix("# ")?.split_once('='))
        .map(|(name, _)| name);
    for name in listed.filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_')) {
        let client = ["NOVA_HOST", "NOVA_TOKEN"].contains(&name);
        assert!(
            client || name == PORT_VARIABLE || VARIABLES.iter().any(|(n, _)| *n == name),
            "{name} is not a variable"
        );
    }
}
