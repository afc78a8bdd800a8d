//! The bytes between the host and the child that checks an upload. Both ends are one program, so
//! the form has no version. Every length is checked before memory is reserved for it.

use super::{Compiled, Question};
use crate::admission::MODULE_BYTES_MAX;
use crate::reason::Reason;
use crate::settings::Allocation;
use nova_model::artifact::Digest;
use nova_model::measured::Record;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::time::Duration;

/// Largest header or verdict. A verdict has a few reasons, each a line.
const TEXT_BYTES_MAX: u64 = 4 << 20;
/// Largest number of files in a question: three modules and a signature.
const FILES_MAX: usize = 16;
/// Largest compiled module. Compiled Python takes three times the size of its component.
const CODE_BYTES_MAX: u64 = 8 * MODULE_BYTES_MAX as u64;
const STAGES: usize = 3;

#[derive(Debug, Serialize, Deserialize)]
struct QuestionHeader {
    manifest: Option<String>,
    /// Names and sizes.
    files: Vec<(String, u64)>,
    /// Sizes.
    published: Vec<u64>,
    allocation: Allocation,
}

/// A question as the child receives it.
#[derive(Debug)]
pub struct Asked {
    pub manifest: Option<String>,
    pub files: Vec<(String, Vec<u8>)>,
    pub published: Vec<Vec<u8>>,
    pub allocation: Allocation,
}

#[derive(Debug, Serialize, Deserialize)]
struct CompiledHeader {
    module: Digest,
    took: Duration,
    bytes: u64,
}

/// The cost of the policy, or every reason for its refusal.
pub type Verdict = std::result::Result<Record, Vec<Reason>>;

#[derive(Debug)]
pub struct Answer {
    pub compiled: HashMap<Digest, Compiled>,
    pub verdict: Verdict,
}

/// The child's output ended early or is not an answer.
#[derive(Debug)]
pub struct Garbled;

pub fn write_question(to: &mut impl Write, question: Question<'_>) -> Result<()> {
    let header = QuestionHeader {
        manifest: question.manifest.map(str::to_owned),
        files: question
            .files
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), bytes.len() as u64))
            .collect(),
        published: question.published.iter().map(|b| b.len() as u64).collect(),
        allocation: question.allocation,
    };
    write_json(to, &header)?;
    for (_, bytes) in question.files {
        to.write_all(bytes)?;
    }
    for bytes in question.published {
        to.write_all(bytes)?;
    }
    Ok(())
}

pub fn read_question(mut from: impl Read) -> Result<Asked> {
    let header: QuestionHeader = read_json(&mut from)?;
    if header.files.len() + header.published.len() > FILES_MAX {
        return Err(invalid("too many files"));
    }
    let mut bytes = |length| read_bytes(&mut from, length, MODULE_BYTES_MAX as u64);
    Ok(Asked {
        manifest: header.manifest,
        files: header
            .files
            .into_iter()
            .map(|(name, length)| Ok((name, bytes(length)?)))
            .collect::<Result<_>>()?,
        published: header
            .published
            .into_iter()
            .map(bytes)
            .collect::<Result<_>>()?,
        allocation: header.allocation,
    })
}

/// Writes the compiled modules, which precede the verdict.
pub fn write_compiled(to: &mut impl Write, compiled: &HashMap<Digest, Compiled>) -> Result<()> {
    let headers: Vec<CompiledHeader> = compiled
        .iter()
        .map(|(module, compiled)| CompiledHeader {
            module: *module,
            took: compiled.took,
            bytes: compiled.code.len() as u64,
        })
        .collect();
    write_json(to, &headers)?;
    for header in &headers {
        to.write_all(&compiled[&header.module].code)?;
    }
    to.flush()
}

pub fn write_verdict(to: &mut impl Write, verdict: &Verdict) -> Result<()> {
    write_json(to, verdict)?;
    to.flush()
}

pub fn read_answer(mut from: impl Read) -> std::result::Result<Answer, Garbled> {
    let mut read = || -> Result<Answer> {
        let headers: Vec<CompiledHeader> = read_json(&mut from)?;
        if headers.len() > STAGES {
            return Err(invalid("too many modules"));
        }
        let mut compiled = HashMap::new();
        for header in headers {
            let code = read_bytes(&mut from, header.bytes, CODE_BYTES_MAX)?;
            let took = header.took;
            compiled.insert(header.module, Compiled { code, took });
        }
        let verdict = read_json(&mut from)?;
        Ok(Answer { compiled, verdict })
    };
    read().map_err(|_| Garbled)
}

fn write_json(to: &mut impl Write, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(value)?;
    to.write_all(&(text.len() as u64).to_le_bytes())?;
    to.write_all(&text)
}

fn read_json<T: DeserializeOwned>(from: &mut impl Read) -> Result<T> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let text = read_bytes(from, u64::from_le_bytes(length), TEXT_BYTES_MAX)?;
    Ok(serde_json::from_slice(&text)?)
}

fn read_bytes(from: &mut impl Read, length: u64, max: u64) -> Result<Vec<u8>> {
    if length > max {
        return Err(invalid("too long"));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    from.by_ref().take(length).read_to_end(&mut bytes)?;
    match bytes.len() as u64 == length {
        true => Ok(bytes),
        false => Err(ErrorKind::UnexpectedEof.into()),
    }
}

fn invalid(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, reason)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_question_arrives_as_it_was_asked() {
        let mut bytes = Vec::new();
        let question = Question {
            manifest: Some("name"),
            files: &[("a.wasm", b"one"), ("b.wasm", b"")],
            published: &[b"two"],
            allocation: Allocation::OnDemand,
        };
        write_question(&mut bytes, question).unwrap();
        let asked = read_question(&bytes[..]).unwrap();
        assert_eq!(asked.manifest.as_deref(), Some("name"));
        assert_eq!(asked.files[0], ("a.wasm".to_owned(), b"one".to_vec()));
        assert_eq!(asked.files[1].1, b"");
        assert_eq!(asked.published, [b"two"]);
        assert_eq!(asked.allocation, Allocation::OnDemand);
        for cut in 0..bytes.len() {
            assert!(read_question(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn an_answer_that_is_cut_or_claims_a_huge_length_is_garbled() {
        let mut bytes = Vec::new();
        let compiled = Compiled {
            code: b"code".to_vec(),
            took: Duration::from_millis(3),
        };
        write_compiled(
            &mut bytes,
            &HashMap::from([(Digest::from_content(b"m"), compiled)]),
        )
        .unwrap();
        let reasons = vec![Reason::whole("limits", "why")];
        write_verdict(&mut bytes, &Err(reasons.clone())).unwrap();
        let answer = read_answer(&bytes[..]).unwrap();
        assert_eq!(answer.verdict, Err(reasons));
        assert_eq!(answer.compiled[&Digest::from_content(b"m")].code, b"code");
        for cut in 0..bytes.len() {
            assert!(read_answer(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(read_answer(&[0xff; 64][..]).is_err());
    }
}
