//! Paths that the server answers.

/// All paths, as the router spells them.
pub(crate) const PATHS: [&str; 35] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/v1/responses/{id}",
    "/v1/responses/{id}/input_items",
    "/v1/responses/{id}/cancel",
    "/v1/models",
    "/v1/models/{*id}",
    "/v1/kv/explain",
    "/v1/kv/classes",
    "/v1/kv/cache",
    "/admin/donors",
    "/admin/donors/{id}",
    "/admin/tenants/{name}/cache",
    "/admin/sessions/{id}/cache",
    "/admin/corpora",
    "/admin/corpora/{name}",
    "/v1/embeddings",
    "/embeddings",
    "/v1/rerank",
    "/rerank",
    "/v2/rerank",
    "/v1/score",
    "/score",
    "/tokenize",
    "/detokenize",
    "/health",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/version",
    "/load",
    "/openapi.json",
];
/// Health check paths of load balancers.
pub(crate) const HEALTH_PATHS: [&str; 3] = ["/health", "/health/live", "/health/ready"];
/// Path that Prometheus scrapes.
pub(crate) const METRICS_PATH: &str = "/metrics";
