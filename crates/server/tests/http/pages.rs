//! Requests from web pages, and requests to foreign host names.

use axum::body::Body;
use axum::http::Request;
use axum::http::header::{ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, HOST, ORIGIN};
use serde_json::json;
use server::{Access, ScopeSecret, ServerConfig, WebAccess};

use crate::world::{Answer, CHAT, COMPLETIONS, KEY_OPS, Options, World, chat, tenants};

/// Sends `body` to `path` with the given headers.
async fn send(world: &World, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    world.answer_to(request.body(Body::from(body.to_owned())).unwrap()).await
}

#[track_caller]
fn check(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status.as_u16(), answer.json()["error"]["code"].as_str()), (status, Some(code)), "{}", answer.text);
}

const JSON: (&str, &str) = ("content-type", "application/json");
const LOCAL: (&str, &str) = ("host", "localhost:8000");

fn with_web(web: WebAccess) -> World {
    World::with(Options { server: ServerConfig { web, ..ServerConfig::default() }, ..Options::default() })
}

/// Requests that a page may send, to one path of each kind.
const REQUESTS: [(&str, &str); 7] = [
    ("POST", CHAT),
    ("POST", "/admin/corpora"),
    ("DELETE", "/v1/kv/cache"),
    ("DELETE", "/admin/corpora/x"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("GET", "/nowhere"),
];

#[tokio::test]
async fn a_foreign_page_reaches_nothing_without_keys() {
    let world = World::new();
    for (method, path) in REQUESTS {
        for origin in ["https://evil.example", "null", "http://localhost.evil.example", "file://"] {
            let answer = send(&world, method, path, &[JSON, LOCAL, ("origin", origin)], "{}").await;
            check(&answer, 403, "origin_not_allowed");
            assert!(!answer.headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN), "{method} {path}");
        }
    }
    let corpora = send(&world, "GET", "/admin/corpora", &[LOCAL], "").await.ok();
    assert_eq!(corpora["data"], json!([]));
}

#[tokio::test]
async fn a_name_that_was_resolved_to_this_machine_reaches_nothing_without_keys() {
    let world = World::new();
    for (method, path) in REQUESTS {
        let answer = send(&world, method, path, &[JSON, ("host", "evil.example:8000")], "{}").await;
        check(&answer, 403, "host_not_allowed");
        // The two headers agree, because to the browser the page and the daemon are one host.
        let headers = [JSON, ("host", "evil.example:8000"), ("origin", "http://evil.example:8000")];
        check(&send(&world, method, path, &headers, "{}").await, 403, "host_not_allowed");
        check(&send(&world, method, &format!("http://evil.example{path}"), &[JSON, LOCAL], "{}").await, 403, "host_not_allowed");
    }
    let shed = world.get("/metrics").await.text;
    let refused = format!("reason=\"foreign_page\"}} {}", 3 * REQUESTS.len());
    assert!(shed.contains(&refused), "{shed}");
}

#[tokio::test]
async fn health_checks_are_answered_to_any_name() {
    let world = World::new();
    for path in ["/health", "/health/live", "/health/ready"] {
        let answer = send(&world, "GET", path, &[("host", "pod-7.example:8000"), ("origin", "https://evil.example")], "").await;
        assert_eq!(answer.status, 200);
        assert!(!answer.headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
    }
}

#[tokio::test]
async fn on_a_network_probes_scrapes_and_clients_are_answered_without_keys() {
    let world = with_web(WebAccess { is_local: false, ..WebAccess::default() });
    for host in ["10.1.2.3:8000", "[fd00::7]:8000", "kvshare:8000", "kvshare.prod.svc.cluster.local:8000", "localhost"] {
        send(&world, "GET", "/v1/models", &[("host", host)], "").await.ok();
        send(&world, "POST", CHAT, &[JSON, ("host", host)], &chat("hi", json!({})).to_string()).await.ok();
    }
    for path in ["/metrics", "/health"] {
        assert_eq!(send(&world, "GET", path, &[("host", "gpu.example.com")], "").await.status, 200);
    }
    check(&send(&world, "GET", "/v1/models", &[("host", "evil.example")], "").await, 403, "host_not_allowed");
    check(&send(&world, "GET", "/metrics", &[LOCAL, ("origin", "https://evil.example")], "").await, 403, "origin_not_allowed");
}

#[tokio::test]
async fn allowed_pages_are_answered_and_told_so() {
    let web = WebAccess { origins: vec!["https://ui.example".to_owned()], ..WebAccess::default() };
    let world = with_web(web);
    for origin in ["https://ui.example", "http://localhost:3000", "http://127.0.0.1:5173"] {
        let body = chat("hi", json!({})).to_string();
        let answer = send(&world, "POST", CHAT, &[JSON, LOCAL, ("origin", origin)], &body).await;
        answer.ok();
        assert_eq!(answer.headers[ACCESS_CONTROL_ALLOW_ORIGIN], origin);
        // Pages read errors too.
        let refused = send(&world, "POST", CHAT, &[JSON, LOCAL, ("origin", origin)], "{}").await;
        assert_eq!((refused.status.as_u16(), &refused.headers[ACCESS_CONTROL_ALLOW_ORIGIN]), (400, &origin.parse().unwrap()));
    }
    check(&send(&world, "GET", "/v1/models", &[LOCAL, ("origin", "https://other.example")], "").await, 403, "origin_not_allowed");
}

#[tokio::test]
async fn preflights_of_allowed_pages_are_answered_also_without_a_key() {
    let web = WebAccess { origins: vec!["https://ui.example".to_owned()], ..WebAccess::default() };
    let server = ServerConfig { web, ..ServerConfig::default() };
    let keyed = Access::new(tenants(), ScopeSecret::random());
    for access in [Access::open(), keyed] {
        let world = World::with(Options { server: server.clone(), access, ..Options::default() });
        let asks = [
            ("access-control-request-method", "DELETE"),
            ("access-control-request-headers", "authorization,content-type"),
            LOCAL,
        ];
        let allowed =
            send(&world, "OPTIONS", "/v1/kv/cache", &[&asks[..], &[("origin", "https://ui.example")]].concat(), "").await;
        assert!(allowed.status.is_success(), "{}", allowed.text);
        assert_eq!(allowed.headers[ACCESS_CONTROL_ALLOW_ORIGIN], "https://ui.example");
        assert!(allowed.headers[ACCESS_CONTROL_ALLOW_METHODS].to_str().unwrap().contains("DELETE"));
        assert_eq!(allowed.headers[ACCESS_CONTROL_ALLOW_HEADERS], "authorization,content-type");
        let foreign =
            send(&world, "OPTIONS", COMPLETIONS, &[&asks[..], &[("origin", "https://evil.example")]].concat(), "").await;
        assert!(!foreign.headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
    }
}

#[tokio::test]
async fn with_keys_the_key_alone_decides() {
    let world = World::with_tenants();
    let headers = [(HOST.as_str(), "kvshare.example"), (ORIGIN.as_str(), "https://evil.example")];
    assert_eq!(send(&world, "GET", "/v1/models", &headers, "").await.status, 401);
    let authorization = format!("Bearer {KEY_OPS}");
    let answer = send(&world, "GET", "/v1/models", &[&headers[..], &[("authorization", &authorization)]].concat(), "").await;
    answer.ok();
    assert!(!answer.headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN), "the page must not read it");
}

#[tokio::test]
async fn a_body_that_is_not_sent_as_json_is_refused() {
    let world = World::new();
    let body = chat("hi", json!({})).to_string();
    for path in [CHAT, COMPLETIONS, "/tokenize", "/detokenize", "/v1/kv/explain", "/admin/corpora"] {
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"] {
            let answer = send(&world, "POST", path, &[LOCAL, ("content-type", kind)], &body).await;
            check(&answer, 415, "unsupported_media_type");
            assert!(answer.text.contains("Content-Type: application/json"), "{}", answer.text);
        }
        check(&send(&world, "POST", path, &[LOCAL], &body).await, 415, "unsupported_media_type");
        for encoding in ["gzip", "br", "deflate", "x"] {
            let answer = send(&world, "POST", path, &[LOCAL, JSON, ("content-encoding", encoding)], &body).await;
            check(&answer, 415, "unsupported_content_encoding");
        }
    }
    for kind in ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"] {
        send(&world, "POST", CHAT, &[LOCAL, ("content-type", kind), ("content-encoding", "identity")], &body).await.ok();
    }
}
