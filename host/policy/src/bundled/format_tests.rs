//! A stored `shipped.json`, in `tests/fixtures/formats`: the bundle of one released program.

use super::*;

const STORED: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/formats/v1/policy/shipped.json"
));
const DEDUP: &str = "7e43292c9294d643f5e3d13ba0213dfd8c2d23cb459654da0017e2947d1defd7";
const SCORER: &str = "abc6cf4f8f768cd3feed0fe9d5aa07a10bc42bc45949808590e5fdacc6cf6abd";
const SATURATION: &str = "7bd19f5db80c2768d63cb878b9778613219faec9ba4d77fa8bbeb270cae08829";
const TIMELINE: &str = "b722c8774cd82e1eb74f492f017c6ab689d5f6414e3bf613bf820961f456f0ca";
const DECAY: &str = "d664983450a7a5cc2c8e39f34bec734e0f610ed13d032e1beaf4c9f615f8f69b";

fn recipe(
    name: &str,
    description: &str,
    [scorer, saturation]: [&str; 2],
    [score, of_saturation]: [&str; 2],
) -> Recipe {
    let manifest = format!(
        "name = \"{name}\"\nversion = \"1.0.0\"\ndescription = \"{description}\"\n\
         [dedup]\nmodule = \"builtin:seen-dedup\"\n\
         [score]\nmodule = \"{scorer}\"\n\
         [saturation]\nmodule = \"{saturation}\"\n"
    );
    let modules = PerStage {
        dedup: DEDUP.parse().unwrap(),
        score: score.parse().unwrap(),
        saturation: of_saturation.parse().unwrap(),
    };
    Recipe { manifest, modules }
}

fn expected() -> Bundled {
    let (weighted, author) = ("builtin:weighted-scorer", "builtin:author-saturation");
    let recipes = vec![
        recipe(
            "baseline",
            "Freshness, engagement and affinity, weighted; nothing seen today; authors kept apart.",
            [weighted, author],
            [SCORER, SATURATION],
        ),
        recipe(
            "timeline",
            "Newest first; nothing seen today; authors kept apart.",
            ["timeline_scorer.wasm", author],
            [TIMELINE, SATURATION],
        ),
        recipe(
            "decay-diversity",
            "As baseline, but a smooth discount for each further post of an author instead of hard rules.",
            [weighted, "decay_saturation.wasm"],
            [SCORER, DECAY],
        ),
    ];
    let modules = [
        ("author-saturation", SATURATION),
        ("seen-dedup", DEDUP),
        ("weighted-scorer", SCORER),
    ];
    let modules = modules.map(|(name, digest)| (name.to_owned(), digest.parse().unwrap()));
    Bundled(vec![Program {
        recipes,
        modules: BTreeMap::from(modules),
    }])
}

/// An upgrade would otherwise quarantine, compare and sign other bytes than the registry has. A
/// change on purpose, such as a new compiler, updates the digests above and says so in
/// CHANGELOG.md.
#[test]
fn the_bundled_modules_have_the_digests_of_the_last_release() {
    let digests = |program: &Program| {
        let recipes = program.recipes.iter();
        recipes.map(|recipe| recipe.modules).collect::<Vec<_>>()
    };
    let (here, released) = (Bundled::here(), expected());
    assert_eq!(here.0[0].modules, released.0[0].modules);
    assert_eq!(digests(&here.0[0]), digests(&released.0[0]));
}

#[tokio::test]
async fn a_stored_bundle_is_read_and_written_again_to_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    std::fs::write(&path, STORED).unwrap();
    let found = durable_file::read_json::<Bundled>(&path).unwrap().unwrap();
    assert_eq!(found, expected());
    let remembered = Bundled::remembered(directory.path()).await.unwrap();
    assert_eq!(remembered.0[0], expected().0[0]);
    durable_file::write_json(path.clone(), &expected())
        .await
        .unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), STORED);
}
