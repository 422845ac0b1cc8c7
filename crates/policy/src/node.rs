//! TOML and JSONC read into one tree that remembers lines, and a serde deserializer over it, so that
//! both formats have one schema and every error names file, line and key.

use std::fmt;

use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};

use crate::error::{PolicyError, nearest};
use crate::{MAX_FILE_BYTES, Origin};

/// Marks a type that wants to know where it stood; see [`crate::layer::Located`].
pub(crate) const LOCATED: &str = "$ringfence::located";

/// Deepest nesting of lists and tables; the schema needs four.
const MAX_NESTING: usize = 32;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub line: Option<u32>,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
    List(Vec<Node>),
    Table(Vec<Member>),
    /// A TOML date or time; no key takes one.
    Date,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Member {
    pub key: String,
    pub line: Option<u32>,
    pub node: Node,
}

impl Node {
    pub fn get(&self, key: &str) -> Option<&Member> {
        match &self.value {
            Value::Table(members) => members.iter().find(|m| m.key == key),
            _ => None,
        }
    }

    /// The line of a dotted key, in snake case or camel case.
    pub fn line_of(&self, dotted: &str) -> Option<u32> {
        let (first, rest) = match dotted.split_once('.') {
            Some((first, rest)) => (first, Some(rest)),
            None => (dotted, None),
        };
        let member = self.get(first).or_else(|| self.get(&camel(first)))?;
        match rest {
            Some(rest) => member.node.line_of(rest),
            None => member.line,
        }
    }

    /// For messages.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Bool(_) => "true or false",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Str(_) => "text",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Date => "a date",
        }
    }
}

pub(crate) fn camel(snake: &str) -> String {
    let mut out = String::new();
    let mut upper = false;
    for c in snake.chars() {
        if c == '_' {
            upper = true;
        } else if std::mem::take(&mut upper) {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

/// How a policy file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Toml,
    /// JSON with comments and trailing commas.
    Jsonc,
}

impl Format {
    /// By the ending of the name; anything but `.json` and `.jsonc` is taken for TOML.
    pub fn of(name: &str) -> Self {
        let lower = name.to_ascii_lowercase();
        if std::path::Path::new(&lower)
            .extension()
            .is_some_and(|ending| ending == "json" || ending == "jsonc")
        {
            Self::Jsonc
        } else {
            Self::Toml
        }
    }
}

/// Reads `bytes` of the file called `file`.
pub(crate) fn parse(file: &str, bytes: &[u8], format: Format) -> Result<Node, PolicyError> {
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(PolicyError::TooLarge {
            file: file.to_owned(),
            size: bytes.len() as u64,
            limit: MAX_FILE_BYTES,
        });
    }
    let text = std::str::from_utf8(bytes).map_err(|e| PolicyError::NotUtf8 {
        at: Origin { layer: file.to_owned(), line: Some(line_count(&bytes[..e.valid_up_to()])) },
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = Lines::new(text);
    let node = match format {
        Format::Toml => from_toml(file, text, &lines)?,
        Format::Jsonc => from_jsonc(file, text, &lines)?,
    };
    Ok(node)
}

fn line_count(before: &[u8]) -> u32 {
    before.split(|b| *b == b'\n').count() as u32
}

struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    fn new(text: &str) -> Self {
        let starts = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1))
            .collect();
        Self { starts }
    }

    fn of(&self, offset: usize) -> Option<u32> {
        u32::try_from(self.starts.partition_point(|start| *start <= offset)).ok()
    }
}

fn syntax(file: &str, line: Option<u32>, message: impl Into<String>) -> PolicyError {
    let message = message.into();
    // Parsers' messages become ours: lower case, one line, no full stop.
    let message = message.trim().trim_end_matches('.').replace('\n', ", ");
    let mut chars = message.chars();
    let message = match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => message,
    };
    PolicyError::Syntax { at: Origin { layer: file.to_owned(), line }, message }
}

fn from_toml(file: &str, text: &str, lines: &Lines) -> Result<Node, PolicyError> {
    let table = toml::de::DeTable::parse(text).map_err(|e| {
        syntax(file, e.span().and_then(|s| lines.of(s.start)), e.message().to_owned())
    })?;
    let line = lines.of(table.span().start);
    Ok(Node { line, value: toml_table(file, lines, table.get_ref())? })
}

fn toml_table(
    file: &str,
    lines: &Lines,
    table: &toml::de::DeTable<'_>,
) -> Result<Value, PolicyError> {
    let mut members = Vec::new();
    for (key, value) in table {
        members.push(Member {
            key: key.get_ref().to_string(),
            line: lines.of(key.span().start),
            node: toml_node(file, lines, value)?,
        });
    }
    members.sort_by_key(|m| m.line);
    Ok(Value::Table(members))
}

fn toml_node(
    file: &str,
    lines: &Lines,
    value: &toml::Spanned<toml::de::DeValue<'_>>,
) -> Result<Node, PolicyError> {
    use toml::de::DeValue;
    let line = lines.of(value.span().start);
    let value = match value.get_ref() {
        DeValue::String(s) => Value::Str(s.to_string()),
        DeValue::Integer(i) => i128::from_str_radix(i.as_str(), i.radix())
            .map(Value::Int)
            .map_err(|_| syntax(file, line, format!("number {i} is too large")))?,
        DeValue::Float(f) => f
            .as_str()
            .parse()
            .map(Value::Float)
            .map_err(|_| syntax(file, line, format!("{f} is not a number")))?,
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Datetime(_) => Value::Date,
        DeValue::Array(list) => Value::List(
            list.iter().map(|v| toml_node(file, lines, v)).collect::<Result<Vec<_>, _>>()?,
        ),
        DeValue::Table(table) => toml_table(file, lines, table)?,
    };
    Ok(Node { line, value })
}

fn from_jsonc(file: &str, text: &str, lines: &Lines) -> Result<Node, PolicyError> {
    let options = jsonc_parser::ParseOptions {
        allow_comments: true,
        allow_trailing_commas: true,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    let parsed =
        jsonc_parser::parse_to_ast(text, &jsonc_parser::CollectOptions::default(), &options)
            .map_err(|e| {
                syntax(file, u32::try_from(e.line_display()).ok(), e.kind().to_string())
            })?;
    match parsed.value {
        Some(value @ jsonc_parser::ast::Value::Object(_)) => json_node(file, lines, &value, 0),
        Some(_) => Err(syntax(file, Some(1), "expected an object `{ ... }`")),
        // An empty file says nothing, as in TOML.
        None => Ok(Node { line: Some(1), value: Value::Table(Vec::new()) }),
    }
}

fn json_node(
    file: &str,
    lines: &Lines,
    value: &jsonc_parser::ast::Value<'_>,
    depth: usize,
) -> Result<Node, PolicyError> {
    use jsonc_parser::ast::Value as Json;
    use jsonc_parser::common::Ranged;
    let line = lines.of(value.range().start);
    if depth > MAX_NESTING {
        return Err(syntax(file, line, format!("nested deeper than {MAX_NESTING}")));
    }
    let value = match value {
        Json::NullKeyword(_) => Value::Null,
        Json::BooleanLit(b) => Value::Bool(b.value),
        Json::StringLit(s) => Value::Str(s.value.to_string()),
        Json::NumberLit(n) => match n.value.parse::<i128>() {
            Ok(int) => Value::Int(int),
            Err(_) => match n.value.parse::<f64>() {
                Ok(float) if float.is_finite() => Value::Float(float),
                _ => return Err(syntax(file, line, format!("number {} is too large", n.value))),
            },
        },
        Json::Array(list) => Value::List(
            list.elements
                .iter()
                .map(|v| json_node(file, lines, v, depth + 1))
                .collect::<Result<Vec<_>, _>>()?,
        ),
        Json::Object(object) => {
            let mut members: Vec<Member> = Vec::new();
            let mut seen = std::collections::BTreeSet::new();
            for property in &object.properties {
                let key = property.name.as_str().to_owned();
                let at = lines.of(property.range.start);
                // The last of two would win elsewhere, the first of two in a reviewer's eye.
                if !seen.insert(key.clone()) {
                    return Err(syntax(file, at, format!("key `{key}` is written twice")));
                }
                members.push(Member {
                    key,
                    line: at,
                    node: json_node(file, lines, &property.value, depth + 1)?,
                });
            }
            Value::Table(members)
        }
    };
    Ok(Node { line, value })
}

/// An error on its way up to the root; each level adds its key.
#[derive(Debug)]
pub(crate) struct NodeError {
    kind: NodeErrorKind,
    line: Option<u32>,
    path: Vec<String>,
}

#[derive(Debug)]
enum NodeErrorKind {
    Unknown { key: String, known: &'static [&'static str] },
    Message(String),
}

impl NodeError {
    fn at(mut self, line: Option<u32>) -> Self {
        self.line = self.line.or(line);
        self
    }

    fn below(mut self, key: &str) -> Self {
        self.path.push(key.to_owned());
        self
    }

    pub(crate) fn into_policy_error(mut self, file: &str) -> PolicyError {
        self.path.reverse();
        let at = Origin { layer: file.to_owned(), line: self.line };
        let mut path = String::new();
        for part in &self.path {
            if !path.is_empty() && !part.starts_with('[') {
                path.push('.');
            }
            path.push_str(part);
        }
        match self.kind {
            NodeErrorKind::Unknown { key, known } => {
                let hint = nearest(&key, known.iter().copied()).map(str::to_owned);
                let key = if path.is_empty() { key } else { format!("{path}.{key}") };
                // One spelling of each is enough for the list.
                let known = known
                    .iter()
                    .filter(|k| !k.contains(|c: char| c.is_ascii_uppercase()))
                    .map(|k| (*k).to_owned())
                    .collect();
                PolicyError::UnknownKey { at, key, hint, known }
            }
            NodeErrorKind::Message(message) if path.is_empty() => {
                PolicyError::Syntax { at, message }
            }
            NodeErrorKind::Message(message) => PolicyError::Invalid { at, key: path, message },
        }
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            NodeErrorKind::Unknown { key, .. } => write!(f, "unknown key `{key}`"),
            NodeErrorKind::Message(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for NodeError {}

impl de::Error for NodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { kind: NodeErrorKind::Message(message.to_string()), line: None, path: Vec::new() }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self {
            kind: NodeErrorKind::Unknown { key: field.to_owned(), known: expected },
            line: None,
            path: Vec::new(),
        }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let hint = nearest(variant, expected.iter().copied());
        Self::custom(match hint {
            Some(hint) => format!("unknown value \"{variant}\", did you mean \"{hint}\"?"),
            None => format!("unknown value \"{variant}\"; allowed: {}", expected.join(", ")),
        })
    }

    fn invalid_type(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match unexpected {
            de::Unexpected::Bool(b) => format!("{b}"),
            de::Unexpected::Unsigned(n) => format!("number {n}"),
            de::Unexpected::Signed(n) => format!("number {n}"),
            de::Unexpected::Float(n) => format!("number {n}"),
            de::Unexpected::Str(s) => format!("text \"{s}\""),
            de::Unexpected::Seq => "a list".to_owned(),
            de::Unexpected::Map => "a table".to_owned(),
            de::Unexpected::Unit => "null".to_owned(),
            other => other.to_string(),
        };
        // serde's words for what a file calls otherwise.
        let expected = match expected.to_string() {
            s if s == "a sequence" => "a list".to_owned(),
            s if s == "a string" => "text".to_owned(),
            s if s == "a boolean" => "true or false".to_owned(),
            s if s == "a map" || s.starts_with("struct ") => "a table".to_owned(),
            s if matches!(s.as_str(), "i32" | "u32" | "i64" | "u64") => "a whole number".to_owned(),
            other => other,
        };
        Self::custom(format!("expected {expected}, found {found}"))
    }

    fn invalid_value(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }
}

/// Deserializes from a [`Node`] of the file called `file`.
#[derive(Clone, Copy)]
pub(crate) struct NodeDeserializer<'a> {
    pub node: &'a Node,
    pub file: &'a str,
}

impl<'a> NodeDeserializer<'a> {
    fn with(self, node: &'a Node) -> Self {
        Self { node, file: self.file }
    }

    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Int(i) => match (i64::try_from(*i), u64::try_from(*i)) {
                (Ok(i), _) => visitor.visit_i64(i),
                (_, Ok(u)) => visitor.visit_u64(u),
                _ => Err(de::Error::custom(format!("number {i} is too large"))),
            },
            Value::Float(f) => visitor.visit_f64(*f),
            Value::Str(s) => visitor.visit_str(s),
            Value::List(list) => visitor.visit_seq(List { outer: self, next: 0, elements: list }),
            Value::Table(members) => {
                visitor.visit_map(Table { outer: self, members: members.iter(), value: None })
            }
            Value::Date => Err(de::Error::custom("dates are not used here")),
        }
    }
}

impl<'de> de::Deserializer<'de> for NodeDeserializer<'_> {
    type Error = NodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        self.visit(visitor).map_err(|e| e.at(self.node.line))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
        .map_err(|e| e.at(self.node.line))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        if name == LOCATED {
            visitor.visit_seq(LocatedParts { outer: self, next: 0 })
        } else {
            visitor.visit_newtype_struct(self)
        }
        .map_err(|e| e.at(self.node.line))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        match &self.node.value {
            Value::Str(s) => visitor.visit_enum(s.as_str().into_deserializer()),
            _ => Err(de::Error::custom(format!("expected one of {}", variants.join(", ")))),
        }
        .map_err(|e: NodeError| e.at(self.node.line))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct List<'a> {
    outer: NodeDeserializer<'a>,
    next: usize,
    elements: &'a [Node],
}

impl<'de> de::SeqAccess<'de> for List<'_> {
    type Error = NodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, NodeError> {
        let Some(node) = self.elements.get(self.next) else { return Ok(None) };
        let index = self.next;
        self.next += 1;
        seed.deserialize(self.outer.with(node))
            .map(Some)
            .map_err(|e| e.at(node.line).below(&format!("[{index}]")))
    }
}

struct Table<'a> {
    outer: NodeDeserializer<'a>,
    members: std::slice::Iter<'a, Member>,
    value: Option<&'a Member>,
}

impl<'de> de::MapAccess<'de> for Table<'_> {
    type Error = NodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, NodeError> {
        let Some(member) = self.members.next() else { return Ok(None) };
        self.value = Some(member);
        seed.deserialize(member.key.as_str().into_deserializer())
            .map(Some)
            .map_err(|e: NodeError| e.at(member.line))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, NodeError> {
        let Some(member) = self.value.take() else {
            return Err(de::Error::custom("value asked for before its key"));
        };
        seed.deserialize(self.outer.with(&member.node))
            .map_err(|e| e.at(member.node.line.or(member.line)).below(&member.key))
    }
}

/// File, line, value: what [`LOCATED`] types are given.
struct LocatedParts<'a> {
    outer: NodeDeserializer<'a>,
    next: usize,
}

impl<'de> de::SeqAccess<'de> for LocatedParts<'_> {
    type Error = NodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, NodeError> {
        self.next += 1;
        match self.next {
            1 => seed.deserialize(self.outer.file.into_deserializer()).map(Some),
            2 => {
                // Lines count from 1; 0 says unknown.
                let line = self.outer.node.line.unwrap_or(0);
                seed.deserialize(line.into_deserializer()).map(Some)
            }
            3 => seed.deserialize(self.outer).map(Some),
            _ => Ok(None),
        }
    }
}
