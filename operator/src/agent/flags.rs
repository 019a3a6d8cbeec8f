//! The etcd member's manifest: what it says, and changes of single flags, to the byte.

use std::path::{Path, PathBuf};

use serde_yaml::Value;

use super::manifest::{self, ManifestError};

/// The container and the pod.
const ETCD: &str = "etcd";

/// A parsed etcd manifest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EtcdPod {
    pub(crate) image: String,
    /// `command` and `args` of the container.
    pub(crate) arguments: Vec<String>,
    document: Value,
}

impl EtcdPod {
    /// Parses the manifest of the pod `kube-system/etcd`.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ManifestError> {
        let (namespace, name, document) = manifest::parse_pod(path, bytes)?;
        let file = || path.display().to_string();
        if (namespace.as_str(), name.as_str()) != ("kube-system", ETCD) {
            return Err(ManifestError::Name {
                file: file(),
                found: format!("{namespace}/{name}"),
                expected: "kube-system/etcd".to_owned(),
            });
        }
        let container = manifest::container(&document, ETCD).ok_or_else(|| ManifestError::Container {
            file: file(),
            container: ETCD.to_owned(),
        })?;
        let image = container
            .get("image")
            .and_then(Value::as_str)
            .ok_or_else(|| ManifestError::Shape {
                file: file(),
                missing: "an image in the container etcd",
            })?
            .to_owned();
        let mut arguments = manifest::strings(container.get("command"));
        arguments.extend(manifest::strings(container.get("args")));
        Ok(Self {
            image,
            arguments,
            document,
        })
    }

    /// The value of the last `--name=value` or `--name value`.
    pub(crate) fn flag(&self, name: &str) -> Option<&str> {
        manifest::flag(&self.arguments, name)
    }

    /// The member's name; etcd's own default where none is given.
    pub(crate) fn name(&self) -> &str {
        self.flag("name").unwrap_or("default")
    }

    /// The version that the image's tag tells: `3.6.6` of `registry.k8s.io/etcd:3.6.6-0`.
    pub(crate) fn version(&self) -> Option<semver::Version> {
        let (_, tag) = self.image.split('@').next()?.rsplit_once(':')?;
        let tag = tag.trim_start_matches('v');
        let numbers = tag.split('-').next().unwrap_or(tag);
        semver::Version::parse(numbers).ok()
    }

    /// Where the data directory lies on the host: `--data-dir` through the pod's volumes.
    pub(crate) fn data_on_host(&self) -> PathBuf {
        let inside = Path::new(self.flag("data-dir").unwrap_or("/var/lib/etcd"));
        let mounts = manifest::container(&self.document, ETCD)
            .and_then(|c| c.get("volumeMounts"))
            .and_then(Value::as_sequence);
        let volumes = self
            .document
            .get("spec")
            .and_then(|s| s.get("volumes"))
            .and_then(Value::as_sequence);
        let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
        let on_host = mounts.into_iter().flatten().find_map(|mount| {
            let rest = inside.strip_prefix(text(mount, "mountPath")?).ok()?;
            let name = text(mount, "name")?;
            let volume = volumes
                .into_iter()
                .flatten()
                .find(|volume| text(volume, "name").as_ref() == Some(&name))?;
            let path = text(volume.get("hostPath")?, "path")?;
            Some(Path::new(&path).join(rest).components().collect())
        });
        on_host.unwrap_or_else(|| inside.to_owned())
    }
}

/// A flag and the value it is to have; none takes the flag out.
pub(crate) type Edit<'a> = (&'a str, Option<&'a str>);

/// The manifest's bytes with these flags of the etcd container set or taken out, everything else to the byte as it was.
///
/// One line a flag is touched; the result is parsed again and must differ from the old document in those flags and in
/// nothing else, whatever quotes or comments the file has.
///
/// # Errors
/// When the file is not one that can be changed so; nothing is guessed.
pub(crate) fn with_flags(path: &Path, bytes: &[u8], edits: &[Edit<'_>]) -> Result<Vec<u8>, ManifestError> {
    let file = path.display().to_string();
    let mut text = std::str::from_utf8(bytes)
        .map_err(|_| ManifestError::Text { file: file.clone() })?
        .to_owned();
    if text.trim_start().starts_with('{') {
        return Err(ManifestError::Json { file });
    }
    for (name, value) in edits {
        let pod = EtcdPod::parse(path, text.as_bytes())?;
        text = with_flag(&text, &pod.document, name, *value).ok_or_else(|| ManifestError::Flag {
            file: file.clone(),
            flag: (*name).to_owned(),
        })?;
    }
    Ok(text.into_bytes())
}

/// One flag; none when no single line does it.
fn with_flag(text: &str, document: &Value, name: &str, value: Option<&str>) -> Option<String> {
    let container = manifest::container(document, ETCD)?;
    // Where a container has both, the flags are in `args`.
    let list = if container.get("args").is_some() {
        "args"
    } else {
        "command"
    };
    let words = manifest::strings(container.get(list));
    let of = |word: &String| {
        let key = word.strip_prefix("--").map(|w| w.split('=').next().unwrap_or(w));
        key.is_some_and(|key| manifest::is_flag(key, name))
    };
    let written: Vec<usize> = words
        .iter()
        .enumerate()
        .filter(|(_, w)| of(w))
        .map(|(at, _)| at)
        .collect();
    let mut wanted = words.clone();
    let new = value.map(|value| format!("--{name}={value}"));
    match (written.as_slice(), &new) {
        ([], None) => return Some(text.to_owned()),
        ([], Some(new)) => wanted.push(new.clone()),
        ([at], Some(new)) => *wanted.get_mut(*at)? = new.clone(),
        ([at], None) => {
            wanted.remove(*at);
        }
        _ => return None,
    }
    let mut expected = document.clone();
    let containers = expected
        .get_mut("spec")?
        .get_mut("containers")?
        .as_sequence_mut()?;
    let container = containers
        .iter_mut()
        .find(|c| c.get("name").and_then(Value::as_str) == Some(ETCD))?;
    *container.get_mut(list)? = Value::Sequence(wanted.iter().cloned().map(Value::String).collect());
    let old = match written.first() {
        Some(at) => words.get(*at)?,
        None => words.last()?,
    };
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let (from, to) = (start, start + line.len());
        start = to;
        let Some((begin, end)) = item(line, old) else {
            continue;
        };
        let candidate = match (&new, written.is_empty()) {
            (Some(new), true) => {
                let ended = if line.ends_with('\n') {
                    line.to_owned()
                } else {
                    format!("{line}\n")
                };
                let indent = line.split('-').next()?;
                format!("{}{ended}{indent}- {new}\n{}", text.get(..from)?, text.get(to..)?)
            }
            (Some(new), false) => format!("{}{new}{}", text.get(..from + begin)?, text.get(from + end..)?),
            (None, _) => format!("{}{}", text.get(..from)?, text.get(to..)?),
        };
        if serde_yaml::from_str::<Value>(&candidate).is_ok_and(|new| new == expected) {
            return Some(candidate);
        }
    }
    None
}

/// Where, in a line `- WORD` (quotes and a comment allowed), the word stands.
fn item(line: &str, word: &str) -> Option<(usize, usize)> {
    let scalar = line.trim_start().strip_prefix("- ")?.trim_start();
    let at = |part: &str| line.len() - part.len();
    let ends = |tail: &str| tail.trim().is_empty() || tail.trim_start().starts_with('#');
    for quote in ['"', '\''] {
        if let Some(inner) = scalar.strip_prefix(quote) {
            let tail = inner.strip_prefix(word)?.strip_prefix(quote)?;
            return ends(tail).then(|| (at(inner), at(inner) + word.len()));
        }
    }
    let tail = scalar.strip_prefix(word)?;
    ends(tail).then(|| (at(scalar), at(scalar) + word.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBEADM: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: etcd
  namespace: kube-system
spec:
  containers:
  - command:
    - etcd
    - --data-dir=/var/lib/etcd
    - --initial-cluster=cp1=https://10.0.0.1:2380
    - \"--name=cp1\" # mine
    - --experimental-mine=1
    image: registry.k8s.io/etcd:3.6.6-0
    name: etcd
    volumeMounts:
    - mountPath: /var/lib/etcd
      name: etcd-data
  volumes:
  - hostPath:
      path: /mnt/etcd
    name: etcd-data
";

    fn edited(edits: &[Edit<'_>]) -> String {
        String::from_utf8(with_flags(Path::new("etcd.yaml"), KUBEADM.as_bytes(), edits).unwrap()).unwrap()
    }

    #[test]
    fn a_flag_is_added_and_taken_out_again_to_the_byte() {
        let with = edited(&[("force-new-cluster", Some("true"))]);
        assert_eq!(
            with,
            KUBEADM.replace(
                "    - --experimental-mine=1\n",
                "    - --experimental-mine=1\n    - --force-new-cluster=true\n"
            )
        );
        let back = with_flags(
            Path::new("etcd.yaml"),
            with.as_bytes(),
            &[("force-new-cluster", None)],
        )
        .unwrap();
        assert_eq!(back, KUBEADM.as_bytes());
    }

    #[test]
    fn a_value_is_replaced_and_quotes_comments_and_an_admins_flags_stay() {
        let members = "cp1=https://10.0.0.1:2380,cp2=https://10.0.0.2:2380";
        let text = edited(&[
            ("initial-cluster", Some(members)),
            ("initial-cluster-state", Some("existing")),
            ("name", Some("cp2")),
        ]);
        for line in [
            "    - --initial-cluster=cp1=https://10.0.0.1:2380,cp2=https://10.0.0.2:2380\n",
            "    - \"--name=cp2\" # mine\n",
            "    - --experimental-mine=1\n    - --initial-cluster-state=existing\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert_eq!(text.lines().count(), KUBEADM.lines().count() + 1);
    }

    #[test]
    fn what_is_not_one_flag_a_line_is_refused_with_the_flag() {
        let flow = KUBEADM.replace(
            "    - --experimental-mine=1\n",
            "    - --name\n    - cp1\n    - --experimental-mine=1\n",
        );
        let error = with_flags(Path::new("etcd.yaml"), flow.as_bytes(), &[("name", Some("x"))])
            .unwrap_err()
            .to_string();
        assert!(error.contains("etcd.yaml") && error.contains("--name"), "{error}");
    }

    #[test]
    fn version_name_and_the_data_directory_on_the_host_are_read() {
        let pod = EtcdPod::parse(Path::new("etcd.yaml"), KUBEADM.as_bytes()).unwrap();
        assert_eq!(pod.version(), Some(semver::Version::new(3, 6, 6)));
        assert_eq!(pod.name(), "cp1");
        assert_eq!(pod.data_on_host(), Path::new("/mnt/etcd"));
    }
}
