//! Rotations as `config.json` states them: `rope_theta` and `rope_scaling`, or both together in `rope_parameters`.
//!
//! Which of them counts, and what an absent one means, is as in transformers 5. What would be ignored there is an error here.

use serde_json::{Map, Value};

use super::fields::Fields;
use crate::LoadError;
use crate::error::shown;
use crate::spec::{GEMMA3_LOCAL_THETA, RopeScaling, RopeSpec};

/// Base of the frequencies if the file does not say.
const DEFAULT_THETA: f64 = 10_000.0;
/// That of Gemma 3's layers without a window.
const GEMMA3_GLOBAL_THETA: f64 = 1e6;
const SCALING: &str = "rope_scaling";
const PARAMETERS: &str = "rope_parameters";
/// Objects in the `rope_parameters` of Gemma 3.
const OF_GLOBAL: &str = "full_attention";
const OF_LOCAL: &str = "sliding_attention";

/// Returns the rotation of all layers.
pub(super) fn rope(config: Fields<'_>) -> Result<Vec<RopeSpec>, LoadError> {
    refuse_partial(config)?;
    let theta = config.number("rope_theta")?.unwrap_or(DEFAULT_THETA);
    let parameters = config.object(PARAMETERS)?.map(|object| spec(config, PARAMETERS, object, theta)).transpose()?;
    let scaling = config.object(SCALING)?.filter(|object| !object.is_empty());
    let scaling = scaling.map(|object| spec(config, SCALING, object, theta)).transpose()?;
    match (parameters, scaling) {
        (Some(parameters), Some(scaling)) if parameters != scaling => {
            Err(config.error(SCALING, format!("is another rotation than that of {PARAMETERS}")))
        }
        (parameters, scaling) => Ok(vec![scaling.or(parameters).unwrap_or(RopeSpec { theta, scaling: RopeScaling::None })]),
    }
}

/// Returns the rotation of Gemma's layers without a window, then that of the others.
pub(super) fn gemma3_ropes(config: Fields<'_>) -> Result<Vec<RopeSpec>, LoadError> {
    refuse_partial(config)?;
    let parameters = config.object(PARAMETERS)?;
    let (mut global, mut local) = (Map::new(), Map::new());
    if let Some(parameters) = parameters {
        let by_kind = config.of_object(PARAMETERS, parameters);
        if let Some(key) = by_kind.keys().find(|key| ![OF_GLOBAL, OF_LOCAL].contains(key)) {
            return Err(by_kind.error(key, format!("is not supported: a Gemma 3 model has {OF_GLOBAL} and {OF_LOCAL} there")));
        }
        global = by_kind.object(OF_GLOBAL)?.cloned().unwrap_or_default();
        local = by_kind.object(OF_LOCAL)?.cloned().unwrap_or_default();
    }
    let scaling = config.object(SCALING)?.filter(|object| !object.is_empty());
    let name = if scaling.is_some() { SCALING } else { "rope_parameters.full_attention" };
    // As in transformers, both together describe one rotation.
    if let Some((key, _)) =
        scaling.into_iter().flatten().find(|(key, value)| global.get(*key).is_some_and(|other| other != *value))
    {
        return Err(config.of_object(SCALING, &global).error(key, format!("is another one in {PARAMETERS}.{OF_GLOBAL}")));
    }
    global.extend(scaling.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
    let theta = config.number("rope_theta")?.unwrap_or(GEMMA3_GLOBAL_THETA);
    let local_theta = config.number("rope_local_base_freq")?.unwrap_or(GEMMA3_LOCAL_THETA);
    Ok(vec![spec(config, name, &global, theta)?, spec(config, "rope_parameters.sliding_attention", &local, local_theta)?])
}

/// Refuses rotation of a part of each head.
fn refuse_partial(fields: Fields<'_>) -> Result<(), LoadError> {
    match fields.number("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => Err(fields.error("partial_rotary_factor", format!("of {factor} is not supported"))),
        _ => Ok(()),
    }
}

/// Reads one object; `theta` counts if it has none.
fn spec(config: Fields<'_>, name: &str, object: &Map<String, Value>, theta: f64) -> Result<RopeSpec, LoadError> {
    let fields = config.of_object(name, object);
    refuse_partial(fields)?;
    let theta = fields.number("rope_theta")?.unwrap_or(theta);
    let kind = kind(fields)?;
    let number = |key: &str| {
        let number = fields.number(key)?.ok_or_else(|| fields.error(key, "is missing"))?;
        if number > 0.0 { Ok(number) } else { Err(fields.error(key, format!("is {number}, not above 0"))) }
    };
    let (used, scaling): (&[&str], _) = match kind {
        "default" => (&[], RopeScaling::None),
        "linear" => (&["factor"], RopeScaling::Linear(number("factor")?)),
        "llama3" => {
            let original = match fields.get(ORIGINAL) {
                Some(_) => number(ORIGINAL)?,
                None => config.required_size("max_position_embeddings")? as f64,
            };
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if low >= high {
                return Err(fields.error("high_freq_factor", format!("is {high}, not above low_freq_factor, {low}")));
            }
            let scaling = RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position: original,
            };
            (&["factor", "low_freq_factor", "high_freq_factor", ORIGINAL], scaling)
        }
        other => return Err(fields.error("rope_type", format!("{} is not supported", shown(other)))),
    };
    let known = |key: &str| ["rope_type", "type", "rope_theta", "partial_rotary_factor"].contains(&key) || used.contains(&key);
    if let Some(key) = fields.keys().find(|key| !known(key) && fields.get(key).is_some()) {
        return Err(fields.error(key, format!("is not supported with rope_type {kind}")));
    }
    Ok(RopeSpec { theta, scaling })
}

const ORIGINAL: &str = "original_max_position_embeddings";

/// Returns the kind of scaling: `rope_type`, or `type`, as older files call it.
fn kind(fields: Fields<'_>) -> Result<&str, LoadError> {
    let (new, old) = (fields.text("rope_type")?, fields.text("type")?);
    if fields.is_null("rope_type") {
        return Err(fields.error("rope_type", "is null, not a string"));
    }
    match (new, old) {
        (Some(new), Some(old)) if new != old => {
            Err(fields.error("type", format!("is {}, but rope_type is {}", shown(old), shown(new))))
        }
        (new, old) => Ok(new.or(old).unwrap_or("default")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn read(is_gemma: bool, mut config: Value) -> Result<Vec<RopeSpec>, LoadError> {
        config["max_position_embeddings"] = json!(4096);
        let fields = Fields::of_file(Path::new("config.json"), &config)?;
        if is_gemma { gemma3_ropes(fields) } else { rope(fields) }
    }

    /// Checks that an object is refused with the same words in both kinds of model and under each name it may have.
    #[track_caller]
    fn check_refused(object: &Value, named: &str) {
        let gemma = json!({"full_attention": object});
        let local = json!({"sliding_attention": object});
        let cases = [
            (false, json!({SCALING: object})),
            (false, json!({PARAMETERS: object})),
            (true, json!({SCALING: object})),
            (true, json!({PARAMETERS: gemma})),
            (true, json!({PARAMETERS: local})),
        ];
        for (is_gemma, config) in cases {
            let error = read(is_gemma, config.clone()).expect_err(named).to_string();
            assert!(error.starts_with("config.json: rope_") && error.contains(named) && error.len() < 200, "{config}: {error}");
        }
    }

    #[test]
    fn malformed_rotations_are_refused_by_name() {
        for (object, is) in [(json!("yarn"), "'yarn'"), (json!(5), "5"), (json!([]), "a list"), (json!(true), "true")] {
            check_refused(&object, &format!("is {}{is}, not an object", if object.is_string() { "the string " } else { "" }));
        }
        check_refused(&json!({"factor": 4}), ".factor is not supported with rope_type default");
        check_refused(&json!({"rope_type": 5}), ".rope_type is 5, not a string");
        check_refused(&json!({"rope_type": null, "type": "yarn", "factor": 2}), ".rope_type is null");
        check_refused(&json!({"rope_type": "default", "type": "linear"}), ".type is linear");
        check_refused(&json!({"rope_type": "linear"}), ".factor is missing");
        check_refused(&json!({"rope_type": "linear", "factor": "2"}), ".factor is the string");
        check_refused(&json!({"rope_type": "linear", "factor": 0}), ".factor is 0, not above 0");
        check_refused(&json!({"rope_type": "Linear", "factor": 2}), ".rope_type Linear is not supported");
        check_refused(&json!({"rope_type": "yarn", "factor": 2}), ".rope_type yarn is not supported");
        check_refused(
            &json!({"rope_type": "linear", "factor": 2, "attention_factor": 1.5}),
            ".attention_factor is not supported",
        );
        check_refused(&json!({"rope_theta": "x"}), ".rope_theta is the string");
        check_refused(&json!({"rope_type": "default", "partial_rotary_factor": 0.5}), ".partial_rotary_factor of 0.5 is not");
        check_refused(&json!({"partial_rotary_factor": "1"}), ".partial_rotary_factor is the string");
        let llama3 = |low, high| json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": low, "high_freq_factor": high});
        check_refused(&llama3(4, 4), ".high_freq_factor is 4, not above");
        check_refused(&llama3(4, 1), ".high_freq_factor is 1, not above");
    }

    #[test]
    fn objects_for_kinds_of_layers_belong_to_models_with_two_kinds() {
        let nested = json!({PARAMETERS: {"full_attention": {"rope_type": "default"}}});
        assert!(read(false, nested.clone()).unwrap_err().to_string().contains("rope_parameters.full_attention is not supported"));
        assert!(read(true, nested).is_ok());
        let flat = json!({PARAMETERS: {"factor": 2.0}});
        assert!(read(true, flat).unwrap_err().to_string().contains("rope_parameters.factor is not supported"));
        let null = json!({PARAMETERS: {"full_attention": null, "sliding_attention": null}});
        assert_eq!(read(true, null).unwrap(), read(true, json!({})).unwrap());
    }

    #[test]
    fn two_objects_that_say_different_things_are_refused() {
        let both = |scaling: Value, parameters: Value| json!({SCALING: scaling, PARAMETERS: parameters});
        let (two, four) = (json!({"rope_type": "linear", "factor": 2.0}), json!({"type": "linear", "factor": 4.0}));
        assert!(read(false, both(two.clone(), two.clone())).is_ok());
        let error = read(false, both(two.clone(), four.clone())).unwrap_err().to_string();
        assert!(error.contains("rope_scaling is another rotation"), "{error}");
        let nested = |object: &Value| json!({"full_attention": object});
        assert!(read(true, both(two.clone(), nested(&two))).is_ok());
        let error = read(true, both(two, nested(&four))).unwrap_err().to_string();
        assert!(error.contains("rope_scaling.factor is another one"), "{error}");
    }

    #[test]
    fn the_innermost_theta_counts() {
        let theta = |is_gemma, config| read(is_gemma, config).unwrap().iter().map(|rope| rope.theta).collect::<Vec<_>>();
        assert_eq!(theta(false, json!({})), [10_000.0]);
        assert_eq!(theta(false, json!({"rope_theta": 5.0})), [5.0]);
        assert_eq!(theta(false, json!({"rope_theta": 5.0, PARAMETERS: {"rope_theta": 7.0}})), [7.0]);
        assert_eq!(theta(false, json!({"rope_theta": 5.0, PARAMETERS: {"rope_type": "default"}})), [5.0]);
        assert_eq!(theta(true, json!({})), [1e6, 1e4]);
        assert_eq!(theta(true, json!({"rope_theta": 5.0, "rope_local_base_freq": 3.0})), [5.0, 3.0]);
        let nested = json!({"full_attention": {"rope_theta": 7.0}, "sliding_attention": {"rope_theta": 9.0}});
        assert_eq!(theta(true, json!({"rope_theta": 5.0, "rope_local_base_freq": 3.0, PARAMETERS: nested})), [7.0, 9.0]);
    }

    #[test]
    fn llama3_was_trained_on_all_positions_unless_the_file_says_otherwise() {
        let original = |extra: Value| {
            let mut object = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
            object.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            match read(false, json!({SCALING: object})).unwrap().remove(0).scaling {
                RopeScaling::Llama3 { original_max_position, .. } => original_max_position,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((original(json!({})), original(json!({ORIGINAL: 32}))), (4096.0, 32.0));
    }
}
