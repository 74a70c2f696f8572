//! Descriptions of settings. The source is the type that defines them: names, types, defaults and doc comments.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

/// A setting as its type defines it.
#[derive(Debug, Clone)]
pub struct Described {
    /// Name in the file.
    pub name: String,
    /// Values that it accepts.
    pub kind: Kind,
    /// Default; null when the setting has none.
    pub default: Value,
    /// What the setting is for: the doc comment, in one line.
    pub meaning: String,
    /// Whether the value is a secret that is never printed.
    pub is_secret: bool,
}

/// The kind of values that a setting accepts.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// True or false.
    Boolean,
    /// A whole number in a range, with the unit that the setting's name ends with or contains.
    Integer {
        /// Smallest number that the type can hold.
        min: i128,
        /// Largest number that the type can hold.
        max: i128,
        /// Unit of the number.
        unit: Option<Unit>,
    },
    /// A number with a fraction.
    Number,
    /// One of these texts.
    Choice(Vec<String>),
    /// Any text. The check of the setting's crate limits it.
    Text,
    /// A list of texts: a list in the file, separated by commas elsewhere.
    List,
    /// Anything else that the file can express.
    Other,
}

/// The unit of a number. Every setting with a unit has it in its name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Minutes.
    Minutes,
    /// Hours.
    Hours,
    /// Days of 24 hours.
    Days,
}

impl Unit {
    /// Returns the unit in the name of a setting.
    pub fn of(name: &str) -> Option<Self> {
        name.split('_').find_map(|word| match word {
            "bytes" => Some(Self::Bytes),
            "ms" => Some(Self::Milliseconds),
            "seconds" => Some(Self::Seconds),
            "minutes" => Some(Self::Minutes),
            "hours" => Some(Self::Hours),
            "days" => Some(Self::Days),
            _ => None,
        })
    }

    /// Returns the unit in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Milliseconds => "milliseconds",
            Self::Seconds => "seconds",
            Self::Minutes => "minutes",
            Self::Hours => "hours",
            Self::Days => "days",
        }
    }

    /// Returns the length of a unit of time in milliseconds; `None` for bytes.
    pub fn milliseconds(self) -> Option<u128> {
        match self {
            Self::Bytes => None,
            Self::Milliseconds => Some(1),
            Self::Seconds => Some(1_000),
            Self::Minutes => Some(60_000),
            Self::Hours => Some(3_600_000),
            Self::Days => Some(86_400_000),
        }
    }
}

/// Returns the settings of a type, in the order of its fields.
pub fn describe<T: JsonSchema>() -> Vec<Described> {
    let generator = SchemaSettings::default().with(|settings| settings.inline_subschemas = true).into_generator();
    let schema = generator.into_root_schema_for::<T>();
    let fields = schema.get("properties").and_then(Value::as_object);
    fields.into_iter().flatten().map(|(name, schema)| described(name, schema)).collect()
}

fn described(name: &str, schema: &Value) -> Described {
    let meaning = schema["description"].as_str().unwrap_or_default();
    Described {
        name: name.to_owned(),
        kind: kind(name, schema),
        default: schema["default"].clone(),
        meaning: meaning.split_whitespace().collect::<Vec<_>>().join(" "),
        is_secret: schema["writeOnly"] == true,
    }
}

fn kind(name: &str, schema: &Value) -> Kind {
    if let Some(choices) = schema["oneOf"].as_array() {
        let names = choices.iter().filter_map(|choice| choice["const"].as_str());
        return Kind::Choice(names.map(str::to_owned).collect());
    }
    if let Some(choices) = schema["enum"].as_array() {
        return Kind::Choice(choices.iter().filter_map(Value::as_str).map(str::to_owned).collect());
    }
    // An optional setting has the types `[TYPE, "null"]`.
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
    match kind {
        Some("boolean") => Kind::Boolean,
        Some("number") => Kind::Number,
        Some("string") => Kind::Text,
        Some("array") => Kind::List,
        Some("integer") => {
            let (min, max) = range(schema["format"].as_str().unwrap_or_default());
            Kind::Integer { min, max, unit: Unit::of(name) }
        }
        _ => Kind::Other,
    }
}

/// Returns the range of an integer type.
fn range(format: &str) -> (i128, i128) {
    match format {
        "uint8" => (0, u8::MAX.into()),
        "uint16" => (0, u16::MAX.into()),
        "uint32" => (0, u32::MAX.into()),
        "int32" => (i32::MIN.into(), i32::MAX.into()),
        // Numbers in TOML have 64 bits with a sign.
        "uint" | "uint64" => (0, i64::MAX.into()),
        _ => (i64::MIN.into(), i64::MAX.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A colour.
    #[derive(JsonSchema, serde::Serialize, serde::Deserialize, Default)]
    #[serde(rename_all = "snake_case")]
    enum Colour {
        /// Red.
        #[default]
        Red,
        /// Dark blue.
        DarkBlue,
    }

    #[derive(JsonSchema, serde::Serialize, serde::Deserialize, Default)]
    #[serde(default)]
    struct Example {
        /// How long it
        /// waits.
        wait_seconds: u32,
        /// Room.
        room_bytes_max: usize,
        /// Colour of it.
        colour: Colour,
        /// A key.
        #[serde(skip_serializing)]
        key: Option<String>,
        parts: Vec<String>,
        ratio: f64,
        on: bool,
    }

    #[test]
    fn a_type_describes_its_settings() {
        let all = describe::<Example>();
        let kinds: Vec<_> = all.iter().map(|one| (one.name.as_str(), &one.kind)).collect();
        let integer = |max, unit| Kind::Integer { min: 0, max, unit: Some(unit) };
        assert_eq!(
            kinds,
            [
                ("wait_seconds", &integer(u32::MAX.into(), Unit::Seconds)),
                ("room_bytes_max", &integer(i64::MAX.into(), Unit::Bytes)),
                ("colour", &Kind::Choice(vec!["red".into(), "dark_blue".into()])),
                ("key", &Kind::Text),
                ("parts", &Kind::List),
                ("ratio", &Kind::Number),
                ("on", &Kind::Boolean),
            ]
        );
        assert_eq!((all[0].meaning.as_str(), &all[0].default), ("How long it waits.", &Value::from(0)));
        assert_eq!((all[2].meaning.as_str(), &all[2].default), ("Colour of it.", &Value::from("red")));
        assert_eq!(all.iter().filter(|one| one.is_secret).map(|one| one.name.as_str()).collect::<Vec<_>>(), ["key"]);
    }
}
