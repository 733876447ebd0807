//! Access of web pages to the daemon, and the host names under which it answers.
//!
//! A browser sends a page's requests to any address, including loopback. Without API keys nothing else distinguishes such a page from the
//! user's own programs, so a daemon without keys checks two headers. `Origin` names the page: it must be local, or allowed. `Host` is the
//! name that was resolved: a page that had its own name resolved to this machine (DNS rebinding) has no foreign origin, but a foreign
//! host.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{HOST, HeaderName, ORIGIN, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Method, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::access::Access;
use crate::error::ApiError;
use crate::metrics::{Metrics, ShedReason};
use crate::paths::{HEALTH_PATHS, METRICS_PATH};

/// Pages and host names that are allowed besides local ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebAccess {
    /// Allowed origins, as `https://ui.example:8443`; `null` matches pages without an origin and `*` all pages.
    pub origins: Vec<String>,
    /// Allowed host names without a port; `*` matches all.
    pub hosts: Vec<String>,
    /// True if the daemon listens on a loopback address. Otherwise it also answers to addresses and to names that public DNS does not
    /// resolve, because pages cannot have those resolved to it.
    pub is_local: bool,
}

/// Time for which a browser caches a preflight response. Chosen.
const PREFLIGHT_AGE: Duration = Duration::from_secs(600);
/// Suffixes of names that public DNS does not resolve (RFC 6762, RFC 8375, and ICANN's reservation of 2024).
const PRIVATE_SUFFIXES: [&str; 3] = [".local", ".internal", ".home.arpa"];

impl Default for WebAccess {
    fn default() -> Self {
        Self { origins: Vec::new(), hosts: Vec::new(), is_local: true }
    }
}

impl WebAccess {
    /// Returns the first entry that can match no request, if there is one.
    #[must_use]
    pub fn meaningless_entry(&self) -> Option<&str> {
        let is_origin = |text: &str| matches!(text, "*" | "null") || parse_origin(text).is_some();
        let is_host = |text: &str| text == "*" || (!text.contains(['/', ' ']) && !host_name(text).is_empty());
        let origin = self.origins.iter().find(|text| !is_origin(text));
        origin.or_else(|| self.hosts.iter().find(|text| !is_host(text))).map(String::as_str)
    }

    /// Checks the page and the host name of a request for `uri`.
    fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        // A browser always sends a host, so a client that sends none is not a browser.
        let hosts = headers.get_all(HOST).iter().map(|host| host.to_str().unwrap_or_default());
        let skips_host = uri.path() == METRICS_PATH && !self.is_local;
        let mut hosts = hosts.chain(uri.authority().map(|authority| authority.as_str()));
        if let Some(host) = hosts.find(|host| !skips_host && !self.allows_host(host)) {
            return Err(ApiError::ForeignHost { host: shortened(host) });
        }
        match headers.get_all(ORIGIN).iter().find(|origin| !self.allows_origin(origin, headers)) {
            Some(origin) => Err(ApiError::ForeignOrigin { origin: shortened(&String::from_utf8_lossy(origin.as_bytes())) }),
            None => Ok(()),
        }
    }

    fn allows_host(&self, host: &str) -> bool {
        let name = host_name(host);
        let is_listed = self.hosts.iter().any(|known| known == "*" || host_name(known) == name);
        is_listed || is_loopback(&name) || (!self.is_local && is_private(&name))
    }

    /// True if the page is listed, local, or of a listed host that the request is addressed to.
    fn allows_origin(&self, origin: &HeaderValue, headers: &HeaderMap) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        if self.origins.iter().any(|known| known == "*" || known.trim_end_matches('/').eq_ignore_ascii_case(origin)) {
            return true;
        }
        let Some(authority) = parse_origin(origin) else { return false };
        let name = host_name(authority);
        let is_own = || {
            let asked = headers.get(HOST).and_then(|host| host.to_str().ok());
            asked.is_some_and(|asked| asked.eq_ignore_ascii_case(authority))
                && self.hosts.iter().any(|known| host_name(known) == name)
        };
        is_loopback(&name) || is_own()
    }
}

/// Check of the pages and host names of requests.
#[derive(Clone)]
pub(crate) struct PageCheck {
    pub(crate) access: Arc<Access>,
    pub(crate) web: Arc<WebAccess>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Refuses requests of foreign pages and to foreign names when no key identifies the caller. Health checks are always answered.
pub(crate) async fn check_page(State(check): State<PageCheck>, request: Request, next: Next) -> Response {
    if check.access.is_open()
        && !HEALTH_PATHS.contains(&request.uri().path())
        && let Err(error) = check.web.check(request.uri(), request.headers())
    {
        check.metrics.http.count_shed(ShedReason::ForeignPage);
        return error.into_response();
    }
    next.run(request).await
}

/// Answers preflights, and sends the headers that let allowed pages read an answer.
pub(crate) fn cors(web: Arc<WebAccess>, request_id: HeaderName) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(move |origin, parts| web.allows_origin(origin, &parts.headers)))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([request_id, RETRY_AFTER])
        .allow_private_network(true)
        .max_age(PREFLIGHT_AGE)
}

/// Returns the authority of a web origin.
fn parse_origin(origin: &str) -> Option<&str> {
    let (scheme, authority) = origin.trim_end_matches('/').split_once("://")?;
    let is_scheme = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    (is_scheme && !authority.is_empty() && !authority.contains(['/', '?', '#', '@', ' '])).then_some(authority)
}

/// Returns the host name of an authority: no port, no brackets, no final dot, in lower case.
fn host_name(authority: &str) -> String {
    let name = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        // An IPv6 address without brackets has colons of its own.
        None if authority.parse::<IpAddr>().is_ok() => authority,
        None => authority.rsplit_once(':').map_or(authority, |(name, _)| name),
    };
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn is_loopback(name: &str) -> bool {
    let address = name.parse::<IpAddr>().ok();
    address.map_or(name == "localhost" || name.ends_with(".localhost"), |address| address.to_canonical().is_loopback())
}

/// True if a page cannot have had `name` resolved to an address of its choice.
fn is_private(name: &str) -> bool {
    let is_label = |name: &str| !name.is_empty() && !name.contains('.');
    name.parse::<IpAddr>().is_ok() || is_label(name) || PRIVATE_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// Truncates `text` for a message.
fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 128;
    text.chars().filter(|character| !character.is_control()).take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(is_local: bool, origins: &[&str], hosts: &[&str]) -> WebAccess {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        WebAccess { origins: owned(origins), hosts: owned(hosts), is_local }
    }

    #[track_caller]
    fn check_hosts(access: &WebAccess, hosts: &[&str], expected: bool) {
        for host in hosts {
            assert_eq!(access.allows_host(host), expected, "{host:?}");
        }
    }

    #[track_caller]
    fn check_origins(access: &WebAccess, host: &str, origins: &[&str], expected: bool) {
        let headers = HeaderMap::from_iter([(HOST, host.parse().unwrap())]);
        for origin in origins {
            assert_eq!(access.allows_origin(&origin.parse().unwrap(), &headers), expected, "{origin:?}");
        }
    }

    const LOCAL: [&str; 9] = [
        "localhost",
        "LocalHost:8000",
        "localhost.",
        "app.localhost:1",
        "127.0.0.1:8000",
        "127.9.9.9",
        "[::1]:8000",
        "[::1]",
        "[::ffff:127.0.0.1]:8000",
    ];
    const FOREIGN: [&str; 8] = [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil-localhost.com",
        "",
        ":80",
        "0.0.0.0.nip.io",
    ];
    const PRIVATE: [&str; 6] =
        ["10.0.0.7:8000", "0.0.0.0", "[fd00::1]:8000", "kvshare:8000", "gpu.local", "kvshare.ns.svc.cluster.local"];

    #[test]
    fn a_local_daemon_answers_to_local_names_only() {
        check_hosts(&access(true, &[], &[]), &LOCAL, true);
        check_hosts(&access(true, &[], &[]), &FOREIGN, false);
        check_hosts(&access(true, &[], &[]), &PRIVATE, false);
    }

    #[test]
    fn a_daemon_on_a_network_answers_to_names_that_no_page_can_forge() {
        check_hosts(&access(false, &[], &[]), &LOCAL, true);
        check_hosts(&access(false, &[], &[]), &PRIVATE, true);
        check_hosts(&access(false, &[], &[]), &FOREIGN, false);
    }

    #[test]
    fn listed_names_are_answered_to_with_any_port() {
        check_hosts(&access(true, &[], &["Ui.Example"]), &["ui.example", "ui.example:8443", "UI.example."], true);
        check_hosts(&access(true, &[], &["ui.example"]), &["x.ui.example", "ui.example.evil"], false);
        check_hosts(&access(true, &[], &["*"]), &FOREIGN, true);
    }

    #[test]
    fn pages_are_local_or_listed() {
        let local = ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:5173", "http://app.localhost"];
        let foreign =
            ["https://evil.example", "null", "file://", "http://localhost.evil.example", "http://localhost@evil.example", "x"];
        let none = access(true, &[], &[]);
        check_origins(&none, "localhost:8000", &local, true);
        check_origins(&none, "localhost:8000", &foreign, false);
        let listed = access(true, &["https://ui.example/", "null"], &[]);
        check_origins(&listed, "localhost:8000", &["https://ui.example", "null"], true);
        check_origins(
            &listed,
            "localhost:8000",
            &["http://ui.example", "https://ui.example:8443", "https://evil.example"],
            false,
        );
        check_origins(&access(true, &["*"], &[]), "localhost", &foreign, true);
    }

    #[test]
    fn a_page_of_a_listed_host_may_ask_that_host() {
        let listed = access(true, &[], &["ui.example"]);
        check_origins(&listed, "ui.example", &["https://ui.example"], true);
        check_origins(&listed, "localhost", &["https://ui.example"], false);
        check_origins(&listed, "ui.example", &["https://ui.example:8443", "https://evil.example"], false);
        // A page that had its name resolved here has one name in both headers.
        check_origins(&access(true, &[], &[]), "evil.example", &["http://evil.example"], false);
    }

    #[test]
    fn entries_that_match_nothing_are_found() {
        for entry in ["ui.example", "https://", "https://ui.example/path", ""] {
            assert_eq!(access(true, &["null", entry], &[]).meaningless_entry(), Some(entry));
        }
        for entry in ["https://ui.example", ""] {
            assert_eq!(access(true, &["*"], &["ui", entry]).meaningless_entry(), Some(entry));
        }
        assert_eq!(access(true, &["app://x", "null"], &["ui.example:1", "*"]).meaningless_entry(), None);
    }
}
