//! The structure of a component, read from its sections in milliseconds. It decides which
//! resource class the component needs and whether it is simple enough to compile, before the
//! compiler runs.

use super::class::{self, Class};
use wasmparser::{ComponentInstance, Instance, Parser, Payload};

const PAGE_BYTES: u64 = 64 << 10;
/// An interpreter alone is larger than this. A policy compiled from Rust is about a hundredth of
/// an interpreter.
const STANDARD_BYTES_MAX: u64 = 2 << 20;
/// The memory that a policy may use by default.
const STANDARD_MEMORY_BYTES_MAX: u64 = 16 << 20;

/// An interpreter has 14,000 functions.
const FUNCTIONS_MAX: u64 = 50_000;
/// The largest function in an interpreter has 430 KB.
const FUNCTION_BYTES_MAX: u64 = 2 << 20;
/// Encoders use one level.
const NESTING_MAX: u64 = 3;
/// Encoders use one instance for each exported interface. Siblings can instantiate each other, so
/// a chain grows exponentially. If each link instantiates the previous one several times, the
/// links that this bound allows make a few hundred instances; thirty links would make a billion.
const COMPONENT_INSTANCES_MAX: u64 = 16;

/// Totals over the component and everything nested in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    pub bytes: u64,
    /// Instances of core modules. An instance that is only a bundle of exports does not count.
    pub core_instances: u32,
    /// Component instances as written in the file. Those of a nested component count once, no
    /// matter how often it is instantiated.
    pub component_instances: u32,
    /// Functions with a body.
    pub functions: u32,
    /// Size of the largest function body. Compile time grows faster than linearly with it.
    pub function_bytes_max: u64,
    pub memories: u32,
    /// Initial size of all memories together, before the first call.
    pub memory_bytes: u64,
    pub tables: u32,
    /// Initial size of the largest table.
    pub table_elements: u64,
    /// Depth to which components are nested. Each level can instantiate the one below many times,
    /// so a few bytes of deep nesting can expand to a huge number of instances.
    pub nesting: u32,
}

impl Shape {
    /// # Errors
    /// Fails with the reason if the bytes are not valid WebAssembly.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut shape = Self {
            bytes: bytes.len() as u64,
            ..Self::default()
        };
        // One entry per open section: `true` for a component, `false` for a core module.
        let mut open = vec![true];
        for payload in Parser::new(0).parse_all(bytes) {
            match payload.map_err(|error| error.to_string())? {
                Payload::ModuleSection { .. } => open.push(false),
                Payload::ComponentSection { .. } => {
                    open.push(true);
                    let depth = open.iter().filter(|component| **component).count() as u32 - 1;
                    shape.nesting = shape.nesting.max(depth);
                }
                Payload::End(_) => drop(open.pop()),
                section => shape.count(section).map_err(|error| error.to_string())?,
            }
        }
        Ok(shape)
    }

    fn count(&mut self, section: Payload<'_>) -> wasmparser::Result<()> {
        match section {
            Payload::InstanceSection(instances) => {
                for instance in instances {
                    let is_module = matches!(instance?, Instance::Instantiate { .. });
                    self.core_instances += u32::from(is_module);
                }
            }
            Payload::ComponentInstanceSection(instances) => {
                for instance in instances {
                    let made = matches!(instance?, ComponentInstance::Instantiate { .. });
                    self.component_instances += u32::from(made);
                }
            }
            Payload::MemorySection(memories) => {
                for memory in memories {
                    self.memories += 1;
                    let bytes = memory?.initial.saturating_mul(PAGE_BYTES);
                    self.memory_bytes = self.memory_bytes.saturating_add(bytes);
                }
            }
            Payload::TableSection(tables) => {
                for table in tables {
                    self.tables += 1;
                    self.table_elements = self.table_elements.max(table?.ty.initial);
                }
            }
            Payload::CodeSectionEntry(body) => {
                self.functions += 1;
                let bytes = body.range().len() as u64;
                self.function_bytes_max = self.function_bytes_max.max(bytes);
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns the first bound that the component exceeds. No policy needs more than these
    /// bounds, and a compiler might take too long beyond them.
    pub fn too_complex(&self) -> Option<String> {
        let limits = Class::Large.limits();
        let bounds = [
            ("functions", self.functions.into(), FUNCTIONS_MAX),
            (
                "bytes in one function",
                self.function_bytes_max,
                FUNCTION_BYTES_MAX,
            ),
            (
                "levels of nested components",
                self.nesting.into(),
                NESTING_MAX,
            ),
            (
                "core instances",
                self.core_instances.into(),
                limits.core_instances.into(),
            ),
            (
                "component instances",
                self.component_instances.into(),
                COMPONENT_INSTANCES_MAX,
            ),
            ("memories", self.memories.into(), class::MEMORIES_MAX.into()),
            (
                "bytes of memory to begin with",
                self.memory_bytes,
                u64::from(class::MEMORY_MB_MAX) << 20,
            ),
            ("tables", self.tables.into(), limits.tables.into()),
            (
                "elements in one table",
                self.table_elements,
                limits.table_elements as u64,
            ),
        ];
        let exceeded = bounds
            .into_iter()
            .find(|(_, actual, allowed)| actual > allowed);
        exceeded.map(|(what, actual, allowed)| format!("{actual} {what}; {allowed} are allowed"))
    }

    /// Returns the smallest class that the component fits.
    pub fn class(&self) -> Class {
        let limits = Class::Standard.limits();
        let fits = self.core_instances <= limits.core_instances
            && self.tables <= limits.tables
            && self.table_elements <= limits.table_elements as u64
            && self.bytes <= STANDARD_BYTES_MAX
            && self.memory_bytes <= STANDARD_MEMORY_BYTES_MAX;
        if fits { Class::Standard } else { Class::Large }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::builtin;
    use crate::engine::Engine;
    use crate::memory::Claim;
    use crate::module::{CallBudget, StageCall};
    use nova_model::artifact::InstanceMode;
    use nova_policy_sdk::{Candidates, Request};
    use std::time::{Duration, Instant};

    #[test]
    fn policies_compiled_from_rust_are_of_the_standard_class() {
        for name in builtin::module_names() {
            let shape = Shape::read(builtin::module(name).unwrap()).unwrap();
            assert_eq!(shape.class(), Class::Standard, "{name}: {shape:?}");
            assert!(shape.functions > 0 && shape.memory_bytes >= PAGE_BYTES);
        }
    }

    #[test]
    fn a_component_that_exceeds_one_limit_of_the_standard_class_is_large() {
        let small = Shape::default();
        let python = Shape {
            bytes: 18_370_992,
            core_instances: 38,
            memory_bytes: 12_910_592,
            ..small
        };
        let interpreter_alone = Shape {
            bytes: 11_999_586,
            core_instances: 1,
            ..small
        };
        let large_table = Shape {
            table_elements: 30_000,
            ..small
        };
        let large_memory = Shape {
            memory_bytes: 17 << 20,
            ..small
        };
        assert_eq!(small.class(), Class::Standard);
        for shape in [python, interpreter_alone, large_table, large_memory] {
            assert_eq!(shape.class(), Class::Large, "{shape:?}");
        }
    }

    #[test]
    fn a_component_that_is_too_complex_is_refused_with_the_exceeded_bound() {
        let bombs = [
            (
                Shape {
                    functions: 1_000_000,
                    ..Shape::default()
                },
                "1000000 functions; 50000",
            ),
            (
                Shape {
                    nesting: 100,
                    ..Shape::default()
                },
                "nested",
            ),
            (
                Shape {
                    core_instances: 1_000,
                    ..Shape::default()
                },
                "core instances",
            ),
        ];
        for (bomb, word) in bombs {
            let reason = bomb.too_complex().unwrap();
            assert!(reason.contains(word), "{reason}");
        }
        assert_eq!(Shape::default().too_complex(), None);
    }

    /// Encodes sibling components that each instantiate the one before twice, reached through
    /// their parent.
    fn chain(links: usize) -> Vec<u8> {
        use wasm_encoder::{Alias, ComponentOuterAliasKind, NestedComponentSection};
        use wasm_encoder::{Component, ComponentAliasSection, ComponentInstanceSection};
        let none: [(&str, wasm_encoder::ComponentExportKind, u32); 0] = [];
        let mut outer = Component::new();
        outer.section(&NestedComponentSection(&Component::new()));
        for before in 0..links as u32 {
            let mut link = Component::new();
            let mut alias = ComponentAliasSection::new();
            alias.alias(Alias::Outer {
                kind: ComponentOuterAliasKind::Component,
                count: 1,
                index: before,
            });
            link.section(&alias);
            let mut instances = ComponentInstanceSection::new();
            instances.instantiate(0, none);
            instances.instantiate(0, none);
            link.section(&instances);
            outer.section(&NestedComponentSection(&link));
        }
        let mut instances = ComponentInstanceSection::new();
        instances.instantiate(links as u32, none);
        outer.section(&instances);
        outer.finish()
    }

    #[test]
    fn a_chain_of_siblings_that_doubles_at_each_link_is_refused_by_its_instance_count() {
        let bomb = Shape::read(&chain(30)).unwrap();
        assert_eq!((bomb.component_instances, bomb.nesting), (61, 1));
        assert!(bomb.too_complex().unwrap().contains("component instances"));
        let refused = Engine::start().unwrap().load(&chain(30)).unwrap_err();
        assert!(
            refused.to_string().contains("component instances"),
            "{refused}"
        );
        assert_eq!(Shape::read(&chain(2)).unwrap().too_complex(), None);
    }

    #[test]
    fn a_truncated_component_has_no_shape() {
        let bytes = builtin::module("seen-dedup").unwrap();
        assert!(Shape::read(&bytes[..bytes.len() / 2]).is_err());
    }

    /// Returns the same component with a custom section of three megabytes of zeros at its end.
    fn padded(component: &[u8]) -> Vec<u8> {
        let mut padded = component.to_vec();
        // Encodes section id 0, length 0x300000 in LEB128, and a name of length 0.
        padded.extend([0, 0x80, 0x80, 0xc0, 0x01, 0]);
        padded.resize(padded.len() + 0x30_0000 - 1, 0);
        padded
    }

    #[test]
    fn both_classes_give_the_same_answers() {
        let engine = Engine::start().unwrap();
        let small = engine
            .load(builtin::module("weighted-scorer").unwrap())
            .unwrap();
        let large = engine
            .load(&padded(builtin::module("weighted-scorer").unwrap()))
            .unwrap();
        assert_eq!(small.shape.class(), Class::Standard);
        assert_eq!(large.shape.class(), Class::Large);
        let ids: Vec<u64> = (1..=100).collect();
        let features: Vec<f32> = (0..small.features.len() * ids.len())
            .map(|at| at as f32)
            .collect();
        let candidates = Candidates {
            post_ids: &ids,
            author_ids: &ids,
            created_at_ms: &ids,
            features: &features,
        };
        let request = Request {
            user_id: 7,
            now_ms: 1_000,
            seed: 1,
            limit: 50,
        };
        let params: Vec<f64> = small
            .description
            .parameters
            .iter()
            .map(|parameter| parameter.default)
            .collect();
        for mode in [InstanceMode::Fresh, InstanceMode::Reuse] {
            let call = StageCall {
                budget: CallBudget {
                    deadline: Instant::now() + Duration::from_secs(10),
                    memory_bytes: 16 << 20,
                    mode,
                    claim: Claim::Other,
                },
                request: &request,
                params: &params,
            };
            let [small, large] =
                [&small, &large].map(|module| module.score(call, &candidates).unwrap());
            assert_eq!(small, large);
        }
    }
}
