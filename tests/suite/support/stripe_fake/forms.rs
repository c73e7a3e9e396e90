//! Form-encoded parameters with bracketed keys, parsed strictly: unknown parameters are refused.

use std::collections::BTreeMap;

use super::errors::ApiError;

#[derive(Debug)]
enum Node {
    Text(String),
    Map(BTreeMap<String, Node>),
}

/// One nesting level of the parameters; reading a field removes it.
#[derive(Debug, Default)]
pub(super) struct Form {
    /// The name of this level, such as `items[0]`.
    place: String,
    fields: BTreeMap<String, Node>,
}

impl Form {
    pub(super) fn read(encoded: &str) -> Result<Self, ApiError> {
        let mut fields = BTreeMap::new();
        for (key, value) in form_urlencoded::parse(encoded.as_bytes()) {
            let path = path(&key).ok_or_else(|| ApiError::unknown_param(&key))?;
            insert(&mut fields, &path, value.into_owned()).ok_or_else(|| {
                ApiError::bad_param(&key, format!("Invalid parameter: {key} is given twice"))
            })?;
        }
        fields.remove("expand"); // all objects are expanded already
        Ok(Self { place: String::new(), fields })
    }

    fn name(&self, field: &str) -> String {
        if self.place.is_empty() { field.to_owned() } else { format!("{}[{field}]", self.place) }
    }

    /// Returns the text of a field, which may have at most `length_max` characters.
    pub(super) fn text(&mut self, field: &str, length_max: usize) -> Result<Option<String>, ApiError> {
        let name = self.name(field);
        match self.fields.remove(field) {
            None => Ok(None),
            Some(Node::Text(text)) if text.chars().count() > length_max => {
                let message = format!("Invalid string: {name} must be at most {length_max} characters");
                Err(ApiError::bad_param(&name, message))
            }
            Some(Node::Text(text)) => Ok(Some(text)),
            Some(Node::Map(_)) => Err(ApiError::bad_param(&name, format!("Invalid string: {name}"))),
        }
    }

    pub(super) fn required(&mut self, field: &str, length_max: usize) -> Result<String, ApiError> {
        let name = self.name(field);
        let text = self.text(field, length_max)?.filter(|text| !text.is_empty());
        text.ok_or_else(|| ApiError::missing_param(&name))
    }

    pub(super) fn integer(&mut self, field: &str) -> Result<Option<i64>, ApiError> {
        let name = self.name(field);
        let Some(text) = self.text(field, 100)? else { return Ok(None) };
        let read = text.parse().map_err(|_| ApiError::bad_param(&name, format!("Invalid integer: {text}")));
        read.map(Some)
    }

    pub(super) fn flag(&mut self, field: &str) -> Result<Option<bool>, ApiError> {
        Ok(self.choice(field, &["true", "false"])?.map(|text| text == "true"))
    }

    pub(super) fn choice(&mut self, field: &str, choices: &[&str]) -> Result<Option<String>, ApiError> {
        let name = self.name(field);
        let Some(text) = self.text(field, 100)? else { return Ok(None) };
        if choices.contains(&text.as_str()) {
            return Ok(Some(text));
        }
        let message = format!("Invalid {name}: must be one of {}", choices.join(", "));
        Err(ApiError::bad_param(&name, message))
    }

    /// Returns whether the field is present but empty, which is how Stripe's clients clear a value.
    pub(super) fn is_cleared(&mut self, field: &str) -> bool {
        let is_cleared = matches!(self.fields.get(field), Some(Node::Text(text)) if text.is_empty());
        if is_cleared {
            self.fields.remove(field);
        }
        is_cleared
    }

    pub(super) fn nested(&mut self, field: &str) -> Result<Option<Form>, ApiError> {
        let place = self.name(field);
        match self.fields.remove(field) {
            None => Ok(None),
            Some(Node::Map(fields)) => Ok(Some(Form { place, fields })),
            Some(Node::Text(_)) => Err(ApiError::bad_param(&place, format!("Invalid object: {place}"))),
        }
    }

    /// Returns the objects of a list, such as `items[0][price]`, in the order of their numbers.
    pub(super) fn list(&mut self, field: &str) -> Result<Vec<Form>, ApiError> {
        let Some(mut list) = self.nested(field)? else { return Ok(Vec::new()) };
        let mut numbers = Vec::new();
        for key in list.fields.keys() {
            numbers.push(key.parse::<u32>().map_err(|_| ApiError::unknown_param(&list.name(key)))?);
        }
        numbers.sort_unstable();
        let mut forms = Vec::new();
        for number in numbers {
            forms.extend(list.nested(&number.to_string())?);
        }
        list.finish()?;
        Ok(forms)
    }

    /// Returns a map of texts, such as `payload` and `metadata`.
    pub(super) fn texts(&mut self, field: &str) -> Result<Option<BTreeMap<String, String>>, ApiError> {
        let Some(nested) = self.nested(field)? else { return Ok(None) };
        let place = nested.place;
        let text = |(key, node)| match node {
            Node::Text(text) => Ok((key, text)),
            Node::Map(_) => Err(ApiError::bad_param(&place, format!("Invalid string: {place}[{key}]"))),
        };
        nested.fields.into_iter().map(text).collect::<Result<_, _>>().map(Some)
    }

    /// Refuses fields that were not read.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(field) => Err(ApiError::unknown_param(&self.name(field))),
        }
    }
}

/// Splits a key such as `items[0][price]` into its parts.
fn path(key: &str) -> Option<Vec<&str>> {
    let Some((first, rest)) = key.split_once('[') else { return Some(vec![key]) };
    let mut path = vec![first];
    path.extend(rest.strip_suffix(']')?.split("]["));
    Some(path)
}

/// Inserts a text under a path, or returns `None` if the place is taken.
fn insert(fields: &mut BTreeMap<String, Node>, path: &[&str], text: String) -> Option<()> {
    let (field, rest) = path.split_first()?;
    // `expand[]` is the next element
    let field = if field.is_empty() { fields.len().to_string() } else { (*field).to_owned() };
    if rest.is_empty() {
        return fields.insert(field, Node::Text(text)).is_none().then_some(());
    }
    match fields.entry(field).or_insert_with(|| Node::Map(BTreeMap::new())) {
        Node::Map(nested) => insert(nested, rest, text),
        Node::Text(_) => None,
    }
}
