//! A static pod's manifest: what it says, and the one change that is ever made to it.

use std::path::Path;

use lockkeeper_crds::Component;
use serde_yaml::Value;
use sha2::{Digest as _, Sha256};

/// Why a manifest cannot be used or changed. Each sentence names the file, the field and the way out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("{file} is not valid YAML ({source}): correct it; the kubelet cannot read it either")]
    Yaml { file: String, source: serde_yaml::Error },
    #[error("{file} is not UTF-8 text: write it anew as YAML")]
    Text { file: String },
    #[error(
        "{file} is written as JSON, which Lockkeeper does not change: write it as YAML, with one field a line"
    )]
    Json { file: String },
    #[error("{file} is not a Pod with {missing}: correct it")]
    Shape { file: String, missing: &'static str },
    #[error(
        "{file}: pod {found} instead of {expected}: give it the name {expected}, or move the file out of the manifest directory"
    )]
    Name {
        file: String,
        found: String,
        expected: String,
    },
    #[error(
        "{file}: no container {container} among spec.containers: name the component's container {container}"
    )]
    Container { file: String, container: String },
    #[error(
        "{file}: the image of container {container} ({image}) is pinned by digest, so a version alone cannot replace it: write it as repository:tag"
    )]
    Pinned {
        file: String,
        container: String,
        image: String,
    },
    #[error("{file}: {image:?} is not an image reference of the form repository:tag")]
    Image { file: String, image: String },
    #[error(
        "{file}: the image of container {container} stands in no `image:` line of its own: write the container in block style, one field a line, without anchors"
    )]
    Line { file: String, container: String },
    #[error(
        "{file}: the flag --{flag} of container etcd stands in no line `- --{flag}=VALUE` of its own: write the command in block style, one flag a line, each flag once"
    )]
    Flag { file: String, flag: String },
}

/// A parsed manifest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Manifest {
    pub(crate) image: String,
    /// `command` and `args` of the component's container.
    pub(crate) arguments: Vec<String>,
    pub(crate) document: Value,
}

impl Manifest {
    /// The value of the last `--name=value` or `--name value`.
    pub(crate) fn flag(&self, name: &str) -> Option<&str> {
        flag(&self.arguments, name)
    }
}

/// The value of the last `--name=value` or `--name value`.
pub(crate) fn flag<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let mut found = None;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(text) = argument.strip_prefix("--") else {
            continue;
        };
        match text.split_once('=') {
            Some((key, value)) if is_flag(key, name) => found = Some(value),
            None if is_flag(text, name) => found = rest.next().map(String::as_str),
            _ => {}
        }
    }
    found
}

/// Kubernetes takes `--a_b` for `--a-b`.
pub(crate) fn is_flag(written: &str, name: &str) -> bool {
    written.len() == name.len()
        && written
            .bytes()
            .map(|b| if b == b'_' { b'-' } else { b })
            .eq(name.bytes())
}

/// The same repository with another tag; none when the reference is pinned by digest.
pub(crate) fn with_tag(image: &str, tag: &str) -> Option<String> {
    if image.contains('@') {
        return None;
    }
    let repository = match image.rsplit_once(':') {
        // The colon of `host:port/path` is not a tag's.
        Some((repository, old)) if !old.contains('/') => repository,
        _ => image,
    };
    Some(format!("{repository}:{tag}"))
}

/// SHA-256 in lower-case hexadecimal.
pub(crate) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The file's name for a sentence.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Parses any pod manifest: (namespace, name, document).
pub(crate) fn parse_pod(path: &Path, bytes: &[u8]) -> Result<(String, String, Value), ManifestError> {
    let file = shown(path);
    let text = std::str::from_utf8(bytes).map_err(|_| ManifestError::Text { file: file.clone() })?;
    let document: Value = serde_yaml::from_str(text).map_err(|source| ManifestError::Yaml {
        file: file.clone(),
        source,
    })?;
    let text_at = |field: &str| {
        document
            .get("metadata")
            .and_then(|m| m.get(field))
            .and_then(Value::as_str)
    };
    if document.get("kind").and_then(Value::as_str) != Some("Pod") {
        return Err(ManifestError::Shape {
            file,
            missing: "kind Pod",
        });
    }
    let Some(name) = text_at("name").map(str::to_owned) else {
        return Err(ManifestError::Shape {
            file,
            missing: "metadata.name",
        });
    };
    let namespace = text_at("namespace").unwrap_or("default").to_owned();
    Ok((namespace, name, document))
}

/// Parses a component's manifest.
pub(crate) fn parse(path: &Path, component: Component, bytes: &[u8]) -> Result<Manifest, ManifestError> {
    let (namespace, name, document) = parse_pod(path, bytes)?;
    if (namespace.as_str(), name.as_str()) != ("kube-system", component.name()) {
        return Err(ManifestError::Name {
            file: shown(path),
            found: format!("{namespace}/{name}"),
            expected: format!("kube-system/{component}"),
        });
    }
    let missing = || ManifestError::Container {
        file: shown(path),
        container: component.name().to_owned(),
    };
    let container = container(&document, component.name()).ok_or_else(missing)?;
    let image = container
        .get("image")
        .and_then(Value::as_str)
        .ok_or(ManifestError::Shape {
            file: shown(path),
            missing: "an image in the component's container",
        })?
        .to_owned();
    let mut arguments = strings(container.get("command"));
    arguments.extend(strings(container.get("args")));
    Ok(Manifest {
        image,
        arguments,
        document,
    })
}

/// The same pod under a given UID; the text is written anew.
///
/// A static pod's UID is otherwise a hash of its content and path (facts.md 5.1).
pub(crate) fn with_uid(path: &Path, bytes: &[u8], uid: &str) -> Result<Vec<u8>, ManifestError> {
    let (_, _, mut document) = parse_pod(path, bytes)?;
    let metadata = document
        .get_mut("metadata")
        .and_then(Value::as_mapping_mut)
        .ok_or(ManifestError::Shape {
            file: shown(path),
            missing: "metadata",
        })?;
    metadata.insert("uid".into(), uid.into());
    serde_yaml::to_string(&document)
        .map(String::into_bytes)
        .map_err(|source| ManifestError::Yaml {
            file: shown(path),
            source,
        })
}

/// The strings of a sequence.
pub(crate) fn strings(value: Option<&Value>) -> Vec<String> {
    value
        .and_then(Value::as_sequence)
        .map(|all| all.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default()
}

/// A container of a pod, by name.
pub(crate) fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    pod.get("spec")?
        .get("containers")?
        .as_sequence()?
        .iter()
        .find(|c| c.get("name").and_then(Value::as_str) == Some(name))
}

/// A reference that may stand unquoted in YAML and that a runtime takes: `host[:port]/path:tag`.
fn is_tagged(image: &str) -> bool {
    let plain = image
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "._-/:".contains(c));
    let tag = image
        .rsplit_once(':')
        .filter(|(repository, tag)| !repository.is_empty() && !tag.is_empty() && !tag.contains('/'));
    plain && tag.is_some() && image.chars().next().is_some_and(|c| c.is_ascii_alphanumeric())
}

/// The manifest's bytes with another image in the component's container, everything else to the byte as it was.
///
/// Only the value of one `image:` line is touched; the result is parsed again and must differ from the old
/// document in that one field and in nothing else, whatever anchors, quotes or comments the file has.
///
/// # Errors
/// When the file is not one that can be changed so; nothing is guessed.
pub(crate) fn with_image(
    path: &Path,
    component: Component,
    bytes: &[u8],
    image: &str,
) -> Result<Vec<u8>, ManifestError> {
    let file = shown(path);
    let old = parse(path, component, bytes)?;
    let text = std::str::from_utf8(bytes).map_err(|_| ManifestError::Text { file: file.clone() })?;
    if text.trim_start().starts_with('{') {
        return Err(ManifestError::Json { file });
    }
    let name = component.name().to_owned();
    if old.image.contains('@') {
        return Err(ManifestError::Pinned {
            file,
            container: name,
            image: old.image,
        });
    }
    if !is_tagged(image) {
        return Err(ManifestError::Image {
            file,
            image: image.to_owned(),
        });
    }
    let expected = expected_document(&old.document, component.name(), image);
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        if let Some((from, to)) = image_value(line, &old.image) {
            let (head, tail) = (text.get(..start + from), text.get(start + to..));
            if let (Some(head), Some(tail)) = (head, tail) {
                let candidate = format!("{head}{image}{tail}");
                if serde_yaml::from_str::<Value>(&candidate).is_ok_and(|new| new == expected) {
                    return Ok(candidate.into_bytes());
                }
            }
        }
        start += line.len();
    }
    Err(ManifestError::Line {
        file,
        container: name,
    })
}

fn expected_document(old: &Value, name: &str, image: &str) -> Value {
    let mut expected = old.clone();
    let containers = expected
        .get_mut("spec")
        .and_then(|s| s.get_mut("containers"))
        .and_then(Value::as_sequence_mut);
    let container = containers.and_then(|all| {
        all.iter_mut()
            .find(|c| c.get("name").and_then(Value::as_str) == Some(name))
    });
    if let Some(value) = container.and_then(|c| c.get_mut("image")) {
        *value = Value::String(image.to_owned());
    }
    expected
}

/// Where, in a line `image: VALUE` (a sequence's dash before it, quotes and a comment allowed), the value stands.
fn image_value(line: &str, value: &str) -> Option<(usize, usize)> {
    let mut rest = line.trim_start();
    while let Some(after) = rest.strip_prefix("- ") {
        rest = after.trim_start();
    }
    let key = ["image", "\"image\"", "'image'"]
        .iter()
        .find_map(|key| rest.strip_prefix(key))?;
    let after = key.trim_start().strip_prefix(':')?;
    let scalar = after.strip_prefix([' ', '\t'])?.trim_start();
    let at = |part: &str| line.len() - part.len();
    for quote in ['"', '\''] {
        if let Some(inner) = scalar.strip_prefix(quote) {
            let tail = inner.strip_prefix(value)?.strip_prefix(quote)?;
            return ends(tail).then(|| (at(inner), at(inner) + value.len()));
        }
    }
    let tail = scalar.strip_prefix(value)?;
    ends(tail).then(|| (at(scalar), at(scalar) + value.len()))
}

fn ends(tail: &str) -> bool {
    tail.trim().is_empty() || (tail.starts_with([' ', '\t']) && tail.trim_start().starts_with('#'))
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
