//! Limits of the HTTP side. The engine has its own configuration.

use std::time::Duration;

use tokens::SharingMode;

use crate::sampling_defaults::SamplingDefaults;
use crate::web::WebAccess;

/// Limits and timeouts of the server.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// Maximum open connections. One more closes the connection that has waited longest for its client; if all are being answered, the new
    /// one gets health checks only.
    pub max_connections: usize,
    /// Maximum open connections of one peer: an IPv4 address, or an IPv6 network of 64 bits.
    pub max_connections_per_peer: usize,
    /// Maximum bytes of a request body.
    pub body_limit: usize,
    /// Time limit for a client to send its body.
    pub body_read_timeout: Duration,
    /// Time limit for a client to send its headers, counted from the last answer on a kept connection: also the idle timeout.
    pub header_read_timeout: Duration,
    /// Maximum header fields of a request.
    pub max_headers: usize,
    /// Maximum bytes of a request head.
    pub max_header_bytes: usize,
    /// Maximum answers per request (`n`).
    pub max_n: u32,
    /// Maximum stored responses of `/v1/responses`; 0 stores none.
    pub max_responses: usize,
    /// Maximum bytes of all stored responses.
    pub max_response_bytes: usize,
    /// Interval of comments on a silent event stream, so that proxies keep it open.
    pub keep_alive: Duration,
    /// Time for running requests to finish after the first signal.
    pub shutdown_timeout: Duration,
    /// Web pages and host names that may reach a daemon without keys.
    pub web: WebAccess,
    /// Sharing defaults of requests that specify none.
    pub sharing: SharingDefaults,
    /// Sampling defaults of requests that specify none.
    pub sampling: SamplingDefaults,
}

/// KV sharing options of requests that specify none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SharingDefaults {
    /// KV that may be reused.
    pub mode: SharingMode,
    /// Policy that selects the reused span tokens to recompute.
    pub repair: engine::Repair,
    /// Deviation at or below which no more tokens are recomputed, in the unit of [`engine::Repair::max_deviation`]. 0 asks for exact
    /// sharing; `None` leaves it to the policy.
    pub max_deviation: Option<f32>,
}

/// Maximum timeout.
const MAX_TIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Maximum configurable body limit.
const MAX_BODY_LIMIT: usize = 1 << 30;

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_connections_per_peer: 2048,
            body_limit: 2 << 20,
            body_read_timeout: Duration::from_secs(30),
            header_read_timeout: Duration::from_secs(30),
            max_headers: 64,
            max_header_bytes: 32 << 10,
            max_n: 8,
            max_responses: 1024,
            max_response_bytes: 64 << 20,
            keep_alive: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(30),
            web: WebAccess::default(),
            sharing: SharingDefaults::default(),
            sampling: SamplingDefaults::default(),
        }
    }
}

impl Default for SharingDefaults {
    fn default() -> Self {
        Self { mode: SharingMode::Prefix, repair: engine::Repair::recommended(), max_deviation: None }
    }
}

/// Reason why a [`ServerConfig`] is invalid.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum ServerConfigError {
    /// A limit of zero would refuse everything.
    #[error("`{field}` must not be zero")]
    Zero {
        /// Name of the field.
        field: &'static str,
    },
    /// The time exceeds what clocks can represent.
    #[error("`{field}` must be at most 365 days")]
    TooLong {
        /// Name of the field.
        field: &'static str,
    },
    /// The body limit is too large, because a body is held in memory.
    #[error("`body_limit` must be at most 1 GiB, is {bytes} bytes")]
    BodyTooLarge {
        /// Configured value.
        bytes: usize,
    },
    /// The HTTP parser needs a larger header buffer.
    #[error("`max_header_bytes` must be at least 8192, is {bytes}")]
    HeaderBufferTooSmall {
        /// Configured value.
        bytes: usize,
    },
    /// A deviation bound cannot be negative.
    #[error("`max_deviation` must be at least 0, is {bound}")]
    Deviation {
        /// Configured value.
        bound: f32,
    },
}

impl ServerConfig {
    /// Checks that every limit is usable.
    ///
    /// # Errors
    /// Names the first field that is invalid.
    pub fn validate(&self) -> Result<(), ServerConfigError> {
        let zero = |is_zero: bool, field| if is_zero { Err(ServerConfigError::Zero { field }) } else { Ok(()) };
        zero(self.max_connections == 0, "max_connections")?;
        zero(self.max_connections_per_peer == 0, "max_connections_per_peer")?;
        zero(self.body_limit == 0, "body_limit")?;
        zero(self.body_read_timeout.is_zero(), "body_read_timeout")?;
        zero(self.header_read_timeout.is_zero(), "header_read_timeout")?;
        zero(self.max_headers == 0, "max_headers")?;
        zero(self.max_n == 0, "max_n")?;
        zero(self.keep_alive.is_zero(), "keep_alive")?;
        let times = [
            (self.body_read_timeout, "body_read_timeout"),
            (self.header_read_timeout, "header_read_timeout"),
            (self.keep_alive, "keep_alive"),
            (self.shutdown_timeout, "shutdown_timeout"),
        ];
        if let Some((_, field)) = times.iter().find(|(time, _)| *time > MAX_TIME) {
            return Err(ServerConfigError::TooLong { field });
        }
        if self.body_limit > MAX_BODY_LIMIT {
            return Err(ServerConfigError::BodyTooLarge { bytes: self.body_limit });
        }
        if self.max_header_bytes < 8192 {
            return Err(ServerConfigError::HeaderBufferTooSmall { bytes: self.max_header_bytes });
        }
        match self.sharing.max_deviation {
            Some(bound) if !(bound >= 0.0 && bound.is_finite()) => Err(ServerConfigError::Deviation { bound }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        assert_eq!(ServerConfig::default().validate(), Ok(()));
    }

    #[test]
    fn a_limit_of_nothing_is_named() {
        let config = ServerConfig { max_n: 0, ..ServerConfig::default() };
        assert_eq!(config.validate(), Err(ServerConfigError::Zero { field: "max_n" }));
    }

    #[test]
    fn a_negative_deviation_is_refused() {
        let sharing = SharingDefaults { max_deviation: Some(-1.0), ..SharingDefaults::default() };
        let config = ServerConfig { sharing, ..ServerConfig::default() };
        assert_eq!(config.validate(), Err(ServerConfigError::Deviation { bound: -1.0 }));
    }

    #[test]
    fn the_parser_needs_a_head_buffer() {
        let config = ServerConfig { max_header_bytes: 100, ..ServerConfig::default() };
        assert_eq!(config.validate(), Err(ServerConfigError::HeaderBufferTooSmall { bytes: 100 }));
    }
}
