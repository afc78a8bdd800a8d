//! Origins of web pages in the form in which browsers send them.

use std::collections::BTreeSet;
use url::Url;

/// The entry that allows every origin. Callers prove themselves with a token that a page must have
/// and that no browser adds by itself, so it is safe where any site may be a client.
pub const ANY_ORIGIN: &str = "*";

/// Returns origins as browsers send them: in lower case, with international names in ASCII, without
/// default port and trailing slash, each once.
///
/// # Errors
/// The first entry that is no origin, and what to write.
pub fn normalised(origins: &[String]) -> Result<Vec<String>, String> {
    let mut found = BTreeSet::new();
    for origin in origins {
        let normal = normal(origin.trim()).map_err(|reason| format!("`{origin}` {reason}"))?;
        found.insert(normal);
    }
    if found.len() > 1 && found.contains(ANY_ORIGIN) {
        return Err("`*` allows every origin; write `*` alone, or remove it".to_owned());
    }
    Ok(found.into_iter().collect())
}

fn normal(origin: &str) -> Result<String, String> {
    const FORM: &str = "is not an origin; write scheme and host, such as https://app.example";
    if origin == ANY_ORIGIN {
        return Ok(origin.to_owned());
    }
    if origin.contains('*') {
        return Err("has a pattern; list each origin, or write `*` alone for all".to_owned());
    }
    if origin.eq_ignore_ascii_case("null") {
        return Err("is the origin of local files and sandboxed frames of every site; list the origins of your pages".to_owned());
    }
    let url = Url::parse(origin).map_err(|_| FORM.to_owned())?;
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| FORM.to_owned())?.to_ascii_lowercase();
    // The scheme of the URL is in lower case, and its port is absent if it is the scheme's default.
    let port = url.port().map(|port| format!(":{port}"));
    let normal = format!("{}://{host}{}", url.scheme(), port.unwrap_or_default());
    let has_more = !matches!(url.path(), "" | "/")
        || url.query().is_some()
        || url.fragment().is_some()
        || !url.username().is_empty()
        || url.password().is_some();
    if has_more {
        return Err(format!("is more than an origin; write {normal}"));
    }
    Ok(normal)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn one(origin: &str) -> Result<String, String> {
        normalised(&[origin.to_owned()]).map(|origins| origins[0].clone())
    }

    #[test]
    fn every_spelling_of_an_origin_becomes_the_one_that_browsers_send() {
        for (written, sent) in [
            ("https://app.example", "https://app.example"),
            ("https://app.example/", "https://app.example"),
            (" https://app.example ", "https://app.example"),
            ("HTTPS://App.Example:443/", "https://app.example"),
            ("http://app.example:80", "http://app.example"),
            ("https://app.example:8443", "https://app.example:8443"),
            ("http://localhost:3000/", "http://localhost:3000"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("https://bücher.example", "https://xn--bcher-kva.example"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("chrome-extension://abcdef", "chrome-extension://abcdef"),
            ("*", "*"),
        ] {
            assert_eq!(one(written).as_deref(), Ok(sent), "{written}");
        }
        let twice = ["https://a.example/", "https://a.example:443"].map(str::to_owned);
        assert_eq!(normalised(&twice).unwrap(), ["https://a.example"]);
    }

    #[test]
    fn what_is_no_origin_is_refused_with_its_text() {
        for written in [
            "",
            "app.example",
            "localhost:3000",
            "//app.example",
            "https://",
            "file:///index.html",
            "https://app.example/app",
            "https://app.example?x=1",
            "https://app.example#top",
            "https://user@app.example",
            "https://user:password@app.example",
            "https://*.example",
            "https://app.example:99999",
            "https://app example",
            "null",
        ] {
            let refusal = one(written).unwrap_err();
            assert!(refusal.contains(&format!("`{written}`")), "{refusal}");
        }
        assert!(
            one("https://A.example/app")
                .unwrap_err()
                .ends_with("write https://a.example")
        );
        let mixed = ["*", "https://a.example"].map(str::to_owned);
        assert!(normalised(&mixed).unwrap_err().contains("`*`"));
    }
}
