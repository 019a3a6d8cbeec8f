//! A list's body cut into its objects while it arrives, so that no more than one of them is held at a time. Pure.
//!
//! It looks at brackets and strings alone; what stands between them is for whoever parses an object.

use serde::Deserialize;
use serde_json::Value;

/// What came is no whole list.
#[derive(Debug, thiserror::Error)]
pub(super) enum SplitError {
    /// It broke off, or is no JSON.
    #[error("the list is not whole: {0}")]
    Broken(#[from] serde_json::Error),
    /// It is something else.
    #[error("the answer is no list")]
    NoList,
}

/// Of a list's `metadata`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Rest {
    /// Where the next page begins; empty at the end.
    #[serde(rename = "continue", default)]
    pub(super) next: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Around the items.
    Envelope,
    /// Between two of them.
    Between,
    /// In one.
    Object,
}

/// Cuts one body.
#[derive(Debug)]
pub(super) struct Splitter {
    place: Place,
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The last string at the first level of the envelope is `items`, where a string begins.
    string_at: usize,
    items_named: bool,
    envelope: Vec<u8>,
    /// The beginning of an object of which the end has not come yet.
    begun: Vec<u8>,
}

impl Splitter {
    pub(super) const fn new() -> Self {
        Self {
            place: Place::Envelope,
            depth: 0,
            in_string: false,
            escaped: false,
            string_at: 0,
            items_named: false,
            envelope: Vec::new(),
            begun: Vec::new(),
        }
    }

    /// More of the body; each object that ends in it is handed over.
    pub(super) fn feed<E>(
        &mut self,
        chunk: &[u8],
        mut object: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // Where in this chunk the object in hand begins.
        let mut from = 0;
        for (at, byte) in chunk.iter().copied().enumerate() {
            match self.place {
                Place::Envelope => self.around(byte),
                Place::Between => match byte {
                    b'{' => {
                        (self.place, self.depth) = (Place::Object, 1);
                        from = at;
                    }
                    b']' => {
                        (self.place, self.depth) = (Place::Envelope, 1);
                        self.envelope.push(byte);
                    }
                    _ => {}
                },
                Place::Object => {
                    self.step(byte);
                    if self.depth > 0 || self.in_string {
                        continue;
                    }
                    self.place = Place::Between;
                    let end = chunk.get(from..=at).unwrap_or_default();
                    if self.begun.is_empty() {
                        object(end)?;
                    } else {
                        self.begun.extend_from_slice(end);
                        object(&self.begun)?;
                        self.begun.clear();
                    }
                    from = at + 1;
                }
            }
        }
        if self.place == Place::Object {
            self.begun
                .extend_from_slice(chunk.get(from..).unwrap_or_default());
        }
        Ok(())
    }

    /// The body has ended.
    ///
    /// # Errors
    /// When the list has not: an object that is missing would look as if it did not exist.
    pub(super) fn finish(self) -> Result<Rest, SplitError> {
        #[derive(Deserialize)]
        struct Envelope {
            #[serde(default)]
            metadata: Rest,
        }
        let whole: Value = serde_json::from_slice(&self.envelope)?;
        if whole.get("items").is_none() {
            return Err(SplitError::NoList);
        }
        let envelope: Envelope = serde_json::from_value(whole)?;
        Ok(envelope.metadata)
    }

    fn around(&mut self, byte: u8) {
        let was_in_string = self.in_string;
        self.envelope.push(byte);
        let opens_a_list = byte == b'[' && !was_in_string;
        if opens_a_list && self.depth == 1 && self.items_named {
            self.place = Place::Between;
            return;
        }
        self.step(byte);
        if self.depth != 1 {
            return;
        }
        match (was_in_string, self.in_string) {
            (false, true) => self.string_at = self.envelope.len(),
            (true, false) => {
                let string = self.envelope.get(self.string_at..self.envelope.len() - 1);
                self.items_named = string == Some(b"items");
            }
            (false, false) if byte == b',' => self.items_named = false,
            _ => {}
        }
    }

    fn step(&mut self, byte: u8) {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn split(body: &[u8], size: usize) -> Result<(Vec<Value>, Rest), SplitError> {
        let mut splitter = Splitter::new();
        let mut found = Vec::new();
        for chunk in body.chunks(size) {
            splitter.feed(chunk, |object| {
                found.push(serde_json::from_slice(object)?);
                Ok::<_, SplitError>(())
            })?;
        }
        Ok((found, splitter.finish()?))
    }

    #[test]
    fn objects_come_out_whole_wherever_the_body_is_cut() {
        let items = [
            json!({"metadata": {"name": "a"}, "data": {"items": "[{\"x\": 1}]", "quote\"": "back\\"}}),
            json!({}),
            json!({"items": [{"items": []}], "text": "}{][\\\""}),
        ];
        let whole = json!({"kind": "items", "a": [1, {"items": [2]}], "items": items, "metadata": {"continue": "next"}, "z": []});
        for body in [
            serde_json::to_vec(&whole).unwrap(),
            serde_json::to_vec_pretty(&whole).unwrap(),
        ] {
            for size in 1..=body.len() {
                let (found, rest) = split(&body, size).unwrap();
                assert_eq!(found, items, "chunks of {size}");
                assert_eq!(rest.next, "next");
            }
        }
    }

    #[test]
    fn a_list_that_breaks_off_is_an_error_wherever_it_does() {
        let body = serde_json::to_vec(&json!({"items": [{"a": 1}, {"b": [2]}], "metadata": {}})).unwrap();
        for end in 0..body.len() {
            assert!(split(&body[..end], 7).is_err(), "{end}");
        }
        assert!(split(&body, 7).is_ok());
    }

    #[test]
    fn what_is_no_list_is_said_to_be_none_and_an_empty_one_is_empty() {
        assert!(matches!(
            split(b"{\"kind\": \"Status\"}", 9),
            Err(SplitError::NoList)
        ));
        assert!(matches!(split(b"[]", 9), Err(SplitError::NoList)));
        for empty in [
            r#"{"items": []}"#,
            r#"{"items": null, "metadata": {"resourceVersion": "1"}}"#,
        ] {
            assert_eq!(split(empty.as_bytes(), 3).unwrap(), (vec![], Rest::default()));
        }
    }

    proptest! {
        #[test]
        fn any_text_in_an_object_stays_in_it(texts in prop::collection::vec("\\PC{0,12}", 0..6), size in 1usize..40) {
            let items: Vec<_> = texts.iter().map(|t| json!({t.as_str(): [t, {"x": t}]})).collect();
            let body = serde_json::to_vec(&json!({"metadata": {}, "items": items})).unwrap();
            prop_assert_eq!(split(&body, size).unwrap().0, items);
        }
    }
}
